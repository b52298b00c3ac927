"""Merge an adapter into its base, giving a model that loads without peft.

The adapter is added to a fresh, full-precision copy of the base in fp32 and then rounded once, also when it was trained
on a 4-bit copy (QLoRA): merging into 4-bit weights would lose what was trained.

    slmkit merge recipe.yaml
    slmkit merge recipe.yaml --from model=artifacts/train-79ba67d04f54
"""

from __future__ import annotations

from typing import Literal

from slmkit.steps._fields import Device, Ref
from slmkit.steps._step import Context, Result, StepConfig, StepExecution, Takes

VERSION = 1
TAKES = {"model": Takes("adapter")}
GIVES = "model"


class Config(StepConfig):
    model: Ref
    """The adapter; its base comes with it."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the merged weights. auto is the base's own."""


class Execution(StepExecution):
    device: Device = "cpu"
    """Where the sums are done. The CPU has the memory, and merging is quick."""


def run(ctx: Context, config: Config) -> Result:
    from slmkit.ml import lora

    return lora.merge(ctx, config)
