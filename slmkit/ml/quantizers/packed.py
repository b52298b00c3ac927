"""What gptq and rtn share: an open model, and the folder in AutoGPTQ's format with what it says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from slmkit.errors import StepFailed
from slmkit.ml import gptq_format, models, saving
from slmkit.ml.blocks import Blocks
from slmkit.ml.gptq import Grid
from slmkit.ml.saving import Stored
from slmkit.steps._step import Context, Given


def opened(given: Given, where: torch.device) -> Blocks:
    """The model, block by block. Its values are those of a quantized file, which holds 16 bits at most; the arithmetic on them is fp32 on a CPU."""
    own = models.own_dtype(Path(given.path))
    stored = torch.float16 if own == torch.float32 else own
    blocks = Blocks(Path(given.path), where, stored, torch.float32 if where.type == "cpu" else stored)
    for i, block in enumerate(blocks.list):
        for name, module in block.named_modules():
            if not isinstance(module, torch.nn.Linear) and any(p.dim() > 1 for p in module.parameters(recurse=False)):
                what = f"{blocks.prefix}.{i}.{name} is a {type(module).__name__}, and only linear layers are quantized here"
                raise StepFailed(what, where=given.path, mend="try `backend: gptqmodel`, or method nf4")
    return blocks


def grid(config: Any) -> Grid:
    return Grid(config.bits, config.group_size, config.symmetric)


def keep(file: Path, tensors: dict[str, torch.Tensor], errors: dict[str, dict[str, float]]) -> None:
    """A finished block, `WAY/NAME.qweight` … and the errors of each way, whole or not at all."""
    part = file.with_suffix(".part")
    save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, part, metadata={"errors": json.dumps(errors)})
    part.rename(file)


def block(state: Path, i: int) -> Path:
    """Where block i is kept."""
    return state / f"block-{i}.safetensors"


def kept(state: Path, count: int, way: str) -> dict[str, Stored]:
    """The parts of every layer as one way made them, unread."""
    return {key[len(way) + 1 :]: _unread(block(state, i), key) for i in range(count) for key in _keys(block(state, i)) if key.startswith(f"{way}/")}


def _keys(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _unread(file: Path, key: str) -> Stored:
    with safe_open(file, framework="pt") as opened:
        part = opened.get_slice(key)
        dtype, shape = saving.DTYPES[part.get_dtype()], tuple(part.get_shape())

    def read() -> torch.Tensor:
        with safe_open(file, framework="pt") as again:
            return again.get_tensor(key)

    return Stored(dtype, shape, read)


def save(ctx: Context, blocks: Blocks, tensors: dict[str, Stored], config: Any, *, act_order: bool) -> None:
    """Write the folder. tensors: the packed parts of every layer."""
    layers = {name.rpartition(".")[0] for name in tensors}
    rest = {name: blocks.stored_as(name) for name in blocks.names if name.removesuffix(".weight") not in layers}
    extra = {"desc_act": act_order} | ({"damp_percent": config.damping} if config.damping else {})  # no reader takes a damping of 0
    gptq_format.save(rest | tensors, grid(config), ctx.out, blocks.folder, blocks.stored, extra)


def values(blocks: Blocks, tensors: dict[str, Stored], config: Any, errors: dict[str, float]) -> dict:
    """What the result says. errors: relative error of each layer, ‖(W - Q)X‖² / ‖WX‖², or of the weights alone."""
    size = sum(v.bytes for v in tensors.values())
    weights = sum(m.weight.numel() for i in range(len(blocks.list)) for m in blocks.linear(i).values())
    return {
        "bits": config.bits, "layers": len(errors), "parameters": sum(p.numel() for p in blocks.model.parameters()),
        "quantized_parameters": weights, "bits_per_quantized_weight": size * 8 / weights,
        "relative_error_mean": sum(errors.values()) / len(errors), "relative_error_max": max(errors.values()),
        "worst_layer": max(errors, key=errors.get), "relative_error": errors,
    }  # fmt: skip
