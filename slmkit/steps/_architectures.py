"""What other runtimes run as transformers does, told from config.json without torch: the architectures that GGUF has, the rotary angles of ONNX.

Llama, Mistral, Qwen2 and Qwen3 share one shape: RMS norms, gated SiLU, rotary positions, grouped heads. They differ in biases, in norms of
queries and keys, and in how rotary pairs lie: llama.cpp's `llama` turns neighbours (2i, 2i+1), where transformers turns (i, i + half), so the
rows of its q and k are reordered; its `qwen` turns as transformers does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmkit.errors import Problem


@dataclass(frozen=True)
class Family:
    """arch: its name in GGUF. permuted: q and k are reordered. biases: the config's switches of biases that it has. ropes: types it reads."""

    arch: str
    permuted: bool
    biases: tuple[str, ...]
    ropes: tuple[str, ...]


FAMILIES = {
    "llama": Family("llama", True, ("attention_bias", "mlp_bias"), ("default", "linear", "llama3", "yarn")),
    "mistral": Family("llama", True, (), ("default", "linear", "yarn")),
    "qwen2": Family("qwen2", False, (), ("default", "linear", "yarn")),
    "qwen3": Family("qwen3", False, (), ("default", "linear", "yarn")),
}
MEND = "export what llama.cpp's own scripts know with those, or write `format: onnx`"


def rope(config: dict) -> dict[str, Any]:
    """Rotary settings, however the config writes them."""
    said = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = said.get("rope_type") or said.get("type") or "default"
    return {"rope_theta": config.get("rope_theta", 10000.0)} | said | {"rope_type": kind}


def window(config: dict) -> int | None:
    """Tokens within which the model attends, where that is fewer than it has room for."""
    found = config.get("sliding_window") if config.get("use_sliding_window", config.get("model_type") == "mistral") else None
    return found if found and found < config["max_position_embeddings"] else None


def head_size(config: dict) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def turned(folder: Path) -> Problem | None:
    """Why a model folder cannot be written as ONNX: the builder of onnxruntime-genai 0.18 passes over linear scaling without a word (the logits
    are another model's) and breaks at yarn; the other types were not tried."""
    config = _read(folder)
    kind = rope(config)["rope_type"] if config else "default"
    if kind in ("default", "llama3"):
        return None
    return Problem(f"model: rotary angles of type {kind} do not come out right in ONNX", mend="write `format: gguf`, if llama.cpp runs it")


def _read(folder: Path) -> dict | None:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # told when the model is loaded


def problem(folder: Path) -> Problem | None:
    """Why a model folder cannot be written as GGUF; None where nothing speaks against it."""
    config = _read(folder)
    if config is None:
        return None
    if quantized := (config.get("quantization_config") or {}).get("quant_method"):
        what = f"model: this one is quantized already ({quantized}), and llama.cpp has types of its own"
        return Problem(what, mend="give the model that was quantized: this step quantizes by itself, by `type`")
    family = FAMILIES.get(config.get("model_type"))
    if family is None:
        return Problem(f"model: `{config.get('model_type')}` is not exported to GGUF, only {', '.join(FAMILIES)}", mend=MEND)
    what = _unlike(config, family)
    return Problem(f"model: {what}, which llama.cpp's `{family.arch}` is not known to run rightly", mend=MEND) if what else None


def _unlike(config: dict, family: Family) -> str | None:
    if config.get("hidden_act", "silu") != "silu":
        return f"its activation is {config['hidden_act']}"
    if bias := next((b for b in ("attention_bias", "mlp_bias") if config.get(b) and b not in family.biases), None):
        return f"it has biases ({bias})"
    if family.arch == "qwen2" and config["num_attention_heads"] * head_size(config) != config["hidden_size"]:
        return f"its heads ({config['num_attention_heads']} × {head_size(config)}) do not fill its width ({config['hidden_size']})"
    said = rope(config)
    if said["rope_type"] not in family.ropes:
        return f"its rotary angles are of type {said['rope_type']} ({', '.join(family.ropes)} are known)"
    if (said.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0) != 1.0:
        return "it turns a part of each head"
    if said["rope_type"] == "yarn":
        own = [k for k in ("attention_factor", "mscale", "mscale_all_dim") if said.get(k)] + [k for k in ("truncate",) if said.get(k) is False]
        return f"its rotary angles are of type yarn with {' and '.join(own)} of their own" if own else None
    return None
