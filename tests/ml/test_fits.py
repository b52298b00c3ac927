"""Memory: the estimate is of what is measured, auto chooses what fits, and what does not fit says what would."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from slmkit.errors import CannotRun
from slmkit.ml import memory
from slmkit.steps import _forecast, _memory
from slmkit.steps import train as step
from slmkit.steps._estimate import Size, weights
from tests.ml.conftest import write_jsonl
from tests.ml.test_train import run

SHAPE = _memory.Shape(75_000_000, 75_000_000, 150_000_000, 13568 * 12, 12, 768, 2048, 512)


def test_more_of_anything_takes_more_and_recomputing_takes_less():
    load = _memory.Load("lora", 16, 4, 4, 512, 200)
    peak = _memory.parts(SHAPE, load)["peak"]
    for change in ({"micro": 8}, {"length": 1024}, {"trained": 512}, {"rank": 256}):
        assert _memory.parts(SHAPE, _memory.Load(**vars(load) | change))["peak"] > peak, change
    for change in ({"recompute": True}, {"width": 2}, {"micro": 1}, {"gpu": True}):
        assert _memory.parts(SHAPE, _memory.Load(**vars(load) | change))["peak"] < peak, change
    fused = replace(load, fused=True)
    copies = _memory.parts(SHAPE, replace(fused, heads=2))["peak"] - _memory.parts(SHAPE, fused)["peak"]
    assert copies == pytest.approx(2 * 4 * SHAPE.vocabulary * SHAPE.hidden, abs=2)
    assert _memory.parts(SHAPE, load)["peak"] >= sum(v for k, v in _memory.parts(SHAPE, load).items() if k != "peak")


@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_is_shared_is_divided(method):
    """Weights, gradients and moments by the processes; all together take more than one, each less; the first makes the model anew to save it."""
    alone = _memory.Load(method, 0 if method == "full" else 16, 4, 1, 256, 200)
    one = _memory.parts(SHAPE, alone)
    two = _memory.parts(SHAPE, replace(alone, processes=2, shares=2))
    for part in ("weights", "optimizer", "adapters"):
        assert two[part] == pytest.approx(one[part] / 2, abs=2), part
    assert two["gathered"] > 0 and two["others"] < one["peak"] < two["all"] == two["peak"] + two["others"]
    at_once = two["libraries"] + sum(two[p] for p in ("weights", "optimizer", "adapters", "activations", "logits", "gathered"))
    assert two["saving"] > 0 and two["peak"] == pytest.approx(at_once + two["saving"], abs=9) and two["others"] >= at_once
    whole = _memory.parts(SHAPE, replace(alone, processes=2))
    assert whole["peak"] == whole["others"] == one["peak"] and _memory.needed(SHAPE, replace(alone, processes=2)) == 2 * one["peak"]
    shared = _memory.parts(SHAPE, replace(alone, processes=2, shares=2, gpu=True))
    assert "saving" not in shared and "all" not in shared  # the first process gathers on its CPU; each GPU is a process's own
    assert shared["peak"] < _memory.parts(SHAPE, replace(alone, gpu=True))["peak"]


def test_the_plan_says_what_each_process_takes(cli):
    rows = '{"prompt": "a", "completion": "b"}\n' * 4
    (cli.folder / "rows.jsonl").write_text(rows)
    step = "{kind: train, data: rows.jsonl, method: full, batch_size: 4, execution: {processes: 2, sharding: %s, device: cpu}}"
    said = {"fsdp": "1.2 GB in all, 0.58 GB in the first process and 0.57 GB in the other", "none": "1.3 GB in all, 0.66 GB in each of 2 processes"}
    for sharding, words in said.items():
        (cli.folder / "r.yaml").write_text(f"recipe: r\nbase: demo:student\nsteps:\n  t: {step % sharding}\n")
        done = cli("plan", "r.yaml")
        assert words in done.stdout, done.stdout


GROW = """
import os, slmkit.ml, psutil, torch
torch.set_num_threads(1)
weights = torch.randn(512, 256, dtype=torch.bfloat16)
def once(length):
    rows = torch.randn(length, 256, dtype=torch.bfloat16, requires_grad=True)
    torch.nn.functional.linear(rows, weights).sum().backward()
once(700)
before = psutil.Process().memory_info().rss
for length in range(100, 350):
    once(length)
print(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"], os.environ["LRU_CACHE_CAPACITY"], (psutil.Process().memory_info().rss - before) // 1_000_000)
"""


def test_products_of_lengths_gone_by_are_not_kept():
    """250 lengths in bf16 took 360 MB, 332 or 260 with one of the two limits, 90 with both. What the environment says stands."""
    limits = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")

    def grown(**said: str) -> list[int]:
        env = {k: v for k, v in os.environ.items() if k not in limits} | said
        done = subprocess.run([sys.executable, "-c", GROW], env=env, capture_output=True, text=True, check=True)
        return [int(word) for word in done.stdout.split()]

    capacity, over_it, grew = grown()
    assert (capacity, over_it) == (_memory.CACHED, 1) and grew < 160
    assert grown(ONEDNN_PRIMITIVE_CACHE_CAPACITY="7", LRU_CACHE_CAPACITY="9")[:2] == [7, 9]


def test_many_lengths_in_bf16_take_kernels_and_no_more_products_than_are_kept():
    one = _memory.Load("lora", 16, 2, 4, 512, 200)
    some, many, more = (_memory.parts(SHAPE, replace(one, lengths=n))["kernels"] for n in (3, 300, 301))
    assert _memory.parts(SHAPE, one)["kernels"] == 0 < some < many and more - many == _memory.ATTENTION[0]
    assert "kernels" not in _memory.parts(SHAPE, replace(one, lengths=300, width=4))
    assert "kernels" not in _memory.parts(SHAPE, replace(one, lengths=300, gpu=True))


def test_of_skewed_rows_the_largest_micro_batch_counts(tmp_path, tiny):
    """One long row and seven short: packed they take what they hold, side by side eight times the longest."""
    text = [["please parcel 3 goes to Graz " * n, "Graz 3"] for n in (20, 1, 1, 1, 2, 2, 2, 3)]
    file = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": q, "completion": a} for q, a in text])
    said = {}
    for packing in ("on", "off"):
        execution = {"packing": packing, "micro_batch": 8, "allow": ["duplicates", "leaks"]}
        driver, result = run(tmp_path / packing, tiny, file, method="lora", batch_size=8, max_steps=1, max_length=512, execution=execution)
        said[packing] = next(e for e in driver.events if e["event"] == "memory")
    a_token = _memory.parts(_memory.shape(tiny), _memory.Load("lora", 4, 4, 1, 1000, 1))["activations"] / 1000
    assert said["on"]["activations"] == pytest.approx(a_token * result.values["tokens"], rel=1e-3)
    assert said["off"]["activations"] > 2 * said["on"]["activations"]
    assert said["on"]["logits"] == said["off"]["logits"] == result.values["trained_tokens"] * 384 * _memory.LOGIT


def test_the_plan_of_skewed_rows_is_that_of_the_training(tmp_path, tiny, cli):
    """What plan reckons from the texts is what train does from the tokens: packed, cut up alike, with as much of it learned."""
    text = [["please parcel 3 goes to Graz " * n, "Graz 3"] for n in (20, 1, 1, 1, 2, 2, 2, 3) * 4]
    file = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": q, "completion": f"{a} {i}"} for i, (q, a) in enumerate(text)])
    execution = {"packing": "on", "micro_batch": 8, "allow": ["duplicates", "leaks"]}
    driver, _ = run(tmp_path / "t", tiny, file, method="lora", batch_size=8, max_steps=4, max_length=512, precision="fp32", execution=execution)
    said = next(e for e in driver.events if e["event"] == "memory")
    config = step.Config(model="m", data="d", method="lora", batch_size=8, max_steps=4, max_length=512)
    about = step._lengths(config, {"model": (weights(tiny),), "data": (Size(path=file),)})
    shape = _memory.shape(tiny)
    known = _forecast._largest(config, step.Execution(packing="on", micro_batch=8), shape, about, list(about.seen), 1, 8)
    load = _memory.Load("lora", 4, 4, 8, max(about.seen), 9)
    planned, widest = _memory.parts(shape, replace(load, **known)), _memory.parts(shape, load)
    assert planned["activations"] == pytest.approx(said["activations"], rel=0.2) and planned["activations"] < widest["activations"] / 2
    assert 0 < planned["logits"] < 2.5 * said["logits"], "end-of-turn marks are guessed at"


def test_the_advice_fits():
    load = _memory.Load("lora", 16, 4, 8, 2048, 900)
    room = 4_000_000_000
    assert _memory.parts(SHAPE, load)["peak"] > room
    assert "--set steps.sft.execution.micro_batch=1" in _memory.advice(SHAPE, load, [1, 2, 4, 8], room, "sft")
    assert _memory.needed(SHAPE, replace(load, micro=1)) <= room < _memory.needed(SHAPE, replace(load, micro=2))
    assert "smaller base model" in _memory.advice(SHAPE, load, [1, 2, 4, 8], 10, "sft")


def test_auto_takes_the_largest_that_fits_and_the_result_is_the_same(tmp_path, tiny, rows_file, monkeypatch):
    """Less free memory, a smaller micro batch, the same weights; none at all is refused before the model is loaded, with the mend."""
    more = {"method": "lora", "batch_size": 8, "max_steps": 2}
    wide, a = run(tmp_path / "a", tiny, rows_file, **more)
    (said,) = [e for e in wide.events if e["event"] == "memory"]
    assert said["micro_batch"] == 8
    monkeypatch.setattr(memory, "free", lambda where: int(said["peak"] / memory.MARGIN) - 1)
    tight, b = run(tmp_path / "b", tiny, rows_file, **more)
    assert [e["micro_batch"] for e in tight.events if e["event"] == "memory"] == [4]
    assert a.values["train_loss"] == pytest.approx(b.values["train_loss"], rel=1e-5)
    monkeypatch.setattr(memory, "free", lambda where: 1000)
    with pytest.raises(CannotRun, match="this training needs about") as e:
        run(tmp_path / "c", tiny, rows_file, **more)
    assert e.value.mend.startswith("what fits: ")


def test_the_plan_estimates_every_objective_and_its_advice_names_the_step(cli):
    """65,536 rows in one forward pass fit nowhere; what would is said with the step's own name."""
    (cli.folder / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 3)
    big = "batch_size: 65536, max_length: 64, method: full, execution: {micro_batch: 65536}"
    small = "grpo: {rewards: [{exact_match: {}}], max_new_tokens: 64}, batch_size: 4"
    for objective, more in (("dpo", big), ("kto", big), ("grpo", small)):
        step = f"{{kind: train, model: $base, data: pairs.jsonl, objective: {objective}, {more}}}"
        (cli.folder / "r.yaml").write_text(f"recipe: r\nbase: demo:student\nsteps:\n  prefer: {step}\n")
        done = cli("plan", "r.yaml")
        assert done.returncode == 0 and " memory" in done.stdout and "activations" in done.stdout, done
        assert more == small or "try --set steps.prefer.execution.micro_batch=" in done.stdout, done.stdout
