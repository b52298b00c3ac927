"""What a dataset is like by its first rows, for `plan`: how many rows there are, and how long. Reads a megabyte or two, whatever the size."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

from slmkit.data import containers, read
from slmkit.data.rows import Row
from slmkit.errors import DataError
from slmkit.steps._step import Columns

MOST = 2000  # rows that are read
BYTES = 2 << 20  # of source after which reading ends
MARKUP = 5  # tokens that a template puts around a message, about


@dataclass(frozen=True)
class Glance:
    """rows: of all files, by the bytes that those read took where not all were. texts: of each row that was read, what it says; answers: how much of
    it, in characters, an assistant wrote. turns: messages a row."""

    rows: int
    texts: tuple[str, ...]
    answers: tuple[int, ...]
    turns: float


def at(path: Path, matched: tuple[Path, ...] | None, columns: Columns | None) -> Glance | None:
    """None where nothing can be told: no rows, a broken file. To say what is wrong is the step's, and `slmkit data`'s."""
    try:
        rows, whole, files = read.first(path, matched, columns, lambda count, size: count == MOST or size >= BYTES)
        if not rows:
            return None
        said = [_said(row) for row, _ in rows]
        texts, answers = tuple(text for text, _ in said), tuple(answer for _, answer in said)
        turns = sum(len(row.messages) + len(row.chosen) + len(row.rejected) for row, _ in rows) / len(rows)
        count = len(rows) if whole else _count(files, len(rows), sum(size for _, size in rows), texts)
        return Glance(count, texts, answers, turns)
    except (DataError, OSError, ValueError):
        return None


def _count(files: list[Path], seen: int, taken: int, texts: tuple[str, ...]) -> int:
    """About how many rows the files hold: Parquet says it; of others by their size, packed ones by how far such text can be packed."""
    each, total = taken / seen, 0.0
    for file in files:
        kind = containers.suffix(file)
        if kind == ".parquet":
            import pyarrow.parquet

            total += pyarrow.parquet.read_metadata(file).num_rows
            continue
        size = file.stat().st_size
        if file.suffix.lower() in containers.PACKED:
            text = "\n".join(texts).encode("utf-8", "surrogatepass")
            size *= len(text) / max(1, len(zlib.compress(text)))
        total += size / each
    return max(seen, round(total))


def _said(row: Row) -> tuple[str, int]:
    """(all texts of a row, the characters of those that an assistant wrote: of a plain text all)."""
    given, answers = [row.prompt], [row.completion, row.text]
    for message in (*row.messages, *row.chosen, *row.rejected):
        part = answers if message["role"] == "assistant" else given
        part += [message.get("content") or "", message.get("reasoning_content") or ""]
        if message.get("tool_calls"):
            part.append(json.dumps(message["tool_calls"], ensure_ascii=False))
    if row.tools:
        given.append(json.dumps(row.tools, ensure_ascii=False))
    return "\n".join(s for s in given + answers if s), sum(map(len, answers))
