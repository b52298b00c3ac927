"""How a global batch is run here: packed or padded, in micro batches of how many rows. None of it moves the fingerprint.

Before packed rows are trained on, a few are run alone and in one pack: if this model on this attention kernel lets rows see each
other, packing is turned off and it is said.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from slmkit.errors import Problem, RecipeError
from slmkit.ml import batches, cuts, memory, rows_attention
from slmkit.ml.chat import Example
from slmkit.steps import _cuts, _memory

if TYPE_CHECKING:
    from slmkit.ml.training import Run

PADDED_ROWS = 8  # rows per forward pass where memory is no question: more is no faster on a CPU, where `cuts` may choose fewer
TRIED = 3  # rows of the self-test
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}  # relative to the row's loss, and to the largest logit


def settle(run: Run, examples: list[Example]) -> int:
    """The most rows per forward pass, by what was asked and what fits. Raises RecipeError, or CannotRun when nothing fits."""
    asked = run.ctx.execution.micro_batch
    most = micro_batch(asked, run.config.batch_size, run.world)
    known, fits = partial(_largest, run, examples), choices(run.config.batch_size, run.world)
    return memory.settle(run, *memory.longest(examples), fits, None if asked == "auto" else most, known)


def _largest(run: Run, examples: list[Example], most: int) -> dict[str, int]:
    """Tokens of the largest micro batch of the first pass, those learned in the one that learns most, and how many lengths there are."""
    shape, lengths = _memory.shape(Path(run.given.path)), [len(e.ids) for e in examples]
    cost = _cuts.of_shape(shape.linear, shape.hidden, shape.layers)
    way = _way(run, cost, run.ctx.execution.attention in ("auto", "sdpa"), examples, most, _cuts.PACKINGS[run.ctx.execution.packing])
    order = batches.order(len(lengths), run.config.seed, 0)
    return _cuts.largest(lengths, [e.trained for e in examples], order[: (run.config.max_steps or len(order)) * way.batch_size], way)


def cut(run: Run, model: torch.nn.Module, examples: list[Example], most: int) -> batches.Cut:
    """How a global batch is cut up, in micro batches of at most so many rows; packing is tested before it is believed."""
    cost, apart = cuts.costs(model), _apart(run, model)
    way = _way(run, cost, apart, examples, most, _cuts.PACKINGS[run.ctx.execution.packing])
    apart = way.packed and apart
    if apart:
        rows_attention.use(model)
    if way.packed and (difference := leak(run, model, examples)):
        if apart:
            rows_attention.use(model, False)
        what = f"packing is off: with this model and attention kernel rows in one pack see each other ({difference})"
        run.ctx.log("warning", what=what)
        return _way(run, cost, apart, examples, most, (False,))
    return way


def _way(run: Run, cost: _cuts.Costs, apart: bool, examples: list[Example], most: int, packings: tuple[bool, ...]) -> batches.Cut:
    """On a CPU the cheapest way for these lengths that was not excluded; elsewhere as many rows as fit, packed if it may be."""
    config, lengths = run.config, [len(e.ids) for e in examples]
    cpu = run.where.type == "cpu"
    ways = _cuts.ways(config.batch_size // run.world, most, packings, cpu and run.ctx.execution.micro_batch == "auto", run.rank, run.world)
    if not cpu:
        return ways[-1] if run.where.type == "cuda" else ways[0]
    return _cuts.cheapest(lengths, batches.order(len(lengths), config.seed, 0), ways, cost, apart)


def _apart(run: Run, model: torch.nn.Module) -> bool:
    """May rows of a pack attend each by itself? On a GPU the kernels are many and small then, and the mask costs little."""
    return run.where.type == "cpu" and run.ctx.execution.attention in ("auto", "sdpa") and rows_attention.fits(model)


def choices(batch_size: int, world: int) -> list[int]:
    """Micro batches that `auto` may choose."""
    share = batch_size // world
    return [n for n in range(1, PADDED_ROWS + 1) if share % n == 0]


def micro_batch(asked: int | str, batch_size: int, world: int) -> int:
    """Rows per forward pass on each process. Raises RecipeError when they do not make up batch_size."""
    if batch_size % world:
        what = f"batch_size: {batch_size} is no multiple of {world} processes"
        raise RecipeError([Problem(what, mend=f"write execution.processes as a divisor of {batch_size}, or another batch_size")])
    share = batch_size // world
    if asked == "auto":
        return max(choices(batch_size, world))
    if share % asked:
        fits = ", ".join(str(n) for n in range(1, share + 1) if share % n == 0)
        what = f"execution.micro_batch: {asked} does not divide batch_size: {batch_size}" + (f" on {world} processes" if world > 1 else "")
        raise RecipeError([Problem(what, mend=f"write one of {fits}")])
    return asked


@torch.no_grad()
def leak(run: Run, model: torch.nn.Module, examples: list[Example]) -> str | None:
    """How the loss or the logits of a row differ between alone and packed, or None when they agree. Draws no random numbers."""
    some = sorted(examples[:64], key=lambda e: len(e.ids))[:TRIED]
    was_training = model.training
    model.eval()
    tolerance = TOLERANCE[run.dtype]
    try:
        with torch.autocast(run.where.type, torch.bfloat16, enabled=run.dtype == torch.bfloat16):
            together = _logits(model, some, run.where)
            start = 0
            for one in some:
                alone, end = _logits(model, [one], run.where), start + len(one.ids)
                said = _differ(alone, together[start:end], one, tolerance)
                if said:
                    return said
                start = end
    finally:
        model.train(was_training)
    return None


def _logits(model: torch.nn.Module, rows: list[Example], where: torch.device) -> torch.Tensor:
    batch = {k: v.to(where) for k, v in batches.pack(rows).items() if k != "labels"}
    return model(**batch, use_cache=False).logits[0].float().cpu()


def _differ(alone: torch.Tensor, packed: torch.Tensor, row: Example, tolerance: float) -> str | None:
    labels = batches.targets(row)[1:].long()
    losses = [cross_entropy(x[:-1], labels, ignore_index=-100).item() for x in (alone, packed)]
    if abs(losses[0] - losses[1]) > tolerance * max(1.0, abs(losses[0])):
        return f"loss {losses[0]:.4f} alone, {losses[1]:.4f} packed"
    apart = (alone - packed).abs().max().item()
    return f"logits differ by {apart:.3g}" if apart > tolerance * max(1.0, alone.abs().max().item()) else None
