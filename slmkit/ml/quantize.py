"""The quantize step: shapes are checked first, then one of four methods writes its folder."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import torch

from slmkit.data import rows
from slmkit.data.rows import Rows
from slmkit.errors import Problem, RecipeError, StepFailed
from slmkit.ml import calibrate, cards, chat, fidelity, gptq, gptq_format, models
from slmkit.steps import _fidelity
from slmkit.steps._step import Context, Given, Result

USUAL = (16, 32, 64, 128, 256, 512, 1024)


def quantize(ctx: Context, config: Any, data: Rows | None) -> Result:
    """Entry of the step. `data` is the calibration set, read and checked already."""
    given = ctx.inputs["model"]
    where = models.device(ctx.execution.device)
    folder = Path(given.path)
    if kind := models.quantized(folder):
        raise StepFailed(f"this model is already quantized ({kind})", where=folder, mend="give the full-precision model")
    if config.method in ("gptq", "rtn"):
        check_shapes(models.skeleton(folder), gptq.Grid(config.bits, config.group_size, config.symmetric))
    bits = {"nf4": 4, "int8": 8}.get(config.method, config.bits)
    runs = "transformers, unpacked by slmkit" if config.method in ("gptq", "rtn") else "transformers with bitsandbytes"
    return fidelity.certified(
        ctx, config.fidelity, _fidelity.BY_BITS[bits], given, lambda: fidelity.Transformers(given, where),
        lambda _asked, _before: _made(ctx, config, data, given, where),
        lambda out: fidelity.Transformers(Given("model", given.name, "model", given.uri, out), where, runs),
    )  # fmt: skip


def _made(ctx: Context, config: Any, data: Rows | None, given: Given, where: torch.device) -> Result:
    """Write the folder."""
    if config.method in ("nf4", "int8"):
        from slmkit.ml import bitsandbytes

        values = bitsandbytes.quantize(ctx, config, given, where)
    elif config.backend == "gptqmodel":
        from slmkit.ml import gptqmodel_backend

        values = gptqmodel_backend.quantize(ctx, config, given, where, _rows(config, data, given) if data else None)
    else:
        values = _own(ctx, config, data, given, where)
    models.copy_generation_config(Path(given.path), ctx.out)
    models.copy_tokenizer(given, ctx.out)
    values["bytes"] = sum(f.stat().st_size for f in ctx.out.glob("*.safetensors"))
    values["bits_per_weight"] = values["bytes"] * 8 / values["parameters"]
    values["bytes_before"] = models.weight_bytes(given)
    models.free()
    card = cards.quantized(given, config, values, ctx.inputs.get("calibration"))
    cost = {"peak_memory_bytes": models.peak_memory(where)}
    exact = where.type == "cpu" and config.backend == "slmkit"
    return Result(values, card=card, cost=cost, seed=config.seed, determinism="exact" if exact else "seeded")


def _own(ctx: Context, config: Any, data: Rows | None, given, where: torch.device) -> dict:
    grid = gptq.Grid(config.bits, config.group_size, config.symmetric)
    rows = _rows(config, data, given) if data else None
    ctx.progress(0, None, "loading")
    own = models.own_dtype(Path(given.path))
    dtype = torch.float16 if own == torch.float32 else own  # the files of a quantized model hold 16 bits at most
    model = models.load(given, torch.device("cpu"), dtype=dtype)
    # The values are those of the file (16 bits); the arithmetic on them is fp32 where memory allows it.
    model = model.to(where, torch.float32 if where.type == "cpu" else dtype)
    found: dict[str, gptq.Quantized] = {}
    errors: dict[str, float] = {}

    def one(name: str, module: torch.nn.Linear, hessian: torch.Tensor | None) -> None:
        weight = module.weight.data
        layer = _layer(weight, hessian, grid, config)
        dense = layer.dense()
        errors[name] = gptq.relative_error(weight, dense, hessian)
        module.weight.data = dense.to(weight.dtype)
        found[name] = gptq.Quantized(layer.codes.cpu(), layer.scales.cpu(), layer.zeros.cpu(), layer.g_idx.cpu())
        ctx.log("layer", name=name, relative_error=errors[name])

    _sweep(ctx, config, model, rows, one)
    extra = {"desc_act": bool(config.act_order), "damp_percent": config.damping or 0.0}
    gptq_format.save(model, found, grid, ctx.out, Path(given.path), dtype, extra)
    packed = sum(v.numel() * v.element_size() for layer in found.values() for v in gptq_format.tensors(layer, grid.bits).values())
    weights = sum(layer.codes.numel() for layer in found.values())
    values = {
        "bits": config.bits, "layers": len(found), "parameters": sum(p.numel() for p in model.parameters()),
        "quantized_parameters": weights, "bits_per_quantized_weight": packed * 8 / weights,
        "relative_error_mean": sum(errors.values()) / len(errors), "relative_error_max": max(errors.values()),
        "worst_layer": max(errors, key=errors.get), "relative_error": errors,
    }  # fmt: skip
    return values | ({"samples": len(rows), "calibration_tokens": sum(map(len, rows))} if rows else {})


def _layer(weight: torch.Tensor, hessian: torch.Tensor | None, grid: gptq.Grid, config: Any) -> gptq.Quantized:
    if hessian is None:
        return gptq.rtn(weight, grid)
    return gptq.gptq(weight, hessian, grid, damping=config.damping, act_order=config.act_order)


def _sweep(ctx: Context, config: Any, model, rows: list[list[int]] | None, one) -> None:
    if config.method == "rtn":
        every = calibrate.layers(model)
        for i, (name, module) in enumerate(every.items()):
            one(name, module, None)
            ctx.progress(i + 1, len(every), "layers")
    else:
        calibrate.walk(model, rows, one, lambda done, total: ctx.progress(done, total, "blocks"))


def check_shapes(model, grid: gptq.Grid) -> None:
    """Raises RecipeError when a layer cannot be cut into groups or packed into words, saying which sizes would fit all."""
    shapes = {name: (m.in_features, m.out_features) for name, m in calibrate.layers(model).items()}
    if not shapes:
        raise StepFailed(f"{type(model).__name__} has no linear layers in its decoder blocks", mend="try method nf4 or int8")
    if grid.group_size != -1:
        name = next((n for n, (i, _) in shapes.items() if i % grid.group_size), None)
        if name:
            common = math.gcd(*(i for i, _ in shapes.values()))
            fits = ", ".join([str(g) for g in USUAL if common % g == 0] + ["-1"])
            what = f"group_size: {grid.group_size} does not divide the {shapes[name][0]} inputs of {name} {_shape(shapes[name])}"
            raise RecipeError([Problem(what, mend=f"group sizes that divide every layer of this model: {fits}{_unpackable(shapes, grid.bits)}")])
    name = _unpacked(shapes, grid.bits)
    if name:
        factor = gptq_format.factor(grid.bits)
        fits = [b for b in (2, 3, 4, 8) if not _unpacked(shapes, b)]
        what = f"bits: {grid.bits} cannot be packed: {name} is {_shape(shapes[name])}, and both sides must be multiples of {factor}"
        mend = f"bits that fit every layer of this model: {', '.join(map(str, fits))}" if fits else "no number of bits fits"
        raise RecipeError([Problem(what, mend=mend + "; methods nf4 and int8 take any shape")])


def _unpacked(shapes: dict, bits: int) -> str | None:
    factor = gptq_format.factor(bits)
    return next((n for n, (i, o) in shapes.items() if i % factor or o % factor), None)


def _unpackable(shapes: dict, bits: int) -> str:
    name = _unpacked(shapes, bits)
    if not name:
        return ""
    fits = ", ".join(str(b) for b in (2, 3, 4, 8) if not _unpacked(shapes, b)) or "none"
    return (
        f"; and {bits} bits need both sides to be multiples of {gptq_format.factor(bits)}, bits that fit: {fits}; methods nf4 and int8 take any shape"
    )


def _shape(shape: tuple[int, int]) -> str:
    return f"({shape[0]} → {shape[1]})"


def _rows(config: Any, data: Rows, given) -> list[list[int]]:
    """Token ids of the calibration rows: drawn by seed, rendered as in training, cut to max_length."""
    tokenizer = models.tokenizer(given)
    drawn = list(data)
    random.Random(config.seed).shuffle(drawn)
    part = rows.of(data.name, data.form, drawn[: config.samples], data.format)
    ends = models.end_ids(given, tokenizer)
    encoded = chat.encode(part, tokenizer, loss_on="all", max_length=config.max_length, ends=ends, too_long="cut_end", allow_truncation=True)
    return [e.input_ids for e in encoded.examples]
