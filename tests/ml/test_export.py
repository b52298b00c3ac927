"""A GGUF file says what the model says: its weights stand where llama.cpp looks, its tokenizer gives the same ids, its answers are the same."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import make_tokenizer

from slmkit.errors import StepFailed
from slmkit.ml import models
from slmkit.ml.export import gguf_tokens, gguf_write
from tests.support.drive import Driver, given

gguf = pytest.importorskip("gguf")
CPU = torch.device("cpu")
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
FAMILIES = {
    "llama": ("llama", {}), "untied": ("llama", {"tie_word_embeddings": False}), "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}), "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32}), "mistral": ("mistral", {"sliding_window": None}),
}  # fmt: skip


def family(folder, name, **more):
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, settings = FAMILIES.get(name, (name, {}))
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
             "max_position_embeddings": 512, "tie_word_embeddings": True, "initializer_range": 0.1}  # fmt: skip
    config = AutoConfig.for_model(kind, vocab_size=384, eos_token_id=2, pad_token_id=3, bos_token_id=None, **sizes | settings | more)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # biases and norms that could be forgotten
            parameter.data += 0.02 * torch.randn_like(parameter)
        model.save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def run(root, model, **config):
    driver = Driver(root)
    return driver, driver.run("export", {"model": "m"} | config, {"model": given(model, "model")}, {"threads": 1})


@pytest.mark.parametrize("name", FAMILIES)
def test_the_file_is_the_model_in_llama_cpp(tmp_path, name):
    pytest.importorskip("llama_cpp")
    _, result = run(tmp_path, family(tmp_path / "m", name), type="f32")
    said = result.values["fidelity"]
    assert said["mean_kl"] < 1e-6 and said["answers_identical"] >= 7 and said["template_same"]
    assert said["runtime"].startswith("llama.cpp") and result.values["texts_tokenized_alike"] > 20


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_k_m"])
def test_each_type_is_what_it_says(tmp_path, tiny, kind):
    pytest.importorskip("llama_cpp")
    driver, result = run(tmp_path / "a", tiny, type=kind)
    again, _ = run(tmp_path / "b", tiny, type=kind)
    files = [d.out / f"model-{kind}.gguf" for d in (driver, again)]
    assert files[0].read_bytes() == files[1].read_bytes() and str(tmp_path).encode() not in files[0].read_bytes()
    assert kind[:2] in "".join(result.values["tensor_types"]) or kind == "q4_k_m"
    assert result.values["bytes"] == files[0].stat().st_size and "## Fidelity" in result.card.text
    assert (driver.out / "Modelfile").read_text() == f'FROM ./model-{kind}.gguf\nPARAMETER stop "<|im_end|>"\n'


def test_the_weights_stand_where_llama_cpp_looks(tmp_path, tiny, tokenizer):
    file = tmp_path / "m.gguf"
    gguf_write.write(tiny, file, "f32", "m", tokenizer, [2])
    read = gguf.GGUFReader(str(file))
    weights = {t.name: np.array(t.data) for t in read.tensors}
    model = models.load(given(tiny, "model"), CPU).state_dict()
    assert np.array_equal(weights["blk.1.ffn_down.weight"], model["model.layers.1.mlp.down_proj.weight"].numpy())
    q, there = model["model.layers.0.self_attn.q_proj.weight"].numpy(), weights["blk.0.attn_q.weight"]
    assert np.array_equal(there[0], q[0]) and np.array_equal(there[1], q[8]) and np.array_equal(there[2], q[1])  # halves of a head of 16, in turn
    assert "output.weight" not in weights and len(weights) == 2 + 2 * 9
    field = read.fields["tokenizer.ggml.eos_token_id"]
    assert field.parts[field.data[0]][0] == 2 and "tokenizer.chat_template" in read.fields


def test_a_tokenizer_that_reads_otherwise_is_refused(tmp_path, tiny, monkeypatch):
    pytest.importorskip("llama_cpp")
    monkeypatch.setattr(gguf_tokens, "_pre", lambda *_: "qwen2")  # it splits digits one by one, and this tokenizer does not
    with pytest.raises(StepFailed, match="otherwise than the tokenizer"):
        run(tmp_path, tiny, type="f16")


@pytest.mark.parametrize(("change", "told"), [
    ({"model_type": "gemma2"}, "`gemma2` is not exported"), ({"hidden_act": "gelu"}, "hidden_act gelu"), ({"mlp_bias": True}, "bias in the MLP"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "type yarn"), ({"quantization_config": {"quant_method": "gptq"}}, "is quantized"),
    ({"model_type": "mistral", "sliding_window": 64}, "sliding window"),
])  # fmt: skip
def test_what_is_not_known_to_be_right_is_refused_before_any_work(tmp_path, tiny, change, told):
    folder = tmp_path / "m"
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    for file in folder.glob("*.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(StepFailed, match=told):
        run(tmp_path, folder)


@pytest.mark.parametrize(("change", "told"), [
    ({"pre_tokenizer": {"type": "Whitespace"}}, "no name that is known"), ({"normalizer": {"type": "Lowercase"}}, "normalizer Lowercase"),
    ({"model": {"type": "WordPiece"}}, "of type WordPiece"),
])  # fmt: skip
def test_a_tokenizer_without_a_name_is_refused(tiny, change, told):
    said = json.loads((tiny / "tokenizer.json").read_text())
    with pytest.raises(StepFailed, match=told):
        gguf_tokens.of(said | change, 384)


def test_ids_without_a_text_are_filled(tokenizer):
    tokens = gguf_tokens.read(tokenizer, 400)
    assert len(tokens.texts) == 400 and tokens.kinds[399] == gguf_tokens.UNUSED and tokens.texts[2] == "<|im_end|>"
    assert tokens.kinds[2] == gguf_tokens.CONTROL and tokens.pre == "gpt-2" and tokens.model == "gpt2"


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_the_onnx_folder_is_the_model_in_onnxruntime(tmp_path, name):
    pytest.importorskip("onnxruntime_genai")
    driver, result = run(tmp_path, family(tmp_path / "m", name), format="onnx", type="fp32")
    said = result.values["fidelity"]
    assert said["mean_kl"] < 1e-6 and said["top1"] >= 0.999 and said["answers_identical"] >= 7 and said["template_same"]
    assert said["runtime"].startswith("onnxruntime") and result.values["texts_tokenized_alike"] > 20
    assert str(tmp_path).encode() not in b"".join(f.read_bytes() for f in driver.out.iterdir() if f.is_file())


def test_heads_that_onnxruntime_does_not_run_are_refused(tmp_path):
    with pytest.raises(StepFailed, match="heads of 8"):
        run(tmp_path, family(tmp_path / "m", "llama", head_dim=8), format="onnx")


def test_a_format_has_its_own_types():
    from slmkit.steps.export import Config

    assert Config(model="m").type == "q4_k_m" and Config(model="m", format="onnx").type == "int4"
    for settings in ({"format": "onnx", "type": "q8_0"}, {"type": "int4"}):
        with pytest.raises(ValueError, match="has the types"):
            Config(model="m", **settings)
