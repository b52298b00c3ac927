"""Draws by name: the same words give the same draw on every machine and in every Python, since requests are known by what they hold.

Only `Random.random` keeps its sequence from one Python to the next (its documentation says so); all here is made of it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def by(*words: object) -> random.Random:
    """A generator that these words alone decide."""
    return random.Random("/".join(map(str, words)))


def below(generator: random.Random, count: int) -> int:
    return int(generator.random() * count)


def one(generator: random.Random, of: Sequence[T]) -> T | None:
    return of[below(generator, len(of))] if of else None


def some(generator: random.Random, of: Sequence[T], count: int) -> list[T]:
    """`count` of them, none twice, in a drawn order; all where there are fewer. Costs no more than `count`."""
    moved: dict[int, int] = {}
    out = []
    for i in range(min(count, len(of))):  # Fisher-Yates, remembering only what was moved
        j = i + below(generator, len(of) - i)
        out.append(of[moved.get(j, j)])
        moved[j] = moved.get(i, i)
    return out


def order(generator: random.Random, count: int) -> list[int]:
    """0 … count - 1, shuffled."""
    return some(generator, range(count), count)
