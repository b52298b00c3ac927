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


@pytest.mark.parametrize("named", [["embed_tokens"], ["lm_head"]])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_tied_ends_are_trained_as_one_and_stay_one(tmp_path, tiny, rows_file, named, method):
    """peft alone would train a copy for the input, leave the output frozen, and untie the model when it is merged."""
    from tests.support.drive import Driver

    driver, _ = run(tmp_path / "a", tiny, rows_file, method=method, lora={"r": 4, "modules_to_save": named}, max_steps=2)
    saved = load_file(driver.out / "adapter_model.safetensors")
    ends = [v for k, v in saved.items() if "lora" not in k]
    assert len(ends) == 2 and torch.equal(*ends) and not torch.equal(ends[0], load_file(tiny / "model.safetensors")["model.embed_tokens.weight"])
    merged = Driver(tmp_path / "b")
    merged.run("merge", {"model": "m"}, {"model": given(driver.out, "adapter", base=given(tiny, "model"))})
    assert json.loads((merged.out / "config.json").read_text())["tie_word_embeddings"] is True
    assert torch.equal(load_file(merged.out / "model.safetensors")["model.embed_tokens.weight"], ends[0])


def test_objectives_that_read_the_output_layer_train_it_where_it_is_tied(tmp_path, tiny):
    from tests.ml.test_objectives import Tried

    more = {"lora": {"r": 4, "modules_to_save": ["embed_tokens"]}, "max_steps": 2}
    before = load_file(tiny / "model.safetensors")["model.embed_tokens.weight"]
    for objective in ("dpo", "kto", "grpo"):
        tried = Tried(tmp_path / objective, tiny, objective, **more)
        saved = load_file(tried.out / "adapter_model.safetensors")
        (after, *_) = [v for k, v in saved.items() if "lora" not in k]
        seldom = [i for i in range(384) if i not in range(4)][:60]  # tokens of no row: only the output layer's softmax reaches them
        assert (after[seldom] != before[seldom]).any(), objective
