"""How little an eval's questions can see, said by `plan` before anything is spent: for each bound of `expect`, from the tasks' own data files.

The metric is taken to be right-or-wrong (a finer one sees somewhat more), and two models to answer a tenth of the questions differently. What
is not known (a built-in task, a metric that is no share) is left out.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from slmkit.errors import RecipeError
from slmkit.steps import _expect, _tasks
from slmkit.steps._task_form import Task

LARGEST = 1 << 26  # bytes of a JSON array that is read to be counted


def questions(task_file: Path) -> dict[str, int]:
    """Task name → rows of the split that is asked, for those whose local files can be counted. A task's own filter may leave fewer."""
    found: dict[str, int] = {}
    for document in _tasks.documents(task_file):
        name, kwargs = document.get("task"), document.get("dataset_kwargs") or {}
        files = kwargs.get("data_files")
        if isinstance(files, dict):
            files = files.get(document.get("test_split") or document.get("validation_split"))
        counts = [_rows(task_file.parent / f, kwargs.get("field")) for f in _tasks.data_files(files)]
        if isinstance(name, str) and counts and None not in counts:
            found[name] = sum(c for c in counts if c)
    return found


def _rows(file: Path, field: str | None) -> int | None:
    if not file.is_file():
        return None
    if file.suffix in (".csv", ".tsv"):
        with file.open(encoding="utf-8", newline="") as handle:
            return max(0, sum(1 for row in csv.reader(handle) if row) - 1)
    if file.suffix in (".jsonl", ".ndjson") or (file.suffix == ".json" and field is None and file.open("rb").read(1) == b"{"):
        with file.open("rb") as handle:
            return sum(1 for line in handle if line.strip())
    if file.suffix == ".json" and file.stat().st_size <= LARGEST:
        try:
            body = json.loads(file.read_bytes())
        except ValueError:
            return None
        body = body.get(field) if field and isinstance(body, dict) else body
        return len(body) if isinstance(body, list) else None
    return None


def estimate(config: Any, tasks: tuple[Any, ...]) -> dict[str, int | list[str]]:
    """questions, and in `sees` a sentence on each bound, for the eval step's estimate. tasks: sizes, of which the paths are read."""
    if not config.expect and not any(isinstance(task, Task) for task in config.tasks):
        return {}
    counted: dict[str, int] = {}
    for said, one in zip(config.tasks, tasks, strict=False):
        if isinstance(said, Task):
            counted |= _of_form(said, one.path)
        elif one.path is not None:
            try:
                counted |= questions(one.path)
            except RecipeError:
                return {}  # the planner says it, with its place
    if config.limit:
        counted = {task: min(n, config.limit) for task, n in counted.items()}
    sees = [said for text, bound in config.expect.items() if (said := _sees(_expect.parse(text, bound), counted))]
    return ({"questions": sum(counted.values())} if counted else {}) | ({"sees": sees} if sees else {})


def _of_form(task: Task, path: Path | None) -> dict[str, int]:
    """The questions of a short form whose data is one file that can be counted."""
    if path is not None and task.split:
        path = (path if path.is_dir() else path.parent) / f"{task.split}.jsonl"
    count = _rows(path, None) if path is not None else None
    return {task.name: count} if count else {}


def _sees(expectation: _expect.Expectation, counted: dict[str, int]) -> str | None:
    """One sentence on one bound."""
    from slmkit.evidence import power

    named = [(sign, term) for sign, term in expectation.terms if isinstance(term, str)]
    tasks = {_task_of(term, counted) for _, term in named}
    if expectation.point or len(tasks) != 1 or None in tasks:
        return None
    n = counted[tasks.pop() or ""]
    constant = sum(sign * term for sign, term in expectation.terms if isinstance(term, float))
    limit = expectation.limit - constant
    if len(named) == 1 and named[0][0] > 0 and 0 < limit < 1:
        return _of_a_rate(expectation, n, limit)
    if len(named) != 2 or named[0][0] == named[1][0] or n < 1:
        return None
    delta = power.difference(n)
    if delta is None:
        return f"`{expectation.text}`: {n:,} questions show no difference at all"
    said = f"`{expectation.text}`: {n:,} questions see a difference of {100 * delta:.1f} points (4 times in 5, if 10 % are answered differently)"
    margin = -limit if expectation.compare in (">", ">=") else limit
    if 0 < margin < delta and (more := power.questions_for(margin)):
        said += f"; to hold `{expectation.bound}` with nothing lost takes about {more:,}"
    return said


def _of_a_rate(expectation: _expect.Expectation, n: int, limit: float) -> str:
    from slmkit.evidence import power

    above = expectation.compare in (">", ">=")
    rate = power.rate_that_passes(n, limit if above else 1 - limit)
    if rate is None:
        return f"`{expectation.text}`: {n:,} questions cannot show `{expectation.bound}`, even with every answer {'right' if above else 'wrong'}"
    side = f"{100 * rate:.1f} % up" if above else f"{100 * (1 - rate):.1f} % down"
    return f"`{expectation.text}`: {n:,} questions show `{expectation.bound}` 4 times in 5 from {side}"


def _task_of(term: str, counted: dict[str, int]) -> str | None:
    """The task in MODEL.TASK.METRIC, by the tasks that are counted."""
    return max((t for t in counted if f".{t}." in term), key=len, default=None)
