"""The questions of an lm-eval task with local data: what its test split asks, read without lm-eval, each with its file and line.

A question comes in several wordings: `doc_to_text` rendered (a column name or a Jinja template, in a sandbox), and each column
that the template uses, since a training row may hold the bare text. Where `doc_to_text` is a Python function, which is not
run here, all text columns joined stand for it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slmkit.data import asked, jsontext, rows, sandbox, sides
from slmkit.data.faults import Record
from slmkit.data.leaks import Asked, Exam
from slmkit.errors import DataError, Problem
from slmkit.steps import _tasks
from slmkit.steps._step import Given
from slmkit.steps._task_form import Task

WORDING = 20  # characters from which a single column can stand for the question: `yes` cannot
READ = ("json", "csv", "text", "parquet")


def exams(tasks: tuple[Given, ...]) -> tuple[list[Exam], list[str]]:
    """The exams of all task files, and the names of tasks whose data is not local and was not looked at."""
    found, unread = [], []
    for given in tasks:
        if isinstance(given.columns, Task):
            found.append(Exam(given.columns.name, [_of_form(q) for q in asked.questions(given)]))
            continue
        for document in _tasks.documents(given.path):
            name = str(document.get("task", given.name))
            if document.get("dataset_path") in READ:
                found.append(Exam(name, list(_asked(Path(given.path), document))))
            else:
                unread.append(name)
    return found, unread


def _of_form(question: asked.Question) -> Asked:
    wordings = [question.user] if question.user is not None else sides.asked(question.messages)
    return Asked(tuple(w for w in map(sides.normal, wordings) if w), sides.normal(question.answer), question.place)


def _asked(yaml: Path, document: dict) -> Iterator[Asked]:
    ask, solve = _wording(document.get("doc_to_text")), _wording(document.get("doc_to_target"))
    for file in _files(yaml, document):
        for number, begins, doc in _docs(file, document):
            wordings = dict.fromkeys(w for w in map(sides.normal, ask(doc)) if w)
            answer = next(iter(solve(doc)), "")
            yield Asked(tuple(wordings), sides.normal(answer), rows.place(_shown(file), number, begins))


def _shown(file: Path) -> str:
    import os

    relative = os.path.relpath(file)
    return str(file) if relative.startswith("..") else relative


def _files(yaml: Path, document: dict) -> list[Path]:
    """The files of the split that lm-eval would score: test, else validation, else all there are."""
    files = (document.get("dataset_kwargs") or {}).get("data_files")
    if isinstance(files, dict):
        split = document.get("test_split") or document.get("validation_split")
        files = files.get(split, files)
    out = []
    for name in _tasks.data_files(files):
        out += sorted(yaml.parent.glob(name)) if set("*?[") & set(name) else [yaml.parent / name]
    return out


def _docs(file: Path, document: dict) -> Iterator[tuple[int, int, dict]]:
    """(number, where it begins: Row.line and Row.begins; the document)"""
    kwargs = document.get("dataset_kwargs") or {}
    try:
        match document["dataset_path"]:
            case "csv":
                yield from ((line, 0, doc) for line, doc in _csv(file, kwargs.get("delimiter") or kwargs.get("sep") or ","))
            case "parquet":
                import pyarrow.parquet as parquet

                records = (r for batch in parquet.ParquetFile(file).iter_batches() for r in batch.to_pylist())
                yield from ((n, -1, doc) for n, doc in enumerate(records, 1))
            case "text":
                with open(file, encoding="utf-8") as lines:
                    yield from ((n, 0, {"text": line.rstrip("\n")}) for n, line in enumerate(lines, 1))
            case _:
                yield from _json(file, kwargs.get("field"))
    except (ValueError, OSError, csv.Error) as e:
        mend = "the eval would fail on it, too; mend the file"
        raise DataError([Problem(f"the task's data cannot be read: {e}", _shown(file), mend=mend)]) from None


def _csv(file: Path, delimiter: str) -> Iterator[tuple[int, dict]]:
    with open(file, encoding="utf-8-sig", newline="") as handle:
        reader = csv.reader(handle, delimiter=delimiter)
        header, start = None, 1
        for cells in reader:
            if header is None:
                header = cells
            elif cells:
                yield start, dict(zip(header, cells, strict=False))
            start = reader.line_num + 1


def _json(file: Path, field: str | None) -> Iterator[tuple[int, int, dict]]:
    with open(file, encoding="utf-8-sig") as handle:
        first = next((line for line in handle if line.strip()), "")
        handle.seek(0)
        if field:
            yield from ((n, -1, d) for n, d in enumerate(json.load(handle)[field], 1) if isinstance(d, dict))
            return
        if first.lstrip().startswith("["):
            yield from _array(file)
            return
        for number, line in enumerate(handle, 1):
            if line.strip():
                doc = json.loads(line.lstrip("\ufeff"))
                if isinstance(doc, dict):
                    yield number, 0, doc


def _array(file: Path) -> Iterator[tuple[int, int, dict]]:
    with open(file, "rb") as handle:
        for record in jsontext.array(handle):
            if not isinstance(record, Record):
                raise ValueError(record.what)
            if isinstance(record.value, dict):
                yield record.number, record.begins, record.value


def _wording(said: Any):
    """A function from a document to the texts that stand for it, the rendered one first."""
    if not isinstance(said, str) or isinstance(said, _tasks.Function):
        return lambda doc: ["\n".join(v for v in doc.values() if isinstance(v, str))]
    from jinja2 import TemplateError, Undefined, meta

    environment = sandbox.environment(undefined=Undefined, trim_blocks=False, lstrip_blocks=False)
    try:
        template, used = sandbox.compiled(environment, said), meta.find_undeclared_variables(environment.parse(said))
    except TemplateError:
        return _wording(None)

    def wordings(doc: dict) -> list[str]:
        if said in doc:
            return [str(doc[said])]
        try:
            rendered = sandbox.render(environment, template, {k: v for k, v in doc.items() if isinstance(k, str)})
        except (TemplateError, *sandbox.FAULTS):  # a helper of lm-eval's that is not here
            return _wording(None)(doc)
        columns = [doc[k] for k in doc if k in used and isinstance(doc[k], str) and len(doc[k]) >= WORDING]
        return [rendered, *columns]

    return wordings
