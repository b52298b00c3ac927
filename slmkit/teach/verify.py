"""Checks an answer against the row's own, or by a function of the user's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slmkit.data import usercode
from slmkit.errors import StepFailed
from slmkit.steps._step import Given
from slmkit.teach.job import Made


def of(config: Any, code: Given | None) -> Callable[[Made], str | None] | None:
    """The check of a config: a reason to drop a row, or None. Raises RecipeError when the file lacks its function."""
    name = config.filters.verify
    if name == "python":
        return _python(code)
    if name is None:
        return None
    from slmkit.ml import rewards

    score = rewards.exact_match if name == "exact" else rewards.numeric

    def check(made: Made) -> str | None:
        if made.reference is None:
            return "the row has no answer of its own to compare with"
        return None if score(made.answer, made.reference) else f"not the row's own answer ({name})"

    return check


def _python(given: Given) -> Callable[[Made], str | None]:
    function = usercode.function(given.path, "verify", "the verifier", "def verify(messages, answer, reference): return True")

    def check(made: Made) -> str | None:
        try:
            said = bool(function([dict(m) for m in made.messages], made.answer, made.reference))
        except (Exception, SystemExit) as e:  # noqa: BLE001  the user's function may raise anything
            what, mend = f"`verify` raised {type(e).__name__}: {e} (on {made.place})", "the answers are kept; return False for what it cannot judge"
            if not usercode.line(given.path, e):  # it was not even entered, or what it gave is neither true nor false
                mend = "the answers are kept; it is called as `verify(messages, answer, reference)` and gives True or False"
            raise StepFailed(what, where=usercode.place(given.path, e), mend=mend) from e
        return None if said else "verify said no"

    return check
