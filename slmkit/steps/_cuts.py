"""How a global batch is cut into micro batches, what a way of cutting costs on a CPU, the cheapest, and its largest piece. Plain arithmetic.

A forward pass costs a fixed time, a time per token that it computes (padding too), and, in attention, one per pair of tokens. Rows of
like length are cheapest side by side; of skewed lengths, end to end. With chats whose longest row of 8 is 7 times the median, padded 8
computes 2.8 tokens for each of content, and packs of 8 train 3 times as fast.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

LOOKED_AT = 100  # global batches of the first pass: enough to tell the ways apart
SECONDS_PER_LAYER = 0.004  # of a forward and backward pass before any token: measured with 4 layers and adapters, one core
FLOPS_PER_SECOND = 5e10  # one core, fp32: both only weigh the fixed time against tokens, so a factor of 2 matters little

PACKINGS = {"on": (True,), "off": (False,), "auto": (False, True)}


@dataclass(frozen=True)
class Cut:
    """rows per global batch and per micro batch, whether a micro batch is packed, and this process among all."""

    batch_size: int
    micro_batch: int
    packed: bool = False
    rank: int = 0
    world: int = 1

    @property
    def accumulation(self) -> int:
        """Micro batches per optimizer step on each process."""
        return self.batch_size // (self.micro_batch * self.world)


def deal(rows: list[int], lengths: Sequence[int], cut: Cut) -> list[list[int]]:
    """One global batch as micro batches for all processes: `accumulation × world` lists, some of which may be empty."""
    slots = cut.accumulation * cut.world
    longest = sorted(rows, key=lambda i: (-lengths[i], i))
    if not cut.packed:
        return [longest[s * cut.micro_batch : (s + 1) * cut.micro_batch] for s in range(slots)]
    bins: list[list[int]] = [[] for _ in range(slots)]
    loads = [0] * slots
    for i in longest:  # the longest into the emptiest: near-equal loads, whatever the lengths
        lightest = loads.index(min(loads))
        bins[lightest].append(i)
        loads[lightest] += lengths[i]
    return bins


@dataclass(frozen=True)
class Costs:
    """In tokens: what a forward pass costs before any token, and the length of a row at which attention costs as much as the rest."""

    fixed: float
    even: float

    def of(self, rows: int, width: int) -> float:
        return self.fixed + rows * width * (1 + width / self.even)


def of_shape(weights: int, hidden: int, layers: int) -> Costs:
    """By the weights of the linear layers. Attention is 4 × width × hidden size operations a token and layer, linear layers are 2 a weight."""
    weights = max(weights, 1)
    return Costs(SECONDS_PER_LAYER * layers * FLOPS_PER_SECOND / (6 * weights), weights / (2 * hidden * layers))


def ways(share: int, most: int, packings: Iterable[bool], free: bool, rank: int = 0, world: int = 1) -> list[Cut]:
    """What may be chosen from: of a global batch of share × world rows, micro batches of `most`, or of fewer where that is free."""
    micros = [n for n in range(most, 0, -1) if share % n == 0] if free else [most]
    return [Cut(share * world, n, packed, rank, world) for packed in packings for n in micros]


def cheapest(lengths: Sequence[int], order: list[int], among: Iterable[Cut], cost: Costs, apart: bool) -> Cut:
    """The way that costs least over the first batches in this order; of equals the one named first.

    apart: rows of a pack attend each by itself (`rows_attention`), so that only pairs within a row are computed.
    """
    return min(among, key=lambda cut: total(lengths, order, cut, cost, apart))


def total(lengths: Sequence[int], order: list[int], cut: Cut, cost: Costs, apart: bool) -> float:
    """What the first batches cost, in tokens."""
    found = 0.0
    for part in _parts(lengths, order[: LOOKED_AT * cut.batch_size], cut):
        wide = [lengths[i] for i in part]
        if cut.packed and apart:
            found += cost.fixed + sum(n * (1 + n / cost.even) for n in wide)
        else:
            found += cost.of(1, sum(wide)) if cut.packed else cost.of(len(wide), max(wide))
    return found


def largest(lengths: Sequence[int], trained: Sequence[int], order: list[int], cut: Cut) -> dict[str, int]:
    """Tokens of the largest micro batch, those learned in the one that learns most, and how many lengths there are: as `_memory.Load` takes them."""
    seen, tokens, learned = set(), 0, 0
    for part in _parts(lengths, order, cut):
        wide = [lengths[i] for i in part]
        seen.update(wide if cut.packed else [max(wide)])
        tokens = max(tokens, sum(wide) if cut.packed else len(wide) * max(wide))
        learned = max(learned, sum(trained[i] for i in part))
    return {"tokens": tokens, "learned": learned, "lengths": len(seen)}


def _parts(lengths: Sequence[int], order: list[int], cut: Cut) -> Iterator[list[int]]:
    for start in range(0, len(order), cut.batch_size):
        yield from filter(None, deal(order[start : start + cut.batch_size], lengths, cut))
