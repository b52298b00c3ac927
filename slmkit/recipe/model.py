"""What a loaded recipe is: frozen steps with validated configs, and inputs that still name what they refer to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmkit.recipe.located import Mark
from slmkit.sources import Source
from slmkit.steps._registry import Kind
from slmkit.steps._step import Takes


@dataclass(frozen=True)
class InputSpec:
    """One input of a step as the recipe names it: an earlier step, or a source outside.

    label: the name for people (`base`, `sft`). columns: the data's column mapping, hashed with the content. mark: where it was written.
    form: where the mapping is more than columns, the class that reads it.
    filled: the recipe left it out and the loader chose it. witness: another step's input, to be checked against.
    """

    role: str
    label: str | None
    step: str | None
    source: Source | None
    columns: dict | None
    mark: Mark
    filled: bool = False
    witness: bool = False
    form: type | None = None

    def takes(self, role: Takes) -> Takes:
        """What its role takes of an input that is written so."""
        return role.by_form() if self.form else role


@dataclass(frozen=True)
class StepSpec:
    """One step: its kind, the validated config and execution, its inputs in order."""

    name: str
    kind: Kind
    config: Any
    execution: Any
    inputs: tuple[InputSpec, ...]
    mark: Mark

    @property
    def gives(self) -> str:
        return self.kind.gives(self.config)


@dataclass(frozen=True)
class Recipe:
    """A whole recipe. `raw` is the file's bytes, kept with each artifact; `overrides` are the --set and --from texts."""

    name: str
    path: Path
    raw: bytes
    steps: dict[str, StepSpec]
    overrides: tuple[str, ...] = field(default=())

    @property
    def lock_path(self) -> Path:
        return self.path.with_name(self.path.name.removesuffix(".yaml").removesuffix(".yml") + ".lock.json")
