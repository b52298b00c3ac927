"""Bounds on scores: `MODEL.TASK.METRIC ± … : ">= 0.9"`. A tiny language with no eval in it.

An expression is terms and numbers joined by ` + ` and ` - ` (with spaces, since names may hold a hyphen); a bound is one
comparison with a number. It is a claim about all the questions there could be, and judged on the interval that those asked leave open
(slmkit/evidence/judge.py); `== 1`, or a bound that ends in `point`, is about the very questions that were asked.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass

from slmkit.errors import UsageError

COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\Z")
_TERM = re.compile(r"[A-Za-z0-9_][\w.:/-]*\.[\w:/-]+(\.[\w:/@-]+)+\Z")
_BOUND = re.compile(r"\s*(>=|<=|==|>|<)\s*(\S+)(\s+point)?\s*\Z")
AGAINST = "against:"
"""Before a model's name: that model in the eval which `slmkit gate --against` names."""
FORM = "write MODEL.TASK.METRIC, or sums and differences of them with spaces around + and -"


@dataclass(frozen=True)
class Expectation:
    """`terms`: (sign, name or number). `text` and `bound` as they were written. `point`: judged on the value, not on the interval."""

    text: str
    bound: str
    terms: tuple[tuple[int, str | float], ...]
    compare: str
    limit: float
    point: bool = False


def parse(text: str, bound: str) -> Expectation:
    """Parse one entry of `expect`. Raises ValueError that says which part is wrong."""
    match = _BOUND.match(bound)
    if not match or not _NUMBER.match(match[2]):
        raise ValueError(f'`{bound}` is no bound for `{text}`; write a comparison and a number, such as ">= 0.9" (or ">= 0.9 point")')
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
    return Expectation(text, bound.strip(), tuple(terms), match[1], float(match[2]), match[1] == "==" or bool(match[3]))


def check_names(expected: list[Expectation], models: list[str], tasks: list[str] | None = None) -> None:
    """Raises UsageError for a model (and, when they are known, a task) that is not there."""
    for expectation in expected:
        for _, term in expectation.terms:
            if isinstance(term, float):
                continue
            owners = [m for m in models if term.startswith(m + ".")]
            if not owners:
                what = f"`expect` names a model that is not scored here: `{term}`"
                raise UsageError(what, mend=f"the models are {', '.join(models)}")
            if tasks is not None and not any(term.startswith(f"{m}.{t}.") for m in owners for t in tasks):
                raise UsageError(f"`expect` names an unknown task: `{term}`", mend=f"the tasks are {', '.join(tasks)}")


def look_up(term: str, scores: dict) -> tuple[str, str, str] | str:
    """(model, task, metric) of a term in `{model: {task: {metric: value}}}`, or why there is none. Names may hold dots: the longest that fit."""
    said = f"no model of `{term}` was scored; there are {', '.join(scores)}"
    for model in sorted((m for m in scores if term.startswith(m + ".")), key=len):
        said = f"no task of `{term}` was scored; {model} has {', '.join(scores[model])}"
    for model in sorted((m for m in scores if term.startswith(m + ".")), key=len, reverse=True):
        for task in sorted((t for t in scores[model] if term.startswith(f"{model}.{t}.")), key=len, reverse=True):
            metric, metrics = term[len(model) + len(task) + 2 :], scores[model][task]
            if isinstance(metrics.get(metric), int | float):
                return model, task, metric
            said = f"{task} has no metric `{metric}`; it has {', '.join(k for k, v in metrics.items() if isinstance(v, int | float))}"
    return said
