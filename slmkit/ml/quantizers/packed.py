"""What gptq and rtn share: an open model, and the folder in AutoGPTQ's format with what it says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from slmkit.errors import StepFailed
from slmkit.ml import gptq_format, models
from slmkit.ml.blocks import Blocks
from slmkit.ml.gptq import Grid
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


def save(ctx: Context, blocks: Blocks, tensors: dict[str, torch.Tensor], config: Any, *, act_order: bool) -> None:
    """Write the folder. tensors: the packed parts of every layer."""
    layers = {name.rpartition(".")[0] for name in tensors}
    rest = ((name, blocks.read(name)) for name in blocks.names if name.removesuffix(".weight") not in layers)
    extra = {"desc_act": act_order, "damp_percent": config.damping or 0.0}
    gptq_format.save(rest, tensors, grid(config), ctx.out, blocks.folder, blocks.stored, extra)


def values(blocks: Blocks, tensors: dict[str, torch.Tensor], config: Any, errors: dict[str, float]) -> dict:
    """What the result says. errors: relative error of each layer, ‖(W - Q)X‖² / ‖WX‖², or of the weights alone."""
    size = sum(v.numel() * v.element_size() for v in tensors.values())
    weights = sum(m.weight.numel() for i in range(len(blocks.list)) for m in blocks.linear(i).values())
    return {
        "bits": config.bits, "layers": len(errors), "parameters": sum(p.numel() for p in blocks.model.parameters()),
        "quantized_parameters": weights, "bits_per_quantized_weight": size * 8 / weights,
        "relative_error_mean": sum(errors.values()) / len(errors), "relative_error_max": max(errors.values()),
        "worst_layer": max(errors, key=errors.get), "relative_error": errors,
    }  # fmt: skip
