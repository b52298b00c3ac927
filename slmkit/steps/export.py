"""Export a model for another runtime: GGUF for llama.cpp and Ollama.

The file is written with its chat template and stop tokens inside, quantized by llama.cpp's own tool, read back and run: its tokenizer must give
the same ids, and its answers must be those of the model, before it is published (.slmkit/fidelity.json). Architectures, rotary angles and tokenizers
that are not known to come out right are refused. Needs `pip install 'slmkit[gguf]'`.

    slmkit export recipe.yaml
    slmkit export MODEL --type q4_k_m
"""

from __future__ import annotations

from typing import Annotated, Literal

from slmkit.steps._estimate import Size
from slmkit.steps._fidelity import Fidelity
from slmkit.steps._fields import Ref
from slmkit.steps._step import Context, How, Result, StepConfig, StepExecution, Takes

VERSION = 1
TAKES = {"model": Takes("model"), "probes": Takes("dataset", many=True, optional=True, witness=True, of="data")}
GIVES = "gguf"
BITS = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q6_k": 6.6, "q5_k_m": 5.7, "q4_k_m": 4.9, "q4_0": 4.55}


class Config(StepConfig):
    model: Ref
    """The model to export, in full precision; an adapter is merged on the way."""
    type: Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"] = "q4_k_m"
    """How weights are stored, by llama.cpp's names; layers whose width does not suit a type take the nearest that does."""
    fidelity: Annotated[Fidelity | None, How()] = None
    """Bounds of what exporting may do to the model; those of the type if left out."""


class Execution(StepExecution):
    threads: int | None = None
    """Threads of llama.cpp while it quantizes and runs the probes. None: as many as it likes."""


def blocked(config: Config, execution: Execution) -> str | None:
    """Why this cannot run here, found without importing anything heavy."""
    import importlib.util

    missing = [name for name in ("gguf", "llama_cpp") if importlib.util.find_spec(name) is None]
    return f"{missing[0]} is not installed: pip install 'slmkit[gguf]' (llama.cpp is compiled: some ten minutes)" if missing else None


def estimate(config: Config, execution: Execution, sizes: dict) -> dict[str, int]:
    """Memory and disk."""
    model: Size = sizes["model"][0]
    if not model.parameters:
        return {}
    return {"memory_bytes": model.parameters * 4, "disk_bytes": int(model.parameters * BITS[config.type] / 8)}


def run(ctx: Context, config: Config) -> Result:
    from slmkit.ml.export import gguf

    return gguf.export(ctx, config)
