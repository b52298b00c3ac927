"""Which way of cutting a batch up is chosen on a CPU, and that attending row by row is attention over the pack."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given as with_
from hypothesis import settings
from hypothesis import strategies as st

from slmkit.ml import adapters, batches, chat, loss, models, packing, rows_attention, training
from slmkit.steps import _cuts
from slmkit.steps import train as step
from slmkit.steps._step import Context
from tests.support.drive import given

WAYS = [batches.Cut(8, n, packed) for packed in (False, True) for n in (8, 4, 2, 1)]
COST = _cuts.Costs(fixed=40, even=1500)
SKEWED = [30, 40, 40, 50, 60, 80, 150, 700] * 20
ORDER = batches.order(160, 0, 0)


@pytest.mark.parametrize("apart", [True, False])
def test_skewed_lengths_are_packed_and_equal_ones_padded(apart):
    assert _cuts.cheapest(SKEWED, ORDER, WAYS, COST, apart).packed
    assert _cuts.cheapest([100] * 160, ORDER, WAYS, COST, apart) == batches.Cut(8, 8, False)


def test_long_packs_are_cut_where_every_pair_costs():
    whole, apart = (_cuts.cheapest([n * 10 for n in SKEWED], ORDER, WAYS[4:], COST, a).micro_batch for a in (False, True))
    assert whole < 8 and apart == 8


@settings(max_examples=30, deadline=None)
@with_(st.lists(st.integers(2, 60), min_size=1, max_size=8), st.integers(0, 3))
def test_the_cost_of_padding_is_never_less_than_of_rows_alone(lengths, seed):
    free = _cuts.Costs(fixed=0, even=1500)
    alone = sum(free.of(1, n) for n in lengths)
    for way in WAYS:
        assert _cuts.total(lengths, batches.order(len(lengths), seed, 0), way, free, True) >= alone - 1e-6


def _rows(tiny, rows_file):
    from slmkit.data import read

    tokenizer = models.tokenizer(given(tiny, "model"))
    return tokenizer, chat.encode(read.read(given(rows_file, "dataset")), tokenizer, loss_on="assistant", max_length=64, ends={2}).examples


def test_row_by_row_gives_the_loss_and_the_gradients_of_the_pack(tiny, rows_file):
    _, examples = _rows(tiny, rows_file)
    torch.manual_seed(0)
    model = adapters.attach(models.load(given(tiny, "model"), torch.device("cpu")), step.Lora(), None)
    weights = [p for p in model.parameters() if p.requires_grad]
    torch.nn.init.normal_(weights[1])  # a B of zeros would hide the gradients of A

    def tried(part):
        model.zero_grad()
        total = loss.summed(model, batches.pack(part), True)
        total.backward()
        return total.item(), [p.grad.clone() for p in weights]

    for part in (examples[:1], examples[:5], examples[3:11]):
        rows_attention.use(model, False)
        a, ga = tried(part)
        rows_attention.use(model)
        b, gb = tried(part)
        assert b == pytest.approx(a, rel=1e-5)
        for x, y in zip(ga, gb, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_padded_rows_are_as_ever(tiny, rows_file):
    _, examples = _rows(tiny, rows_file)
    model = models.load(given(tiny, "model"), torch.device("cpu"))
    before = loss.mean(model, examples, torch.device("cpu"), torch.float32)
    rows_attention.use(model)
    assert loss.mean(model, examples, torch.device("cpu"), torch.float32) == before


def test_what_was_asked_is_what_runs(tiny, rows_file, tmp_path):
    tokenizer, examples = _rows(tiny, rows_file)
    wanted = [({"packing": "off"}, (False,)), ({"packing": "on", "micro_batch": 2}, (True, 2)), ({"micro_batch": 1, "packing": "off"}, (False, 1))]
    for asked, said in wanted:
        ctx = Context(tmp_path, tmp_path, {}, step.Execution(**asked), lambda *a, **k: None, lambda *a, **k: None, str)
        config = step.Config(model="$m", data="$d", method="lora", batch_size=8)
        run = training.Run(ctx, config, None, tokenizer, torch.device("cpu"), torch.float32)
        cut = packing.cut(run, models.load(given(tiny, "model"), torch.device("cpu")), examples, asked.get("micro_batch", 4))
        assert (cut.packed, cut.micro_batch)[: len(said)] == said
