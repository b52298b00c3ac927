"""What can be wrong with data, and the tally of it: every broken row is counted, the first five are kept to be shown.

A row's fault can be skipped (`on_bad_row: skip`); a file's fault cannot: what follows a cut or garbled place is unknown.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from slmkit.data.rows import SHOWN
from slmkit.errors import DataError, Problem


class Bad(Exception):
    """One row cannot be used: the sentence begins with the field."""


@dataclass(frozen=True, slots=True)
class Record:
    """One value of a file. number: Row.line. line: its place in a text file, 0 where there are no lines. size: bytes it came from."""

    number: int
    value: Any
    size: int = 0
    line: int = 0

    @property
    def begins(self) -> int:
        """Row.begins."""
        return 0 if self.line == self.number else self.line or -1


@dataclass(frozen=True, slots=True)
class Fault:
    """What could not be read. fatal: the rest of the file cannot be trusted, or there is none."""

    what: str
    number: int = 0
    line: int = 0
    column: int = 0
    source: str = ""
    mend: str | None = None
    fatal: bool = False


@dataclass
class Tally:
    """Good rows counted, broken ones counted by reason, the first five of these kept. skip: broken rows are dropped, not errors.

    most: broken rows after which nothing more is read; None reads on.
    """

    skip: bool = False
    most: int | None = None
    good: int = 0
    broken: int = 0
    fatal: bool = False
    shown: list[Problem] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, fault: Fault, name: str) -> None:
        self.fatal = self.fatal or fault.fatal
        if not fault.fatal:
            self.broken += 1
            self.reasons[reason(fault.what)] += 1
        if len(self.shown) < SHOWN or fault.fatal:
            self.shown.append(problem(fault, name))

    def check(self) -> None:
        """Raise DataError when the rows cannot be used."""
        if self.fatal or (self.broken and not self.skip):
            raise DataError(self.shown, self._summary() if self.broken else "")
        if self.broken and not self.good:
            raise DataError(self.shown, self._summary() + "; `on_bad_row: skip` left nothing")

    def _summary(self) -> str:
        more = f"; the first {SHOWN} are shown" if self.broken > SHOWN else ""
        return f"{self.broken} broken row{'s' if self.broken != 1 else ''}, {self.good} good{more}"


def problem(fault: Fault, name: str) -> Problem:
    """A fault with its place. Where the row's number is not its line, the sentence begins with the number."""
    what = fault.what if fault.number in (0, fault.line) else f"row {fault.number}: {fault.what}"
    return Problem(what, name, fault.line, fault.column if fault.line else 0, fault.source, mend=fault.mend)


def of_row(what: str, one: Any, name: str, mend: str | None = None) -> Problem:
    """What is wrong with a row that could be read (or with what was made of it), told as a fault of reading is."""
    return problem(Fault(what, one.line, one.line if not one.begins else max(one.begins, 0), mend=mend), one.file or name)


def broken_file(name: str, what: str, mend: str | None = None) -> DataError:
    return DataError([Problem(what, name, mend=mend)])


def reason(what: str) -> str:
    """A fault without what differs from row to row, so that rows of one kind are counted together."""
    return re.sub(r"\d+", "N", re.sub(r" \(.*?\)", "", what.split("; ")[0]))[:100]


def kind(value: Any) -> str:
    """A value in words: `a list`, `empty`, …"""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number", type(None): "null"}
    if isinstance(value, list | dict | str) and not value:
        return "empty"
    return names.get(type(value), f"of type {type(value).__name__}")
