"""Rounding to nearest: every weight to the nearest value of its group's grid, layer by layer, without calibration."""

from __future__ import annotations

from typing import Any

import torch

from slmkit.ml import gptq, gptq_format
from slmkit.ml.quantizers import packed
from slmkit.steps._step import Context, Given


def quantize(ctx: Context, config: Any, given: Given, where: torch.device, _rows: None) -> dict:
    blocks, grid = packed.opened(given, where), packed.grid(config)
    errors: dict[str, float] = {}
    for i in range(len(blocks.list)):
        made: dict[str, torch.Tensor] = {}
        for name in blocks.linear(i):
            weight = blocks.read(f"{name}.weight").to(where)
            layer = gptq.rtn(weight, grid)
            errors[name] = gptq.relative_error(weight, layer.dense(), None)
            made |= {f"rtn/{name}.{part}": value for part, value in gptq_format.tensors(layer, grid.bits).items()}
        packed.keep(packed.block(ctx.state, i), made, {})
        ctx.progress(i + 1, len(blocks.list), "blocks")
    tensors = packed.kept(ctx.state, len(blocks.list), "rtn")
    packed.save(ctx, blocks, tensors, config, act_order=False)
    return packed.values(blocks, tensors, config, errors)
