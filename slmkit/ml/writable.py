"""Can the model come to write what it is taught? Not a token whose row in the output layer is frozen and like that of others.

Adapters leave the output layer (often the input embeddings, too) as it is. The last norm gives the hidden state the length √d, scaled by
its gain g, so whatever is learned, token t gets at most m(t, u) = √d·‖g ⊙ (w_t − w_u)‖ nats more than token u, and a probability of
at most 1 / (1 + Σ_u exp −m(t, u)). Rows that were never trained are bundled (all were pushed the same way: `</s>` of a model
that saw none) or are the mean of all rows (tokens added later), whose logit is the mean of all logits. The loss falls all the same,
down to that bound. Where the best m is less than what bf16 rounds a logit by, the token will not even be the likeliest: that is refused.
Where it is more, but the bound is low, greedy answers may hold the token and sampled ones will not: that is warned of.
Such tokens have been found by the same signs in published models: https://arxiv.org/abs/2405.05417.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.distributed.tensor import DTensor
from torch.func import functional_call

from slmkit.errors import Problem, RecipeError, StepFailed
from slmkit.ml.lora import decoder
from slmkit.ml.training import Run

NEAR = 0.25  # of a row's length: untrained rows are within 0.04 to 0.11 of one another in the small models measured, trained ones beyond 0.6
TWIN = 0.5  # nats: logits of 32 to 64 have steps of 0.25 in bf16
LIKELY = 0.9  # of trained tokens the bound is 1.000; of untrained ones that were measured it is 0.005 to 0.6, and what they got a tenth of it
SHARE = 0.05  # of the rows: fewer that hold such a token are warned of
SAME = 1e-3  # of a row's length: rounding in bf16
TRIED, NEAREST, CHUNK, SHOWN = 512, 16, 8192, 8  # most frequent tokens tried; rivals of each in a chunk; rows in a chunk; tokens named


@dataclass(frozen=True)
class Output:
    """The output layer: weight [tokens, width]; gain [width] or None where it is not known; shift [tokens]: what no hidden state changes."""

    weight: torch.Tensor
    gain: torch.Tensor | None
    shift: torch.Tensor


def check(run: Run, model: torch.nn.Module, answers: Iterable[Iterable[int]], *, share: float = SHARE, of: str = "rows") -> None:
    """Refuse to train when more than `share` of the answers hold a token that the model can never write; warn of what it can hardly write.

    model: with its adapters. answers: for each row, the ids that are learned. Raises RecipeError that names tokens and mend.
    """
    output = frozen_output(model)
    if output is None:
        return
    rows = [set(ids) for ids in answers]
    count = Counter(t for ids in rows for t in ids)
    bounds = most_likely(output, [t for t, _ in count.most_common(TRIED) if t < len(output.weight)])
    never = {t: p for t, (p, margin) in bounds.items() if margin < TWIN}
    hardly = {t: p for t, (p, _) in bounds.items() if p < LIKELY}
    why = f"their rows in the output layer were never trained, are like those of others, and method {run.config.method} leaves that layer as it is"
    if _touched(rows, never) > share * len(rows):
        what = _said(run, rows, count, never, of, "that this model can never learn to write")
        raise RecipeError([Problem(f"{what}; {why}", mend=_mend(run, model))])
    if run.rank == 0 and _touched(rows, hardly) > share * len(rows):
        what = _said(run, rows, count, hardly, of, "that this model can write with little probability, whatever it learns")
        run.ctx.log("warning", what=f"{what}; {why}; {_mend(run, model)}")


def _touched(rows: list[set[int]], some: dict[int, float]) -> int:
    return sum(bool(ids & some.keys()) for ids in rows)


def _said(run: Run, rows: list[set[int]], count: Counter, some: dict[int, float], of: str, which: str) -> str:
    order = sorted(some, key=lambda t: (-count[t], t))
    names = [f"{run.tokenizer.convert_ids_to_tokens(t)!r} (in {count[t]:,}; p ≤ {some[t]:.2g})" for t in order[:SHOWN]]
    more = f" and {len(order) - SHOWN} more" if len(order) > SHOWN else ""
    return f"{_touched(rows, some):,} of {len(rows):,} {of} hold tokens {which}: {', '.join(names)}{more}"


def _mend(run: Run, model: torch.nn.Module) -> str:
    base = model.get_base_model()
    tied = base.get_input_embeddings().weight is base.get_output_embeddings().weight
    module = base.get_input_embeddings() if tied else base.get_output_embeddings()
    name = next(n for n, m in base.named_modules() if m is module).rpartition(".")[2]
    return f"train that layer, too: `lora.modules_to_save: [{name}]`; or write `method: full`"


def frozen_output(model: torch.nn.Module) -> Output | None:
    """The output layer of a model with adapters; None where it is trained, or is no plain matrix."""
    if not hasattr(model, "get_base_model"):
        return None
    base = model.get_base_model()
    layer = base.get_output_embeddings()
    weight = getattr(layer, "weight", None)
    if not isinstance(layer, torch.nn.Linear) or weight.requires_grad or not weight.is_floating_point():
        return None
    weight = _whole(weight)
    shift = torch.zeros(len(weight), device=weight.device) if layer.bias is None else _whole(layer.bias).float()
    gain, offset = _last_norm(base, weight.shape[1])
    if offset is not None:
        shift = shift + weight.float() @ offset
    return Output(weight, gain, shift)


@torch.no_grad()
def _last_norm(base: torch.nn.Module, width: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """(size of the gain, offset) of the norm after the last block, [width] each; None where it is trained or not to be found."""
    try:
        blocks, _ = decoder(base)
    except StepFailed:
        return None, None
    after = [m for m in base.get_submodule(blocks.rpartition(".")[0]).children() if "norm" in type(m).__name__.lower()]
    weight = getattr(after[-1], "weight", None) if after else None
    if weight is None or weight.requires_grad or weight.shape != (width,) or width % 2:
        return None, None
    probe = torch.ones(width, dtype=weight.dtype, device=weight.device)
    probe[1::2] = -1  # of mean 0 and mean square 1: every norm leaves it as it is, and its own parameters are what is seen
    own = {name: _whole(p) for name, p in after[-1].named_parameters()}
    plus, minus = (functional_call(after[-1], own, (x[None],))[0].float() for x in (probe, -probe))
    return (plus - minus).abs() / 2, (plus + minus) / 2


def _whole(weight: torch.Tensor) -> torch.Tensor:
    """A weight as one tensor, also where processes share it (all of them must ask)."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight.detach()


@torch.no_grad()
def most_likely(output: Output, wanted: list[int]) -> dict[int, tuple[float, float]]:
    """For each token the most it can get, whatever the hidden state, against rows that are near its own: probability, and nats above the
    nearest. (1, inf): none is near."""
    if not wanted:
        return {}
    ids = torch.tensor(wanted, device=output.weight.device)
    mine, width = _scaled(output, ids), output.weight.shape[1]
    rivals, margin = torch.zeros(len(ids), device=ids.device), torch.full((len(ids),), torch.inf, device=ids.device)
    total, squares = torch.zeros(width, dtype=torch.float64, device=ids.device), 0.0
    for start in range(0, len(output.weight), CHUNK):
        rows = _scaled(output, slice(start, start + CHUNK))
        total += rows.double().sum(0)
        squares += rows.double().square().sum().item()
        some, least = _rivals(output, ids, mine, rows, start)
        rivals, margin = rivals + some, torch.minimum(margin, least)
    likely = (1 / (1 + rivals)).double()
    if output.gain is None:
        return _by_token(wanted, likely, margin)
    count = len(output.weight)
    mean = total / count
    off = (mine.double() - mean).norm(dim=1)
    usual = math.sqrt(max(squares / count - mean.square().sum().item(), 0.0))
    level = (output.shift[ids] - output.shift.mean()).double()
    # a row that is the mean of all gets the mean of all logits, whose exponential is at most the mean of theirs
    above = torch.where(off <= NEAR * usual, math.sqrt(width) * off + level, torch.inf)
    return _by_token(wanted, torch.minimum(likely, above.exp() / count), torch.minimum(margin, above))


def _by_token(wanted: list[int], likely: torch.Tensor, margin: torch.Tensor) -> dict[int, tuple[float, float]]:
    return dict(zip(wanted, zip(likely.tolist(), margin.tolist(), strict=True), strict=True))


def _scaled(output: Output, which: torch.Tensor | slice) -> torch.Tensor:
    rows = output.weight[which].float()
    return rows if output.gain is None else rows * output.gain


def _rivals(output: Output, ids: torch.Tensor, mine: torch.Tensor, rows: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ exp −m, and the least m, over those of these rows that are near each wanted token's. rows: those from `start` on, scaled.

    Distances by one product of matrices are off by 1e-3 of a row's length; the NEAREST are taken again, exactly.
    """
    long, sums, least = mine.norm(dim=1), torch.zeros(len(ids), device=ids.device), torch.full((len(ids),), torch.inf, device=ids.device)
    bar = (long.square() * (1 - NEAR**2))[:, None] + rows.square().sum(1)[None]
    some = (2 * mine @ rows.T >= bar).sum(1) > 0  # |t − u| ≤ NEAR·|t|: for a token that was trained, itself alone
    if not some.any():
        return sums, least
    ids, mine, long = ids[some], mine[some], long[some]
    far = (long.square()[:, None] + rows.square().sum(1)[None] - 2 * mine @ rows.T).clamp(min=0).sqrt()
    far.masked_fill_(torch.arange(start, start + len(rows), device=ids.device)[None] == ids[:, None], torch.inf)
    for other in far.topk(min(NEAREST, len(rows)), largest=False).indices.unbind(1):
        exact = (mine - rows[other]).norm(dim=1)
        far.scatter_(1, other[:, None], torch.where(start + other == ids, torch.inf, exact)[:, None])
    ratio = far / long[:, None].clamp(min=1e-12)
    if output.gain is None:  # by how much a difference counts is not known: rows that are the same within rounding, then
        margin = torch.where(ratio < SAME, 0.0, torch.inf)
    else:
        margin = math.sqrt(mine.shape[1]) * far + output.shift[ids][:, None] - output.shift[start : start + len(rows)][None]
        margin.masked_fill_(ratio > NEAR, torch.inf)
    sums[some], least[some] = (-margin).exp().sum(1), margin.min(1).values
    return sums, least
