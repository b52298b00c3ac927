"""What an answer earns: the rewards of grpo, as functions of the prompt, the answer, and the row's own answer (the reference).

They are pure, so that they can be tried alone. Right or wrong is 1 or 0; `length` only takes away.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmkit.data import usercode
from slmkit.errors import Problem, RecipeError, StepFailed

NUMBER = re.compile(r"(?:(?<!\d)-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|-?\.\d+")
MARKED = re.compile(r"####\s*(.+)")


@dataclass(frozen=True)
class Answer:
    """One sampled answer. messages: the prompt; reference: the row's own answer, None if it has none; tokens: of the text; row: FILE:LINE."""

    messages: tuple[dict, ...]
    text: str
    reference: str | None
    tokens: int
    row: str = ""


@dataclass(frozen=True)
class Reward:
    """name: as reported. top: the most that `score` can give, None where nobody knows. needs_reference: of every row.

    judge: the settings of one that compares all answers to a prompt (slmkit.ml.judge); it has no score for an answer alone.
    """

    name: str
    kind: str
    weight: float
    score: Callable[[Answer], float] | None
    top: float | None = 1.0
    needs_reference: bool = False
    judge: Any = None


def build(entries: list, code: Path | None) -> list[Reward]:
    """The rewards of a config. code: the file of `python` rewards. Raises RecipeError when it lacks a function."""
    made: list[Reward] = []
    for entry in entries:
        name, said = next((n, v) for n, v in entry if v is not None)
        label = said.function if name == "python" else name
        count = sum(r.name.rpartition("_")[0] == label or r.name == label for r in made)
        top = {"python": None, "length": 0.0, "judge": None}.get(name, 1.0)
        needs, judge = name in ("exact_match", "numeric"), said if name == "judge" else None
        score = None if judge else _score(name, said, code)
        made.append(Reward(f"{label}_{count + 1}" if count else label, said.kind, said.weight, score, top, needs, judge))
    return made


def _score(name: str, said: Any, code: Path | None) -> Callable[[Answer], float]:
    if name == "exact_match":
        return lambda a: exact_match(a.text, a.reference, strip=said.strip, lower=said.lower)
    if name == "numeric":
        return lambda a: numeric(a.text, a.reference, said.tolerance)
    if name == "regex":
        return lambda a: regex(a.text, said.pattern, said.match)
    if name == "json_schema":
        check_schema(said.json_schema)
        return lambda a: json_schema(a.text, said.json_schema)
    if name == "length":
        return lambda a: length(a.tokens if said.unit == "tokens" else len(a.text), said.min, said.max)
    return python(code, said.function)


def exact_match(text: str, reference: str, *, strip: bool = True, lower: bool = False) -> float:
    def plain(s: str) -> str:
        s = s.strip() if strip else s
        return s.lower() if lower else s

    return float(plain(text) == plain(reference))


def numeric(text: str, reference: str, tolerance: float = 1e-6) -> float:
    """1 when the last number of both is the same within the tolerance, 0 when it is not or one has none."""
    said, wanted = last_number(text), last_number(reference)
    return float(said is not None and wanted is not None and abs(said - wanted) <= tolerance)


def last_number(text: str) -> float | None:
    """The last number of a text; after `####`, where GSM8K puts its answers, if there is such a mark."""
    marked = MARKED.findall(text)
    found = NUMBER.findall(marked[-1] if marked else text) or NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def regex(text: str, pattern: str, match: str = "full") -> float:
    compiled = re.compile(pattern, re.DOTALL)
    return float(bool(compiled.fullmatch(text.strip()) if match == "full" else compiled.search(text)))


def check_schema(schema: dict) -> None:
    """Raise RecipeError for what is no JSON Schema."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as e:
        place = ".".join(str(p) for p in ("json_schema", *e.absolute_path))
        what = f"grpo.rewards: {place} is no JSON Schema: {e.message}"
        raise RecipeError([Problem(what, mend="see https://json-schema.org/understanding-json-schema")]) from None


def json_schema(text: str, schema: dict) -> float:
    """1 for JSON that satisfies the schema. A fence of three backticks around it is no JSON."""
    from jsonschema import Draft202012Validator

    try:
        value = json.loads(text)
    except ValueError:
        return 0.0
    return float(Draft202012Validator(schema).is_valid(value))


def length(size: int, least: int, most: int) -> float:
    """0 from least to most, falling in a straight line to -1 at none and at twice the most (and no further)."""
    if size < least:
        return (size - least) / least
    return max(-1.0, (most - size) / most) if size > most else 0.0


def python(file: Path, function: str) -> Callable[[Answer], float]:
    """A function of the user's file. Raises RecipeError for a file that cannot be run or lacks it; the reward raises StepFailed."""
    mend = f"def {function}(prompt, answer, reference): …`, or name another in `function"
    called = usercode.function(file, function, "the reward code", mend)

    def score(answer: Answer) -> float:
        try:
            value = called([dict(m) for m in answer.messages], answer.text, answer.reference)
        except (Exception, SystemExit) as e:  # noqa: BLE001  the user's code may raise anything, and whose row it was is known here alone
            what = f"the reward `{function}` raised {type(e).__name__}: {e}{_of(answer)}"
            if isinstance(e, TypeError) and not usercode.line(file, e):  # it was not even entered
                mend = f"it is called as `{function}(prompt, answer, reference)`"
                raise StepFailed(what, where=usercode.defined(file, called), mend=mend) from e
            raise StepFailed(what, where=usercode.place(file, e), mend="return 0.0 for answers that it cannot judge") from e
        if isinstance(value, bool | int | float) and math.isfinite(value):
            return float(value)
        said = f"a {type(value).__name__} of {len(value)}" if isinstance(value, list | tuple) else repr(value)
        what = f"the reward `{function}` gave {said} instead of a number{_of(answer)}"
        raise StepFailed(what, where=usercode.defined(file, called), mend="return a finite int or float; it is called once for each answer")

    return score


def _of(answer: Answer) -> str:
    """` on row FILE:LINE, for the answer '…'`."""
    row = f" on row {answer.row}" if answer.row else ""
    return f"{row}, for the answer {answer.text if len(answer.text) <= 60 else answer.text[:59] + '…'!r}"
