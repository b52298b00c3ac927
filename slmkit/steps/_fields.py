"""Field types that several kinds share. Torch-free; importing this costs pydantic and nothing else."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from slmkit.steps._step import Columns


def _shape(value: Any) -> str:
    return "columns" if isinstance(value, dict | Columns) else "reference"


DataRef = Annotated[Annotated[str, Tag("reference")] | Annotated[Columns, Tag("columns")], Discriminator(_shape)]
"""A dataset: a reference (`$teach`, `train.jsonl`, `hf:ID`), or `{path: train.csv, user: COLUMN, assistant: COLUMN}`."""

Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
"""`auto` is the first CUDA device if there is one, else the CPU."""

Ref = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
