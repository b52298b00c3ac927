"""What a step looks at without taking it: what the other steps of a recipe read, such as the questions of its evals while it trains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from slmkit.recipe.model import InputSpec, StepSpec


def of(spec: StepSpec, steps: dict[str, StepSpec]) -> Iterable[InputSpec]:
    """What the other steps read, of the types that this one wants to look at; each once. Files, and what is made by steps it needs anyway: a
    witness makes no step run."""
    needed = _needed(spec, steps)
    for role, takes in spec.kind.witnesses.items():
        seen: set[Path | str] = set()
        for other in steps.values():
            for one in other.inputs if other.name != spec.name else ():
                of = (one.source.path if one.source else None) if one.step is None else one.step if one.step in needed else None
                wanted = set(other.kind.takes[one.role].types) & set(takes.types) and takes.of in (None, one.role)
                if of and of not in seen and wanted:
                    seen.add(of)
                    yield replace(one, role=role, filled=True, witness=True)


def _needed(spec: StepSpec, steps: dict[str, StepSpec]) -> set[str]:
    """Names of the steps that come before this one in its own chain."""
    found, waiting = set(), [spec]
    while waiting:
        for one in waiting.pop().inputs:
            if one.step and one.step not in found:
                found.add(one.step)
                waiting.append(steps[one.step])
    return found
