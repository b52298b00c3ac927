"""JSON as data wants it: no NaN, no key twice in one object, and arrays of any length in flat memory.

An array (or values one after another) is read through a window of text that moves along the file and holds one value at
most. A value that does not end in the window is tried again with twice as much text; an error that lies well before the
window's end is a real one, since what is cut shows at the end.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from slmkit.data.faults import Fault, Record

CHUNK = 1 << 18
TAIL = 16  # characters: no token that is cut is reported further from the end (an unterminated string is, and has its own word)
_SPACE = re.compile(r"[ \t\r\n]*")


class Decoder:
    """json's decoder that notes faults of one row (NaN, a key twice) instead of losing the place of what follows."""

    def __init__(self) -> None:
        self.fault: str | None = None
        self._json = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            self.fault = f"the key `{next(k for k in keys if keys.count(k) > 1)}` stands twice in one object"
        return found

    def _constant(self, word: str) -> None:
        self.fault = f"not JSON: {word} is no JSON"

    def one(self, text: str, start: int = 0) -> tuple[Any, int]:
        """The value that begins at `start`, and its end. Raises ValueError (JSONDecodeError, an endless number), RecursionError."""
        self.fault = None
        return self._json.raw_decode(text, start)

    def whole(self, text: str) -> Any:
        """The one value that a line holds."""
        start = _SPACE.match(text).end()
        value, end = self.one(text, start)
        rest = _SPACE.match(text, end).end()
        if rest < len(text):
            raise json.JSONDecodeError("Extra data", text, rest)
        return value


class _Window:
    """A stretch of the file's text. `pos` is where reading stands; `line` and `column` are those of `mark`, somewhere before it."""

    def __init__(self, file: BinaryIO):
        self.file, self.text, self.pos, self.end = file, "", 0, False
        self.mark, self.line, self.column = 0, 1, 1
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode

    def fill(self) -> bool:
        """Drop what was read and add as much again as is held. False at the end of the file. Raises UnicodeDecodeError."""
        if self.end:
            return False
        self.here()
        self.text, self.pos, self.mark = self.text[self.pos :], 0, 0
        raw = self.file.read(max(CHUNK, len(self.text)))
        self.end = not raw
        self.text += self._decode(raw, final=self.end)
        return not self.end

    def here(self) -> tuple[int, int]:
        """(line, column) of where reading stands. The mark moves there, so that no line is counted twice."""
        self.line, self.column = self.place(self.pos)
        self.mark = self.pos
        return self.line, self.column

    def place(self, pos: int) -> tuple[int, int]:
        """(line, column) of a position at or after the mark."""
        newlines = self.text.count("\n", self.mark, pos)
        return self.line + newlines, pos - self.text.rfind("\n", 0, pos) if newlines else self.column + pos - self.mark

    def next(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            self.pos = _SPACE.match(self.text, self.pos).end()
            if self.pos < len(self.text):
                return self.text[self.pos]
            if not self.fill() and self.pos >= len(self.text):
                return ""

    def value(self, decoder: Decoder) -> tuple[Any, int]:
        """The value that begins here, and its length."""
        while True:
            try:
                value, end = decoder.one(self.text, self.pos)
            except json.JSONDecodeError as e:
                if self.end or (e.pos < len(self.text) - TAIL and not e.msg.startswith("Unterminated")):
                    raise
            else:
                if self.end or not isinstance(value, int | float) or end < len(self.text) - TAIL:  # a number may go on: `0` of `0.`
                    size, self.pos = end - self.pos, end
                    return value, size
            self.fill()


def array(file: BinaryIO) -> Iterator[Record | Fault]:
    """The elements of one JSON array."""
    window = _Window(file)
    yield from _guarded(window, _elements(window))


def values(file: BinaryIO) -> Iterator[Record | Fault]:
    """JSON values one after another, each over as many lines as it likes."""
    window = _Window(file)
    yield from _guarded(window, _loose(window))


def _guarded(window: _Window, found: Iterator[Record | Fault]) -> Iterator[Record | Fault]:
    """Whatever ends the reading, as a fault of the file with its place."""
    try:
        yield from found
    except json.JSONDecodeError as e:
        line, column = window.place(e.pos)
        mend = "an array is one text: what follows this place cannot be read either; mend it, or write one object per line (JSONL)"
        what = "the file ends in the middle of a row: it was cut" if window.end and e.pos >= len(window.text.rstrip()) else f"not JSON: {e.msg}"
        yield Fault(what, 0, line, column, _excerpt(window.text, e.pos, column), mend, fatal=True)
    except UnicodeDecodeError as e:
        line = window.line + window.text.count("\n", window.mark) + e.object[: e.start].count(b"\n")
        yield Fault(f"not UTF-8: {e.reason}", 0, line, 0, mend="write the file as UTF-8: `iconv -f LATIN1 -t UTF-8 FILE`", fatal=True)
    except (ValueError, RecursionError) as e:
        yield Fault(f"not JSON: {e}", 0, window.here()[0], fatal=True)


def _excerpt(text: str, pos: int, column: int) -> str:
    start, end = text.rfind("\n", 0, pos) + 1, text.find("\n", pos)
    line = text[start : end if end >= 0 else len(text)]
    return line if len(line) <= 120 and column <= len(line) + 1 else ""


def _elements(window: _Window) -> Iterator[Record | Fault]:
    window.next()
    window.pos += 1  # the bracket, which told that this is an array
    decoder, number, after = Decoder(), 0, "["
    while True:
        here = window.next()
        line, column = window.here()
        if here == "]" and after != ",":
            break
        if not here:
            yield Fault("the array is not closed: the file was cut", 0, line, mend="write the file anew", fatal=True)
            return
        if after == "value":
            if here != ",":
                yield Fault(f"between two rows stands a comma, this is {here!r}", 0, line, column, fatal=True)
                return
            after, window.pos = ",", window.pos + 1
            continue
        number, after = number + 1, "value"
        yield _one(window, decoder, number, line)
    window.pos += 1
    if window.next():
        line, column = window.here()
        yield Fault("after the array's end there is more", 0, line, column, mend="one array per file; or one object per line (JSONL)", fatal=True)


def _loose(window: _Window) -> Iterator[Record | Fault]:
    decoder, number = Decoder(), 0
    while window.next():
        number += 1
        yield _one(window, decoder, number, window.here()[0])


def _one(window: _Window, decoder: Decoder, number: int, line: int) -> Record | Fault:
    value, size = window.value(decoder)
    return Fault(decoder.fault, number, line) if decoder.fault else Record(number, value, size, line)
