"""A merged model says what the adapter on its base says."""

import json

import pytest
import torch
from test_algebra import merge
from test_train import run

from slmkit.errors import StepFailed
from slmkit.ml import models
from tests.ml.conftest import write_jsonl
from tests.support.drive import Driver, given

IDS = torch.tensor([[1, 5, 6, 7, 8, 200, 201, 9, 10, 2]])
CPU = torch.device("cpu")


def logits(given_):
    with torch.no_grad():
        return models.load(given_, CPU)(IDS).logits.float()


def test_merging_an_fp32_adapter_is_exact(tmp_path, tiny, rows_file):
    driver, _ = run(tmp_path / "t", tiny, rows_file, method="lora", max_steps=12)
    out, result = merge(tmp_path / "m", driver.out, tiny)
    adapter = logits(given(driver.out, "adapter", base=given(tiny, "model")))
    assert (adapter - logits(given(tiny, "model"))).abs().max() > 0.1
    assert torch.allclose(logits(given(out, "model")), adapter, atol=1e-5)
    assert result.values["dtype"] == "fp32" and "peft" not in result.card.text
    assert str(tmp_path).encode() not in (out / "config.json").read_bytes()


def test_merging_a_4_bit_trained_adapter_costs_little(tmp_path, tiny, rows_file):
    driver, _ = run(tmp_path / "t", tiny, rows_file, method="qlora", max_steps=20, learning_rate=1e-2)
    as_trained = logits(given(driver.out, "adapter", base=given(tiny, "model"))).log_softmax(-1)
    out, _ = merge(tmp_path / "m", driver.out, tiny)
    kl = (as_trained.exp() * (as_trained - logits(given(out, "model")).log_softmax(-1))).sum(-1).mean()
    base = (as_trained.exp() * (as_trained - logits(given(tiny, "model")).log_softmax(-1))).sum(-1).mean()
    assert kl < 0.02 and kl < base / 5


def test_the_format_can_be_chosen_and_bytes_repeat(tmp_path, tiny, rows_file):
    from transformers import AutoModelForCausalLM

    driver, _ = run(tmp_path / "t", tiny, rows_file)
    one, _ = merge(tmp_path / "a", driver.out, tiny, dtype="bf16")
    two, _ = merge(tmp_path / "b", driver.out, tiny, dtype="bf16")
    assert {p.name: p.read_bytes() for p in one.glob("*.*") if p.is_file()} == {p.name: p.read_bytes() for p in two.glob("*.*") if p.is_file()}
    assert AutoModelForCausalLM.from_pretrained(one).dtype == torch.bfloat16
    assert json.loads((one / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_quantized_base_is_refused(tmp_path, tiny, rows_file):
    driver, _ = run(tmp_path / "t", tiny, rows_file, max_steps=1)
    four = Driver(tmp_path / "q")
    four.run("quantize", {"model": "m", "method": "nf4"}, {"model": given(tiny, "model")})
    with pytest.raises(StepFailed, match="base is quantized"):
        merge(tmp_path / "m", driver.out, four.out)


def test_a_chain_in_one_process_leaves_nothing_behind(tmp_path, tiny, rows_file):
    """Steps follow one another in one process: number format, threads, gradients and random streams are as before."""
    write_jsonl(tmp_path / "x.jsonl", [])
    before = (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled())
    driver, _ = run(tmp_path / "t", tiny, rows_file, precision="bf16", max_steps=2)
    merge(tmp_path / "m", driver.out, tiny)
    assert (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()) == before
    other, _ = run(tmp_path / "u", tiny, rows_file, precision="fp32", max_steps=2)
    fresh, _ = run(tmp_path / "v", tiny, rows_file, precision="fp32", max_steps=2)
    assert (other.out / "adapter_model.safetensors").read_bytes() == (fresh.out / "adapter_model.safetensors").read_bytes()
