"""Adapter variants: each does what its name says, and what is written stands on the base as it was."""

import json

import pytest
import torch
from safetensors.torch import load_file

from slmkit.errors import RecipeError
from slmkit.ml import models
from tests.ml.test_train import run
from tests.support.drive import given

VARIANTS = ("lora", "rslora", "dora", "pissa", "olora", "eva")


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 45)[None]).logits


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_written_is_what_was_trained(tmp_path, tiny, rows_file, variant):
    """Loaded on the original base, the folder gives the loss that training ended with; and it is not the base's."""
    driver, result = run(tmp_path, tiny, rows_file, rows_file, method="lora", lora={"r": 4, "variant": variant}, learning_rate=1e-2)
    base = given(tiny, "model")
    model = models.load(given(driver.out, "adapter", base=base), torch.device("cpu"))
    assert (logits(model) - logits(models.load(base, torch.device("cpu")))).abs().max() > 1e-2
    from slmkit.data import read
    from slmkit.ml import chat, loss

    tokenizer = models.tokenizer(base)
    encoded = chat.encode(read.read(given(rows_file, "dataset", "data")), tokenizer, loss_on="assistant", max_length=64, ends={2})
    measured = loss.mean(model, encoded.examples, torch.device("cpu"), torch.float32)
    assert measured == pytest.approx(result.values["validation_loss"], rel=1e-5)
    config = json.loads((driver.out / "adapter_config.json").read_text())
    assert config["use_rslora"] == (variant == "rslora") and config["use_dora"] == (variant == "dora")
    assert config["init_lora_weights"] is True


@pytest.mark.parametrize("variant", ["dora", "eva", "rslora"])
def test_variants_run_on_a_4_bit_base(tmp_path, tiny, rows_file, variant):
    _, result = run(tmp_path, tiny, rows_file, method="qlora", lora={"r": 4, "variant": variant}, max_steps=2)
    assert result.values["steps"] == 2


def test_patterns_choose_layers_and_ranks(tmp_path, tiny, rows_file):
    lora = {"r": 4, "target": ["q_proj", "layers.1.mlp.*"], "rank_pattern": {"layers.0.*q_proj": 2}, "alpha_pattern": {"down_proj": 3}}
    driver, _ = run(tmp_path, tiny, rows_file, method="lora", lora=lora, max_steps=1)
    saved = load_file(driver.out / "adapter_model.safetensors")
    ranks = {k[k.index("layers.") :].split(".lora_A")[0]: v.shape[0] for k, v in saved.items() if "lora_A" in k}
    assert ranks == {
        "layers.0.self_attn.q_proj": 2, "layers.1.self_attn.q_proj": 4,
        "layers.1.mlp.gate_proj": 4, "layers.1.mlp.up_proj": 4, "layers.1.mlp.down_proj": 4,
    }  # fmt: skip


def test_modules_to_save_are_trained_and_written(tmp_path, tiny, rows_file):
    driver, _ = run(tmp_path, tiny, rows_file, method="lora", lora={"r": 4, "modules_to_save": ["norm"]}, max_steps=3)
    saved = load_file(driver.out / "adapter_model.safetensors")
    (name,) = [k for k in saved if "lora" not in k]
    assert name.endswith("model.norm.weight") and (saved[name] != 1).any()


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"target": ["layers.9.*"]}, "lora.target: this model has no linear layer `layers.9.*`"),
        ({"rank_pattern": {"nope": 2}}, "lora.rank_pattern: this model has no linear layer `nope`"),
        ({"modules_to_save": ["nope"]}, "lora.modules_to_save: this model has no module `nope`"),
    ],
)
def test_a_name_that_matches_nothing_is_refused(tmp_path, tiny, rows_file, lora, said):
    with pytest.raises(RecipeError) as e:
        run(tmp_path, tiny, rows_file, method="lora", lora=lora)
    assert said in e.value.render()
