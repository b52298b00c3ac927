"""An adapter's algebra is peft's, for every variant, tied weights and patterns; what is not known is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from slmkit.errors import StepFailed
from slmkit.ml import models
from slmkit.ml.algebra import Adapter
from tests.ml.conftest import make_model
from tests.support.drive import Driver, given

CPU = torch.device("cpu")
VARIANTS = {
    "plain": {"target_modules": "all-linear"},
    "rslora": {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "dora": {"target_modules": ["q_proj", "o_proj", "gate_proj"], "use_dora": True},
    "patterns": {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 8}, "alpha_pattern": {"v_proj": 3}},
    "saved": {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "embedding": {"target_modules": ["embed_tokens", "k_proj"], "ensure_weight_tying": True},
    "head": {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
    "norms": {"target_modules": ["v_proj"], "modules_to_save": ["input_layernorm"]},
}


def adapter(base, folder, **settings):
    """A peft folder whose matrices are all random, none zero."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(models.load(given(base, "model"), CPU), LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"} | settings))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn_like(parameter) * 0.05
        model.save_pretrained(folder)
    return folder


def merge(root, folder, base, **config):
    driver = Driver(root)
    result = driver.run("merge", {"model": "a"} | config, {"model": given(folder, "adapter", name="sft", base=given(base, "model", name="base"))})
    return driver.out, result


def logits(given_):
    with torch.no_grad():
        return models.load(given_, CPU)(torch.tensor([[1, 5, 6, 7, 8, 200, 201, 9, 10, 2]])).logits.float()


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_is_the_adapter_on_its_base(tmp_path, tiny, variant):
    folder = adapter(tiny, tmp_path / "a", **VARIANTS[variant])
    out, result = merge(tmp_path / "m", folder, tiny)
    as_trained = logits(given(folder, "adapter", base=given(tiny, "model")))
    assert torch.allclose(logits(given(out, "model")), as_trained, atol=2e-5)
    assert result.values["fidelity"]["mean_kl"] < 1e-6 and result.values["fidelity"]["answers_identical"] == result.values["fidelity"]["answers"]
    assert (as_trained - logits(given(tiny, "model"))).abs().max() > 1e-3
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] == (variant != "head")


def test_a_base_in_shards_is_merged_shard_by_shard(tmp_path, tiny):
    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    for file in base.glob("*.safetensors"):
        file.unlink()
    models.load(given(tiny, "model"), CPU).save_pretrained(base, max_shard_size="120KB")
    files = {p.name for p in base.glob("*.safetensors")}
    assert len(files) > 2
    folder = adapter(base, tmp_path / "a", **VARIANTS["plain"])
    out, _ = merge(tmp_path / "m", folder, base)
    whole, _ = merge(tmp_path / "w", folder, tiny)
    assert {p.name for p in out.glob("*.safetensors")} == files
    assert torch.equal(logits(given(out, "model")), logits(given(whole, "model")))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_adapter_of_a_4_bit_base_goes_where_it_is_closer(tmp_path, tiny, dtype):
    """In the numerics of its training the unpacked base is the very same; once rounded, what is closer is measured."""
    folder = adapter(tiny, tmp_path / "a", **VARIANTS["plain"])
    (folder / models.TRAINING).write_text(json.dumps({"base_dtype": "fp32", "base_quantization": "nf4"}))
    made = {into: merge(tmp_path / into, folder, tiny, into=into, dtype=dtype) for into in ("auto", "full", "dequantized")}
    tried = made["auto"][1].values["tried_mean_kl"]
    assert tried["dequantized"] < tried["full"] / 5 and made["auto"][1].values["into"] == "dequantized"
    assert tried["dequantized"] < (1e-6 if dtype == "fp32" else 1e-3)
    bytes_ = {into: (out / "model.safetensors").read_bytes() for into, (out, _) in made.items()}
    assert bytes_["auto"] == bytes_["dequantized"] != bytes_["full"]


def test_what_is_not_known_is_refused(tmp_path, tiny):
    folder = adapter(tiny, tmp_path / "a", **VARIANTS["plain"])
    with pytest.raises(StepFailed, match="not trained on a 4-bit base"):
        merge(tmp_path / "d", folder, tiny, into="dequantized")
    file = folder / "adapter_config.json"
    plain = json.loads(file.read_text())
    for change in ({"peft_type": "IA3"}, {"bias": "all"}, {"lora_bias": True}, {"trainable_token_indices": [3]}, {"use_qalora": True}):
        file.write_text(json.dumps(plain | change))
        with pytest.raises(StepFailed, match=next(iter(change)) if "peft_type" not in change else "IA3"):
            Adapter(folder)
    file.write_text(json.dumps(plain))
    other = make_model(tmp_path / "short", hidden=32)
    with pytest.raises((StepFailed, RuntimeError)):
        merge(tmp_path / "o", folder, other)
