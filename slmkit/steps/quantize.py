"""Quantize a model to 2, 3, 4 or 8 bits: GPTQ, round-to-nearest, NF4, INT8, or the best of them.

gptq (https://arxiv.org/abs/2210.17323) calibrates layer after layer on your own data and writes AutoGPTQ's checkpoint
format, as rtn does without calibration: transformers, vLLM and gptqmodel load both; so do awq and autoround on a GPU. nf4 and int8 are bitsandbytes'.
auto tries what `target` loads and `max_bits_per_weight` allows, on calibration rows held out of all of it, and keeps the best.
Shapes that cannot be packed are refused before any work, with the layer's name and the group sizes that would fit. What quantizing did to the
model is measured and written into .slmkit/fidelity.json; a model that came out broken is not published.

    slmkit quantize recipe.yaml
    slmkit quantize recipe.yaml int4 --set steps.int4.group_size=64
    slmkit quantize MODEL --method auto --max-bits-per-weight 6 --calibration rows.jsonl
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from slmkit.steps import _architectures, _candidates, _estimate, _tasks
from slmkit.steps._exports import blocked_for
from slmkit.steps._fidelity import Fidelity, unmet  # noqa: F401 (a hook of the kind)
from slmkit.steps._fields import DataRef, Device, Ref, Seed
from slmkit.steps._step import Born, Context, How, Result, StepConfig, StepExecution, Takes

VERSION = 3
TAKES = {
    "model": Takes("model"), "calibration": Takes("dataset", optional=True),
    "probes": Takes("dataset", many=True, optional=True, witness=True, of="data"),
    "tasks": Takes("task", many=True, optional=True, witness=True, files=_tasks.task_files),  # is a question of theirs among the calibration rows?
}  # fmt: skip


def GIVES(config: Config) -> str:
    return "gguf" if config.target == "llama.cpp" else "model"



TUNED = ("awq", "autoround")  # by the auto-round package, on a GPU
GROUPED, DRAWN = ("gptq", "rtn", *TUNED), ("gptq", "auto", *TUNED)
READ_BY = {
    "bits": GROUPED, "group_size": GROUPED, "symmetric": GROUPED, "act_order": ("gptq",), "damping": ("gptq",),
    "calibration": DRAWN, "samples": DRAWN, "max_length": DRAWN, "seed": DRAWN, "target": ("auto",), "max_bits_per_weight": ("auto",),
}  # fmt: skip
DEFAULTS = {
    "bits": 4, "group_size": 128, "symmetric": True, "act_order": False, "damping": 0.01,
    "samples": 256, "max_length": 1024, "seed": 0, "target": "transformers",
}  # fmt: skip


class Config(StepConfig):
    model: Ref
    """The model to quantize, in full precision."""
    method: Literal["gptq", "nf4", "int8", "rtn", "auto", "awq", "autoround"] = "gptq"
    """gptq: calibrated, 2 to 8 bits; rtn: rounded to nearest, the same format; nf4 and int8: bitsandbytes' (nf4 with double quantization);
    auto: the best of those on calibration rows held out, under `max_bits_per_weight`; awq and autoround: by the auto-round package
    (`pip install 'slmkit[autoround]'`), on a GPU, in gptq's format."""
    backend: Literal["slmkit", "gptqmodel"] = "slmkit"
    """Who does gptq and rtn: slmkit itself, or the gptqmodel package (`pip install 'slmkit[gptqmodel]'`; more architectures)."""
    bits: Literal[2, 3, 4, 8] | None = None
    """Bits per weight; all but nf4, int8 and auto; 4 if left out."""
    group_size: Annotated[int, Field(ge=-1)] | None = None
    """Input features that share a scale: 16 to 1024, or -1 for all; must divide every layer's width; all but nf4, int8 and auto; 128 if
    left out."""
    symmetric: bool | None = None
    """Zero in the middle of the range, which every kernel can read; all but nf4, int8 and auto; true if left out."""
    act_order: bool | None = None
    """Quantize the most active columns first: better at 2 and 3 bits, slower in some kernels; gptq; false if left out."""
    damping: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the mean of the Hessian's diagonal that is added to it; gptq; 0.01 if left out, as in the paper."""
    target: Annotated[Literal["transformers", "vllm", "cpu", "llama.cpp"] | None, Born(None)] = None
    """What has to load it; auto; transformers if left out. vllm: what it has kernels for; cpu: what stays small in memory there (nf4, int8);
    llama.cpp: a GGUF file, as export makes it, of the type that loses least."""
    max_bits_per_weight: Annotated[float | None, Born(None), Field(gt=0, le=16)] = None
    """Most bits per weight of the whole folder, its 16-bit embeddings included; auto needs it."""
    calibration: DataRef | None = None
    """Rows the model will meet in use (training rows, never the evaluation's); all but rtn, nf4 and int8 need it."""
    samples: Annotated[int, Field(ge=1, le=100000)] | None = None
    """Calibration rows, drawn by seed; all but rtn, nf4 and int8; 256 if left out."""
    max_length: Annotated[int, Field(ge=8, le=1048576)] | None = None
    """Tokens per calibration row; longer ones are cut; all but rtn, nf4 and int8; 1024 if left out."""
    seed: Seed | None = None
    """Seed of the draw; all but rtn, nf4 and int8; 0 if left out."""
    fidelity: Annotated[Fidelity | None, How()] = None
    """Bounds of what quantizing may do to the model; those of the number of bits if left out."""

    @field_validator(*READ_BY, mode="before")
    @classmethod
    def _read(cls, value: Any, info: Any) -> Any:
        method, key = info.data.get("method"), info.field_name
        if method is None:
            return value
        if method not in READ_BY[key]:
            if value is not None:
                raise ValueError(f"`{key}` is not read by method {method}, only by {' and '.join(READ_BY[key])}; remove it")
            return None
        return DEFAULTS.get(key) if value is None else value

    @field_validator("group_size")
    @classmethod
    def _group(cls, value: int | None) -> int | None:
        if value is not None and value != -1 and value not in (16, 32, 64, 128, 256, 512, 1024):
            raise ValueError("write 16, 32, 64, 128, 256, 512, 1024, or -1 for one group per row")
        return value

    @field_validator("calibration")
    @classmethod
    def _calibration(cls, value: Any, info: Any) -> Any:
        if value is None and (method := info.data.get("method")) in DRAWN:
            more = "" if method == "auto" else " (or write method: rtn)"
            raise ValueError(f"method {method} needs `calibration`: a dataset like the training rows{more}")
        return value

    @field_validator("max_bits_per_weight")
    @classmethod
    def _bound(cls, value: float | None, info: Any) -> float | None:
        if value is None and info.data.get("method") == "auto":
            raise ValueError("method auto needs `max_bits_per_weight`: the size it may have, 5 say; the best without a bound is the model as it is")
        return value

    @model_validator(mode="after")
    def _backend(self) -> Config:
        if self.backend != "slmkit" and self.method not in ("gptq", "rtn"):
            raise ValueError(f"`backend` is not read by method {self.method}; remove it")
        return self


class Execution(StepExecution):
    device: Device = "auto"
    """auto, cpu, mps, cuda or cuda:N."""
    allow: list[Literal["leaks"]] = []
    """leaks: calibration rows may be questions of the recipe's evaluations; the scores are worth less then."""


def blocked(config: Config, execution: Execution) -> str | None:
    """Why this cannot run here, found without importing anything heavy."""
    import importlib.util
    import shutil

    if config.target == "llama.cpp":
        return blocked_for("gguf")
    if config.backend == "gptqmodel" and importlib.util.find_spec("gptqmodel") is None:
        return "backend gptqmodel is not installed: pip install 'slmkit[gptqmodel]'"
    if config.method in TUNED:
        if execution.device in ("cpu", "mps") or not shutil.which("nvidia-smi"):
            return f"method {config.method} needs a GPU (and pip install 'slmkit[autoround]'); method gptq works without one"
        if importlib.util.find_spec("auto_round") is None:
            return f"method {config.method} needs auto-round: pip install 'slmkit[autoround]'"
    return None


def estimate(config: Config, execution: Execution, sizes: dict) -> dict[str, int]:
    """Memory and disk."""
    return _estimate.quantizing(config, sizes["model"][0])


def refuse(config: Config, sizes: dict) -> list:
    """What cannot be done to this model, told by its headers before anything runs."""
    folder = sizes["model"][0].path
    look = _architectures.problem if config.target == "llama.cpp" else partial(_candidates.problem, config)
    found = look(folder) if folder else None
    return [found] if found else []


def run(ctx: Context, config: Config) -> Result:
    given = ctx.inputs.get("calibration")
    data = None
    if given is not None:
        from slmkit.data import calibration, read

        data = calibration.draw(read.read(given, seed=config.seed), config.samples, config.seed)
        if len(data) < config.samples:
            ctx.log("warning", what=f"the calibration data holds {len(data)} rows, fewer than `samples: {config.samples}`: all are used")
        if "leaks" not in ctx.execution.allow:
            for name in calibration.refuse_leaks(data, ctx.inputs.get("tasks") or ()):
                ctx.log("warning", what=f"the questions of task {name} are not here and were not looked for among the calibration rows")
    from slmkit.ml import quantize

    return quantize.quantize(ctx, config, data)
