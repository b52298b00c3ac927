"""Judges by a known rule, for tests.support.teacher: functions of a request's body and the number of the call.

The rule reads what the template `rank` shows: `<answer id="1">` … and the reference. Answers are the better the more of their characters are
small letters, or are right or wrong where a reference is shown.
"""

from __future__ import annotations

import json
import random
import re

from tests.support import minds

SHOWN = re.compile(r'<answer id="(\d+)">\n(.*?)\n</answer>', re.DOTALL)
REFERENCE = re.compile(r"<reference>\n(.*?)\n</reference>", re.DOTALL)
FLIPPED = 0.2


def quality(text: str) -> float:
    """0 to 1."""
    return sum("a" <= c <= "z" for c in text) / max(1, len(text))


def _points(body: dict) -> dict[int, float]:
    said = body["messages"][-1]["content"]
    right = REFERENCE.search(said)
    return {int(i): 10.0 * (quality(t) if right is None else t.strip() == right[1].strip()) for i, t in SHOWN.findall(said)}


def _reply(points: dict[int, float]) -> dict:
    return minds.said(json.dumps([{"id": i, "reason": "by the rule", "score": round(p, 3)} for i, p in points.items()]))


def fair(body: dict, number: int) -> dict:
    return _reply(_points(body))


def flips(body: dict, number: int) -> dict:
    """A fifth of the replies is upside down, drawn by the number of the call."""
    points = _points(body)
    turned = random.Random(number * 7919).random() < FLIPPED
    return _reply({i: 10 - p for i, p in points.items()} if turned else points)


def likes_the_first(body: dict, number: int) -> dict:
    return _reply({i: 10.0 - i for i in _points(body)})


def short_at_first(body: dict, number: int) -> dict:
    """The first reply leaves an answer out, the later ones are whole."""
    points = _points(body)
    return _reply(dict(list(points.items())[:-1]) if number == 1 else points)


def tires(body: dict, number: int) -> dict:
    """Fair in its first three replies, and then never again."""
    return fair(body, number) if number <= 3 else garbled(body, number)


def garbled(body: dict, number: int) -> dict:
    return minds.said("They are all good in their own way.")
