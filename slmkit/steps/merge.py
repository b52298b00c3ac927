"""Merge an adapter into its base, giving a model that loads without peft.

The adapter is added to its base in fp32 and rounded once. One that was trained on a 4-bit copy (QLoRA) is added to the full-precision base and
to the 4-bit weights unpacked, both are measured against the adapter as it was trained, and the closer is kept. What merging did is written into
.slmkit/fidelity.json, and a merge that does not say what the adapter said is not published.

    slmkit merge recipe.yaml
    slmkit merge recipe.yaml --from model=artifacts/train-79ba67d04f54
"""

from __future__ import annotations

from typing import Annotated, Literal

from slmkit.steps._fidelity import Fidelity, unmet  # noqa: F401 (a hook of the kind)
from slmkit.steps._fields import Device, Ref
from slmkit.steps._step import Context, How, Result, StepConfig, StepExecution, Takes

VERSION = 2
TAKES = {"model": Takes("adapter"), "probes": Takes("dataset", many=True, optional=True, witness=True, of="data")}
GIVES = "model"


class Config(StepConfig):
    model: Ref
    """The adapter; its base comes with it."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the merged weights. auto is the base's own."""
    into: Literal["auto", "full", "dequantized"] = "auto"
    """What an adapter of a 4-bit base is added to: its full-precision base, the 4-bit weights unpacked, or (auto) what comes out closer."""
    fidelity: Annotated[Fidelity | None, How()] = None
    """Bounds of what merging may do to the model; of each method if left out."""


class Execution(StepExecution):
    device: Device = "cpu"
    """Where the sums are done. The CPU has the memory, and merging is quick."""


def run(ctx: Context, config: Config) -> Result:
    from slmkit.ml import merging

    return merging.merge(ctx, config)
