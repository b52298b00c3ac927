"""Files that stand for keys of `execution` (see Stands in steps/_step.py), read with their own marks: a fault in one has its own line."""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path
from typing import Any

from slmkit.errors import Problem, RecipeError
from slmkit.recipe import explain
from slmkit.recipe.located import parse, read
from slmkit.steps._step import Fault, Stands


def told(model: type, folder: Path, body: dict, how: Any) -> tuple[Any, list[Fault], list[Problem]]:
    """(the execution with what its files stand for, faults in the step, problems in the files). model: the kind's Execution. body: the step's other
    keys. A key whose file is at fault is left out."""
    faults: list[Fault] = []
    problems: list[Problem] = []
    fields = model.model_fields.items() if isinstance(how, dict) else ()
    for key, stands in [(k, m) for k, f in fields for m in f.metadata if isinstance(m, Stands) and how.get(k) is not None]:
        said, rest = how[key], {k: v for k, v in how.items() if k != key}
        if fault := _absent(key, said, folder):
            faults.append(fault)
            how = rest
            continue
        file = folder / Path(said).expanduser()
        try:
            raw = read(file, "file")
            document = parse(raw.replace(b"\t", b" ") if file.suffix == ".json" else raw, str(file))  # JSON is YAML, but for tabs between its words
        except RecipeError as e:
            problems += e.problems
            how = rest
            continue
        keys, found = stands.read(document.data, said, hashlib.sha256(raw).hexdigest(), body, how)
        faults += [f for f in found if f.here]
        problems += [document.problem(f.where, f.what, f.mend, key=True) for f in found if not f.here]
        how = rest if found else how | keys
    return how, faults, problems


def _absent(key: str, said: Any, folder: Path) -> Fault | None:
    """Is there no such file?"""
    place = ("execution", key)
    if not isinstance(said, str):
        return Fault(place, f"`{key}` is the path of a file, this is {explain.named(said)}")
    file = (folder / Path(said).expanduser()).absolute()
    if file.is_file():
        return None
    if file.is_dir():
        return Fault(place, f"{said} is a folder, and a file is wanted here", f"name the file in it: {said.rstrip('/')}/NAME")
    near = difflib.get_close_matches(file.name, [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else [], 1)
    return Fault(place, f"no such file: {said}", f"did you mean {near[0]}?" if near else "paths are relative to the recipe")
