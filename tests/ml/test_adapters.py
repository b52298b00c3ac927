"""Adapter variants: each does what its name says, and what is written stands on the base as it was."""

import json

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from slmkit.data import read
from slmkit.errors import RecipeError
from slmkit.ml import adapters, chat, loftq, loss, models
from slmkit.steps.train import Config, Lora
from tests.ml.test_train import run, weights
from tests.support.drive import Driver, given

VARIANTS = ("lora", "rslora", "dora", "pissa", "olora", "eva")


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 45)[None]).logits


def measured(adapter, rows_file) -> float:
    """The loss of an adapter's folder, loaded, on the rows that it was validated on."""
    return loss_of(models.load(adapter, torch.device("cpu")), adapter.base.path, rows_file)


def loss_of(model, folder, rows_file) -> float:
    tokenizer = models.tokenizer(given(folder, "model"))
    encoded = chat.encode(read.read(given(rows_file, "dataset", "data")), tokenizer, loss_on="assistant", max_length=64, ends={2})
    return loss.mean(model, encoded.examples, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_written_is_what_was_trained(tmp_path, tiny, rows_file, variant):
    """Loaded on the original base, the folder gives the loss that training ended with; and it is not the base's."""
    driver, result = run(tmp_path, tiny, rows_file, rows_file, method="lora", lora={"r": 4, "variant": variant}, learning_rate=1e-2)
    base = given(tiny, "model")
    model = models.load(given(driver.out, "adapter", base=base), torch.device("cpu"))
    assert (logits(model) - logits(models.load(base, torch.device("cpu")))).abs().max() > 1e-2
    assert measured(given(driver.out, "adapter", base=base), rows_file) == pytest.approx(result.values["validation_loss"], rel=1e-5)
    config = json.loads((driver.out / "adapter_config.json").read_text())
    assert config["use_rslora"] == (variant == "rslora") and config["use_dora"] == (variant == "dora")
    assert config["init_lora_weights"] is True


def four_bit(folder, seed: int = 0, **lora):
    """A model on 4-bit weights with fresh adapters, and the base as it is."""
    torch.manual_seed(seed)
    base = models.load(given(folder, "model"), torch.device("cpu"), dtype=torch.float32, nf4=True)
    fresh = adapters.attach(base, Lora(**lora), folder, base=folder)
    return fresh, models.load(given(folder, "model"), torch.device("cpu"))


def test_loftq_begins_as_near_to_the_base_as_its_rank_allows(tiny, rows_file):
    """‖W − (Q + s·B·A)‖ is what the singular values beyond the rank leave, layer by layer, with ranks and scales of their own; and answers and
    loss are nearer to the whole model's than with adapters that begin at 0."""
    lora = {"r": 8, "alpha": 4, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"down_proj": 32}}
    fresh, whole = four_bit(tiny, variant="loftq", **lora)
    seen = 0
    for name, module in fresh.get_base_model().named_modules():
        if "default" in getattr(module, "lora_A", ()):
            weight = whole.get_submodule(name).weight
            lost = weight - loftq.quantized(module.base_layer)
            rank = len(module.lora_A["default"].weight)
            assert rank == (3 if name.endswith("q_proj") else 8)
            best = torch.linalg.svdvals(lost.double())[rank:].norm().item()
            left = (lost - module.get_delta_weight("default")).norm().item()
            assert best == pytest.approx(left, rel=1e-4) and left < 0.97 * lost.norm().item(), name
            seen += 1
    assert seen == 14
    plain, _ = four_bit(tiny, **lora)
    off = [abs(loss_of(m, tiny, rows_file) - loss_of(whole, tiny, rows_file)) for m in (plain.eval(), fresh.eval())]
    kl = [agreement(logits(whole), logits(m)) for m in (plain, fresh)]
    assert kl[1] < 0.8 * kl[0] and off[1] < off[0]


def agreement(right: torch.Tensor, other: torch.Tensor) -> float:
    """The divergence from what is right, in nats a token."""
    logp = right.log_softmax(-1)
    return (logp.exp() * (logp - other.log_softmax(-1))).sum(-1).mean().item()


def test_a_rank_above_the_matrix_and_directions_of_nothing_are_zero():
    torch.manual_seed(0)
    one = torch.outer(torch.randn(6), torch.randn(4))
    for matrix in (one, one.T.contiguous()):
        a, b = loftq.factors(matrix, 5)
        assert a.shape == (5, matrix.shape[1]) and b.shape == (matrix.shape[0], 5)
        assert torch.allclose(b @ a, matrix, atol=1e-5) and not a[1:].any() and not b[:, 1:].any()


def test_loftq_trains_and_is_a_plain_adapter_on_the_base_in_4_bits(tmp_path, tiny, rows_file):
    """Two runs have the same bytes; the folder, loaded, has the loss that was measured; merged, it goes into the base as it was trained on it."""
    more = {"method": "qlora", "learning_rate": 1e-3, "max_steps": 2, "lora": {"r": 16, "alpha": 8, "variant": "loftq"}}
    driver, result = run(tmp_path / "a", tiny, rows_file, rows_file, **more)
    again, _ = run(tmp_path / "b", tiny, rows_file, **more)
    assert weights(driver) == weights(again)
    made = given(driver.out, "adapter", base=given(tiny, "model"))
    assert measured(made, rows_file) == pytest.approx(result.values["validation_loss"], rel=1e-5)
    assert json.loads((driver.out / "adapter_config.json").read_text())["init_lora_weights"] is True
    merged = Driver(tmp_path / "m")
    assert merged.run("merge", {"model": "m"}, {"model": made}).values["into"] == "dequantized"


def test_loftq_without_a_4_bit_base_is_refused():
    with pytest.raises(ValidationError, match="this base is not quantized; write `method: qlora`"):
        Config(model="m", data="d", method="lora", lora={"variant": "loftq"})


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
