"""A model folder as a GGUF file: the weights under llama.cpp's names, the sizes, rotary angles and tokenizer it needs, the chat template.

Llama's rows of q and k are interleaved there otherwise than in transformers; Qwen's are not. What is not known to be right is refused.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from slmkit.errors import StepFailed
from slmkit.ml.export import gguf_tokens

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
STORED = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def check(folder: Path) -> dict[str, Any]:
    """config.json of a model that can be written. Raises StepFailed for all others."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = config.get("model_type")
    if config.get("quantization_config"):
        raise StepFailed("this model is quantized: export takes it as it was before, and quantizes by llama.cpp's own types", where=folder,
                         mend="give the model that was quantized")
    if kind not in ARCHITECTURES:
        raise StepFailed(f"`{kind}` is not exported to GGUF, only {', '.join(ARCHITECTURES)}", where=folder)
    if config.get("hidden_act", "silu") != "silu" or config.get("mlp_bias"):
        raise StepFailed(f"hidden_act {config.get('hidden_act')} or a bias in the MLP is not what llama.cpp runs for {kind}", where=folder)
    if (window := config.get("sliding_window")) and config.get("use_sliding_window", kind == "mistral"):
        raise StepFailed(f"attention within a sliding window ({window}) is not exported", where=folder)
    if _rope(config)["rope_type"] not in ("default", "linear", "llama3"):
        raise StepFailed(f"rotary angles of type {_rope(config)['rope_type']} are not exported", where=folder)
    return config


def _rope(config: dict) -> dict[str, Any]:
    said = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return {"rope_theta": config.get("rope_theta", 10000.0)} | said | {"rope_type": said.get("rope_type") or said.get("type") or "default"}


def write(folder: Path, file: Path, kind: str, name: str, tokenizer: Any, ends: list[int]) -> None:
    """Write `file`. kind: f32, f16 or bf16. ends: ids that end a turn, the tokenizer's own EOS first."""
    import gguf

    config = check(folder)
    arch = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(str(file), arch)
    heads, width = config["num_attention_heads"], config["hidden_size"]
    pairs, each = config.get("num_key_value_heads") or heads, config.get("head_dim") or width // heads
    rope = _rope(config)
    writer.add_name(name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(pairs)
    writer.add_key_length(each)
    writer.add_value_length(each)
    writer.add_rope_dimension_count(each)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type({"f32": 0, "f16": 1, "bf16": 32}[kind])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3(rope, each))
    _tokenizer(writer, tokenizer, config["vocab_size"], ends)
    names = gguf.get_tensor_name_map({v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[arch], config["num_hidden_layers"])
    for place in sorted(folder.glob("*.safetensors")):
        with safe_open(place, framework="pt") as opened:
            for key in sorted(opened.keys()):
                if key == "lm_head.weight" and config.get("tie_word_embeddings"):
                    continue
                there = names.get_name(key, try_suffixes=(".weight", ".bias"))
                if there is None:
                    raise StepFailed(f"llama.cpp has no place for the weight `{key}`", where=folder)
                value = opened.get_tensor(key).float()
                if arch == "llama" and ("q_proj." in key or "k_proj." in key):
                    value = _interleaved(value, heads if "q_proj." in key else pairs)
                _add(gguf, writer, there, value, kind)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()


def _interleaved(value: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q or k in llama.cpp's order: the two halves that are turned together stand side by side."""
    return value.view(heads, 2, len(value) // heads // 2, *value.shape[1:]).transpose(1, 2).reshape(value.shape)


def _add(gguf: Any, writer: Any, name: str, value: torch.Tensor, kind: str) -> None:
    if value.dim() == 1 or kind == "f32":
        writer.add_tensor(name, value.numpy())
    elif kind == "bf16":
        raw = value.bfloat16().contiguous().view(torch.uint8).numpy()
        writer.add_tensor(name, raw, raw_shape=raw.shape, raw_dtype=gguf.GGMLQuantizationType.BF16)
    else:
        if not torch.isfinite(value.half()).all():
            raise StepFailed(f"`{name}` holds numbers too large for f16", mend="write `type: bf16`")
        writer.add_tensor(name, value.half().numpy())


def _llama3(rope: dict, width: int) -> np.ndarray:
    """Divisors of the rotary frequencies (Llama 3.1): short waves stay, long ones are stretched, those between are blended."""
    low, high, factor, old = (rope[k] for k in ("low_freq_factor", "high_freq_factor", "factor", "original_max_position_embeddings"))
    found = []
    for i in range(0, width, 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (i / width)
        smooth = min(1.0, max(0.0, (old / wave - low) / (high - low)))
        found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, dtype=np.float32)


def _tokenizer(writer: Any, tokenizer: Any, vocabulary: int, ends: list[int]) -> None:
    tokens = gguf_tokens.read(tokenizer, vocabulary)
    writer.add_tokenizer_model(tokens.model)
    writer.add_tokenizer_pre(tokens.pre)
    writer.add_token_list(tokens.texts)
    writer.add_token_types(tokens.kinds)
    if tokens.model == "llama":
        writer.add_token_scores(tokens.scores)
        writer.add_add_space_prefix(tokens.space_first)
    else:
        writer.add_token_merges(tokens.merges)
    for token, add in ((tokenizer.bos_token_id, writer.add_bos_token_id), (tokenizer.pad_token_id, writer.add_pad_token_id)):
        if token is not None:
            add(token)
    if ends:
        writer.add_eos_token_id(ends[0])
    if len(ends) > 1:
        writer.add_eot_token_id(ends[1])
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(bool(ids) and ids[0] == tokenizer.bos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
