"""What the words of a command line name: a recipe and its step, or the input of a step without one; references, also from a pipe."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from slmkit.cli import flags
from slmkit.errors import SlmkitError, UsageError
from slmkit.steps import _registry


def load_and_plan(recipe, kind, step, set_, from_, store, locked, fields=()):
    """load → plan. Returns the plan, the store and the lock."""
    from slmkit import plan as planning
    from slmkit.artifact.store import Store
    from slmkit.recipe.load import chosen_in, load
    from slmkit.recipe.lock import Lock

    home = Store(store)
    path = Path(recipe)
    pick = (kind, step) if kind else None
    below, given = flags.split(kind, list(fields)) if fields else ([], [])
    raw = None
    if kind and not flags.is_recipe(recipe):
        path, raw, below, given = Path(f"{kind}.yaml"), _asked(kind, recipe, step, list(fields), home), [], []
    froms = _froms([*(from_ or []), *given], home)
    if froms and not pick:
        pick = _pick_by_name(path, set_, step)
    loaded = load(path, set_ or [], froms, pick, below, raw)
    target = step
    if kind:
        target = chosen_in(loaded, kind, step)
    elif step and step not in loaded.steps:
        raise UsageError(f"the recipe has no step `{step}`", where=recipe, mend=f"its steps are {', '.join(loaded.steps)}")
    lock = Lock(loaded.lock_path, frozen=bool(os.environ.get("CI")) if locked is None else locked)
    return planning.make(loaded, home, lock, target), home, lock


def _asked(kind: str, first: str, step: str | None, fields: list[str], home) -> bytes:
    """The recipe of a command that has none: its first word is what the step begins with."""
    if step is not None:
        what = f"{first} is no recipe, so it has no step `{step}`"
        raise UsageError(what, mend=f"slmkit {kind} RECIPE.yaml [STEP], or slmkit {kind} INPUT --FIELD VALUE …")
    role = next(iter(_registry.load(kind).takes))
    told = _stdin(role) if first == "-" else [first]
    try:
        references = [_reference(r, home) for r in told]
    except SlmkitError as e:
        what = f"{first} is neither a recipe (FILE.yaml) nor a {role} (a path, hf:…, demo:…, an artifact of {home.root})"
        raise UsageError(what, mend=e.mend) from None
    if len(references) > 1:
        raise UsageError(f"{len(references)} references came on stdin, and one is the step's first input", mend="use a recipe and --from")
    return flags.recipe(kind, references[0], fields)


def _pick_by_name(path: Path, sets, step: str | None) -> tuple[str, str]:
    """`run --from` needs the step that the reference is for."""
    if step is None:
        raise UsageError("--from says what one step gets", mend="name the step: slmkit run RECIPE STEP --from model=REF")
    from slmkit.recipe.load import load

    steps = load(path, sets or []).steps
    if step not in steps:
        raise UsageError(f"the recipe has no step `{step}`", where=path, mend=f"its steps are {', '.join(steps)}")
    return steps[step].kind.name, step


def _froms(texts: list[str], store) -> list[tuple[str, str]]:
    """--from texts as (role, reference), stdin read, paths made absolute, names looked up in the store."""
    pairs = []
    for text in texts:
        role, equals, reference = text.partition("=")
        if not equals or not role or not reference:
            raise UsageError(f"--from {text}: not of the form ROLE=REF", mend="for example --from model=artifacts/train-0123456789ab")
        pairs += [(role, _reference(r, store)) for r in (_stdin(role) if reference == "-" else [reference])]
    return pairs


def _stdin(role: str) -> list[str]:
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError(f"--from {role}=-: nothing is piped in", mend="put a command that prints a path before it: slmkit train r.yaml | …")
    lines = [line.strip() for line in sys.stdin if line.strip()]
    if not lines:
        raise UsageError(f"--from {role}=-: nothing came on stdin", mend="the command before the pipe made no artifact: see its error")
    return [_path_of(line) for line in lines]


def _path_of(line: str) -> str:
    """A line of stdin: a reference, or the object that --json prints."""
    if not line.startswith("{"):
        return line
    import json

    try:
        return json.loads(line)["path"]
    except (ValueError, KeyError, TypeError):
        raise UsageError("stdin holds an object without a `path`", mend="pipe in a path, or what `slmkit … --json` printed") from None


def model_given(text: str, store: Path, locked: bool | None):
    """A model or adapter that a command names, ready on this machine. Raises UsageError, CannotRun."""
    from slmkit import inputs, sources
    from slmkit.artifact.digest import Cache
    from slmkit.artifact.store import Store
    from slmkit.recipe.located import Mark
    from slmkit.recipe.lock import Lock
    from slmkit.recipe.model import InputSpec
    from slmkit.steps._step import Takes

    home, takes = Store(store), Takes("model", "adapter")
    source = sources.parse(_reference(text, home), Path.cwd())
    if source.path is not None and not source.path.is_dir():
        raise UsageError(f"{text} is no model folder", mend="give a folder with config.json and safetensors")
    lock = Lock(Path("slmkit.lock.json"), frozen=bool(os.environ.get("CI")) if locked is None else locked)
    planned = inputs.of_source(InputSpec("model", None, None, source, None, Mark("", 0, 0)), takes, lock, home, Cache(home.works / "digests.json"))
    if planned.type not in takes.types:
        raise UsageError(f"{text} is a {planned.type}, and a model or an adapter is wanted here")
    return inputs.given(planned, home, {})


def _reference(text: str, store) -> str:
    if text.startswith(("hf:", "demo:", "artifact:", "$")):
        return text
    if Path(text).exists():
        return str(Path(text).absolute())
    return str(store.resolve(text).path)
