"""Reads training rows and says exactly which are broken. Torch-free: it runs before any model is loaded.

One file has one format, told by its first row: JSONL of `messages`, `prompt`/`completion` or `text`; or CSV, with a
column mapping unless its columns already bear those names. Every row is checked; the first five offenders are shown.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slmkit.data.rows import ROLES, SHOWN, Form, Row, Rows, of
from slmkit.errors import DataError, Problem
from slmkit.steps._step import Columns, Given

CHAT_SUFFIX, CSV_SUFFIX = (".jsonl", ".ndjson"), (".csv", ".tsv")


def read(given: Given) -> Rows:
    """Read a dataset input. Raises DataError with the first broken rows and the count of all."""
    path = _file(Path(given.path))
    name = _shown(path)
    problems: list[Problem] = []
    records = _csv(path, name, given.columns, problems) if path.suffix in CSV_SUFFIX else _jsonl(path, name, problems)
    rows, form = _convert(records, name, given.columns, problems)
    if problems:
        raise DataError(problems[:SHOWN], _summary(problems, len(rows)))
    if not rows:
        raise DataError([Problem("the file holds no rows", name, 1, 1, mend="each line is one JSON object")])
    return of(name, form, rows)


def _summary(problems: list[Problem], good: int) -> str:
    n = len(problems)
    more = f"; the first {SHOWN} are shown" if n > SHOWN else ""
    return f"{n} broken row{'s' if n != 1 else ''}, {good} good{more}"


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(p for p in path.iterdir() if p.suffix in CHAT_SUFFIX + CSV_SUFFIX)
    for name in ("train.jsonl", "data.jsonl", "train.csv"):
        if path / name in found:
            return path / name
    if len(found) == 1:
        return found[0]
    held = ", ".join(p.name for p in found) or "none"
    raise DataError([Problem(f"no one data file in this folder (found: {held})", str(path), mend="name the file")])


def _shown(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _jsonl(path: Path, name: str, problems: list[Problem]) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            try:
                text = raw.decode("utf-8")
                yield number, json.loads(text, parse_constant=_no_constant)
            except UnicodeDecodeError as e:
                problems.append(Problem(f"not UTF-8: {e.reason} (byte {e.start + 1} of the line)", name, number, e.start + 1))
            except json.JSONDecodeError as e:
                whole = "; the file looks like one JSON array: write one object per line" if number == 1 and text.strip() == "[" else ""
                problems.append(Problem(f"not JSON: {e.msg}{whole}", name, number, e.colno, *_excerpt(text)))
            except (ValueError, RecursionError) as e:
                problems.append(Problem(f"not JSON: {e}", name, number, 1))


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _excerpt(text: str) -> tuple[str]:
    """The line for display, when it is short enough to be of use."""
    return (text.rstrip("\r\n"),) if len(text) <= 120 else ("",)


def _csv(path: Path, name: str, columns: Columns | None, problems: list[Problem]) -> Iterator[tuple[int, Any]]:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        problems.append(Problem(f"not UTF-8: {e.reason}", name, line, e.start - raw.rfind(b"\n", 0, e.start)))
        return
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            if not cells:
                pass
            elif header is None:
                header = cells
                if len(set(header)) < len(header):
                    raise DataError([Problem("two columns have the same name", name, 1, 1, *_excerpt(",".join(header)))])
                _check_columns(name, header, columns)
            elif len(cells) != len(header):
                problems.append(Problem(f"{len(cells)} cells, the header has {len(header)}", name, start, 1))
            else:
                yield start, dict(zip(header, cells, strict=True))
            start = reader.line_num + 1
    except csv.Error as e:
        problems.append(Problem(f"not CSV: {e}", name, start, 1))


def _check_columns(name: str, header: list[str], columns: Columns | None) -> None:
    have = f"the columns are {', '.join(header)}"
    if columns is None:
        if not ({"prompt", "completion"} <= set(header) or "text" in header):
            mend = f"{have}; map them: `data: {{path: {Path(name).name}, user: COLUMN, assistant: COLUMN}}`"
            raise DataError([Problem("this CSV needs a column mapping", name, 1, 1, mend=mend)])
        return
    missing = [c for c in (columns.user, columns.assistant, columns.text) if c is not None and c not in header]
    if missing:
        raise DataError([Problem(f"no column `{c}`", name, 1, 1, mend=have) for c in missing])


def _convert(records: Iterator, name: str, columns: Columns | None, problems: list[Problem]) -> tuple[list[Row], Form]:
    if columns is not None and (columns.text is None) == (columns.user is None and columns.assistant is None):
        raise DataError([Problem("a column mapping names `user` and `assistant`, or `text` alone", name, mend="see `slmkit train --help`")])
    rows: list[Row] = []
    form: Form | None = None
    for line, record in records:
        fault, row = None, None
        if not isinstance(record, dict):
            fault = f"a row is an object, this is {_kind(record)}"
        else:
            if columns is not None:
                record, fault = _mapped(record, columns)
            if fault is None:
                form = form or _form(record)
                fault, row = (_NO_FORM.format(", ".join(map(str, record)) or "nothing"), None) if form is None else _row(form, record, line)
        if fault:
            problems.append(Problem(fault, name, line))
        else:
            rows.append(row)
    return rows, form or "text"


_NO_FORM = "no `messages`, no `prompt` and `completion`, no `text` (found: {}); a column mapping can name the fields"


def _mapped(record: dict, columns: Columns) -> tuple[dict, str | None]:
    wanted = [c for c in (columns.user, columns.assistant, columns.text) if c is not None]
    for column in wanted:
        if column not in record:
            return {}, f"no field `{column}` (found: {', '.join(map(str, record))})"
        if not isinstance(record[column], str):
            return {}, f"`{column}` should be a string, this is {_kind(record[column])}"
    if columns.text is not None:
        return {"text": record[columns.text]}, None
    if columns.user is None or columns.assistant is None:
        return {}, "the mapping needs both `user` and `assistant`"
    system = [{"role": "system", "content": columns.system}] if columns.system is not None else []
    user = {"role": "user", "content": record[columns.user]}
    return {"messages": [*system, user, {"role": "assistant", "content": record[columns.assistant]}]}, None


def _form(record: dict) -> Form | None:
    if "messages" in record:
        return "messages"
    if "prompt" in record and "completion" in record:
        return "completion"
    return "text" if "text" in record else None


def _row(form: Form, record: dict, line: int) -> tuple[str | None, Row | None]:
    if form == "messages":
        if "messages" not in record:
            return "no `messages`, which the rows before it have", None
        fault = _messages(record["messages"])
        return fault, None if fault else Row(line, messages=tuple(dict(m) for m in record["messages"]))
    keys = ("prompt", "completion") if form == "completion" else ("text",)
    for key in keys:
        if key not in record:
            return f"no `{key}`, which the rows before it have", None
        if not isinstance(record[key], str):
            return f"`{key}` should be a string, this is {_kind(record[key])}", None
    if not record[keys[-1]].strip():
        return f"`{keys[-1]}` is empty", None
    return None, Row(line, **{key: record[key] for key in keys})


def _messages(messages: Any) -> str | None:
    """What is wrong with a `messages` value, or None."""
    if not isinstance(messages, list) or not messages:
        return f"`messages` should be a list of messages, this is {_kind(messages)}"
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, dict):
            return f"{where} should be an object, this is {_kind(message)}"
        for key in ("role", "content"):
            if key not in message:
                return f"{where} has no `{key}` (found: {', '.join(map(str, message)) or 'nothing'})"
            if not isinstance(message[key], str):
                return f"{where}.{key} should be a string, this is {_kind(message[key])}"
        if message["role"] not in ROLES:
            return f"{where}.role is `{message['role']}`; roles are {', '.join(ROLES)}"
        if unread := [k for k in message if k not in ("role", "content") and message[k] is not None]:
            return f"{where} has `{unread[0]}`, which nothing here reads: it would be lost"
        if message["role"] == "assistant" and not message["content"].strip():
            return f"{where}.content is empty: there is no answer to learn"
    if not any(m["role"] == "assistant" for m in messages):
        return "no assistant message: there is no answer to learn"
    return None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    if value in ([], {}, ""):
        return "empty"
    return names.get(type(value), "null")
