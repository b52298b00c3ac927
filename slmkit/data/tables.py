"""Tables into records: CSV and TSV line by line, Parquet and Arrow some hundred rows at a time.

A table has a column in every row, so a null means that a row has nothing there: null keys inside Arrow's structs are left
out, since a struct holds the keys of all rows together.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from slmkit.data.faults import Fault, Record

ROWS = 256  # at a time
CELL = 1 << 28  # characters; csv's own limit of 128 KiB is less than one long document


class Cells(dict):
    """A record of text cells: an empty one is nothing, a JSON text may stand for a list, `true` for true."""


def delimited(file: BinaryIO, delimiter: str | None) -> Iterator[Record | Fault]:
    """CSV, or TSV with its delimiter given. A record's number is the line on which it begins."""
    csv.field_size_limit(CELL)
    broken: dict[int, UnicodeDecodeError] = {}
    source = _Lines(file, broken)
    reader = csv.reader(source, delimiter=delimiter or source.delimiter(), strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            if not cells:
                pass
            elif header is None:
                header = cells
                if fault := _header(cells, start, broken):
                    yield fault
                    return
            else:
                yield _cells(header, cells, start, broken)
            broken.clear()
            start = reader.line_num + 1
    except csv.Error as e:
        what = "a quoted cell is never closed" if "end of data" in str(e) else str(e)
        mend = 'a quote inside a quoted cell is written twice (""); what follows cannot be told apart'
        yield Fault(f"not CSV: {what}", start, start, mend=mend, fatal=True)


class _Lines:
    """Decoded lines of a file, one ahead. Lines that are no UTF-8 are told in `broken`."""

    def __init__(self, file: BinaryIO, broken: dict[int, UnicodeDecodeError]):
        self.file, self.broken, self.number = file, broken, 0
        self.ahead = next(file, b"").removeprefix(b"\xef\xbb\xbf")

    def delimiter(self) -> str:
        """`;` or a tab where the header holds no comma: spreadsheets write so in much of the world."""
        return next((c for c in ";\t" if b"," not in self.ahead and c.encode() in self.ahead), ",")

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        raw, self.ahead = self.ahead, next(self.file, b"")
        if not raw:
            raise StopIteration
        self.number += 1
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as e:
            self.broken[self.number] = e
            return raw.decode("utf-8", errors="replace")


def _header(cells: list[str], line: int, broken: dict) -> Fault | None:
    if broken:
        return Fault("not UTF-8", line, line, 1, mend="write the file as UTF-8: `iconv -f LATIN1 -t UTF-8 FILE > NEW`", fatal=True)
    twice = next((c for c in cells if cells.count(c) > 1), None)
    if twice is not None:
        shown = ",".join(cells)
        return Fault(f"two columns have the same name: `{twice}`", line, line, 1, shown if len(shown) <= 120 else "", "rename one", fatal=True)
    return None


def _cells(header: list[str], cells: list[str], line: int, broken: dict[int, UnicodeDecodeError]) -> Record | Fault:
    if broken:
        at, e = next(iter(broken.items()))
        mend = "write the file as UTF-8: `iconv -f LATIN1 -t UTF-8 FILE > NEW`"
        return Fault(f"not UTF-8: {e.reason}", at, at, e.start + 1, mend=mend)
    if len(cells) != len(header):
        return Fault(f"{len(cells)} cells, the header has {len(header)}", line, line, 1)
    return Record(line, Cells(zip(header, cells, strict=True)), sum(map(len, cells)), line)


def parquet(path: Path) -> Iterator[Record | Fault]:
    """Rows of a Parquet file, numbered from 1."""
    import pyarrow
    from pyarrow import parquet as pq

    try:
        file = pq.ParquetFile(path)
        yield from _batches(file.schema_arrow.names, file.iter_batches(batch_size=ROWS))
    except (pyarrow.ArrowException, OSError) as e:
        yield _damaged("Parquet", e)


def arrow(path: Path, stream: bool) -> Iterator[Record | Fault]:
    """Rows of an Arrow IPC file or stream (Feather 2, the files of `datasets`), numbered from 1."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as source:
            if stream:
                reader = pyarrow.ipc.open_stream(source)
                yield from _batches(reader.schema.names, reader)
            else:
                reader = pyarrow.ipc.open_file(source)
                yield from _batches(reader.schema.names, (reader.get_batch(i) for i in range(reader.num_record_batches)))
    except (pyarrow.ArrowException, OSError) as e:
        yield _damaged("Arrow", e)


def _damaged(what: str, e: Exception) -> Fault:
    first = (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
    return Fault(f"the {what} file is cut or damaged: {first}", mend="fetch or write it anew", fatal=True)


def _batches(names: list[str], batches: Any) -> Iterator[Record | Fault]:
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        yield Fault(f"two columns have the same name: `{twice}`", mend="rename one", fatal=True)
        return
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS):
            part = batch.slice(start, ROWS)
            try:
                rows = part.to_pylist()
            except ValueError as e:  # strings that are no UTF-8, dates beyond Python's
                yield Fault(f"rows {number + 1} to {number + part.num_rows} cannot be read: {e}", number + 1, fatal=True)
                return
            size = part.nbytes // part.num_rows
            for row in rows:
                number += 1
                yield Record(number, {k: without_nulls(v) for k, v in row.items()}, size)


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value
