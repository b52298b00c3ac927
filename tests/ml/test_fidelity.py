"""The certificate: a sound step passes, a planted fault of every kind does not, and the work of a step that failed is kept."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_algebra import VARIANTS, adapter, merge

from slmkit.errors import StepFailed
from slmkit.ml import fidelity, merging, models, probes
from slmkit.steps import _fidelity
from tests.ml.conftest import CHATML, chats, write_jsonl
from tests.support.drive import Driver, given

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tuned(tiny, tmp_path_factory):
    return adapter(tiny, tmp_path_factory.mktemp("a") / "a", **VARIANTS["plain"])


def scaled(out):
    _change(out, lambda w: w | {"model.layers.1.mlp.down_proj.weight": w["model.layers.1.mlp.down_proj.weight"] * 3})


def headless(out):
    """lm_head dropped: a loader would make a random one."""
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    _change(out, lambda w: w | {"lm_head.weight": torch.randn(384, 64, generator=torch.Generator().manual_seed(0)) * 0.02})


def retemplated(out):
    (out / "chat_template.jinja").write_text(CHATML.replace("<|im_start|>assistant", "<|im_start|>bot"))


def poisoned(out):
    _change(out, lambda w: w | {"model.norm.weight": w["model.norm.weight"] * float("nan")})


def _change(out, how):
    weights = how(load_file(out / "model.safetensors"))
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(("fault", "told"), [
    (scaled, r"mean KL.*worst at model\.layers\.1"), (headless, "mean KL.*worst at the output layer"), (retemplated, "chat template"),
    (poisoned, "finite"),
])  # fmt: skip
def test_a_planted_fault_is_caught_and_placed(tmp_path, tiny, tuned, monkeypatch, fault, told):
    sound = merging.write
    monkeypatch.setattr(merging, "write", lambda given_, adapter_, way, out, *more: (sound(given_, adapter_, way, out, *more), fault(out)))
    with pytest.raises(StepFailed, match=told) as failed:
        merge(tmp_path, tuned, tiny)
    assert "on probe slmkit" in failed.value.what


def test_the_wrong_base_is_caught(tmp_path, tiny, other, tuned, monkeypatch):
    sound = merging.write
    swapped = given(tuned, "adapter", name="sft", base=given(other, "model", name="base"))
    monkeypatch.setattr(merging, "write", lambda _, *more: sound(swapped, *more))
    with pytest.raises(StepFailed, match="mean KL.*worst at the embedding"):
        merge(tmp_path, tuned, tiny)


def test_an_adapter_that_does_nothing_is_refused(tmp_path, tiny, tuned):
    idle = tmp_path / "idle"
    shutil.copytree(tuned, idle)
    weights = load_file(idle / "adapter_model.safetensors")
    save_file({k: v * 0 if "lora_B" in k else v for k, v in weights.items()}, idle / "adapter_model.safetensors")
    with pytest.raises(StepFailed, match="changes nothing"):
        merge(tmp_path, idle, tiny)


def test_a_step_outside_its_bounds_keeps_its_work(tmp_path, tiny, tuned, monkeypatch):
    with pytest.raises(StepFailed, match=r"`fidelity.mean_kl` ≤ 0\)"):
        merge(tmp_path, tuned, tiny, dtype="bf16", fidelity={"mean_kl": 0.0})
    kept = (tmp_path / "state/kept/out/model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr(merging, "write", lambda *_: pytest.fail("the work was done again"))
    out, result = merge(tmp_path, tuned, tiny, dtype="bf16")
    assert (out / "model.safetensors").read_bytes() == kept
    certificate = json.loads((out / ".slmkit/fidelity.json").read_text())
    assert certificate["mean_kl"] == result.values["fidelity"]["mean_kl"] > 0 and certificate["bounds"] == _fidelity.MERGE
    assert "## Fidelity" in result.card.text


@pytest.mark.parametrize(("bound", "value", "wrong"), [
    ("mean_kl", 0.5, True), ("mean_kl", 1.5, False), ("p99_kl", 2.0, True), ("top1", 0.95, True), ("top1", 0.9, False),
    ("perplexity", 1.5, True), ("perplexity", 2.0, False), ("identical", 0.75, True), ("identical", 0.5, False), ("ended", 0.1, True),
])  # fmt: skip
def test_each_bound_is_held(bound, value, wrong):
    certificate = {
        "mean_kl": 1.0, "p99_kl": 3.0, "top1": 0.9, "perplexity_before": 2.0, "perplexity_after": 4.0, "answers": 8, "answers_identical": 4,
        "answers_ended_before": 6, "answers_ended_after": 4, "finite": True, "template_same": True,
    }  # fmt: skip
    found = _fidelity.outside(certificate, {bound: value})
    assert bool(found) == wrong and all(f"`fidelity.{bound}`" in f for f in found)


def test_the_figures_are_what_they_say(tiny, other):
    """KL, agreement and perplexity, computed again the plain way."""
    asked = probes.choose((), given(tiny, "model"))
    one, two = (fidelity.take(fidelity.Transformers(given(m, "model"), CPU), asked) for m in (tiny, other))
    said = fidelity.compare(one, two, asked)
    models_ = [models.load(given(m, "model"), CPU) for m in (tiny, other)]
    kl, same, nats = [], [], []
    for probe in asked.probes:
        ids = torch.tensor([probe.ids])
        p, q = (m(ids).logits[0, probe.start - 1 : probe.end - 1].detach().double().softmax(-1) for m in models_)
        kl += (p * (p / q).log()).sum(1).tolist()
        same += (p.argmax(1) == q.argmax(1)).tolist()
        nats += [-q[i, t].log().item() for i, t in enumerate(probe.ids[probe.start : probe.end])]
    assert said["mean_kl"] == pytest.approx(sum(kl) / len(kl), rel=1e-4) and said["top1"] == pytest.approx(sum(same) / len(same))
    assert said["perplexity_after"] == pytest.approx(torch.tensor(nats).mean().exp().item(), rel=1e-4)
    assert said["tokens"] == len(kl) and said["max_kl"] == pytest.approx(max(kl), rel=1e-4)
    itself = fidelity.compare(one, one, asked)
    assert itself["mean_kl"] == 0 and itself["top1"] == 1 and itself["answers_identical"] == itself["answers"] == 8


def test_probes_are_rows_of_the_data_evenly(tmp_path, tiny):
    file = write_jsonl(tmp_path / "d.jsonl", chats(100))
    asked = probes.choose((given(file, "dataset", role="probes", name="data"),), given(tiny, "model"))
    assert asked.source == "data" and len(asked.probes) == probes.COUNT
    assert [p.name for p in asked.probes[:3]] == ["data 1", "data 5", "data 9"] and len(asked.messages) == probes.COUNT
    tokenizer = models.tokenizer(given(tiny, "model"))
    assert tokenizer.decode(asked.probes[0].ids[asked.probes[0].start : asked.probes[0].end]).startswith("Graz 0<|im_end|>")


def test_a_model_without_a_chat_template_is_probed(tmp_path, untemplated):
    asked = probes.choose((), given(untemplated, "model"))
    assert asked.source == "slmkit" and len(asked.probes) == len(probes.BUILT_IN) and asked.messages == ()


def test_the_recipe_gives_the_probes(tmp_path):
    """Rows that the training read, whether they are a file or made by a step before."""
    from slmkit.recipe.load import load

    write_jsonl(tmp_path / "d.jsonl", chats(4))
    (tmp_path / "r.yaml").write_text(
        "recipe: r\nbase: demo:student\nsteps:\n  teach: {kind: distill, prompts: d.jsonl, teacher: demo:teacher}\n"
        "  sft: {kind: train, model: $base, data: $teach}\n  other: {kind: train, model: $base, data: d.jsonl}\n  tuned: {kind: merge, model: $sft}\n"
    )
    inputs = load(tmp_path / "r.yaml").steps["tuned"].inputs
    assert [(i.role, i.step, i.source and i.source.path.name, i.witness) for i in inputs if i.role == "probes"] == [
        ("probes", "teach", None, True), ("probes", None, "d.jsonl", True),
    ]  # fmt: skip


def test_a_driver_without_probes_asks_the_built_in_ones(tmp_path, tiny, tuned):
    driver = Driver(tmp_path)
    result = driver.run("merge", {"model": "a"}, {"model": given(tuned, "adapter", name="sft", base=given(tiny, "model", name="base"))})
    assert result.values["fidelity"]["source"] == "slmkit" and [e for e in driver.events if e["event"] == "fidelity"]
    assert result.values["fidelity"]["worst_layer"]
