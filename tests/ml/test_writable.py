"""A token that no hidden state can single out is refused before training; following the help line, the model learns to write it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from slmkit.errors import RecipeError
from slmkit.ml import adapters, answers, chat, models, writable
from slmkit.steps.train import Lora
from tests.ml.conftest import CITIES, write_jsonl
from tests.ml.test_objectives import Tried
from tests.ml.test_train import run
from tests.support.drive import given

ROWS = [{"messages": [{"role": "user", "content": f"parcel goes to {city}"}, {"role": "assistant", "content": f"~{city}"}]} for city in CITIES]


def unseen(tiny: Path, folder: Path, tokens: tuple[str, ...], apart: float = 0.0) -> Path:
    """The tiny model, as if it had never met these tokens and forty others: their rows are one, up to noise of a share `apart`."""
    shutil.copytree(tiny, folder)
    weights = load_file(folder / "model.safetensors")
    rows = weights["model.embed_tokens.weight"]
    bundle = [*models.tokenizer(given(folder, "model")).convert_tokens_to_ids(tokens), *range(200, 240)]
    generator = torch.Generator().manual_seed(1)
    common, *noise = torch.randn(1 + len(bundle), rows.shape[1], generator=generator)
    rows[bundle] = 0.08 * torch.stack([common + apart * common.norm() * n / n.norm() for n in noise])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def endless(tmp_path_factory, tiny) -> Path:
    """Its EOS, and `~`, are like forty other tokens."""
    return unseen(tiny, tmp_path_factory.mktemp("models") / "endless", ("<|im_end|>", "~"))


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_frozen_rows_that_are_alike_are_refused(tmp_path, endless, method):
    with pytest.raises(RecipeError) as e:
        run(tmp_path, endless, write_jsonl(tmp_path / "d.jsonl", ROWS), method=method)
    said = e.value.render()
    assert "7 of 7 rows hold tokens that this model can never learn to write: '<|im_end|>' (in 7; p ≤ 0.024), '~' (in 7; p ≤ 0.024)" in said
    assert "`lora.modules_to_save: [embed_tokens]`; or write `method: full`" in said and not (tmp_path / "state/checkpoints").exists()


def matched(driver, base: Path, rows: list[dict]) -> float:
    """Share of the rows whose answer is written exactly, and ended."""
    trained = given(driver.out, "adapter", base=given(base, "model")) if (driver.out / "adapter_config.json").exists() else given(driver.out, "model")
    model, tokenizer = models.load(trained, torch.device("cpu")), models.tokenizer(trained)
    prompts = chat.prompts(_rows(rows), tokenizer, max_length=64).prompts
    written = answers.greedy(model, [p.prompt_ids for p in prompts], {2}, 3, 12, torch.device("cpu"))
    texts = tokenizer.batch_decode(written)
    return sum(t == f"{p.answer}<|im_end|>" for t, p in zip(texts, prompts, strict=True)) / len(prompts)


def _rows(rows: list[dict]):
    from slmkit.data.rows import Row, of

    return of("d", "messages", [Row(i, messages=tuple(r["messages"])) for i, r in enumerate(rows)])


LEARNS = {"max_steps": 80, "batch_size": 7, "learning_rate": 5e-3, "schedule": "constant"}


@pytest.mark.parametrize("how", [{"method": "lora", "lora": {"r": 8, "modules_to_save": ["embed_tokens"]}}, {"method": "full", "lora": None}])
def test_the_mend_teaches_it(tmp_path, endless, how):
    driver, _ = run(tmp_path, endless, write_jsonl(tmp_path / "d.jsonl", ROWS), **LEARNS | how)
    assert matched(driver, endless, ROWS) == 1


def test_without_the_check_it_would_have_trained_in_vain(tmp_path, endless, monkeypatch):
    """The loss falls by two fifths and more, and not one answer ends."""
    monkeypatch.setattr(writable, "TWIN", -1.0)
    driver, result = run(tmp_path, endless, write_jsonl(tmp_path / "d.jsonl", ROWS), method="lora", **LEARNS)
    assert result.values["train_loss"] < 0.6 * result.values["first_loss"] and matched(driver, endless, ROWS) == 0


@pytest.mark.parametrize(("objective", "what"), [("dpo", "20 of 20 rows"), ("kto", "10 of 10 rows"), ("grpo", "1 of 1 ends of turn")])
def test_other_objectives_refuse_too(tmp_path, endless, objective, what):
    with pytest.raises(RecipeError, match=what):
        Tried(tmp_path, endless, objective)


def test_a_token_of_few_rows_is_let_through_and_one_that_differs_a_little_warned_of(tmp_path, tiny):
    base = unseen(tiny, tmp_path / "m", ("~",))
    rows = [json.loads(json.dumps(r).replace("~", "~" if i == 0 else "")) for i, r in enumerate(ROWS * 4)]
    driver, _ = run(tmp_path / "w", base, write_jsonl(tmp_path / "d.jsonl", rows), method="lora", max_steps=1)
    assert not [e for e in driver.events if e["event"] == "warning" and "hold tokens" in e["what"]]
    base = unseen(tiny, tmp_path / "n", ("~",), 0.12)
    driver, _ = run(tmp_path / "x", base, write_jsonl(tmp_path / "d.jsonl", ROWS), method="lora", max_steps=1)
    assert any("7 of 7 rows hold tokens that this model can write with little" in e["what"] for e in driver.events if e["event"] == "warning")


def likely(folder: Path, **lora) -> dict[int, float] | None:
    """The bounds on the probabilities of all tokens."""
    model = models.load(given(folder, "model"), torch.device("cpu"))
    output = writable.frozen_output(adapters.attach(model, Lora(**lora), folder))
    return output and {t: p for t, (p, _) in writable.most_likely(output, list(range(384))).items()}


def test_random_rows_and_trained_output_are_let_through(tmp_path, tiny, endless):
    bounds = likely(tiny)
    assert [i for i, p in bounds.items() if p < 0.999] == [3]  # the padding's row is zero, which is all but the mean of the others
    assert likely(endless, modules_to_save=["embed_tokens"]) is None
    assert {i for i, p in likely(endless).items() if p < writable.LIKELY} >= {2, *range(200, 240)}


@pytest.mark.parametrize("apart", [0.01, 0.05])
def test_the_bound_holds_and_is_not_far_off(tmp_path, tiny, apart):
    """Against hidden states sought by gradient ascent, on the norm's own output."""
    base = unseen(tiny, tmp_path / "m", ("~",), apart)
    model = models.load(given(base, "model"), torch.device("cpu"))
    bound = likely(base)[200]
    weight, norm = model.get_output_embeddings().weight.detach(), model.model.norm
    state = torch.randn(64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    optimizer = torch.optim.Adam([state], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        (-(weight @ norm(state[None])[0]).log_softmax(0)[200]).backward()
        optimizer.step()
    reached = (weight @ norm(state[None])[0]).softmax(0)[200].item()
    assert 0.3 * bound < reached <= bound


def test_a_gain_that_is_not_known_leaves_rows_that_are_the_same(tiny, endless):
    output = writable.frozen_output(adapters.attach(models.load(given(endless, "model"), torch.device("cpu")), Lora(), endless))
    blind = writable.most_likely(replace(output, gain=None), [2, 5, 200])
    assert blind[2] == blind[200] == (pytest.approx(1 / 42), 0) and blind[5] == (1, float("inf"))


def test_a_layer_norm_with_an_offset_is_read(tmp_path):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, tie_word_embeddings=False)
    model = GPTNeoXForCausalLM(config).eval()
    norm = model.gpt_neox.final_layer_norm
    with torch.no_grad():
        norm.weight.uniform_(-2, 2)
        norm.bias.uniform_(-2, 2)
    output = writable.frozen_output(adapters.attach(model, Lora(), tmp_path))
    torch.testing.assert_close(output.gain, norm.weight.detach().abs())
    torch.testing.assert_close(output.shift, model.get_output_embeddings().weight.detach() @ norm.bias.detach())
