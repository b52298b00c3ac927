"""How long an endpoint's silence, or the rest that it asks for, is borne."""

from __future__ import annotations

import time

import pytest

from slmkit.teach.budget import Budget, Limits
from slmkit.teach.calls import Manners, _Dispatcher
from slmkit.teach.desk import Desk
from slmkit.teach.endpoint import Failure, Route
from slmkit.teach.ledger import Ledger


@pytest.mark.parametrize(("means", "after", "flying", "ends"), [
    ("busy", 0.0, 7, False), ("busy", 1.0, 7, False),  # answers may be on their way
    ("busy", 0.0, 1, False), ("busy", 1.0, 1, True), ("busy", 60.0, 7, True), ("busy", None, 1, False),
    ("again", 60.0, 1, False),  # a fault of the server's at one request
])  # fmt: skip
def test_a_rest_is_borne_where_it_is_short_or_answers_may_come(tmp_path, means, after, flying, ends):
    book = Ledger(tmp_path / "book.jsonl")
    one = _Dispatcher(Desk(book, Budget(Limits(), None)), iter(()), Route("http://127.0.0.1:1/v1", None, None, 1), Manners(patience=4))
    one.pace.last_success, one.tasks = time.monotonic() - 3.5, set(range(flying))
    found = one._hopeless(Failure(means, "429: slow down", after))
    assert (found is not None) is ends and (not ends or f"left alone for {after:.0f} s" in found.what)
    book.close()
