"""Reads training rows and says exactly which are broken. Torch-free: it runs before any model is loaded.

Every row of every file is checked once. Small data then stays in memory; large data is read from disk again for each pass,
so that memory does not grow with it. Several sources become one by their weights (see `mixture`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from slmkit.data import containers, files, formats, mixture, telling
from slmkit.data.faults import Bad, Fault, Record, Tally, broken_file, kind
from slmkit.data.rows import Form, Row, Rows
from slmkit.data.tables import Cells
from slmkit.errors import DataError
from slmkit.steps._step import READ_BY_FORMAT, Columns, Given

T = TypeVar("T")
HEAD = 100  # rows by which a format is told
HELD = 64 << 20  # bytes of source text; as Python objects they take about three times as much


def read(given: Given | tuple[Given, ...], *, on_bad_row: str = "error", seed: int = 0, held: int = HELD) -> Rows:
    """Read a dataset input, or a mixture of several. Raises DataError with the first broken rows and the count of all.

    on_bad_row: `skip` drops broken rows and counts them in `Rows.dropped`. seed: of what a weight draws.
    """
    several = given if isinstance(given, tuple) else (given,)
    parts = [(_source(one, on_bad_row == "skip", held), one.columns.weight if one.columns else 1.0) for one in several]
    return mixture.of(parts, seed)


def train_and_held_out(data: tuple[Given, ...], validation: Given | None, config: Any) -> tuple[Rows, Rows | None]:
    """The rows to learn from and those whose loss is measured: a source of their own, or a share of the data."""
    rows = read(data, on_bad_row=config.on_bad_row, seed=config.seed)
    if validation is not None:
        return rows, read(validation, on_bad_row=config.on_bad_row, seed=config.seed)
    return mixture.hold_out(rows, config.validation, config.seed) if isinstance(config.validation, float) else (rows, None)


def _source(given: Given, skip: bool, held: int) -> Rows:
    place = shown(Path(given.path))
    split = given.columns.split if given.columns else None
    source = _Source(files.of(Path(given.path), given.files, split, place), given.columns)
    if not source.files:
        raise broken_file(place, "no files here", "a glob that matches nothing, or a folder that is empty")
    name = shown(source.files[0]) if len(source.files) == 1 else place
    source, (tally, kept, size) = _understood(source, lambda s: _all(s, skip, held))
    tally.check()
    if columns_unmet := source.never:
        raise broken_file(name, columns_unmet, "remove the key, or name the field as the rows do")
    if not tally.good:
        raise DataError(broken_file(name, "the file holds no rows", "each line is one JSON object").problems)
    open_, rows = source.again, tuple(kept)
    if size <= held:
        open_ = rows.__iter__
    return Rows(name, source.form, tally.good, open_, source.format, dict(tally.reasons))


def _understood(source: _Source, read_: Callable[[_Source], T]) -> tuple[_Source, T]:
    """What is read of a source; anew, when a later row shows that the first was taken for the wrong form."""
    while True:
        try:
            return source, read_(source)
        except telling.Otherwise as e:
            source = _Source(source.files, source.columns, source.known | {e.how})


def _all(source: _Source, skip: bool, held: int) -> tuple[Tally, list[Row], int]:
    """Every row checked once: the tally, the rows if their bytes are no more than `held`, and their bytes."""
    tally, kept, size = Tally(skip), [], 0
    for row, bytes_ in source.rows(tally):
        size += bytes_
        if size <= held:
            kept.append(row)
        elif kept:
            kept = []
    return tally, kept, size


def shown(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def tallied(paths: list[Path], tally: Tally, made: Callable[[Record, str], T | Fault]) -> Iterator[T]:
    """What `made(record, name of its file)` makes of the records of all files. Faults go to the tally; after a fatal one nothing follows."""
    for path in paths:
        name = shown(path)  # once: it takes longer than all else about a row
        for record in containers.records(path):
            one = made(record, name) if isinstance(record, Record) else record
            if isinstance(one, Fault):
                tally.add(one, name)
                if one.fatal or tally.broken == tally.most:
                    return
            else:
                tally.good += 1
                yield one


@dataclass
class _Source:
    """Files of one source with its mapping; format and form once the first row has told them. known: what later rows showed in an earlier pass."""

    files: list[Path]
    columns: Columns | None
    known: frozenset[str] = frozenset()
    format: str = ""
    form: Form = "messages"
    convert: Callable[[dict], dict[str, Any]] | None = None
    tools_seen: bool = False
    unsure: bool = False
    alike: Callable[[dict], None] = lambda _: None  # raises Bad for a later row that is of another form than the first

    @property
    def never(self) -> str | None:
        """A mapped column that no row had."""
        unseen = self.columns is not None and self.columns.tools is not None and not self.tools_seen
        return f"`tools: {self.columns.tools}` is mapped, and no row has that field" if unseen else None

    def again(self) -> Iterator[Row]:
        """Another pass. What was broken the first time is left out."""
        return (row for row, _ in self.rows(Tally(skip=True)))

    def rows(self, tally: Tally) -> Iterator[tuple[Row, int]]:
        """Good rows with their size; faults go to the tally."""
        return tallied(self.files, tally, self._row)


    def _row(self, record: Record, name: str) -> tuple[Row, int] | Fault:
        try:
            value = self._mapped(record.value)
            if self.convert is None:
                self._detect(value)
            self.alike(value)
            return Row(record.number, file=name, begins=record.begins, **self.convert(value)), record.size
        except Bad as e:
            fault = Fault(str(e), record.number, record.line)
            if self.convert is None and isinstance(record.value, Cells):  # every row of a table has the same fields
                return replace(fault, fatal=True, number=0, line=1, mend=_cells_mend(record.value, name))
            return fault

    def _mapped(self, value: Any) -> dict:
        """The record with its mapped columns under the names that its format has for them. Raises Bad."""
        if not isinstance(value, dict):
            raise Bad(f"a row is an object, this is {kind(value)}")
        if self.columns is None or not self.columns.named:
            return value
        out = type(value)(value)
        for part, column in self.columns.named.items():
            if column in value:
                out[part] = value[column]
                self.tools_seen = self.tools_seen or part == "tools"
            elif part != "tools" or isinstance(value, Cells):  # rows of JSON without tools leave the key out
                raise Bad(f"no field `{column}` (found: {', '.join(map(str, value)) or 'nothing'})")
        return out

    def _detect(self, value: dict) -> None:
        columns = self.columns or Columns(path="")
        named = set(columns.named) | ({"system"} if columns.system is not None else set())
        wanted = columns.rows_format
        known = self.known if not columns.named or columns.label else self.known | {telling.NO_VERDICTS}  # a mapping would have named the label
        format_, form = telling.named(wanted, value, known) if wanted else telling.detect(_only(value, set(columns.named)), known)
        reads = READ_BY_FORMAT[format_]
        if not named <= reads:
            unread = sorted(named - reads)[0]
            raise Bad(f"`{unread}` is mapped, and rows of format {format_} read {', '.join(sorted(reads)) or 'no mapping'}")
        self.convert = formats.converter(format_, form, columns.system)
        self.format, self.form = format_, form
        if not wanted and not columns.named:
            self.unsure = telling.unsure(value, form)
            self.alike = telling.alike(value, format_, form, known)


def _only(value: dict, named: set[str]) -> dict:
    """A record without the fields by which formats are told that do not read what is mapped."""
    meant = {f for f, reads in READ_BY_FORMAT.items() if named <= reads}
    kept = named.union(*(telling.FIELDS.get(f, set()) for f in meant))
    return type(value)({k: v for k, v in value.items() if k in kept or k not in telling.ALL_FIELDS})


def _cells_mend(cells: Cells, name: str) -> str:
    return f"the columns are {', '.join(cells)}; map them: `data: {{path: {Path(name).name}, user: COLUMN, assistant: COLUMN}}`"


def format_of(path: Path, matched: tuple[Path, ...] | None, columns: Columns | None) -> str | None:
    """The format of a dataset by the head of its first file, for `plan`; None when it cannot be told."""
    split = columns.split if columns else None
    try:
        found = files.of(path, matched, split, str(path))
        source, _ = _understood(_Source(found[:1], columns), _some)
    except (DataError, OSError, ValueError):
        return None
    natural = {"completion": "completion", "text": "text", "preference": "preference", "label": "label"}.get(source.format, "messages")
    if source.convert is None:
        return None
    return source.format if source.form == natural or source.format == "completion" else f"{source.format} {source.form}"


def first(
    path: Path, matched: tuple[Path, ...] | None, columns: Columns | None, enough: Callable[[int, int], bool]
) -> tuple[list[tuple[Row, int]], bool, list[Path]]:  # fmt: skip
    """(the rows from the start with their sizes, whether these are all, the files), until `enough(rows, bytes)`: broken ones are passed over.
    Raises DataError for no files."""
    found = files.of(path, matched, columns.split if columns else None, str(path))

    def some(source: _Source) -> tuple[list[tuple[Row, int]], bool]:
        kept, taken = [], 0
        for row, size in source.rows(Tally(skip=True, most=HEAD)):
            kept.append((row, size))
            taken += size
            if enough(len(kept), taken):
                return kept, False
        return kept, True

    _, (kept, whole) = _understood(_Source(found, columns), some)
    return kept, whole, found


def _some(source: _Source) -> None:
    """Read until the format is told: one row, or, where it was a 0 or 1 that told a label, the head."""
    for number, _ in enumerate(source.rows(Tally(skip=True, most=HEAD)), 1):
        if number == HEAD or not source.unsure:
            return
