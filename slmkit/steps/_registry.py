"""Finds step kinds without importing them: one file in this folder is one kind, and third parties add theirs through the
entry-point group `slmkit.steps`. Names and help come from file names and docstrings; a kind is imported only when it is used.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from slmkit.errors import UsageError

HERE = Path(__file__).parent
GROUP = "slmkit.steps"
ORDER = ("distill", "train", "merge", "quantize", "eval", "export")  # the chain's order, for help texts only


@dataclass(frozen=True)
class Kind:
    """An imported step kind; `module` holds the attributes that `_step` describes."""

    name: str
    module: ModuleType

    @property
    def version(self) -> int:
        return self.module.VERSION

    @property
    def takes(self) -> dict:
        """The inputs that the config names, by role."""
        return {role: takes for role, takes in self.module.TAKES.items() if not takes.witness}

    @property
    def witnesses(self) -> dict:
        """The inputs that the recipe's other steps bring, by role: checked against, never hashed."""
        return {role: takes for role, takes in self.module.TAKES.items() if takes.witness}

    @property
    def pins(self) -> tuple[str, ...]:
        return getattr(self.module, "PINS", ())

    def gives(self, config: Any) -> str:
        gives = self.module.GIVES
        return gives(config) if callable(gives) else gives

    def hook(self, name: str) -> Callable | None:
        """An optional function of the kind: `blocked(config, execution) -> str | None`, `estimate(config, execution, inputs)`,
        `examine(inputs, config, execution) -> dict` (a look at the step's data, for `slmkit data`),
        `refuse(config, inputs' sizes) -> list[Problem]` (what cannot be done to these inputs, told by their headers),
        `unmet(config, result) -> list[str]` (bounds asked for now that an artifact made earlier is outside of),
        `expand(body, folder) -> (dict, faults)` (what a step's text stands for, before it is validated),
        `forecast(config, execution, inputs, ledgers, state) -> dict` (what a teacher will be asked, less what its ledger holds; of its budget,
        less what attempts that left their state spent)."""
        return getattr(self.module, name, None)


@functools.cache
def locations() -> dict[str, str]:
    """Kind name → module name, in the chain's order, then third parties' by name."""
    own = {p.stem: f"slmkit.steps.{p.stem}" for p in sorted(HERE.glob("*.py")) if not p.stem.startswith("_")}
    ranked = sorted(own, key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n))
    found = {name: own[name] for name in ranked}
    if _others_installed():
        from importlib.metadata import entry_points

        for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
            found.setdefault(point.name, point.value.partition(":")[0])
    return found


def _others_installed() -> bool:
    """Whether any installed package names the group at all: a look that costs 3 ms, where importlib.metadata costs 30."""
    mark = f"[{GROUP}]".encode()
    for folder in dict.fromkeys(sys.path):
        try:
            entries = list(os.scandir(folder or "."))
        except OSError:
            continue
        for entry in entries:
            if entry.name.endswith((".dist-info", ".egg-info")):
                try:
                    with open(f"{entry.path}/entry_points.txt", "rb") as f:
                        if mark in f.read():
                            return True
                except OSError:
                    continue
    return False


@functools.cache
def source(name: str) -> str:
    """The text of a kind's module."""
    module = locations()[name]
    if module.startswith("slmkit.steps."):
        return (HERE / f"{name}.py").read_text(encoding="utf-8")
    import importlib.util

    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin:
        raise UsageError(f"the step kind `{name}` points to {module}, which is not installed")
    return Path(spec.origin).read_text(encoding="utf-8")


@functools.cache
def doc(name: str) -> str:
    """The docstring of a kind's module, read from its source without running it."""
    return _docstring(source(name)) or name


def _docstring(text: str) -> str | None:
    """A module's docstring. The usual shape is read off the text, since parsing four files costs a fifth of `--help`."""
    import inspect

    bare = text.lstrip()
    end = bare.find('"""', 3)
    if bare.startswith('"""') and end > 0 and "\\" not in bare[:end]:
        return inspect.cleandoc(bare[3:end])
    import ast

    return ast.get_docstring(ast.parse(text))


@functools.cache
def load(name: str) -> Kind:
    """Import a kind. Raises UsageError if it lacks what a kind must have."""
    module = importlib.import_module(locations()[name])
    missing = [a for a in ("VERSION", "TAKES", "GIVES", "Config", "Execution", "run") if not hasattr(module, a)]
    if missing:
        raise UsageError(f"the step kind `{name}` ({module.__name__}) lacks {', '.join(missing)}")
    return Kind(name, module)
