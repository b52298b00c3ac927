"""YAML to plain values in which every key and value keeps its place, so that any later error can point at it.

YAML's traps are closed here: `1e-4` is a number, `no` and `on` are strings, a duplicate key is an error, aliases cannot
explode, tags are refused, and the text has a size limit. Values are built from the parser's events, never constructed by tags.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from slmkit.errors import Problem, RecipeError

MAX_BYTES = 1 << 20
MAX_NODES = 20_000  # after aliases are expanded
MAX_DEPTH = 40
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_SPECIAL = {".inf": float("inf"), "+.inf": float("inf"), "-.inf": float("-inf"), ".nan": float("nan")}
_CORE_TAGS = {"!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}
COMMAND_LINE = "command line"  # the file of a recipe that was made of flags
Where = tuple  # a path of keys and indices into the document


@dataclass(frozen=True)
class Mark:
    """A place in a file, counted from 1, with the line it stands in. below: of a step, where its keys stand."""

    file: str
    line: int
    column: int
    width: int = 1
    source: str = ""
    below: Callable[[Where], Mark] | None = field(default=None, compare=False, repr=False)

    def at(self, keys: Where) -> Mark:
        """The place of one of a step's keys, or of the nearest above it that stands in the text."""
        return self.below(keys) if self.below else self

    def place(self, flag: str) -> str:
        """FILE:LINE:COLUMN. flag: what to say where there is no file."""
        return flag if self.file == COMMAND_LINE else f"{self.file}:{self.line}:{self.column}"

    def problem(self, what: str, mend: str | None = None) -> Problem:
        return Problem(what, self.file, self.line, self.column, self.source, self.width, mend)


def path(keys: str) -> Where:
    """A path out of its text, `grpo.rewards.0.judge`."""
    return tuple(int(k) if k.isdigit() else k for k in keys.split("."))


@dataclass
class Document:
    """Plain values (`data`) with the marks of every key and every value by path."""

    file: str
    data: Any = None
    keys: dict[Where, Mark] = field(default_factory=dict)
    values: dict[Where, Mark] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def mark(self, where: Where, key: bool = False) -> Mark:
        """The mark of the key or value at `where`, or of the nearest parent that stands in the text."""
        for end in range(len(where), -1, -1):
            first, second = (self.keys, self.values) if key else (self.values, self.keys)
            found = first.get(where[:end]) or second.get(where[:end])
            if found:
                return found
            key = True
        return Mark(self.file, 1, 1)

    def problem(self, where: Where, what: str, mend: str | None = None, key: bool = False) -> Problem:
        return self.mark(where, key).problem(what, mend)

    def get(self, where: Where) -> Any:
        value = self.data
        for part in where:
            value = value[part]
        return value


def read(path: Path, what: str = "recipe") -> bytes:
    """Its bytes, with clear errors for what cannot be a recipe (or what is called otherwise)."""
    try:
        if path.is_dir():
            raise RecipeError([Problem("this is a folder, a recipe is a YAML file", str(path))])
        raw = path.read_bytes()
    except FileNotFoundError:
        near = [p.name for p in sorted(path.parent.glob("*.y*ml"))[:5]] if path.parent.is_dir() else []
        mend = f"recipes in that folder: {', '.join(near)}" if near else "`slmkit init` writes a recipe to start from"
        raise RecipeError([Problem("no such recipe", str(path), mend=mend)]) from None
    except OSError as e:
        raise RecipeError([Problem(f"cannot read the {what}: {e.strerror}", str(path))]) from None
    if len(raw) > MAX_BYTES:
        raise RecipeError([Problem(f"the {what} is {len(raw):,} bytes, more than {MAX_BYTES:,}", str(path))])
    return raw


def parse(raw: bytes, file: str) -> Document:
    """Parse one YAML document. Raises RecipeError with the place of every fault found."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        before = raw[: e.start]
        line, column = before.count(b"\n") + 1, e.start - (before.rfind(b"\n") + 1) + 1
        raise RecipeError(
            [Problem(f"not UTF-8: byte 0x{raw[e.start]:02x}", file, line, column, mend="save the file as UTF-8")]
        ) from None
    lines = text.splitlines()
    _conflicts(lines, file)
    builder = _Builder(file, lines)
    try:
        return builder.build(text)
    except yaml.reader.ReaderError as e:
        line = text.count("\n", 0, e.position) + 1
        column = e.position - (text.rfind("\n", 0, e.position) + 1) + 1
        bad = Problem(f"character {e.character!r} is not allowed in YAML", file, line, column, mend="remove it")
        raise RecipeError([bad]) from None
    except yaml.MarkedYAMLError as e:
        raise RecipeError([_syntax(e, file, lines)]) from None


def scalar(text: str) -> Any:
    """What a plain (unquoted) scalar means: null, true/false, a number, else the string itself."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if _INT.match(text) and len(text) < 300:
        return int(text)
    if _FLOAT.match(text):
        return float(text)
    return _SPECIAL.get(text.lower(), text)


def _conflicts(lines: list[str], file: str) -> None:
    for number, line in enumerate(lines, 1):
        if re.match(r"(<{7}|>{7})( |$)", line):
            mend = "resolve the merge and remove the marker lines"
            raise RecipeError([Problem("a merge conflict marker", file, number, 1, line, 7, mend)])


def _syntax(e: yaml.MarkedYAMLError, file: str, lines: list[str]) -> Problem:
    opened = e.context_mark and ("flow" in (e.context or "") or "quoted" in (e.context or ""))
    mark = e.context_mark if opened else e.problem_mark or e.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    if line > len(lines):  # the end of the text: point at where the open thing began
        mark = e.context_mark or mark
        line, column = mark.line + 1, mark.column + 1
    source = lines[line - 1] if line <= len(lines) else ""
    what, mend = f"not valid YAML: {e.problem or e.context}", None
    if "\t" in source[: column + 1]:
        what, mend = "a tab used as indentation", "YAML is indented by spaces"
    elif opened:
        until = f" (noticed at line {e.problem_mark.line + 1})" if e.problem_mark else ""
        what, mend = f"opened here and not closed: {e.problem}{until}", "close the bracket or quote"
    elif "mapping values are not allowed" in (e.problem or ""):
        mend = "quote a value that holds `: `, or check the indentation"
    return Problem(what, file, line, column, source.replace("\t", " "), 1, mend)


class _Builder:
    """Builds values from parser events, with marks, limits and duplicate checks."""

    def __init__(self, file: str, lines: list[str]):
        self.doc = Document(file, lines=lines)
        self.lines, self.problems, self.nodes = lines, [], 0
        self.anchors: dict[str, tuple[list, Where]] = {}

    def build(self, text: str) -> Document:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        events = self._events(yaml.parse(text, Loader=loader))
        starts = [e for e in events if isinstance(e, yaml.DocumentStartEvent)]
        if len(starts) > 1:
            self._fault(starts[1], "a second YAML document (`---`)", "a recipe is one document")
        body = [e for e in events if not isinstance(e, (yaml.StreamStartEvent, yaml.StreamEndEvent, yaml.DocumentStartEvent))]
        end = next((i for i, e in enumerate(body) if isinstance(e, yaml.DocumentEndEvent)), len(body))
        self.events, self.at = body[:end], 0
        if self.events:
            self.doc.data = self._node((), 0)
        if self.problems:
            raise RecipeError(self.problems)
        return self.doc

    def _events(self, parser) -> list:
        """All events; nesting is measured as they come, since a parser fed a megabyte of brackets takes minutes."""
        events, depth = [], 0
        for event in parser:
            events.append(event)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                self._fault(event, "nested too deep", "a recipe is small: write the values out")
                raise RecipeError(self.problems)
        return events

    def _mark(self, event) -> Mark:
        start, end = event.start_mark, event.end_mark
        source = self.lines[start.line] if start.line < len(self.lines) else ""
        width = end.column - start.column if end.line == start.line else len(source) - start.column
        return Mark(self.doc.file, start.line + 1, start.column + 1, max(1, width), source)

    def _fault(self, event, what: str, mend: str | None = None) -> None:
        self.problems.append(self._mark(event).problem(what, mend))

    def _node(self, where: Where, depth: int) -> Any:
        event = self.events[self.at]
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            what = f"more than {MAX_NODES:,} values (aliases expanded)" if self.nodes > MAX_NODES else "nested too deep"
            self._fault(event, what, "a recipe is small: write the values out")
            raise RecipeError(self.problems)
        self.at += 1
        self.doc.values.setdefault(where, self._mark(event))
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, where, depth)
        if event.anchor:
            self.anchors[event.anchor] = (self.at - 1, where)
        if event.tag and event.tag not in _CORE_TAGS:
            self._fault(event, f"the tag {event.tag} is not allowed", "write the plain value; recipes run no code")
        if isinstance(event, yaml.ScalarEvent):
            return scalar(event.value) if event.implicit[0] and not event.style else event.value
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(where, depth)
        return self._mapping(where, depth)

    def _alias(self, event, where: Where, depth: int) -> Any:
        if event.anchor not in self.anchors:
            self._fault(event, f"the alias *{event.anchor} has no anchor before it")
            return None
        start, anchored = self.anchors[event.anchor]
        if where[: len(anchored)] == anchored:
            self._fault(event, f"the alias *{event.anchor} contains itself")
            return None
        back, self.at = self.at, start
        try:
            return self._node(where, depth + 1)
        finally:
            self.at = back

    def _sequence(self, where: Where, depth: int) -> list:
        out: list = []
        while not isinstance(self.events[self.at], yaml.SequenceEndEvent):
            out.append(self._node((*where, len(out)), depth + 1))
        self.at += 1
        return out

    def _mapping(self, where: Where, depth: int) -> dict:
        out: dict = {}
        while not isinstance(self.events[self.at], yaml.MappingEndEvent):
            event = self.events[self.at]
            if not isinstance(event, yaml.ScalarEvent):
                self._fault(event, "a key must be a plain word", "write `key: value`")
                raise RecipeError(self.problems)
            self.at += 1
            key, mark = event.value, self._mark(event)
            if key in out:
                first = self.doc.keys[(*where, key)]
                self.problems.append(mark.problem(f"duplicate key `{key}`", f"it is already given at line {first.line}"))
            if key == "<<":
                self.problems.append(mark.problem("merge keys (`<<`) are not supported", "write the keys out"))
            self.doc.keys.setdefault((*where, key), mark)
            out[key] = self._node((*where, key), depth + 1)
        self.at += 1
        return out
