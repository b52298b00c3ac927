"""The loss of a batch: summed over its trained tokens, with the output layer run for those alone.

Four in five tokens of a chat are prompt; computing 150,000 logits for each would be most of the time and memory of a small model.
"""

from __future__ import annotations

import inspect

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

from slmkit.ml import batches
from slmkit.ml.chat import Example


def keeps_logits(model: torch.nn.Module) -> bool:
    """Can this architecture compute the logits of some positions only?"""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(type(base).forward).parameters


def logits_of(model: torch.nn.Module, batch: dict[str, torch.Tensor], some: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits [trained tokens, vocabulary], in the order of rows and places; a zero with a gradient, for batches without a trained token).

    some: the model takes `logits_to_keep` (see `keeps_logits`).
    """
    rest = {k: v for k, v in batch.items() if k != "labels"}
    wanted = batches.trained(batch)
    columns = wanted.any(0).nonzero().squeeze(1)
    if not len(columns):
        columns = torch.zeros(1, dtype=torch.long, device=wanted.device)
    if some:
        logits = model(**rest, use_cache=False, logits_to_keep=columns).logits
    else:
        logits = model(**rest, use_cache=False).logits[:, columns]
    return logits[wanted[:, columns]], logits.sum() * 0.0


def summed(model: torch.nn.Module, batch: dict[str, torch.Tensor], some: bool) -> torch.Tensor:
    """Negative log-likelihood in nats, summed over the batch's trained tokens (a zero with a gradient where there are none)."""
    logits, zero = logits_of(model, batch, some)
    if not len(logits):
        return zero
    return cross_entropy(logits.float(), batch["labels"][:, 1:][batches.trained(batch)], reduction="sum")


@torch.no_grad()
def mean(model: torch.nn.Module, examples: list[Example], where: torch.device, dtype: torch.dtype, batch: int = 8) -> float:
    """Mean negative log-likelihood per trained token, nats. Draws no random numbers, so measuring cannot steer the training.

    In several processes each takes its share of the rows, and all get the same answer.
    """
    was_training = model.training
    model.eval()
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    ordered = sorted(examples, key=lambda e: len(e.ids))[rank::world]
    sums = torch.zeros(2, dtype=torch.float64, device=where)
    some = keeps_logits(model)
    with torch.autocast(where.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        for start in range(0, -(-len(examples) // world), batch):  # equally often in each: a model shared among them needs all at once
            part = {k: v.to(where) for k, v in batches.pad(ordered[start : start + batch]).items()}
            sums[0] += summed(model, part, some).double()
            sums[1] += batches.trained(part).sum()
    if world > 1:
        dist.all_reduce(sums)
    model.train(was_training)
    return (sums[0] / sums[1].clamp(min=1)).item()
