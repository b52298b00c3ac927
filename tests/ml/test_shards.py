"""A model shared among two processes trains as a whole one does, and comes out whole."""

import json

import pytest
import torch
from safetensors.torch import load_file

from slmkit.errors import RecipeError, StepFailed
from slmkit.ml import shards
from slmkit.steps import _world
from tests.ml.test_train import run

SHARED = {"processes": 2, "sharding": "fsdp", "micro_batch": 4}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_shared_is_whole(tmp_path, tiny, rows_file, method):
    """Weights after three steps, the measured loss and the gradient's norm are those of one process; the saved folder has the same files.
    121 of the 120 rows' batches differ in length, so that the processes measure unequal shares."""
    more = {"method": method, "lora": None if method == "full" else {"r": 4}, "batch_size": 8, "max_steps": 3, "learning_rate": 1e-3,
            "max_grad_norm": 0.1, "keep": "best"}  # fmt: skip
    one, a = run(tmp_path / "1", tiny, rows_file, rows_file, execution={"micro_batch": 4}, **more)
    two, b = run(tmp_path / "2", tiny, rows_file, rows_file, execution=SHARED, **more)
    for key in ("first_loss", "train_loss", "validation_loss"):
        assert a.values[key] == pytest.approx(b.values[key], abs=1e-5), key
    norms = [[e["grad_norm"] for e in d.events if e["event"] == "step"] for d in (one, two)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    name = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    w1, w2 = (load_file(d.out / name) for d in (one, two))
    assert w1.keys() == w2.keys() and max((w1[k] - w2[k]).abs().max().item() for k in w1) < 1e-5
    assert {p.name for p in one.out.iterdir()} == {p.name for p in two.out.iterdir()}
    assert method == "lora" or json.loads((two.out / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert a.values["trainable_parameters"] == b.values["trainable_parameters"]
    alone, each = (next(e for e in d.events if e["event"] == "memory") for d in (one, two))
    assert each["optimizer"] == pytest.approx(alone["optimizer"] / 2, abs=2) and each["all"] == each["peak"] + each["others"]


def test_shared_goes_on_from_its_checkpoint(tmp_path, tiny, rows_file):
    """A run that stopped at step 2 and goes on to step 4 ends as one that never stopped: weights and both moments came back."""
    more = {"method": "full", "lora": None, "batch_size": 8, "learning_rate": 1e-3, "schedule": "constant", "warmup": 0.0}
    whole, _ = run(tmp_path / "w", tiny, rows_file, execution=SHARED, max_steps=4, **more)
    run(tmp_path / "s", tiny, rows_file, execution=SHARED | {"checkpoint_every": 2}, max_steps=2, **more)
    resumed, _ = run(tmp_path / "s", tiny, rows_file, execution=SHARED | {"checkpoint_every": 2}, max_steps=4, **more)
    assert [e["step"] for e in resumed.events if e["event"] == "resumed"] == [2]
    w1, w2 = (load_file(d.out / "model.safetensors") for d in (whole, resumed))
    assert max((w1[k] - w2[k]).abs().max().item() for k in w1) < 1e-6


@pytest.mark.parametrize(("execution", "more", "what"), [
    ({"processes": 1}, {"method": "lora"}, "with one process shares nothing"),
    ({"processes": 2}, {"method": "qlora"}, "cannot share 4-bit weights"),
    ({"processes": 2}, {"method": "lora", "objective": "dpo"}, "not read by objective dpo"),
])  # fmt: skip
def test_what_cannot_be_shared_is_refused(tmp_path, tiny, rows_file, execution, more, what):
    with pytest.raises(RecipeError, match=what):
        run(tmp_path, tiny, rows_file, execution={"sharding": "fsdp"} | execution, **more)


def test_processes_that_share_give_memory_back(tmp_path, monkeypatch):
    """On a CPU, glibc would keep the holes that gathered weights leave (docs/devices.md); what the user's environment says wins."""
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "77")
    for sharding, said in (("none", {}), ("fsdp", {"MALLOC_MMAP_THRESHOLD_": "77", "MALLOC_TRIM_THRESHOLD_": "1048576"})):
        (tmp_path / "order.json").write_text(json.dumps({"execution": {"sharding": sharding}}))
        assert _world.sparing(tmp_path) == said


def test_a_model_that_is_not_shared_is_noticed():
    with pytest.raises(StepFailed, match="the 2 processes do not share 2 weights, the first weight"):
        shards.prove(torch.nn.Linear(2, 2), 2)
