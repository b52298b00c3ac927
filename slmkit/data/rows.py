"""What training data is once it has been read: rows of one form, whatever file they came from.

`Rows` can be gone through again and again and holds no more than it must: large sources are read from disk each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

SHOWN = 5
"""So many offenders are shown; all are counted."""
ROLES = ("system", "developer", "user", "assistant", "tool")
Form = Literal["messages", "completion", "text", "preference", "label"]
"""messages: a conversation. completion: prompt + completion, plain strings. text. preference: a conversation with a chosen and
a rejected continuation. label: a conversation with one continuation that is good or bad (KTO)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One example at `line` of `file`: the line of JSONL or CSV, the record's number (from 1) in other containers.

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
