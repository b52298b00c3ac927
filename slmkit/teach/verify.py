"""Checks an answer against the row's own, or by a function of the user's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slmkit.errors import Problem, RecipeError, StepFailed
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
    import importlib.util

    spec = importlib.util.spec_from_file_location("slmkit_verify_code", given.path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as e:  # noqa: BLE001  the user's file may raise anything
        raise RecipeError([Problem(f"{given.path.name} cannot be imported: {type(e).__name__}: {e}", str(given.path))]) from e
    function = getattr(module, "verify", None)
    if not callable(function):
        mend = "write `def verify(messages, answer, reference): return True`"
        raise RecipeError([Problem(f"{given.path.name} has no function `verify`", str(given.path), mend=mend)])

    def check(made: Made) -> str | None:
        try:
            said = function([dict(m) for m in made.messages], made.answer, made.reference)
        except (Exception, SystemExit) as e:  # noqa: BLE001  the user's function may raise anything
            raise StepFailed(f"verify failed on {made.place}: {type(e).__name__}: {e}", where=given.path, mend="the answers are kept") from e
        return None if said else "verify said no"

    return check
