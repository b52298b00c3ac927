"""Export a model for another runtime: GGUF for llama.cpp and Ollama, or ONNX for onnxruntime.

What was written, and quantized by the runtime's own tool, is read back and run there: its tokenizer must give the same ids, and its answers must
be those of the model, before it is published (.slmkit/fidelity.json). Architectures, rotary angles and tokenizers that are not known to come out
right are refused. Needs `pip install 'slmkit[gguf]'` or `'slmkit[onnx]'`.

    slmkit export recipe.yaml
    slmkit export MODEL --type q4_k_m
    slmkit export MODEL --format onnx --type fp32
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from slmkit.steps._estimate import Size
from slmkit.steps._fidelity import Fidelity
from slmkit.steps._fields import Ref
from slmkit.steps._step import Context, How, Result, StepConfig, StepExecution, Takes

VERSION = 1
TAKES = {"model": Takes("model"), "probes": Takes("dataset", many=True, optional=True, witness=True, of="data")}
TYPES = {"gguf": ("q4_k_m", "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_0"), "onnx": ("int4", "fp32")}
"""Of each format; the first is what it takes if none is named."""
BITS = {"fp32": 32, "int4": 4.5, "f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q6_k": 6.6, "q5_k_m": 5.7, "q4_k_m": 4.9, "q4_0": 4.55}


def GIVES(config: Config) -> str:
    return config.format


class Config(StepConfig):
    model: Ref
    """The model to export, in full precision; an adapter is merged on the way."""
    format: Literal["gguf", "onnx"] = "gguf"
    """gguf: one file, for llama.cpp, Ollama and what is built on them. onnx: a folder for onnxruntime-genai, on the CPU."""
    type: Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "fp32", "int4"] | None = None
    """How weights are stored, by the runtime's names. gguf: q4_k_m if left out; layers whose width does not suit a type take the nearest that does.
    onnx: int4 (if left out) or fp32."""
    fidelity: Annotated[Fidelity | None, How()] = None
    """Bounds of what exporting may do to the model; those of the type if left out."""


    @field_validator("type", mode="before")
    @classmethod
    def _of_format(cls, value: Any, info: Any) -> Any:
        known = TYPES.get(info.data.get("format"))
        if known and value is not None and value not in known:
            raise ValueError(f"format {info.data['format']} has the types {', '.join(known)}")
        return known[0] if known and value is None else value


class Execution(StepExecution):
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads of llama.cpp while it quantizes and runs the probes; gguf. None: as many as it likes."""


def blocked(config: Config, execution: Execution) -> str | None:
    """Why this cannot run here, found without importing anything heavy."""
    import importlib.util

    needed = ("gguf", "llama_cpp") if config.format == "gguf" else ("onnxruntime", "onnxruntime_genai", "onnx_ir")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    note = " (llama.cpp is compiled: some ten minutes)" if config.format == "gguf" else ""
    return f"{missing[0]} is not installed: pip install 'slmkit[{config.format}]'{note}" if missing else None


def estimate(config: Config, execution: Execution, sizes: dict) -> dict[str, int]:
    """Memory and disk."""
    model: Size = sizes["model"][0]
    if not model.parameters:
        return {}
    return {"memory_bytes": model.parameters * 4, "disk_bytes": int(model.parameters * BITS[config.type] / 8)}


def run(ctx: Context, config: Config) -> Result:
    import importlib

    return importlib.import_module(f"slmkit.ml.export.{config.format}").export(ctx, config)
