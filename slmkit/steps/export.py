"""Export a model for another runtime: GGUF for llama.cpp and Ollama, ONNX for onnxruntime, or its adapter for vLLM and LoRAX.

A GGUF file has its chat template and stop tokens inside and is quantized by llama.cpp's own tool. GGUF and ONNX are read back and run: the
tokenizer must give the same ids, and the answers must be those of the model, before they are published (.slmkit/fidelity.json). What is not
known to come out right is refused. Needs `pip install 'slmkit[gguf]'` or `'slmkit[onnx]'`.

    slmkit export recipe.yaml
    slmkit export MODEL --type q4_k_m
    slmkit export ADAPTER --format adapter
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from slmkit.steps import _architectures
from slmkit.steps._estimate import Size
from slmkit.steps._exports import BITS, TYPES, blocked_for
from slmkit.steps._fidelity import Fidelity, unmet  # noqa: F401 (a hook of the kind)
from slmkit.steps._fields import Ref
from slmkit.steps._step import Context, How, Result, StepConfig, StepExecution, Takes

VERSION = 1


def _types(config: Config) -> tuple[str, ...]:
    return ("adapter",) if config.format == "adapter" else ("model",)


TAKES = {
    "model": Takes("model", "adapter", narrow=_types),
    "probes": Takes("dataset", many=True, optional=True, witness=True, of="data"),
}


def GIVES(config: Config) -> str:
    return config.format


class Config(StepConfig):
    model: Ref
    """The model to export, in full precision; an adapter is merged on the way. Of format adapter, the adapter."""
    format: Literal["gguf", "onnx", "adapter"] = "gguf"
    """gguf: one file for llama.cpp and Ollama; onnx: a folder for onnxruntime-genai; adapter: a peft folder as vLLM and LoRAX load it."""
    type: Literal[
        "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q4_0", "q3_k_m", "q2_k", "fp32", "int4"
    ] | None = None  # fmt: skip
    """How weights are stored. gguf: by llama.cpp's names, q4_k_m if left out; layers whose width does not suit a type take the nearest that does.
    onnx: int4 (if left out) or fp32."""
    fidelity: Annotated[Fidelity | None, How()] = None
    """Bounds of what exporting may do to the model; those of the type if left out. Not read by format adapter, which copies weights."""

    @model_validator(mode="after")
    def _measured(self) -> Config:
        if self.fidelity is not None and self.format == "adapter":
            raise ValueError("`fidelity` is not read by format adapter; remove it")
        return self

    @field_validator("type", mode="before")
    @classmethod
    def _known(cls, value: Any, info: Any) -> Any:
        known = TYPES.get(info.data.get("format"))
        if known is None:
            return value
        if not known and value is not None:
            raise ValueError("`type` is not read by format adapter, whose weights stay as they are; remove it")
        if value is not None and value not in known:
            raise ValueError(f"format {info.data['format']} has the types {', '.join(known)}")
        return known[0] if value is None and known else value


class Execution(StepExecution):
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads of llama.cpp while it quantizes and runs the probes, or of onnxruntime. None: as many as they like. format adapter runs nothing."""


def blocked(config: Config, execution: Execution) -> str | None:
    """Why this cannot run here, found without importing anything heavy."""
    return blocked_for(config.format)


def refuse(config: Config, sizes: dict) -> list:
    """What cannot be done to this model, told by its config before anything runs."""
    folder = sizes["model"][0].path
    look = {"gguf": _architectures.problem, "onnx": _architectures.turned}.get(config.format)
    found = look(folder) if folder and look else None
    return [found] if found else []


def estimate(config: Config, execution: Execution, sizes: dict) -> dict[str, int]:
    """Memory and disk."""
    model: Size = sizes["model"][0]
    if not model.parameters or config.type is None:
        return {}
    return {"memory_bytes": model.parameters * 4, "disk_bytes": int(model.parameters * BITS[config.type] / 8)}


def run(ctx: Context, config: Config) -> Result:
    if config.format == "gguf":
        from slmkit.ml.export import gguf as way
    elif config.format == "onnx":
        from slmkit.ml.export import onnx as way
    else:
        from slmkit.ml.export import adapter as way
    return way.export(ctx, config)
