"""AutoGPTQ's checkpoint format, version 1: what transformers, vLLM, gptqmodel and auto-gptq read.

For each linear layer: qweight int32 [in·bits/32, out], qzeros int32 [groups, out·bits/32] holding zero - 1, scales fp16
[groups, out], g_idx int32 [in]. Codes lie in one little-endian stream of bits, 32 codes in `bits` words (3 bits too).
Reading unpacks into dense layers, bit for bit the values that were measured, and needs no kernel.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from slmkit.errors import StepFailed
from slmkit.ml import models, saving
from slmkit.ml.gptq import Grid, Quantized
from slmkit.ml.saving import Stored

PARTS = ("qweight", "qzeros", "scales", "g_idx")
WORD = 32


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes [n, m] (0 … 2^bits - 1) along the first axis into int32 [n·bits/32, m]."""
    n, m = codes.shape
    words = torch.zeros(n * bits // WORD, m, dtype=torch.int64, device=codes.device)
    position = torch.arange(n, device=codes.device) * bits
    word, shift = position // WORD, position % WORD
    values = codes.to(torch.int64)
    words.index_add_(0, word, (values << shift[:, None]) & 0xFFFFFFFF)
    spill = shift + bits > WORD
    if spill.any():
        words.index_add_(0, word[spill] + 1, values[spill] >> (WORD - shift[spill])[:, None])
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of `pack`: int64 codes [n, m]."""
    n = words.shape[0] * WORD // bits
    unsigned = words.to(torch.int64) & 0xFFFFFFFF
    position = torch.arange(n, device=words.device) * bits
    word, shift = position // WORD, position % WORD
    after = torch.cat([unsigned[1:], torch.zeros_like(unsigned[:1])])
    both = unsigned | ((after & 0x7FFFFFFF) << WORD)
    return (both[word] >> shift[:, None]) & (2**bits - 1)


def tensors(layer: Quantized, bits: int) -> dict[str, torch.Tensor]:
    """The four tensors of one layer."""
    return {
        "qweight": pack(layer.codes.T, bits),
        "qzeros": pack((layer.zeros - 1).T, bits).T,
        "scales": layer.scales,
        "g_idx": layer.g_idx,
    }


def layer(parts: dict[str, torch.Tensor], bits: int) -> Quantized:
    """The inverse of `tensors`."""
    zeros = (unpack(parts["qzeros"].T, bits).T + 1) & (2**bits - 1)
    return Quantized(unpack(parts["qweight"], bits).T.to(torch.uint8), parts["scales"], zeros.to(torch.int32), parts["g_idx"])


def save(tensors: dict[str, Stored], grid: Grid, out: Path, source: Path, dtype: torch.dtype, extra: dict) -> None:
    """Write weights and configs. tensors: `NAME.qweight` … of every layer, and everything else that the model stores, in `dtype`."""
    saving.save(tensors, out / "model.safetensors", {"format": "pt"})
    quantization = settings(grid) | extra
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    config.pop("torch_dtype", None)
    models.write_json(out / "config.json", config | {"dtype": str(dtype).removeprefix("torch."), "quantization_config": quantization})
    models.write_json(out / "quantize_config.json", quantization | {"model_name_or_path": None, "model_file_base_name": "model"})


def settings(grid: Grid) -> dict:
    """What a folder's configs say. True sequential, as here: each layer sees inputs that went through the quantized ones before it."""
    return {
        "quant_method": "gptq", "checkpoint_format": "gptq", "bits": grid.bits, "group_size": grid.group_size,
        "sym": grid.symmetric, "lm_head": False, "true_sequential": True, "static_groups": False, "pack_dtype": "int32",
    }  # fmt: skip


def load(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """A GPTQ folder as a model with dense layers in `dtype`, on the CPU."""
    raw = models.read_config(folder)["quantization_config"]
    if raw.get("checkpoint_format", "gptq") != "gptq":
        raise StepFailed(f"checkpoint_format `{raw['checkpoint_format']}` is not read here, only gptq", where=folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    missing, unexpected = model.load_state_dict(_dense(folder, raw["bits"], dtype), strict=False, assign=True)
    model.tie_weights()
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if config.get_text_config().tie_word_embeddings else set()
    if unexpected or set(missing) - tied:
        raise StepFailed(f"the weights do not fit the config: {(list(unexpected) + sorted(set(missing) - tied))[0]}", where=folder)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


def _dense(folder: Path, bits: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Every weight in `dtype`; of what is packed, one layer at a time."""
    state: dict[str, torch.Tensor] = {}
    packed: dict[str, dict[str, Path]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():
                name, _, part = key.rpartition(".")
                if part in PARTS:
                    packed.setdefault(name, {})[part] = file
                else:
                    state[key] = opened.get_tensor(key).to(dtype)
    for name, files in packed.items():
        parts = {}
        for part, file in files.items():
            with safe_open(file, framework="pt") as opened:
                parts[part] = opened.get_tensor(f"{name}.{part}")
        if "g_idx" not in parts:
            inputs, groups = parts["qweight"].shape[0] * WORD // bits, parts["scales"].shape[0]
            parts["g_idx"] = torch.arange(inputs, dtype=torch.int32) // (inputs // groups)
        state[f"{name}.weight"] = layer(parts, bits).dense().to(dtype)
    return state
