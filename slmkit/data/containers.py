"""A file into records, whatever its container: JSON, JSONL, CSV, TSV, Parquet, Arrow; plain, gzip or zstd.

The bytes decide, not the name, wherever they leave no doubt: a JSON array named .jsonl and a gzip file named .json are read
as what they are. What can be told but not read (UTF-16, a zip, a pickle) is an error that names the mend.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from slmkit.data import jsontext, tables
from slmkit.data.faults import Fault, Record

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather")
PACKED = (".gz", ".zst", ".zstd")
HEAD = 1 << 16
TO_UTF8 = "write the file as UTF-8: `iconv -f UTF-16 -t UTF-8 FILE > NEW`"
FOREIGN = (  # what begins so cannot be rows: the name people know it by, and the mend
    (b"PK\x03\x04", "a zip file (or a spreadsheet)", "unpack it, or export the sheet as CSV"),
    (b"BZh", "a bzip2 file", "unpack it: `bunzip2 FILE`"),
    (b"\xfd7zXZ", "an xz file", "unpack it: `unxz FILE`"),
    (b"%PDF", "a PDF", "rows are JSONL, JSON, CSV, TSV, Parquet or Arrow"),
    (b"SQLite format 3", "a SQLite database", "export the table as CSV"),
    (b"\x80\x04", "a pickle, which is never opened: it could run any code", "write the rows as JSONL or Parquet"),
    (b"\x80\x05", "a pickle, which is never opened: it could run any code", "write the rows as JSONL or Parquet"),
    (b"\x93NUMPY", "a NumPy array", "write the rows as JSONL or Parquet"),
)


def suffix(path: Path) -> str:
    """The suffix that names the container, without that of the compression."""
    inner = Path(path.name[: -len(path.suffix)]) if path.suffix.lower() in PACKED else path
    return inner.suffix.lower()


def records(path: Path) -> Iterator[Record | Fault]:
    """All records of a file in order. What cannot be read comes as a Fault; nothing is raised for the file's content."""
    try:
        with path.open("rb") as raw:
            yield from _opened(path, raw)
    except (EOFError, zlib.error) as e:
        yield Fault(f"the compressed file is cut or damaged: {e}", mend="fetch or write it anew", fatal=True)
    except OSError as e:
        yield Fault(f"cannot be read: {e.strerror or e}", fatal=True)


def _opened(path: Path, raw: BinaryIO) -> Iterator[Record | Fault]:
    magic = raw.read(8)
    raw.seek(0)
    if magic[:2] == b"\x1f\x8b":
        yield from _text(path, io.BufferedReader(gzip.GzipFile(fileobj=raw), HEAD))
    elif magic[:4] == b"\x28\xb5\x2f\xfd":
        yield from _text(path, io.BufferedReader(_zstd(raw), HEAD))
    elif magic[:4] == b"PAR1":
        yield from tables.parquet(path)
    elif magic[:6] == b"ARROW1":
        yield from tables.arrow(path, stream=False)
    elif magic[:4] == b"\xff\xff\xff\xff":
        yield from tables.arrow(path, stream=True)
    else:
        yield from _text(path, io.BufferedReader(raw, HEAD))


def _zstd(raw: BinaryIO):
    """pyarrow decompresses zstd, which saves a package."""
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")


def _text(path: Path, file: io.BufferedReader) -> Iterator[Record | Fault]:
    head = file.peek(HEAD)
    if fault := _foreign(path, head):
        yield fault
        return
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    line = _first_json(start)
    if suffix(path) in (".csv", ".tsv") and not isinstance(line, dict | list):
        yield from tables.delimited(file, "\t" if suffix(path) == ".tsv" else None)
    elif start[:1] == b"[":
        yield from jsontext.array(file)
    elif start[:1] == b"{" and line is None and (suffix(path) == ".json" or start.partition(b"\n")[0].strip() == b"{"):
        yield from jsontext.values(file)
    else:
        yield from lines(file)


def _first_json(start: bytes):
    """What the first line holds if it is JSON, else None; a line beyond the head counts as an object."""
    line, newline, _ = start.partition(b"\n")
    if not newline and len(start) >= HEAD - 64 and start[:1] == b"{":
        return {}
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _foreign(path: Path, head: bytes) -> Fault | None:
    for start, what, mend in FOREIGN:
        if head.startswith(start):
            return Fault(f"this is {what}", mend=mend, fatal=True)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or (len(head) >= 8 and head[:200].count(0) * 3 > len(head[:200])):
        return Fault("not UTF-8: this looks like UTF-16", mend=TO_UTF8, fatal=True)
    if suffix(path) in (".parquet", ".arrow", ".feather") and head[:1] not in (b"{", b"["):
        return Fault(f"named {path.suffix}, and its bytes are neither Parquet nor Arrow", mend="fetch or write it anew", fatal=True)
    return None


def lines(file: BinaryIO) -> Iterator[Record | Fault]:
    """JSONL: one value a line, empty lines left out."""
    decoder = jsontext.Decoder()
    for number, raw in enumerate(file, 1):
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if not raw.strip():
            continue
        yield _line(decoder, raw, number)


def _line(decoder: jsontext.Decoder, raw: bytes, number: int) -> Record | Fault:
    try:
        text = raw.decode("utf-8")
        value = decoder.whole(text)
    except UnicodeDecodeError as e:
        mend = "write the file as UTF-8: `iconv -f LATIN1 -t UTF-8 FILE > NEW`"
        return Fault(f"not UTF-8: {e.reason} (byte {e.start + 1} of the line)", number, number, e.start + 1, mend=mend)
    except json.JSONDecodeError as e:
        return Fault(f"not JSON: {e.msg}", number, number, e.colno, text.rstrip("\r\n") if len(text) <= 120 else "")
    except (ValueError, RecursionError) as e:
        return Fault(f"not JSON: {e}", number, number)
    return Fault(decoder.fault, number, number) if decoder.fault else Record(number, value, len(raw), number)
