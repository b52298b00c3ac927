"""Runs one step kind in this process, without the engine: builds a Context from plain values."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from slmkit.steps._step import Columns, Context, Given, Result


def given(path: Path | str | None, type: str, role: str = "model", name: str | None = None, **more) -> Given:
    label = name or (Path(path).name if path else "")
    return Given(role=role, name=label, type=type, uri=more.pop("uri", str(path)), path=Path(path) if path else None, **more)


def mapped(path: Path | str, role: str = "data", **columns) -> Given:
    return given(path, "dataset", role, columns=Columns(path=str(path), **columns))


class Driver:
    """Out, state and events under `root`; `events` collects what the step logged, `progress` what it reported."""

    def __init__(self, root: Path):
        self.root, self.events, self.reports = Path(root), [], []

    def run(self, kind: str, config: dict, inputs: dict, execution: dict | None = None) -> Result:
        module = importlib.import_module(f"slmkit.steps.{kind}")
        out, state = self.root / "out", self.root / "state"
        out.mkdir(parents=True, exist_ok=True)
        state.mkdir(exist_ok=True)
        many = {role for role, takes in module.TAKES.items() if takes.many}  # the engine gives those as tuples
        inputs = {r: (i,) if r in many and not isinstance(i, tuple) else i for r, i in inputs.items()}
        context = Context(
            out=out,
            state=state,
            inputs=inputs,
            execution=module.Execution(**(execution or {})),
            log=lambda event, **fields: self.events.append({"event": event, **fields}),
            progress=lambda done, total, what, **numbers: self.reports.append((done, total, what, numbers)),
            secret=lambda name: "",
            ledgers=self.root / "ledgers",
        )
        result = module.run(context, module.Config(**config))
        json.dumps(result.values, allow_nan=False)
        return result

    @property
    def out(self) -> Path:
        return self.root / "out"
