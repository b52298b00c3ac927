"""What lm-eval is given of the tasks: YAML files as configs with absolute data paths, built-in names as they are, short forms written out."""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.group import GroupConfig
from lm_eval.tasks._yaml_loader import load_yaml

from slmkit.data import lm_eval_task
from slmkit.errors import UsageError
from slmkit.steps import _tasks
from slmkit.steps._step import Context, Given
from slmkit.steps._task_form import Task

GROUP_FIELDS = {field.name for field in fields(GroupConfig)}
OF_FILE = "slmkit: from a file of its own"
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
    if (ctx.state / WRITTEN).is_dir():  # Python leaves its bytecode where it imports from, and that is no part of an artifact
        shutil.copytree(ctx.state / WRITTEN, ctx.out / WRITTEN, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise UsageError(f"two tasks are called `{twice}`", mend="give each task its own name")
    return found, names


def _document(ctx: Context, task: Given) -> dict:
    warn = lambda what: ctx.log("warning", what=what)  # noqa: E731
    path = lm_eval_task.write(task, ctx.state / WRITTEN, warn) if isinstance(task.columns, Task) else Path(task.path)
    return _loaded(path, str(ctx.state / "datasets"))


def _loaded(path: Path, cache: str) -> dict:
    """A task's config; a group's with the files beside it that define its tasks in it."""
    document = load_yaml(path)
    if isinstance(document.get("task"), list):
        beside = {str(load_yaml(one, resolve_func=False).get("task")): one for one in _tasks.members(path, document) if isinstance(one, Path)}
        listed = document["task"]
        document["task"] = [_loaded(beside[one], cache) | {OF_FILE: True} if isinstance(one, str) and one in beside else one for one in listed]
    _localise(document, path.parent, cache)
    return document


def _localise(document: dict, folder: Path, cache: str) -> None:
    """Make data files absolute (lm-eval takes them from the current folder) and keep the data cache out of the home."""
    if document.get("dataset_path") in _tasks.LOCAL:
        kwargs = dict(document.get("dataset_kwargs") or {})
        kwargs["data_files"] = _absolute(kwargs.get("data_files"), folder)
        document["dataset_kwargs"] = kwargs | {"cache_dir": cache}
    for inner in document["task"] if isinstance(document.get("task"), list) else ():
        if isinstance(inner, dict) and not inner.get(OF_FILE):
            _localise(inner, folder, cache)


def _absolute(value: Any, folder: Path) -> Any:
    if isinstance(value, str):
        return str((folder / value).absolute())
    if isinstance(value, dict):
        return {k: _absolute(v, folder) for k, v in value.items()}
    return [_absolute(v, folder) for v in value or ()]


def fresh(found: list[dict | str]) -> list[dict | str | Group]:
    """For one model: lm-eval takes the configs apart, so each gets its own copy of them."""
    return [s if isinstance(s, str) else _group(s) if isinstance(s.get("task"), list) else _copied(s) for s in found]


def _copied(task: dict) -> dict:
    return task | {"dataset_kwargs": dict(task.get("dataset_kwargs") or {})}


def _group(document: dict) -> Group:
    """lm-eval builds a group from a config wrongly (its own keys end in the tasks); here it is put together. Names as lm-eval's command has them:
    a task written inside its group is GROUP::TASK, one from a file goes by its own."""
    own = {k: v for k, v in document.items() if k in GROUP_FIELDS}
    shared = {k: v for k, v in document.items() if k not in GROUP_FIELDS}
    group = Group.from_config(GroupConfig(**own))
    for task in document["task"]:
        if isinstance(task, str):
            what = f"group `{document['group']}` names `{task}`, which no YAML beside it defines"
            raise UsageError(what, mend="put the task's file beside the group's, or name the whole group of lm-eval in `tasks`")
        if isinstance(task.get("task"), list):
            group.add(_group(task))
            continue
        config = _copied(shared | {k: v for k, v in task.items() if k != OF_FILE})
        group.add(ConfigurableTask(config=config | {"task": task["task"] if task.get(OF_FILE) else f"{document['group']}::{task['task']}"}))
    return group
