"""Two processes train as one does; a lost one ends the step and is named."""

import os
import signal
import threading
import time

import pytest
from safetensors.torch import load_file

from slmkit.errors import RecipeError, StepFailed
from slmkit.recipe.load import load
from tests.ml.test_train import run

SMALL = {"method": "lora", "max_steps": 4, "batch_size": 4, "learning_rate": 1e-3}


def test_two_processes_are_one(tmp_path, tiny, rows_file):
    """The same global batches, the same loss and the same weights, to rounding; 120 rows in batches of 7 leave a short last one.
    The two are asked for by an accelerate config."""
    (tmp_path / "acc.yaml").write_text("distributed_type: MULTI_CPU\nnum_processes: 2\nmixed_precision: 'no'\n")
    (tmp_path / "r.yaml").write_text(f"recipe: r\nbase: {tiny}\nsteps:\n  sft: {{kind: train, data: {rows_file}, precision: fp32, "
                                     "execution: {accelerate: acc.yaml, micro_batch: 7}}\n")  # fmt: skip
    asked = dict(load(tmp_path / "r.yaml").steps["sft"].execution) | {"allow": ["leaks"]}
    more = {"method": "lora", "batch_size": 14, "max_steps": None, "epochs": 1, "learning_rate": 1e-3}
    one, a = run(tmp_path / "1", tiny, rows_file, rows_file, execution={"micro_batch": 7}, **more)
    two, b = run(tmp_path / "2", tiny, rows_file, rows_file, execution=asked, **more)
    assert [(e["file"], e["processes"]) for e in two.events if e["event"] == "accelerate"] == [("acc.yaml", 2)]
    assert a.values["steps"] == b.values["steps"] == 9
    for key in ("first_loss", "train_loss", "validation_loss"):
        assert a.values[key] == pytest.approx(b.values[key], abs=1e-4)
    w1, w2 = (load_file(d.out / "adapter_model.safetensors") for d in (one, two))
    assert max((w1[k] - w2[k]).abs().max().item() for k in w1) < 1e-5
    assert {p.name for p in one.out.iterdir()} == {p.name for p in two.out.iterdir()}
    assert [e["step"] for e in two.events if e["event"] == "step"] == list(range(1, 10))
    assert two.reports and b.determinism == "seeded"


def test_a_lost_process_is_named_and_the_work_goes_on(tmp_path, tiny, rows_file):
    long = SMALL | {"max_steps": 400}
    home = tmp_path / "w"

    def kill_second() -> None:
        deadline = time.monotonic() + 120
        while not list(home.glob("state/checkpoints/checkpoint-*/slmkit-checkpoint.json")) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in os.listdir("/proc"):
            if pid.isdigit():
                try:
                    env = open(f"/proc/{pid}/environ", "rb").read()
                    line = open(f"/proc/{pid}/cmdline", "rb").read()
                except OSError:
                    continue
                if b"RANK=1\0" in env and str(home).encode() in line and b"torch.distributed" not in line:
                    os.kill(int(pid), signal.SIGKILL)

    killer = threading.Thread(target=kill_second)
    killer.start()
    with pytest.raises(StepFailed, match="process 1 was lost") as e:
        run(home, tiny, rows_file, execution={"processes": 2, "checkpoint_every": 2}, **long)
    killer.join()
    assert "goes on from the last checkpoint" in e.value.render()
    assert list(home.glob("state/checkpoints/checkpoint-*"))


def test_an_error_of_a_process_is_told_as_it_is(tmp_path, tiny, rows_file):
    with pytest.raises(RecipeError, match="no linear layer `nope`"):
        run(tmp_path, tiny, rows_file, execution={"processes": 2}, **SMALL, lora={"target": ["nope"]})
    with pytest.raises(RecipeError, match="batch_size: 4 is no multiple of 3 processes"):
        run(tmp_path, tiny, rows_file, execution={"processes": 3}, **SMALL)
