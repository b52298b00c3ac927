"""Which files an lm-eval task is made of, found without importing lm-eval.

The identity of a task is its YAML, what that includes, the Python files its `!function` tags name, and its local data.
A dataset on the hub has only its name for an identity, which is said in the docs of eval.
"""

from __future__ import annotations

import re
from pathlib import Path

from slmkit.errors import Problem, RecipeError

LOCAL = ("json", "csv", "text", "parquet", "arrow")
TASK = "an lm-eval task has `task: NAME`, `dataset_path`, `doc_to_text`, …"
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://")


def bare(text: str) -> bool:
    """Is this the name of a built-in task? A word without a scheme, a separator or a YAML suffix."""
    return not set("/:\\") & set(text) and not text.endswith((".yaml", ".yml")) and not text.startswith("$")


def task_files(path: Path) -> list[Path]:
    """All files whose content decides what a task YAML measures, the YAML first. Raises RecipeError with file:line."""
    found: dict[Path, None] = {}
    _collect(Path(path), found, [])
    return list(found)


def index(folder: Path) -> dict[str, Path]:
    """Task or group name → the YAML below a folder that defines it. Files that are no YAML of a task are passed over; of two with one name none is
    found, so that neither is taken by chance."""
    found: dict[str, list[Path]] = {}
    for path in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
        try:
            document, _ = _load(path)
        except RecipeError:
            continue
        for name in (document.get("group"), document.get("task")):
            if isinstance(name, str):
                found.setdefault(name, []).append(path)
                break
    return {name: paths[0] for name, paths in found.items() if len(paths) == 1}


def members(path: Path, document: dict) -> list[dict | Path]:
    """What a group holds: tasks written inline, and files beside it that define the ones it names. What it only names and nothing here defines is
    lm-eval's to know."""
    listed = document.get("task") if isinstance(document.get("task"), list) else []
    named = [one for one in listed if isinstance(one, str)]
    known = index(path.parent) if named else {}
    return [one if isinstance(one, dict) else known[one] for one in listed if isinstance(one, dict) or known.get(one, path) != path]


class Function(str):
    """A `!function module.name` value, as text."""


def documents(path: Path) -> list[dict]:
    """The task with its includes merged in, or the tasks that a group holds inline. Raises RecipeError with file:line."""
    whole = _collect(Path(path), {}, [])
    inner = [[whole | one] if isinstance(one, dict) else documents(one) for one in members(Path(path), whole)]
    return [one for several in inner for one in several] or [whole]


def data_files(value: object) -> list[str]:
    """The paths in a `data_files` value: a string, a list, or a mapping of splits to either."""
    if isinstance(value, str):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [name for item in values for name in data_files(item)]


def _collect(path: Path, found: dict[Path, None], stack: list[Path]) -> dict:
    if path in stack:
        raise _problem(path, "include", "include goes round in a circle")
    found[path] = None
    document, functions = _load(path)
    for name in _as_list(document.get("include")):
        inner = _existing(path, path.parent / name, name, "an included file")
        document = _collect(inner, found, [*stack, path]) | document
    if functions:  # the module may import its neighbours: all Python files of the folder are part of what it computes
        found.update(dict.fromkeys(sorted(path.parent.rglob("*.py"))))
    if not stack:
        if not ({"task", "group"} & set(document)):
            raise RecipeError([Problem("this is no lm-eval task: it has no `task`", str(path), 1, 1, mend=TASK)])
        _data(path, document, found)
        for one in members(path, document):
            if isinstance(one, dict):
                _data(path, one, found)
            else:
                _collect(one, found, [])
    return document


def _data(path: Path, document: dict, found: dict[Path, None]) -> None:
    files = data_files((document.get("dataset_kwargs") or {}).get("data_files"))
    source = document.get("dataset_path")
    if source in LOCAL and not files:
        mend = "name the files: `dataset_kwargs: {data_files: {test: notes.jsonl}}`"
        raise _problem(path, "dataset_path", f"dataset_path `{source}` has no data_files", mend)
    for name in files:
        if _REMOTE.match(name):
            raise _problem(path, name, f"`{name}` is remote: its content cannot be checked", "download it beside the YAML")
        if any(c in name for c in "*?["):
            matched = sorted(path.parent.glob(name))
            if not matched:
                raise _problem(path, name, f"no file matches `{name}`")
            found.update(dict.fromkeys(matched))
        else:
            found[_existing(path, path.parent / name, name, "a data file")] = None


def _load(path: Path) -> tuple[dict, list[str]]:
    import yaml

    functions: list[str] = []

    class Loader(yaml.SafeLoader):
        """Safe, with tags read as text; `!function` values are noted."""

    def function(loader: yaml.SafeLoader, node: yaml.Node) -> str:
        functions.append(loader.construct_scalar(node))
        return Function(functions[-1])

    Loader.add_constructor("!function", function)
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise RecipeError([Problem(f"this YAML cannot be read: {e.problem}", str(path), line, column)]) from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as e:
        raise RecipeError([Problem(f"this YAML cannot be read: {str(e).splitlines()[0]}", str(path), 1, 1)]) from None
    if not isinstance(document, dict):
        raise RecipeError([Problem("this is no lm-eval task: it is no mapping", str(path), 1, 1, mend=TASK)])
    return document, functions


def _as_list(value: object) -> list:
    return [] if value is None else value if isinstance(value, list) else [value]


def _existing(yaml_path: Path, path: Path, name: str, role: str) -> Path:
    if not path.is_file():
        raise _problem(yaml_path, name, f"{role}, `{name}`, does not exist", "paths in a task are relative to its YAML")
    return path


def _problem(path: Path, needle: str, what: str, mend: str | None = None) -> RecipeError:
    """A RecipeError at the line that holds `needle`."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    line = next((i for i, text in enumerate(lines) if needle in text), 0)
    column = max(lines[line].find(needle), 0) + 1
    return RecipeError([Problem(what, str(path), line + 1, column, lines[line], len(needle), mend)])
