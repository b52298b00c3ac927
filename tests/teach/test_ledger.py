"""The ledger: what is in it survives a kill, a torn end and a second writer; what was changed is found; spent money is counted once."""

from __future__ import annotations

import json

import pytest

from slmkit.errors import StoreError
from slmkit.teach.budget import Budget, Limits, Prices
from slmkit.teach.ledger import Ledger, file_of, identity, records
from slmkit.teach.request import Answer, Request


def request(text: str, sample: int = 0) -> Request:
    return Request({"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 10}, sample)


def answer(text: str) -> Answer:
    return Answer({"role": "assistant", "content": text}, "stop", {"input": 5, "output": 3, "cached": 0}, {"model": "m-1"})


def filled(path, *texts: str, account: str = "a") -> Ledger:
    book = Ledger(path, account)
    for text in texts:
        book.add(request(text), answer(f"to {text}"), 0.5)
    return book


def test_what_was_added_is_found_by_another_reader(tmp_path):
    book = filled(tmp_path / "l.jsonl", "a", "bß\n\u2028", "c")
    other = Ledger(tmp_path / "l.jsonl")
    for text in ("a", "bß\n\u2028", "c"):
        assert book.find(request(text)) == other.find(request(text)) == answer(f"to {text}")
    assert request("a", 1) not in other and request("d") not in other
    book.add(request("d"), answer("late"), None)
    other.refresh()
    assert other.find(request("d")).text == "late"


@pytest.mark.parametrize("cut", [1, 7, 60, 300])
def test_a_torn_last_record_is_dropped_and_written_over(tmp_path, cut):
    path = tmp_path / "l.jsonl"
    filled(path, "a", "b").close()
    path.write_bytes(path.read_bytes()[:-cut])
    book = Ledger(path, "a")
    assert request("a") in book and request("b") not in book
    book.add(request("b"), answer("again"), None)
    book.close()
    again = Ledger(path)
    assert len(again) == 2 and again.find(request("b")).text == "again"


@pytest.mark.parametrize("line", [0, 1])
def test_a_changed_record_is_found_with_its_line(tmp_path, line):
    path = tmp_path / "l.jsonl"
    filled(path, "a", "b", "c").close()
    lines = path.read_text().splitlines()
    lines[line] = lines[line].replace('"to ', '"tO ')
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(StoreError, match=f"line {line + 1} was changed"):
        Ledger(path)


def test_a_record_changed_after_opening_is_found_when_it_is_read(tmp_path):
    path = tmp_path / "l.jsonl"
    book = filled(path, "a")
    path.write_bytes(path.read_bytes().replace(b"to a", b"to b"))
    with pytest.raises(StoreError, match="changed"):
        book.find(request("a"))


def test_two_writers_do_not_spoil_each_other(tmp_path):
    path = tmp_path / "l.jsonl"
    one, two = Ledger(path, "x"), Ledger(path, "y")
    for i in range(50):
        (one if i % 2 else two).add(request(str(i)), answer(str(i)), None)
    both = Ledger(path)
    assert all(both.find(request(str(i))).text == str(i) for i in range(50))
    assert one.find(request("49")) and not one.find(request("48"))
    one.refresh()
    assert one.find(request("48")).text == "48"


def test_the_key_is_of_what_could_change_the_answer():
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5}
    turned = dict(reversed(body.items()))
    assert Request(body).key == Request(turned).key
    others = [Request(body, 1), Request(body | {"max_tokens": 6}), Request(body | {"model": "n"}), Request(body | {"temperature": 0})]
    assert len({Request(body).key, *(r.key for r in others)}) == 5


def test_a_ledger_is_of_a_teacher_not_of_a_port(tmp_path):
    assert identity("http://127.0.0.1:1/v1/", "m") == identity("http://localhost:2/v1", "m")
    names = {file_of(tmp_path, identity(u, m)) for u in ("https://a.com/v1", "https://b.com/v1", "http://localhost/v1") for m in ("x", "y")}
    assert len(names) == 6
    assert "secret" not in identity("https://user:secret@a.com/v1", "m")


def test_an_account_counts_its_own_once_and_what_a_kill_left_open(tmp_path):
    path = tmp_path / "l.jsonl"
    filled(path, "a", "b", account="other").close()
    book = Ledger(path, "mine")
    for text in ("c", "d", "e", "f"):
        book.hold(request(text), 100, 1.0)
    book.add(request("c"), answer("c"), 0.5)
    book.lose(request("d"), "slow", 100, 1.0)
    book.free(request("e"))
    book.close()
    budget = Budget(Limits(tokens=1000), Prices(1, 1), Ledger(path, "mine").spent)
    assert (budget.spent.requests, budget.spent.tokens, budget.spent.usd) == (1, 8, 0.5)
    assert (budget.spent.lost_requests, budget.spent.lost_tokens) == (2, 200)  # d, and f which was in flight


def test_no_line_of_an_answer_is_taken_for_an_event(tmp_path):
    path = tmp_path / "l.jsonl"
    book = Ledger(path, "a")
    book.add(request('"lost":"x","held":'), answer('","for":"a","lost":"y"'), None)
    assert request('"lost":"x","held":') in Ledger(path)
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_request_sent_again_after_a_kill_was_paid_for_twice(tmp_path):
    path = tmp_path / "l.jsonl"
    for _ in range(2):  # two runs that were killed with the same request in flight
        book = Ledger(path, "mine")
        book.hold(request("a"), 100, 1.0)
        book.close()
    book = Ledger(path, "mine")
    assert Budget(Limits(tokens=1000), Prices(1, 1), book.spent).spent.lost_tokens == 200
    book.hold(request("a"), 100, 1.0)
    book.add(request("a"), answer("a"), 0.5)
    book.close()
    spent = Budget(Limits(tokens=1000), Prices(1, 1), Ledger(path, "mine").spent).spent
    assert (spent.requests, spent.tokens, spent.lost_requests, spent.lost_tokens, spent.lost_usd) == (1, 8, 2, 200, 2.0)


def test_what_was_paid_before_there_were_prices_counts_in_dollars(tmp_path):
    path = tmp_path / "l.jsonl"
    book = Ledger(path, "mine")
    book.add(request("a"), answer("a"), None)
    book.lose(request("b"), "slow", 100, None)
    book.close()
    spent = Budget(Limits(usd=1), Prices(1, 10), Ledger(path, "mine").spent).spent
    assert spent.usd == pytest.approx(80e-6) and spent.lost_usd == pytest.approx(1000e-6)


@pytest.mark.parametrize("cut", [3, 50, 200])
def test_a_record_torn_by_another_process_spoils_no_record_behind_it(tmp_path, cut):
    path = tmp_path / "l.jsonl"
    survivor = filled(path, "a", account="mine")
    whole = path.stat().st_size
    other = filled(path, "b", account="other")
    with path.open("r+b") as f:  # the other was killed within its write, while the survivor went on
        f.truncate(path.stat().st_size - cut)
    assert path.stat().st_size > whole
    survivor.add(request("c"), answer("c"), 0.5)
    survivor.refresh()
    survivor.add(request("d"), answer("d"), 0.5)
    survivor.close(), other.close()
    again = Ledger(path, "mine")
    assert [again.find(request(t)) and again.find(request(t)).text for t in "abcd"] == ["to a", None, "c", "d"]
    assert again.spent[0].requests == 3 and len(list(records(path))) == 3
    path.write_bytes(path.read_bytes().replace(b'"content":"c"', b'"content":"e"'))
    with pytest.raises(StoreError, match="line 2 was changed"):
        Ledger(path)
