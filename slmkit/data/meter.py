"""What one rendering of a template may use up, counted and not timed: the same template and the same row end the same way on every machine.

Three counts: turns of loops; work, which is a step for everything that is evaluated and a unit for every character that is looked at; and what
is made on the way, in characters. Whatever works on a value weighs it first, so that a list that holds a list twice, forty times over, is found out
by its weight and not by writing it down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

MOST_TURNS = 100_000  # of all loops: Jinja's own bound on `range`, which loops in loops would pass
MOST_CHARACTERS = 4_000_000  # of a rendering, and of any one text: about the longest context there is
MOST_MADE = 16_000_000  # characters of all texts that are made on the way; 64 MB where each takes four bytes
MOST_WORK = 50_000_000  # about a second
MOST_DEEP = 50  # macros that call each other
STEP, CALL, CELL = 100, 500, 50  # work of a thing evaluated, of a call; weight of an entry of a list, beside what it holds
VIEWS = (type({}.keys()), type({}.values()), type({}.items()))
HOLDS = (dict, list, tuple, set, frozenset, *VIEWS)
BITS = 2**14  # of a number that is calculated with: four times what a row can hold


class Meter:
    """The counts of one rendering. Whatever passes a bound raises jinja2.sandbox.SecurityError."""

    def __init__(self) -> None:
        self.turns = self.work = self.made = self.depth = 0

    def step(self, work: int = STEP) -> None:
        self.work += work
        if self.work > MOST_WORK:
            raise refused("it takes too much work: its loops, filters and comparisons read too much, too often")

    def make(self, size: int) -> None:
        """So many characters are made, or are about to be; an entry of a list counts as some."""
        if size > MOST_CHARACTERS:
            raise refused(f"it makes too long a text or list: more than {MOST_CHARACTERS:,} characters")
        self.made += size
        if self.made > MOST_MADE:
            raise refused(f"it makes more than {MOST_MADE:,} characters of text on the way")
        self.step(size)

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MOST_DEEP:
            raise refused(f"its macros call each other more than {MOST_DEEP} deep")

    def weigh(self, *values: Any) -> int:
        """Characters and entries of values, whatever they hold; the work of looking at them is counted."""
        before, left = self.work, list(values)
        while left:
            value = left.pop()
            if isinstance(value, str | bytes):
                self.step(len(value) + 1)
            elif isinstance(value, dict):
                self.step(CELL * (1 + len(value)))
                left.extend(value.keys())
                left.extend(value.values())
            elif isinstance(value, HOLDS):
                self.step(CELL * (1 + len(value)))
                left.extend(value)
            elif isinstance(value, range):
                self.step(CELL * (1 + len(value)))
            else:
                self.step(CELL + (value.bit_length() // 4 if isinstance(value, int) else 0))
        return self.work - before

    def counted(self, values: Iterable[Any], work: int = STEP) -> Iterator[Any]:
        for value in values:
            self.step(work)
            yield value

    def turned(self, values: Iterable[Any], work: int) -> Iterator[Any]:
        """The same for a loop."""
        for value in self.counted(values, work):
            self.turns += 1
            if self.turns > MOST_TURNS:
                raise refused(f"its loops take more than {MOST_TURNS:,} turns")
            yield value

    def listed(self, values: Iterable[Any]) -> list:
        """All of them, counted: half a million at most, in all lists together."""
        return list(self.counted(values))

    def text(self, value: Any) -> str:
        """`str(value)`, weighed before it is written."""
        if isinstance(value, str):
            self.step(len(value) + STEP)
            return value
        if isinstance(value, HOLDS):
            return self.written(value, str)
        self.step()
        if callable(value) and not is_undefined(value) or hasattr(value, "__next__"):
            kind = "a function; call it with `()`" if callable(value) else "a series, not yet gone through; `| list` or `| join` does it"
            raise refused(f"what it writes is no text but {kind}")
        return str(value)

    def written(self, value: Any, write: Callable[[Any], str]) -> str:
        """What a function writes of a value that may hold others."""
        if self.weigh(value) > 2 * MOST_CHARACTERS:
            raise refused(f"it makes too long a text or list: more than {MOST_CHARACTERS:,} characters")
        text = write(value)
        self.make(len(text))
        return text


def is_undefined(value: Any) -> bool:
    from jinja2 import Undefined

    return isinstance(value, Undefined)


def refused(what: str) -> Exception:
    from jinja2.sandbox import SecurityError

    return SecurityError(what)
