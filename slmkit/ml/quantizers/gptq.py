"""GPTQ by slmkit, never worse than rounding: both are made of every block, and what is closer to the model on rows held out is kept.

Each layer's Hessian is taken from inputs that went through the quantized layers before it, so errors are seen and made up for downstream. Layers
with the same input (q, k and v) share one Hessian. A share of the calibration rows is held out of the Hessians and goes through the model three
times, a block at a time: as it is, by GPTQ, and rounded to nearest on the same grid. Where rounding is closer (it happens, ungrouped on small
models), it is kept and said. A finished block is kept in the step's state: a killed run goes on with the next, to the same bytes.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from slmkit.ml import blocks as walking
from slmkit.ml import gptq, gptq_format
from slmkit.ml.blocks import Batch, Blocks
from slmkit.ml.quantizers import packed
from slmkit.steps._step import Context, Given

WAYS = ("gptq", "rtn")
HELD, FEWEST = 8, 16  # every eighth row is held out; of fewer rows than that none can be spared
MOST_HELD = 32
PIECE = 128  # places whose logits are compared at once


def quantize(ctx: Context, config: Any, given: Given, where: torch.device, rows: list[list[int]]) -> dict:
    ctx.progress(0, None, "loading")
    opened = packed.opened(given, where)
    spared = held(rows)
    if not spared:
        ctx.log("warning", what=f"{len(rows)} calibration rows are too few to hold some out: GPTQ is not compared with rounding to nearest")
    calibration = opened.enter(rows[len(spared) :])
    streams = {way: opened.enter(spared) for way in ("full", *WAYS)} if spared else {}
    errors: dict[str, dict[str, float]] = {way: {} for way in WAYS}
    for i in range(len(opened.list)):
        with opened.block(i):
            kept = packed.block(ctx.state, i)
            _through(opened, i, streams.get("full", []))
            if not kept.is_file():
                packed.keep(kept, *_block(opened, i, calibration, config))
            for way in WAYS:
                _put(opened, i, kept, way, config.bits, errors[way])
                follows = [calibration] if way == "gptq" and i + 1 < len(opened.list) else []  # the last block calibrates none after it
                for stream in (*follows, streams.get(way, [])):
                    _through(opened, i, stream)
        ctx.log("block", number=i, relative_error={n: errors["gptq"][n] for n in opened.linear(i)})
        ctx.progress(i + 1, len(opened.list), "blocks")
    compared = _compare(opened, streams) if spared else None
    best = min(WAYS, key=lambda way: compared[way]["kl"]) if compared else "gptq"
    if best == "rtn":
        ctx.log("warning", what=f"rounding to nearest is closer to the model on rows held out (KL {compared['rtn']['kl']:.3g} nats) than GPTQ "
                f"({compared['gptq']['kl']:.3g}): it was kept; a `group_size`, `act_order: true` or more `samples` may help")
    tensors = packed.kept(ctx.state, len(opened.list), best)
    packed.save(ctx, opened, tensors, config, act_order=config.act_order and best == "gptq")
    return packed.values(opened, tensors, config, errors[best]) | {
        "samples": len(rows) - len(spared), "calibration_tokens": sum(map(len, rows[len(spared) :])), "kept": best, "held_out": compared,
    }  # fmt: skip


def held(rows: list) -> list:
    """The first of the rows, which no Hessian sees; none where there are too few to spare any."""
    return rows[: min(len(rows) // HELD, MOST_HELD)] if len(rows) >= FEWEST else []


def _through(opened: Blocks, i: int, batches: list[Batch]) -> None:
    for batch in batches:
        batch.hidden = opened.run(i, batch)


def _block(opened: Blocks, i: int, calibration: list[Batch], config: Any) -> tuple[dict, dict]:
    """Both ways of every layer of block i, packed, and their errors."""
    tensors: dict[str, torch.Tensor] = {}
    errors: dict[str, dict[str, float]] = {way: {} for way in WAYS}
    grid = packed.grid(config)
    for group in walking.groups(opened, i, calibration[0]):
        moment = walking.hessian(opened, i, group[0], calibration)
        factor = gptq.factor(moment, damping=config.damping, act_order=config.act_order)
        for name in group:
            module = opened.linear(i)[name]
            weight = module.weight.data
            layers = {"gptq": gptq.gptq(weight, factor, grid), "rtn": gptq.rtn(weight, grid)}
            for way, layer in layers.items():
                errors[way][name] = gptq.relative_error(weight, layer.dense(), moment)
                tensors |= {f"{way}/{name}.{part}": v for part, v in gptq_format.tensors(layer, grid.bits).items()}
            module.weight.data = layers["gptq"].dense().to(weight.dtype)
    return tensors, errors


def _put(opened: Blocks, i: int, file: Path, way: str, bits: int, errors: dict[str, float]) -> None:
    """Give block i the weights of one way, as they will be read back."""
    with safe_open(file, framework="pt") as kept:
        errors |= json.loads(kept.metadata()["errors"])[way]
        for name, module in opened.linear(i).items():
            parts = {part: kept.get_tensor(f"{way}/{name}.{part}") for part in gptq_format.PARTS}
            dense = gptq_format.layer(parts, bits).dense()
            module.weight.data = dense.to(module.weight.device, module.weight.dtype)


def _compare(opened: Blocks, streams: dict[str, list[Batch]]) -> dict[str, Any]:
    """Mean KL divergence from the model as it is, and nats a token, on the rows held out; in nats."""
    sums = {way: torch.zeros(2, dtype=torch.float64) for way in streams}
    places = targets = rows = 0
    for number, batch in enumerate(streams["full"]):
        for row, length in enumerate(batch.real.sum(1).tolist()):
            rows += 1
            for start in range(0, length, PIECE):
                end = min(start + PIECE, length)
                logs = {way: _logs(opened, streams[way][number], row, start, end) for way in streams}
                follow = batch.ids[row, start + 1 : min(end + 1, length)].cpu()
                places, targets = places + end - start, targets + len(follow)
                for way, said in logs.items():
                    sums[way][0] += (logs["full"].exp() * (logs["full"] - said)).sum().double()
                    sums[way][1] -= said[: len(follow)].gather(1, follow[:, None]).sum().double()
    found = {way: {"kl": (s[0] / places).item(), "nats": (s[1] / max(targets, 1)).item()} for way, s in sums.items()}
    return {"rows": rows, "tokens": places, "before": {"nats": found.pop("full")["nats"]}} | found


def _logs(opened: Blocks, batch: Batch, row: int, start: int, end: int) -> torch.Tensor:
    one = copy.copy(batch)
    one.ids, one.hidden = batch.ids[row : row + 1, start:end], batch.hidden[row : row + 1, start:end]
    return opened.leave(one)[0].log_softmax(-1).cpu()
