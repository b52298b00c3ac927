"""A judge: a model that says how good answers are, by a rubric. What it is told, and what is read out of its reply.

Alone (`score`), an answer gets points on a scale. In a group (`scores`) all answers to one prompt are seen at once and get points
relative to each other, which a model does better (https://arxiv.org/abs/2306.05685; the idea of RULER): they are shown in a drawn order, under
numbers, and read back by number. A reply that lacks one of them, has one twice, or leaves the scale is no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slmkit.teach import draws, replies
from slmkit.teach.replies import Unreadable
from slmkit.teach.templates import Template

TRIALS = 2  # a verdict that cannot be read is asked for once more, in another order
NUMBER, SCORE, REASON = ("id", "number", "answer"), ("score", "rating", "points"), ("reason", "explanation", "rationale")
RUBRIC = "How correct, complete and helpful the answer is for what was asked, and how well it keeps to the instructions."


@dataclass(frozen=True)
class Scale:
    """Points from `least` to `most`, both among them."""

    least: float = 1
    most: float = 10

    def holds(self, value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and self.least <= value <= self.most


@dataclass(frozen=True)
class Verdict:
    score: float
    reason: str


def ask_score(template: Template, place: str, known: dict[str, Any], answer: str, rubric: str, scale: Scale) -> list[dict]:
    """The messages that ask for one answer's score. known: what templates see of the prompt (`prompt`, `messages`, …)."""
    return template.messages(place, **known, answer=answer, rubric=rubric, least=scale.least, most=scale.most)


def ask_scores(
    template: Template, place: str, known: dict[str, Any], answers: Sequence[str], order: Sequence[int], rubric: str, scale: Scale
) -> list[dict]:  # fmt: skip
    """The messages that ask for the scores of a group. order: answers by their place in what the judge sees, see `shuffled`."""
    shown = [{"id": place, "text": answers[which]} for place, which in enumerate(order, 1)]
    return template.messages(place, **known, answers=shown, rubric=rubric, least=scale.least, most=scale.most)


def shuffled(count: int, *words: object) -> list[int]:
    """The order in which answers are shown, drawn by the words (seed, prompt, trial): a judge likes what it sees first."""
    return draws.order(draws.by("judge", *words), count)


def score(reply: str, scale: Scale) -> Verdict:
    """Read `{"score": 7, "reason": "…"}`. Raises Unreadable."""
    found = replies.value(reply)
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if not isinstance(found, dict):
        raise Unreadable("the judge's reply is no JSON object")
    return Verdict(_points(found, scale), str(_field(found, REASON) or ""))


def scores(reply: str, order: Sequence[int], scale: Scale) -> list[Verdict]:
    """Read `[{"id": 1, "score": 7, "reason": "…"}, …]`, one for each answer, back into the answers' own order. Raises Unreadable."""
    listed, fault = replies.items(reply)
    if fault:
        raise Unreadable(fault)
    found: dict[int, Verdict] = {}
    for entry in listed:
        if not isinstance(entry, dict):
            raise Unreadable("an entry of the judge's list is no object")
        number = _whole(_field(entry, NUMBER))
        if number is None or not 1 <= number <= len(order):
            raise Unreadable("the judge names an answer that it was not shown")
        if number in found:
            raise Unreadable("the judge scores one answer twice")
        found[number] = Verdict(_points(entry, scale), str(_field(entry, REASON) or ""))
    if len(found) != len(order):
        raise Unreadable(f"the judge scores {len(found)} of {len(order)} answers")
    out: list[Verdict | None] = [None] * len(order)
    for place, which in enumerate(order, 1):
        out[which] = found[place]
    return out


def _points(found: dict, scale: Scale) -> float:
    value = _field(found, SCORE)
    if isinstance(value, str):
        try:
            value = float(value.strip().partition("/")[0])
        except ValueError:
            raise Unreadable("the judge's score is no number") from None
    if value is None:
        raise Unreadable("the judge's reply has no score")
    if not scale.holds(value):
        raise Unreadable(f"the judge's score leaves the scale from {scale.least:g} to {scale.most:g}")
    return value


def _field(found: dict, names: tuple[str, ...]) -> Any:
    return next((found[n] for n in names if n in found), None)


def _whole(value: Any) -> int | None:
    if isinstance(value, str) and value.strip().lstrip("#").isdecimal():
        return int(value.strip().lstrip("#"))
    return value if isinstance(value, int) and not isinstance(value, bool) else None
