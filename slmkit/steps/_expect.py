"""Bounds on scores: `MODEL.TASK.METRIC ± … : ">= 0.9"`. A tiny language with no eval in it.

An expression is terms and numbers joined by ` + ` and ` - ` (with spaces, since names may hold a hyphen); a bound is one
comparison with a number.
"""

from __future__ import annotations

import math
import operator
import re
from dataclasses import dataclass

from slmkit.errors import UsageError
from slmkit.steps._step import Check

COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\Z")
_TERM = re.compile(r"[A-Za-z0-9_][\w.:/-]*\.[\w:/-]+(\.[\w:/@-]+)+\Z")
_BOUND = re.compile(r"\s*(>=|<=|==|>|<)\s*(\S+)\s*\Z")
FORM = "write MODEL.TASK.METRIC, or sums and differences of them with spaces around + and -"


@dataclass(frozen=True)
class Expectation:
    """`terms`: (sign, name or number). `text` and `bound` as they were written."""

    text: str
    bound: str
    terms: tuple[tuple[int, str | float], ...]
    compare: str
    limit: float


def parse(text: str, bound: str) -> Expectation:
    """Parse one entry of `expect`. Raises ValueError that says which part is wrong."""
    match = _BOUND.match(bound)
    if not match or not _NUMBER.match(match[2]):
        raise ValueError(f'`{bound}` is no bound for `{text}`; write a comparison and a number, such as ">= 0.9"')
    words = text.split()
    if not words:
        raise ValueError(f"an empty expression; {FORM}")
    terms, sign = [], 1
    for i, word in enumerate(words):
        if i % 2:
            if word not in ("+", "-"):
                raise ValueError(f"`{word}` in `{text}` should be + or -; {FORM}")
            sign = 1 if word == "+" else -1
        elif _NUMBER.match(word):
            terms.append((sign, float(word)))
        elif _TERM.match(word):
            terms.append((sign, word))
        else:
            raise ValueError(f"`{word}` in `{text}` is no score; {FORM}")
    if len(words) % 2 == 0:
        raise ValueError(f"`{text}` ends in an operator; {FORM}")
    if not any(isinstance(t, str) for _, t in terms):
        raise ValueError(f"`{text}` names no score; {FORM}")
    return Expectation(text, bound, tuple(terms), match[1], float(match[2]))


def check_names(expected: list[Expectation], models: list[str], tasks: list[str] | None = None) -> None:
    """Raises UsageError for a model (and, when they are known, a task) that is not there."""
    for expectation in expected:
        for _, term in expectation.terms:
            if isinstance(term, float):
                continue
            model = _model_of(term, models)
            if model is None:
                what = f"`expect` names a model that is not scored here: `{term}`"
                raise UsageError(what, mend=f"the models are {', '.join(models)}")
            rest = term[len(model) + 1 :]
            if tasks is not None and not any(rest.startswith(t + ".") for t in tasks):
                raise UsageError(f"`expect` names an unknown task: `{term}`", mend=f"the tasks are {', '.join(tasks)}")


def _model_of(term: str, models: list[str]) -> str | None:
    """The longest model name that the term starts with (names may hold dots)."""
    return max((m for m in models if term.startswith(m + ".")), key=len, default=None)


def check(expectation: Expectation, scores: dict) -> Check:
    """Hold one expectation against `{model: {task: {metric: value}}}`. A score that is not there is a failed check."""
    total, parts = 0.0, []
    for sign, term in expectation.terms:
        value = term if isinstance(term, float) else _look_up(term, scores)
        if isinstance(value, str):
            return Check(expectation.text, False, value)
        total += sign * value
        parts.append(f"{term} = {value:.6g}")
    # A difference of two scores such as 0.9 - 0.88 carries noise of the last binary digit.
    total = round(total, 12)
    ok = not math.isnan(total) and COMPARE[expectation.compare](total, expectation.limit)
    shown = "; ".join(parts)
    return Check(expectation.text, ok, f"{total:.6g} {'is' if ok else 'is not'} {expectation.bound.strip()} ({shown})")


def _look_up(term: str, scores: dict) -> float | str:
    model = _model_of(term, list(scores))
    for task, metrics in scores[model].items():
        if term.startswith(f"{model}.{task}."):
            metric = term[len(model) + len(task) + 2 :]
            if isinstance(metrics.get(metric), int | float):
                return float(metrics[metric])
            known = ", ".join(k for k, v in metrics.items() if isinstance(v, int | float))
            return f"{task} has no metric `{metric}`; it has {known}"
    return f"no task of `{term}` was scored; {model} has {', '.join(scores[model])}"
