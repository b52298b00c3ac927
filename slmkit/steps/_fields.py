"""Field types that several kinds share. Torch-free; importing this costs pydantic and nothing else."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from slmkit.steps._step import Columns
from slmkit.steps._task_form import Task


def _shape(value: Any) -> str:
    return "columns" if isinstance(value, dict | Columns) else "reference"


def _shape_of_some(value: Any) -> str:
    return "mixture" if isinstance(value, list) else _shape(value)


def _shape_of_held_out(value: Any) -> str:
    return "share" if isinstance(value, int | float) and not isinstance(value, bool) else _shape(value)


DataRef = Annotated[Annotated[str, Tag("reference")] | Annotated[Columns, Tag("columns")], Discriminator(_shape)]
"""A dataset: a reference (`$teach`, `train.jsonl`, `hf:ID`), or `{path: train.csv, user: COLUMN, assistant: COLUMN}`."""

DataRefs = Annotated[
    Annotated[str, Tag("reference")] | Annotated[Columns, Tag("columns")] | Annotated[list[DataRef], Field(min_length=1), Tag("mixture")],
    Discriminator(_shape_of_some),
]
"""A dataset, or a list of several: `[a.jsonl, {path: b.jsonl, weight: 0.5}]`."""

HeldOut = Annotated[
    Annotated[str, Tag("reference")] | Annotated[Columns, Tag("columns")] | Annotated[float, Field(gt=0, le=0.5), Tag("share")],
    Discriminator(_shape_of_held_out),
]
"""A dataset, or the share of the data's rows to hold out."""



def _shape_of_task(value: Any) -> str:
    return "task" if isinstance(value, dict | Task) else "reference"


TaskRef = Annotated[Annotated[str, Field(min_length=1), Tag("reference")] | Annotated[Task, Tag("task")], Discriminator(_shape_of_task)]
"""An lm-eval task: a YAML file, a built-in name, or the short form `{name: …, data: test.csv, user: text, answer: label, metric: exact_match}`."""

Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
"""`auto` is the first CUDA device if there is one, else the CPU."""

Ref = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
