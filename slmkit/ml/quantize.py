"""The quantize step: shapes are checked, one of the methods writes its folder, and what it did to the model is measured."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from slmkit.data.rows import Rows
from slmkit.errors import RecipeError
from slmkit.ml import cards, chat, choosing, fidelity, models, quantizers
from slmkit.ml.choosing import Choice
from slmkit.ml.examples import Example
from slmkit.ml.quantizers import autoround
from slmkit.steps import _candidates, _fidelity
from slmkit.steps._step import Context, Given, Result


def quantize(ctx: Context, config: Any, data: Rows | None) -> Result:
    """Entry of the step. `data`: the calibration rows, drawn and checked already."""
    given = ctx.inputs["model"]
    where = models.device(ctx.execution.device)
    folder = Path(given.path)
    if config.target == "llama.cpp":
        from slmkit.ml import choosing_types

        return choosing_types.quantize(ctx, config, data, _rows(config, data, given), given)
    if problem := _candidates.problem(config, folder):
        raise RecipeError([problem])
    if config.method in ("awq", "autoround"):
        autoround.needs(config.method, where)
    rows = _rows(config, data, given) if data else []
    choice = choosing.choose(ctx, config, data, rows, given, where) if config.method == "auto" else None
    config = choice.config if choice else config
    bits = {"nf4": 4, "int8": 8}.get(config.method, config.bits)
    runs = "transformers with bitsandbytes" if config.method in ("nf4", "int8") else "transformers, unpacked by slmkit"
    return fidelity.certified(
        ctx, config.fidelity, _fidelity.BY_BITS[bits], given, lambda: fidelity.Transformers(given, where),
        lambda _asked, _before: _made(ctx, config, choice, rows, given, where),
        lambda out: fidelity.Transformers(Given("model", given.name, "model", given.uri, out), where, runs),
    )  # fmt: skip


def _made(ctx: Context, config: Any, choice: Choice | None, rows: list[Example], given: Given, where: torch.device) -> Result:
    """Write the folder, or take the one that was chosen."""
    if choice:
        values = dict(choice.values)
        shutil.copytree(choice.folder, ctx.out, dirs_exist_ok=True)
    else:
        values = quantizers.of(config).quantize(ctx, config, given, where, [e.input_ids for e in rows] or None)
    models.copy_generation_config(Path(given.path), ctx.out)
    models.copy_tokenizer(given, ctx.out)
    values["bytes"] = sum(f.stat().st_size for f in ctx.out.glob("*.safetensors"))
    values["bits_per_weight"] = values["bytes"] * 8 / values["parameters"]
    values["bytes_before"] = models.weight_bytes(given)
    models.free()
    card = cards.quantized(given, config, values, ctx.inputs.get("calibration"))
    cost = {"peak_memory_bytes": models.peak_memory(where)}
    exact = where.type == "cpu" and config.backend == "slmkit"  # awq and autoround run on no CPU
    return Result(values, card=card, cost=cost, seed=config.seed, determinism="exact" if exact else "seeded")


def _rows(config: Any, data: Rows, given: Given) -> list[Example]:
    """The calibration rows in tokens: rendered as in training, cut to max_length."""
    tokenizer = models.tokenizer(given)
    ends = models.end_ids(given, tokenizer)
    settings = {"loss_on": "all", "max_length": config.max_length, "too_long": "cut_end", "allow_truncation": True}
    return list(chat.encode(data, tokenizer, ends=ends, **settings).examples)
