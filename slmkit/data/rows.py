"""What training data is once it has been read: rows of one form, whatever file they came from.

`Rows` can be gone through again and again and holds no more than it must: large sources are read from disk each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

SHOWN = 5
"""So many offenders are shown; all are counted."""
ROLES = ("system", "developer", "user", "assistant", "tool")
Form = Literal["messages", "completion", "text", "preference", "label"]
"""messages: a conversation. completion: prompt + completion, plain strings. text. preference: a conversation with a chosen and
a rejected continuation. label: a conversation with one continuation that is good or bad (KTO)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One example of `file`. line: the line of JSONL or CSV, the record's number (from 1) in other containers. begins: the line on which it
    begins where that is another one (a JSON array), -1 where there are no lines (Parquet). again: given another time by its source's weight.

    messages: {role, content, …}; an assistant's may have `reasoning_content` (str) and `tool_calls` (OpenAI's list, `arguments`
    an object); a tool's may have `name`, `tool_call_id`. tools: JSON Schemas of the functions on offer. chosen, rejected:
    assistant messages that continue `messages`. label: whether `chosen` is good.
    """

    line: int
    messages: tuple[dict, ...] = ()
    prompt: str = ""
    completion: str = ""
    text: str = ""
    tools: tuple[dict, ...] = ()
    chosen: tuple[dict, ...] = ()
    rejected: tuple[dict, ...] = ()
    label: bool | None = None
    file: str = ""
    begins: int = 0
    again: bool = False

    def place(self, name: str) -> str:
        """Where it stands, for people. name: of the rows, where they came from no file."""
        return place(self.file or name, self.line, self.begins)


def place(file: str, number: int, begins: int) -> str:
    """`file:line`; with the row's number where that is another, and the number alone where there are no lines."""
    where = file if begins < 0 else f"{file}:{begins or number}"
    return f"{where} (row {number})" if begins else where


@dataclass
class Noted:
    """Rows, or what was made of them, to which something happened: how many, and the first, which are shown."""

    count: int = 0
    first: list[Any] = field(default_factory=list)

    def add(self, one: Any) -> None:
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(one)

    def shown(self, name: str) -> list[str]:
        return list(dict.fromkeys(one.place(name) for one in self.first))


@dataclass(frozen=True)
class Rows:
    """All rows of a dataset, of one form. name: as shown to people. format: how the files wrote them (`messages`, `alpaca`, …).

    open: starts a new pass over the rows. dropped: broken rows left out by `on_bad_row: skip`, by reason. drawn: held out of the training rows.
    """

    name: str
    form: Form
    count: int
    open: Callable[[], Iterator[Row]]
    format: str = ""
    dropped: dict[str, int] = field(default_factory=dict)
    drawn: bool = False

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Row]:
        return self.open()


def of(name: str, form: Form, rows: list[Row], format: str = "") -> Rows:
    """Rows that lie in memory."""
    held = tuple(rows)
    return Rows(name, form, len(held), lambda: iter(held), format or form)
