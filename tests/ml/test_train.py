"""Training: what is claimed of bytes is checked on bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from slmkit.data import read, rows
from slmkit.errors import DataError, RecipeError, StepFailed, UsageError
from slmkit.ml import batches, chat, checkpoints, loss, models, packing, training
from slmkit.steps import train as step
from slmkit.steps._step import Context
from tests.ml.conftest import chats, write_jsonl
from tests.support.drive import Driver, given

QUICK = {"max_steps": 6, "batch_size": 4, "max_length": 64, "learning_rate": 3e-3, "precision": "fp32", "lora": {"r": 4, "alpha": 8}}


def config(**more):
    return {"model": "m", "data": "d"} | QUICK | more


def run(root, model, data, validation=None, execution=None, **more) -> tuple[Driver, object]:
    driver = Driver(root)
    inputs = {"model": given(model, "model", name="base"), "data": given(data, "dataset", "data", name="train")}
    if validation:
        inputs["validation"] = given(validation, "dataset", "validation")
        more["validation"] = "v"
        execution = {"allow": ["leaks"]} | (execution or {})  # the tests measure on what they train on
    return driver, driver.run("train", config(**more), inputs, execution)


def weights(driver) -> bytes:
    return (driver.out / "adapter_model.safetensors").read_bytes()


def test_it_learns_and_says_what_it_did(tmp_path, tiny, rows_file):
    driver, result = run(tmp_path, tiny, rows_file, max_steps=None, epochs=1.5, method="lora", learning_rate=1e-2)
    values = result.values
    assert values["train_loss"] < 0.7 * values["first_loss"] and values["steps"] == 45
    assert values["rows"] == 120 and values["precision"] == "fp32" and values["trained_tokens"] < values["tokens"] / 2
    assert result.determinism == "exact" and result.seed == 0
    assert driver.reports[-1][:3] == (values["steps"], values["steps"], "training")
    assert {"loss", "tokens_per_second"} <= set(driver.reports[-1][3])
    assert result.card.metadata["library_name"] == "peft" and result.card.metadata["base_model"] == "base"


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_two_runs_give_the_same_bytes_and_another_seed_others(tmp_path, tiny, rows_file, method):
    more = {"method": method, "lora": {"r": 4, "dropout": 0.1}}
    first, _ = run(tmp_path / "a", tiny, rows_file, **more)
    torch.manual_seed(999)  # what went before in this process must not matter
    second, _ = run(tmp_path / "b", tiny, rows_file, **more)
    assert {p.name: p.read_bytes() for p in first.out.iterdir()} == {p.name: p.read_bytes() for p in second.out.iterdir()}
    third, _ = run(tmp_path / "c", tiny, rows_file, seed=1, **more)
    assert weights(third) != weights(first)


def test_adapter_weights_start_from_the_seed(tmp_path, tiny, rows_file):
    """After one step at a learning rate of nearly 0, A is what it was initialised to."""
    got = []
    for name in ("a", "b"):
        torch.manual_seed(len(got))
        driver, _ = run(tmp_path / name, tiny, rows_file, max_steps=1, learning_rate=1e-12, method="lora")
        got.append({k: v for k, v in load_file(driver.out / "adapter_model.safetensors").items() if "lora_A" in k})
    assert all(torch.equal(got[0][k], got[1][k]) for k in got[0])
    assert {v.dtype for v in got[0].values()} == {torch.float32}


def test_adapters_on_a_4_bit_base_stay_fp32(tmp_path, tiny, rows_file):
    driver, _ = run(tmp_path, tiny, rows_file, method="qlora", precision="bf16")
    tensors = load_file(driver.out / "adapter_model.safetensors")
    assert {v.dtype for v in tensors.values()} == {torch.float32}
    assert any((v != v.bfloat16().float()).any() for v in tensors.values())


def test_no_local_path_and_no_random_order_in_the_folder(tmp_path, tiny, rows_file):
    driver, _ = run(tmp_path, tiny, rows_file)
    everything = b"".join(p.read_bytes() for p in driver.out.iterdir())
    assert str(tiny).encode() not in everything and str(tmp_path).encode() not in everything
    adapter = json.loads((driver.out / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] is None
    assert adapter["target_modules"] == sorted(adapter["target_modules"]) and len(adapter["target_modules"]) == 7
    assert not (driver.out / "README.md").exists()
    assert {"tokenizer.json", "tokenizer_config.json", models.TRAINING} <= {p.name for p in driver.out.iterdir()}


def test_a_hub_base_is_named_with_its_commit(tmp_path, tiny, rows_file):
    commit = "0123456789" * 4
    driver = Driver(tmp_path)
    base = given(tiny, "model", name="base", uri=f"hf:owner/tiny@{commit}")
    result = driver.run("train", config(max_steps=1), {"model": base, "data": given(rows_file, "dataset", "data")})
    adapter = json.loads((driver.out / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("owner/tiny", commit)
    assert result.card.metadata["base_model"] == "owner/tiny" and result.card.metadata["base_model_relation"] == "adapter"


def test_peft_loads_the_adapter_as_it_stands(tmp_path, tiny, rows_file):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    driver, _ = run(tmp_path, tiny, rows_file, method="lora")
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), driver.out)
    assert AutoTokenizer.from_pretrained(driver.out).chat_template


def test_full_training_gives_a_model_in_its_own_format(tmp_path, tiny, rows_file):
    driver, result = run(tmp_path, tiny, rows_file, method="full", lora=None)
    before, after = load_file(tiny / "model.safetensors"), load_file(driver.out / "model.safetensors")
    assert set(before) == set(after) and all(before[k].dtype == after[k].dtype for k in before)
    assert sum((before[k] != after[k]).any().item() for k in before) == len(before)
    assert result.values["trainable_parameters"] == sum(v.numel() for v in before.values())
    assert str(tmp_path).encode() not in (driver.out / "config.json").read_bytes()


def test_the_chat_template_given_travels_with_the_adapter(tmp_path, untemplated, rows_file):
    with pytest.raises(DataError, match="no chat template"):
        run(tmp_path / "a", untemplated, rows_file)
    driver, _ = run(tmp_path / "b", untemplated, rows_file, chat_template="plain", max_length=128)
    tokenizer = models.tokenizer(given(driver.out, "adapter", base=given(untemplated, "model")))
    assert tokenizer.chat_template == chat.TEMPLATES["plain"]


def encoded(tiny, rows_file, n=12):
    tokenizer = models.tokenizer(given(tiny, "model"))
    data = read.read(given(rows_file, "dataset", "data"))
    data = rows.of(data.name, data.form, list(data)[:n])
    return tokenizer, chat.encode(data, tokenizer, loss_on="assistant", max_length=64, ends={2})


def test_packed_rows_have_the_loss_they_have_alone(tiny, rows_file):
    tokenizer, rendered = encoded(tiny, rows_file)
    model = models.load(given(tiny, "model"), torch.device("cpu"))
    cpu = torch.device("cpu")
    for one in rendered.examples:
        packed = batches.pack([rendered.examples[0], one, rendered.examples[1]])
        others = sum(loss.mean(model, [e], cpu, torch.float32) * e.trained for e in rendered.examples[:2])
        with torch.no_grad():
            together = loss.summed(model, packed, True).item()
        alone = loss.mean(model, [one], cpu, torch.float32) * one.trained
        assert together - others == pytest.approx(alone, abs=1e-5 * one.trained)


CUTS = {
    "padded 1": {"micro_batch": 1}, "padded 2": {"micro_batch": 2}, "padded 4": {"micro_batch": 4}, "packed 1": {"micro_batch": 1, "packing": "on"},
    "packed 4": {"micro_batch": 4, "packing": "on"}, "recomputed": {"micro_batch": 4, "gradient_checkpointing": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def by_cut(tmp_path_factory, tiny, rows_file):
    root = tmp_path_factory.mktemp("cuts")
    found = {}
    for name, execution in CUTS.items():
        driver, _ = run(root / name, tiny, rows_file, execution=execution, method="lora", max_steps=3, batch_size=4, learning_rate=1e-3)
        found[name] = load_file(driver.out / "adapter_model.safetensors")
    return found


@pytest.mark.parametrize("name", [n for n in CUTS if n != "padded 4"])
def test_how_a_batch_is_cut_up_changes_no_weight(by_cut, name):
    """The global batch is the identity: 4 = 2 × 2 = 1 × 4 = one pack of 4, on the weights after 3 steps."""
    a, b = by_cut["padded 4"], by_cut[name]
    assert max((a[k] - b[k]).abs().max().item() for k in a) < 1e-5
    assert any(v.abs().max() > 1e-4 for k, v in a.items() if "lora_B" in k)


def test_rows_that_see_each_other_turn_packing_off(tiny, rows_file, tmp_path):
    """A model whose attention ignores where rows begin: found before it is trained on."""
    tokenizer, rendered = encoded(tiny, rows_file)
    model = models.load(given(tiny, "model"), torch.device("cpu"))
    execution = step.Execution(packing="on")
    ctx = Context(tmp_path, tmp_path, {}, execution, lambda event, **fields: said.append(fields), lambda *a, **k: None, str)
    said: list = []
    run_ = training.Run(ctx, step.Config(**config()), None, tokenizer, torch.device("cpu"), torch.float32)
    assert packing.cut(run_, model, rendered.examples, 4).packed and not said
    whole = model.forward
    model.forward = lambda **kw: whole(**{k: v for k, v in kw.items() if k != "position_ids"})
    assert not packing.cut(run_, model, rendered.examples, 4).packed
    assert "packing is off" in said[0]["what"]


def test_a_micro_batch_that_does_not_divide_is_refused(tmp_path, tiny, rows_file):
    with pytest.raises(RecipeError, match="micro_batch: 3 does not divide batch_size: 4") as e:
        run(tmp_path, tiny, rows_file, execution={"micro_batch": 3})
    assert "1, 2, 4" in e.value.render()


def test_an_unknown_target_is_refused_with_those_there_are(tmp_path, tiny, rows_file):
    with pytest.raises(RecipeError, match="no linear layer `query`") as e:
        run(tmp_path, tiny, rows_file, lora={"target": ["query"]})
    assert "q_proj" in e.value.render()


def test_a_loss_that_is_no_number_stops(tmp_path, tiny, rows_file):
    with pytest.raises(StepFailed, match="the loss became"):
        _diverge(tmp_path, tiny, rows_file)


def _diverge(tmp_path, tiny, rows_file):
    import shutil

    from safetensors.torch import save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = float("inf")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    run(tmp_path / "w", broken, rows_file, method="lora")


def test_measuring_in_between_does_not_change_a_4_bit_training(tmp_path, tiny, rows_file):
    """bitsandbytes repacks 4-bit weights at the first evaluation on a CPU; gradients after it are wrong, silently."""
    plain, one = run(tmp_path / "a", tiny, rows_file, method="qlora", precision="bf16", max_steps=8)
    measured, two = run(tmp_path / "b", tiny, rows_file, rows_file, method="qlora", precision="bf16", max_steps=8)
    assert weights(plain) == weights(measured)
    assert sum(e["event"] == "validation" for e in measured.events) == 4
    assert 0 < two.values["validation_loss"] < 10 and "validation_loss" not in one.values


CHILD = """
import sys, torch
from tests.support.drive import *
torch.set_num_threads(1)
root, model, data, config = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
inputs = {"model": given(model, "model"), "data": given(data, "dataset"), "validation": given(data, "dataset")}
Driver(root).run("train", config, inputs, {"checkpoint_every": 3, "allow": ["leaks"]})
"""


def child(root, tiny, data, **more) -> subprocess.Popen:
    here = Path(__file__).parents
    env = os.environ | {"PYTHONPATH": f"{here[1] / 'steps'}:{here[2]}", "OMP_NUM_THREADS": "1"}
    asked = json.dumps(config(**more))
    return subprocess.Popen([sys.executable, "-c", CHILD, root, tiny, data, asked], env=env, stderr=subprocess.DEVNULL)


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, "it ended or hung before it could be killed"
        time.sleep(0.005)


def test_killed_and_resumed_gives_the_same_bytes(tmp_path, tiny, rows_file):
    """SIGKILL in mid-training, with dropout, packing, bf16 and validation; then once more from a torn checkpoint."""
    more = {"max_steps": 24, "precision": "bf16", "lora": {"r": 4, "dropout": 0.1}}
    killed = child(tmp_path / "killed", tiny, rows_file, validation="v", **more)
    root = tmp_path / "killed" / "state" / "checkpoints"
    wait_for(lambda: len(list(root.glob(f"checkpoint-*/{checkpoints.SEAL}"))) >= 2, killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "out" / "adapter_model.safetensors").exists()
    whole, _ = checkpoints.latest(root)
    newer = root / f"checkpoint-{checkpoints.step(whole) + 3}"
    newer.mkdir()  # a checkpoint cut short while it was written: no seal, half a file
    (newer / "trainer_state.json").write_text((whole / "trainer_state.json").read_text()[:100])
    straight, one = run(tmp_path / "straight", tiny, rows_file, rows_file, {"checkpoint_every": 3}, **more)
    resumed, two = run(tmp_path / "killed", tiny, rows_file, rows_file, {"checkpoint_every": 3}, **more)
    assert [e["step"] for e in resumed.events if e["event"] == "resumed"] == [checkpoints.step(whole)]
    assert {p.name: p.read_bytes() for p in straight.out.iterdir()} == {p.name: p.read_bytes() for p in resumed.out.iterdir()}
    assert one.values == two.values
    assert len(list(root.glob("checkpoint-*"))) <= checkpoints.KEPT


def test_a_checkpoint_is_trusted_only_if_it_is_whole(tmp_path):
    for number in (3, 6, 9, 12):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        (folder / "optimizer.pt").write_bytes(bytes(100))
        if number != 12:
            checkpoints.seal(folder)
    (tmp_path / "checkpoint-9" / "optimizer.pt").write_bytes(bytes(99))
    (tmp_path / "checkpoint-6" / "optimizer.pt").write_bytes(bytes(99) + b"x")
    found, torn = checkpoints.latest(tmp_path)
    assert found == tmp_path / "checkpoint-3" and torn == ["checkpoint-12", "checkpoint-9", "checkpoint-6"]
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-3"]
    (found / "optimizer.pt").unlink()
    assert checkpoints.latest(tmp_path)[0] is None


def test_finished_training_that_died_while_saving_resumes_at_its_end(tmp_path, tiny, rows_file):
    first, one = run(tmp_path, tiny, rows_file)
    before = weights(first)
    (first.out / "adapter_model.safetensors").unlink()
    second, two = run(tmp_path, tiny, rows_file)
    assert weights(second) == before and one.values == two.values
    assert [e["step"] for e in second.events if e["event"] == "resumed"] == [6]


def test_stopped_early_and_died_before_it_was_saved_takes_no_more_steps(tmp_path, tiny, rows_file):
    more = {"early_stopping": {"patience": 1, "min_delta": 9.0}, "validate_every": 1}
    first, one = run(tmp_path, tiny, rows_file, rows_file, {"checkpoint_every": 1}, **more)
    assert one.values["steps"] == 2 and "has not improved" in one.values["stopped_early"]
    before = {p.name: p.read_bytes() for p in first.out.iterdir()}
    for file in first.out.iterdir():
        file.unlink()
    second, two = run(tmp_path, tiny, rows_file, rows_file, {"checkpoint_every": 1}, **more)
    assert one.values == two.values and {p.name: p.read_bytes() for p in second.out.iterdir()} == before


def test_one_step_of_warmup_alone_is_warned_of(tmp_path, tiny, rows_file):
    warned = [[e for e in run(tmp_path / str(w), tiny, rows_file, max_steps=1, warmup=w)[0].events if e["event"] == "warning"] for w in (0.03, 0.0)]
    assert any("nothing was learned" in e["what"] for e in warned[0]) and not any("nothing was learned" in e["what"] for e in warned[1])


def test_attention_that_cannot_run_here_is_refused_before_a_model_is_loaded(tmp_path, tiny, rows_file, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *a, **k: pytest.fail("the model was loaded"))
    with pytest.raises(UsageError, match="flex_attention has no backward pass on a CPU"):
        run(tmp_path, tiny, rows_file, execution={"attention": "flex_attention", "device": "cpu"})
    assert "not installed" in step.blocked(step.Config(**config()), step.Execution(attention="flash_attention_2"))


@pytest.mark.parametrize(("fault", "told"), [
    (MemoryError("big"), True), (torch.OutOfMemoryError("CUDA out of memory"), True), (RuntimeError("can't allocate memory"), True),
    (NotImplementedError("no such kernel: cannot allocate memory"), False), (RuntimeError("shapes differ"), False)])  # fmt: skip
def test_only_running_out_of_memory_is_told_as_that(tmp_path, tiny, rows_file, monkeypatch, fault, told):
    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr(loss, "summed", fail)
    with pytest.raises(StepFailed if told else type(fault), match="out of memory with micro_batch" if told else str(fault)[:10]):
        run(tmp_path, tiny, rows_file)


def test_pickled_weights_are_refused(tmp_path, tiny, rows_file):
    folder = tmp_path / "pickled"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny / name).read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(StepFailed, match="pickles"):
        run(tmp_path / "w", folder, rows_file)


def test_too_long_rows_are_counted_in_the_result(tmp_path, tiny):
    rows_ = chats(60)
    rows_[7]["messages"][-1]["content"] = "Graz " * 200
    driver, result = run(tmp_path, tiny, write_jsonl(tmp_path / "d.jsonl", rows_))
    assert result.values["rows_left_out"] == 1 and result.values["rows"] == 59
    (event,) = [e for e in driver.events if e["event"] == "rows_left_out"]
    assert event["where"] == [f"{read.shown(tmp_path / 'd.jsonl')}:8"]


def test_a_row_of_which_a_cut_leaves_nothing_stops_it_until_that_is_allowed(tmp_path, tiny):
    rows_ = chats(60)
    rows_[7]["messages"][-2]["content"] = "please " * 100
    data = write_jsonl(tmp_path / "d.jsonl", rows_)
    with pytest.raises(DataError, match="1 row without a single trained token") as e:
        run(tmp_path / "a", tiny, data, too_long="cut_end", max_steps=1)
    assert e.value.problems[0].line == 8 and "--set 'steps.STEP.execution.allow=[untrained]'" in e.value.render()
    driver, result = run(tmp_path / "b", tiny, data, execution={"allow": ["untrained"]}, too_long="cut_end", max_steps=1)
    assert {k: result.values[k] for k in ("rows", "rows_left_out", "rows_untrained", "cut_answers_cut")} == {
        "rows": 59, "rows_left_out": 0, "rows_untrained": 1, "cut_answers_cut": 1}
    (event,) = [e for e in driver.events if e["event"] == "rows_cut"]
    assert event["where"] == [f"{read.shown(data)}:8"]


def test_validation_rows_that_are_not_measured_are_counted(tmp_path, tiny, rows_file):
    held = chats(30)
    held[4]["messages"][-1]["content"] = "Graz " * 200
    path = tmp_path / "v.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in held) + "{broken\n")
    execution = {"allow": ["leaks"]}
    driver, result = run(tmp_path / "a", tiny, rows_file, path, execution, max_steps=1, on_bad_row="skip")
    kept = {k: v for k, v in result.values.items() if k.startswith("validation_rows")}
    assert kept == {"validation_rows": 29, "validation_rows_left_out": 1, "validation_rows_dropped": {next(iter(kept["validation_rows_dropped"])): 1}}
    written = json.loads((driver.out / "xray.json").read_text())["validation"]
    assert written["left_out"] == {"rows": 1, "shown": ["v.jsonl:5"]} and sum(written["dropped"].values()) == 1 and written["rows"] == 30
    warned = [e["what"] for e in driver.events if e["event"] == "warning" and "`validation`" in e["what"]]
    assert len(warned) == 2 and "1 row of" in warned[0] and "1 row of 30" in warned[1]
    (event,) = [e for e in driver.events if e["event"] == "validation_rows_left_out"]
    assert event["count"] == 1 and event["where"] == [f"{read.shown(path)}:5"]
