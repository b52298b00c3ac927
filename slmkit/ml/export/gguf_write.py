"""A model folder as a GGUF file: the weights under llama.cpp's names, the sizes, rotary angles and tokenizer it needs, the chat template.

Tensor by tensor, so that it takes no more memory than the largest of them. What is not known to be right is refused (`steps/_architectures.py`).
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig

from slmkit.errors import RecipeError, StepFailed
from slmkit.ml import models
from slmkit.ml.export import gguf_tokens
from slmkit.steps import _architectures

STORED = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32}
NAMES = {dtype: name for name, dtype in STORED.items()}
BLOCK = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
WHOLE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}


def check(folder: Path) -> dict[str, Any]:
    """The config, its defaults written out, of a model that can be written. Raises RecipeError for all others."""
    problem = _architectures.problem(folder)
    if problem:
        raise RecipeError([problem])
    models.read_config(folder)
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).to_dict()


def room(config: dict) -> int:
    """Tokens the file is for: no more than the model's sliding window, up to which looking at everything is the same."""
    return _architectures.window(config) or config["max_position_embeddings"]


def write(folder: Path, file: Path, kind: str, tokenizer: Any, ends: set[int]) -> None:
    """Write `file`. kind: f32, f16 or bf16, of matrices; vectors are f32, as llama.cpp wants them. ends: ids that end a turn.

    Nothing in it depends on when, where or under which name it is made. Raises StepFailed for numbers that the kind cannot hold.
    """
    import gguf

    config = check(folder)
    family = _architectures.FAMILIES[config["model_type"]]
    places = _places(folder, config)
    writer = gguf.GGUFWriter(file, family.arch)
    writer.add_file_type(FILE_TYPES[kind])
    for key, value in (_sizes(config) | _angles(config)).items():
        _add(writer, f"{family.arch}.{key}", value)
    _tokenizer(writer, tokenizer, config["vocab_size"], ends)
    made = {"rope_freqs.weight": _llama3(config)} if _architectures.rope(config)["rope_type"] == "llama3" else {}
    for name, (_, _, shape) in places.items():
        _announce(gguf, writer, name, shape, _stored(shape, kind))
    for name, value in made.items():
        _announce(gguf, writer, name, value.shape, torch.float32)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_ti_data_to_file):
        step()
    for place, key, shape in places.values():
        with safe_open(place, framework="pt") as opened:
            value = opened.get_tensor(key)
        writer.write_tensor_data(_numbers(_ordered(value, key, config, family), _stored(shape, kind), key))
    for value in made.values():
        writer.write_tensor_data(value)
    writer.close()


def _sizes(config: dict) -> dict[str, int | float]:
    heads, each = config["num_attention_heads"], _architectures.head_size(config)
    return {
        "block_count": config["num_hidden_layers"], "context_length": room(config), "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"], "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads") or heads, "attention.key_length": each, "attention.value_length": each,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]), "vocab_size": config["vocab_size"], "rope.dimension_count": each,
    }  # fmt: skip


def _angles(config: dict) -> dict[str, int | float | str]:
    """Rotary settings; those of llama3 are a tensor."""
    said = _architectures.rope(config)
    found: dict[str, int | float | str] = {"rope.freq_base": float(said["rope_theta"])}
    if said["rope_type"] in ("linear", "yarn"):
        found |= {"rope.scaling.type": said["rope_type"], "rope.scaling.factor": float(said["factor"])}
    if said["rope_type"] == "yarn":
        found["rope.scaling.original_context_length"] = int(said.get("original_max_position_embeddings") or config["max_position_embeddings"])
        found |= {f"rope.scaling.yarn_{k}": float(said[k]) for k in ("beta_fast", "beta_slow") if said.get(k)}
    return found


def _name(key: str) -> str | None:
    """A weight's name in GGUF."""
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", key)
    return f"blk.{found[1]}.{BLOCK[found[2]]}.{found[3]}" if found and found[2] in BLOCK else WHOLE.get(key)


def _places(folder: Path, config: dict) -> dict[str, tuple[Path, str, tuple[int, ...]]]:
    """GGUF name → (file, name there, shape), as they are written: the embedding, blocks, the end. A tied output layer is left out."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():
                if key.endswith("rotary_emb.inv_freq") or (key == "lm_head.weight" and config.get("tie_word_embeddings")):
                    continue
                name = _name(key)
                if name is None:
                    raise StepFailed(f"llama.cpp has no place for the weight `{key}`", where=folder)
                found[name] = (file, key, tuple(opened.get_slice(key).get_shape()))
    return dict(sorted(found.items(), key=lambda item: _rank(item[0])))


def _rank(name: str) -> tuple:
    parts = name.split(".")
    return (0 if name.startswith("token_embd") else 1 if parts[0] == "blk" else 2, int(parts[1]) if parts[0] == "blk" else 0, name)


def _ordered(value: torch.Tensor, key: str, config: dict, family: _architectures.Family) -> torch.Tensor:
    """Rows of q or k in llama.cpp's order: the two halves that are turned together stand side by side."""
    part = re.search(r"self_attn\.([qk])_proj\.", key)
    if not part or not family.permuted:
        return value
    heads = config["num_attention_heads"]
    if part[1] == "k":
        heads = config.get("num_key_value_heads") or heads
    return value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def _stored(shape: tuple[int, ...], kind: str) -> torch.dtype:
    return STORED[kind] if len(shape) > 1 else torch.float32


def _announce(gguf: Any, writer: Any, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    raw = getattr(gguf.GGMLQuantizationType, NAMES[dtype].upper())
    writer.add_tensor_info(name, shape, np.dtype(np.float32), int(np.prod(shape)) * dtype.itemsize, raw_dtype=raw)


def _numbers(value: torch.Tensor, dtype: torch.dtype, name: str) -> np.ndarray:
    stored = value.to(dtype).contiguous()
    if not torch.isfinite(stored).all():
        lost = torch.isfinite(value).all()
        what = f"`{name}` holds numbers too large for {NAMES[dtype]}" if lost else f"`{name}` holds infinities or NaN"
        raise StepFailed(what, mend="write `type: bf16`" if lost else "train again: the weights are broken")
    return stored.view(torch.int16).numpy() if dtype == torch.bfloat16 else stored.numpy()


def _llama3(config: dict) -> np.ndarray:
    """Divisors of the rotary frequencies (Llama 3.1): short waves stay, long ones are stretched, those between are blended."""
    said, width = _architectures.rope(config), _architectures.head_size(config)
    low, high, factor, old = (said[k] for k in ("low_freq_factor", "high_freq_factor", "factor", "original_max_position_embeddings"))
    found = []
    for i in range(0, width, 2):
        wave = 2 * math.pi * said["rope_theta"] ** (i / width)
        smooth = min(1.0, max(0.0, (old / wave - low) / (high - low)))
        found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, dtype=np.float32)


def _tokenizer(writer: Any, tokenizer: Any, vocabulary: int, ends: set[int]) -> None:
    tokens = gguf_tokens.read(tokenizer, vocabulary)
    writer.add_tokenizer_model(tokens.model)
    writer.add_tokenizer_pre(tokens.pre)
    writer.add_token_list(tokens.texts)
    writer.add_token_types(tokens.kinds)
    if tokens.scores is not None:
        writer.add_token_scores(tokens.scores)
        writer.add_add_space_prefix(tokens.space_first)
    if tokens.merges:
        writer.add_token_merges(tokens.merges)
    for key, value in gguf_tokens.special(tokenizer, ends).items():
        _add(writer, f"tokenizer.ggml.{key}", value)
    for name, text in sorted(gguf_tokens.templates(tokenizer).items()):
        writer.add_string("tokenizer.chat_template" + ("" if name == "default" else f".{name}"), text)


def _add(writer, key: str, value: int | float | str | bool) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)
