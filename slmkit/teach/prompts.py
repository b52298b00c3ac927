"""Prompts without answers, from files of any container: what a teacher is asked about, with the row's own answer where it has one.

A row is `messages` (an assistant's turn at the end is its own answer), `prompt` (+ `completion`), `instruction` (+ `input`, `output`,
`history`), `conversations`, or `text`; a mapping names other columns. All its fields stay at hand for templates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmkit.data import files, formats, telling
from slmkit.data.conversation import messages as read_messages
from slmkit.data.conversation import opened
from slmkit.data.conversation import text as read_text
from slmkit.data.conversation import tools as read_tools
from slmkit.data.faults import Bad, Fault, Record, Tally, broken_file, kind
from slmkit.data.read import shown, tallied
from slmkit.steps._step import Columns, Given

KNOWN = "`messages`, `prompt`, `instruction`, `conversations`, `text`"
HELD = 'it holds prompts, such as `{"prompt": "…"}` a line; or name another in `prompts`'
OWN = ("completion", "answer", "output", "label")
"""Columns in which a row beside `prompt` or `text` may have its own answer."""


@dataclass(frozen=True)
class Prompt:
    """One prompt at `file:line`. messages: system and user turns (and earlier answers). reference: the row's own answer, or None.

    fields: the row as it was read. tools: functions on offer.
    """

    file: str
    line: int
    messages: tuple[dict, ...]
    reference: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    tools: tuple[dict, ...] = ()

    @property
    def text(self) -> str:
        """What the last user message says."""
        return next((m.get("content") or "" for m in reversed(self.messages) if m["role"] == "user"), "")

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass
class Prompts:
    """All prompts of the inputs; each pass reads the files anew. dropped: broken rows that were skipped, by reason, once a pass is through."""

    given: tuple[Given, ...]
    skip: bool = False
    dropped: dict[str, int] = field(default_factory=dict)
    count: int = 0

    def __iter__(self) -> Iterator[Prompt]:
        for one in self.given:
            yield from self._of(one, Tally(skip=True))

    def check(self) -> Prompts:
        """Read all once. Raises DataError with the first broken rows and the count of all."""
        tally = Tally(self.skip)
        for one in self.given:
            for _ in self._of(one, tally):
                self.count += 1
        tally.check()
        if not self.count:
            raise broken_file(", ".join(shown(Path(g.path)) for g in self.given), "the file holds no rows", HELD)
        self.dropped = dict(tally.reasons)
        return self

    def broken(self) -> Iterator[tuple[str, str]]:
        """(file:line, what is wrong) of the rows that were skipped; files are named without their folder, as part of what comes out."""
        for one in self.given if self.dropped else ():
            tally = _Listed(skip=True)
            for _ in self._of(one, tally):
                yield from tally.drained()
            yield from tally.drained()

    def _of(self, given: Given, tally: Tally) -> Iterator[Prompt]:
        place = shown(Path(given.path))
        columns = given.columns or Columns(path="")
        found = files.of(Path(given.path), given.files, columns.split, place)
        if not found:
            raise broken_file(place, "no files here", "a glob that matches nothing, or a folder that is empty")
        named = columns.named
        yield from tallied(found, tally, lambda record, name: _prompt(record, name, columns, named))


@dataclass
class _Listed(Tally):
    """A tally that keeps each fault until it is fetched."""

    found: list[tuple[str, str]] = field(default_factory=list)

    def add(self, fault: Fault, name: str) -> None:
        super().add(fault, name)
        self.found.append((f"{name.rpartition('/')[2]}:{fault.line or fault.number}", fault.what))

    def drained(self) -> list[tuple[str, str]]:
        found, self.found = self.found, []
        return found


def _prompt(record: Record, name: str, columns: Columns, named: dict[str, str]) -> Prompt | Fault:
    try:
        if not isinstance(record.value, dict):
            raise Bad(f"a row is an object, this is {kind(record.value)}")
        fields = dict(record.value)
        messages, reference = _read(_mapped(fields, named))
        messages = opened(messages, None if columns.user else fields.get("system"), "messages")
        if not any(m["role"] == "user" and (m.get("content") or "").strip() for m in messages):
            raise Bad("no user message with a text: there is nothing to ask")
        if columns.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": columns.system}, *messages]
        return Prompt(name, record.number, tuple(messages), reference, fields, tuple(_tools(fields, columns)))
    except Bad as e:
        return Fault(str(e), record.number, record.line)


def _mapped(fields: dict, named: dict[str, str]) -> dict:
    if not named:
        return fields
    missing = next((c for part, c in named.items() if c not in fields and part != "tools"), None)
    if missing:
        raise Bad(f"no field `{missing}` (found: {', '.join(map(str, fields)) or 'nothing'})")
    found = {part: fields[column] for part, column in named.items() if column in fields}
    if "user" in found:
        return {"prompt": found["user"], "completion": found["assistant"]}
    return found


def _read(row: dict) -> tuple[list[dict], str | None]:
    """(the conversation up to the last user turn, the row's own answer)."""
    if key := telling.talk(row):
        format_, form = telling.named("sharegpt" if telling.is_sharegpt(row) else "messages", row)
        talk = read_messages(row[key], key) if format_ == "messages" else formats.converter(format_, form, None)(row)["messages"]
        talk = [dict(m) for m in talk]
        reference = (talk.pop().get("content") or "") if talk[-1]["role"] == "assistant" else None
        return talk, reference
    asked = next((row[k] for k in ("prompt", "instruction", "text") if row.get(k) is not None), None)
    if asked is None:
        raise Bad(f"no prompt in this row (found: {', '.join(map(str, row)) or 'nothing'}); known are {KNOWN}; a mapping can name the column")
    if isinstance(asked, list):
        return [dict(m) for m in read_messages(asked, "prompt")], None
    asked = read_text(asked, "the prompt")
    if "instruction" in row and row.get("input"):
        asked += "\n\n" + read_text(row["input"], "`input`")
    own = next((row[k] for k in OWN if isinstance(row.get(k), str) and row[k]), None)
    return [*(formats.earlier(row) if row.get("prompt") is None and "instruction" in row else ()), {"role": "user", "content": asked}], own


def _tools(fields: dict, columns: Columns) -> list[dict]:
    return read_tools(fields.get(columns.tools or "tools"), columns.tools or "tools")
