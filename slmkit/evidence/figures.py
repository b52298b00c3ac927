"""A figure with its interval, or the reason why there is none; and the little arithmetic that keeps all of it together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """value None: not known, or there is none, and `why` says which. low, high: its interval; high None beside a value: without an end."""

    value: float | None
    low: float | None = None
    high: float | None = None
    why: str | None = None

    @property
    def known(self) -> bool:
        return self.value is not None

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"value": self.value, "low": self.low, "high": self.high} | ({"why": self.why} if self.why else {})

    def times(self, factor: float) -> Figure:
        return Figure(*(None if x is None else x * factor for x in (self.value, self.low, self.high)), self.why)

    def plus(self, other: Figure) -> Figure:
        if not self.known or not other.known:
            return Figure(None, why=self.why if not self.known else other.why)
        return Figure(self.value + other.value, self.low + other.low, self.high + other.high)


def exactly(value: float) -> Figure:
    return Figure(value, value, value)


def unknown(why: str) -> Figure:
    return Figure(None, why=why)
