"""What lm-eval is given of the tasks: YAML files as configs with absolute data paths, built-in names as they are, short forms written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_eval.tasks._yaml_loader import load_yaml

from slmkit.data import lm_eval_task
from slmkit.errors import UsageError
from slmkit.steps import _tasks
from slmkit.steps._step import Context, Given
from slmkit.steps._task_form import Task

WRITTEN = "tasks"
"""The folder, in the eval's artifact, of what short forms stand for."""


def specs(ctx: Context) -> tuple[list[dict | str], list[str]]:
    """(configs for files, names for built-ins; the names of all). Raises UsageError for a name given twice, DataError for rows that do not fit."""
    found: list[dict | str] = []
    names = []
    for task in ctx.inputs["tasks"]:
        if task.path is None:
            found.append(task.name)
            names.append(task.name)
            continue
        document = _document(ctx, task)
        found.append(document)
        names.append(str(document.get("task") or document.get("group")))
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise UsageError(f"two tasks are called `{twice}`", mend="give each task its own name")
    return found, names


def _document(ctx: Context, task: Given) -> dict:
    warn = lambda what: ctx.log("warning", what=what)  # noqa: E731
    path = lm_eval_task.write(task, ctx.out / WRITTEN, warn) if isinstance(task.columns, Task) else Path(task.path)
    document = load_yaml(path)
    _localise(document, path.parent, str(ctx.state / "datasets"))
    return document


def _localise(document: dict, folder: Path, cache: str) -> None:
    """Make data files absolute (lm-eval takes them from the current folder) and keep the data cache out of the home."""
    if document.get("dataset_path") in _tasks.LOCAL:
        kwargs = dict(document.get("dataset_kwargs") or {})
        kwargs["data_files"] = _absolute(kwargs.get("data_files"), folder)
        document["dataset_kwargs"] = kwargs | {"cache_dir": cache}
    for inner in document["task"] if isinstance(document.get("task"), list) else ():
        if isinstance(inner, dict):
            _localise(inner, folder, cache)


def _absolute(value: Any, folder: Path) -> Any:
    if isinstance(value, str):
        return str((folder / value).absolute())
    if isinstance(value, dict):
        return {k: _absolute(v, folder) for k, v in value.items()}
    return [_absolute(v, folder) for v in value or ()]


def fresh(found: list[dict | str]) -> list[dict | str]:
    """lm-eval takes the configs apart: each model gets its own copy of them."""
    return [dict(s) | {"dataset_kwargs": dict(s.get("dataset_kwargs") or {})} if isinstance(s, dict) else s for s in found]
