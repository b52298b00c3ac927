"""A GGUF file says what the model says: its weights stand where llama.cpp looks, its tokenizer gives the same ids, its answers are the same."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from families import ends_of, tokenizer_of

from slmkit.errors import RecipeError, StepFailed
from slmkit.ml import models
from slmkit.ml.export import adapter as adapter_export
from slmkit.ml.export import gguf_tokens, gguf_write, ollama, readings
from slmkit.steps import export
from slmkit.steps._estimate import Size
from tests.ml.conftest import make_tokenizer
from tests.support.drive import Driver, given

gguf = pytest.importorskip("gguf")
CPU = torch.device("cpu")
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
FAMILIES = {
    "llama": ("llama", {}), "untied": ("llama", {"tie_word_embeddings": False}), "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}), "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32}), "mistral": ("mistral", {"sliding_window": None}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}), "yarn": ("qwen2", {"rope_parameters": YARN}),
    "window": ("mistral", {"sliding_window": 256}),
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
    assert said["runtime"].startswith("llama.cpp") and result.values["texts_tokenized_alike"] > 40 and result.values["conversations_alike"] == 3
    assert result.values["context"] == (256 if name == "window" else 512) and ("cut to 256" in result.card.text) == (name == "window")


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_k_m"])
def test_each_type_is_what_it_says(tmp_path, tiny, kind):
    pytest.importorskip("llama_cpp")
    driver, result = run(tmp_path / "a", tiny, type=kind)
    again, _ = run(tmp_path / "b", tiny, type=kind)
    files = [d.out / f"model-{kind}.gguf" for d in (driver, again)]
    assert files[0].read_bytes() == files[1].read_bytes() and str(tmp_path).encode() not in files[0].read_bytes()
    assert kind[:2] in "".join(result.values["tensor_types"]) or kind == "q4_k_m"
    assert result.values["bytes"] == files[0].stat().st_size and "## Fidelity" in result.card.text
    modelfile = (driver.out / "Modelfile").read_text()
    assert modelfile.startswith(f"FROM ./model-{kind}.gguf\n") and 'PARAMETER stop "<|im_end|>"\n' in modelfile
    assert "<|im_start|>user\n{{ .Content }}<|im_end|>\n{{ else if" in modelfile


def test_the_weights_stand_where_llama_cpp_looks(tmp_path, tiny, tokenizer):
    file = tmp_path / "m.gguf"
    gguf_write.write(tiny, file, "f32", tokenizer, {2})
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
    ({"model_type": "gemma2"}, "`gemma2` is not exported"), ({"hidden_act": "gelu"}, "activation is gelu"),
    ({"model_type": "qwen3", "attention_bias": True}, "biases"), ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "type dynamic"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "mscale": 2.0}}, "yarn with mscale"),
    ({"partial_rotary_factor": 0.5}, "a part of each"),
    ({"model_type": "qwen2", "head_dim": 32}, "do not fill its width"), ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
])  # fmt: skip
def test_what_is_not_known_to_be_right_is_refused_before_any_work(tmp_path, tiny, change, told):
    folder = tmp_path / "m"
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    for file in folder.glob("*.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(RecipeError, match=told):
        run(tmp_path, folder)
    assert [p.what for p in export.refuse(export.Config(model="m"), {"model": (Size(path=folder),)}) if told in p.what]
    assert not export.refuse(export.Config(model="m"), {"model": (Size(path=tiny),)})


def changed(tiny, change):
    said = json.loads((tiny / "tokenizer.json").read_text())
    return said | change | ({"model": said["model"] | change["model"]} if "model" in change else {})


@pytest.mark.parametrize(("change", "told"), [
    ({"pre_tokenizer": {"type": "Whitespace"}}, "none that is known by name"), ({"normalizer": {"type": "Lowercase"}}, "normalizer Lowercase"),
    ({"model": {"type": "WordPiece"}}, "of type WordPiece"), ({"model": {"ignore_merges": True}}, "with ignore_merges"),
    ({"model": {"dropout": 0.1}}, "with dropout"), ({"model": {"vocab": {"a": 9}}}, "no token for 255 of the 256 bytes"),
    ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True, "trim_offsets": True}}, "none that is known by name"),
])  # fmt: skip
def test_a_tokenizer_without_a_name_is_refused(tiny, change, told):
    with pytest.raises(RecipeError, match=told):
        gguf_tokens.of(changed(tiny, change), 384)
    assert gguf_tokens.of(changed(tiny, {}), 384).pre == "gpt-2"


def test_tokens_that_swallow_spaces_and_ids_without_rows_are_refused(tiny):
    said = changed(tiny, {})
    with pytest.raises(RecipeError, match="ids up to 322, and the model's embedding has 322 rows"):
        gguf_tokens.of(said, 322)
    said["added_tokens"][0]["rstrip"] = True
    with pytest.raises(RecipeError, match="with rstrip"):
        gguf_tokens.of(said, 384)


def pieces(merges, vocabulary, normalizer=None, pre=None):
    """A SentencePiece-like tokenizer's JSON: "▁" for spaces, bytes for what it does not know."""
    prepend = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}  # fmt: skip
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *vocabulary]
    model = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
             "byte_fallback": True, "ignore_merges": False, "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges}  # fmt: skip
    added = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
             for i, t in enumerate(tokens[:3])]  # fmt: skip
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer or prepend, "pre_tokenizer": pre,
            "post_processor": None, "decoder": None, "model": model}  # fmt: skip


LETTERS = ["▁", "a", "b", "c"]


@pytest.mark.parametrize(("said", "told"), [
    (pieces([["a", "b"]], [*LETTERS, "ab", "bc", "abc"]), "lack"),
    (pieces([["a", "b"], ["b", "c"], ["ab", "c"], ["a", "a"], ["a", "bc"]], [*LETTERS, "ab", "bc", "abc", "aa"]), "'abc' in two places"),
    (pieces([], LETTERS, pre={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}), "rules for spaces"),
    (pieces([], LETTERS, normalizer={"type": "NFKC"}), "rules for spaces"),
])  # fmt: skip
def test_merges_that_no_scores_stand_for_are_refused(said, told):
    with pytest.raises(RecipeError, match=told):
        gguf_tokens.of(said, 300)


def test_llama_cpp_reads_as_the_tokenizers_of_each_kind_do(tmp_path):
    """Vocabularies learned on texts of many scripts, cut into words by each rule that has a name; one with a BOS, one of SentencePiece's kind."""
    pytest.importorskip("llama_cpp")
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from slmkit.ml.export.llama import Llama

    with torch.random.fork_rng():
        LlamaForCausalLM(LlamaConfig(
            vocab_size=800, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64,
        )).save_pretrained(tmp_path)  # fmt: skip
    for name, core in learned().items():
        bos = "<s>" if core.token_to_id("<s>") is not None else None
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token="</s>")
        gguf_write.write(tmp_path, tmp_path / "m.gguf", "f16", tokenizer, {tokenizer.eos_token_id})
        llama = Llama(tmp_path / "m.gguf", 64, 1)
        assert gguf_tokens.read(tokenizer, 800).pre == name.partition(" ")[0]
        assert readings.same_ids(tokenizer, llama.ids, "llama.cpp", ["abc ab bcc aabc", "cab abcabc"]) > 20, name
        assert (llama.ids("a", True)[0] == tokenizer.bos_token_id) == (name == "llama-bpe with a BOS"), name
        assert llama.ends == {tokenizer.eos_token_id}
        del llama


def learned():
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, processors, trainers
    from tokenizers import pre_tokenizers as pre

    def words(digits):
        return [pre.Split(Regex(gguf_tokens._WORDS % digits), "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)]

    kinds = {
        "gpt-2": ([pre.ByteLevel(add_prefix_space=False)], False), "smollm": ([pre.Digits(True), pre.ByteLevel(add_prefix_space=False)], False),
        "qwen2": (words(""), False), "smaug-bpe": (words("{1,3}"), False), "llama-bpe with a BOS": (words("{1,3}"), True),
    }  # fmt: skip
    found = {}
    for name, (parts, whole) in kinds.items():
        core = Tokenizer(models.BPE(ignore_merges=whole))
        core.pre_tokenizer, core.decoder = pre.Sequence(parts), decoders.ByteLevel()
        if name == "qwen2":
            core.normalizer = normalizers.NFC()
        special = ["</s>", *(["<s>"] if whole else [])]
        trainer = trainers.BpeTrainer(vocab_size=780, special_tokens=special, initial_alphabet=sorted(pre.ByteLevel.alphabet()))
        core.train_from_iterator(readings.TEXTS, trainer)
        core.add_tokens(["<think>"])
        if whole:
            core.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", core.token_to_id("<s>"))])
        found[name] = core
    joined = [["b", "c"], ["a", "b"], ["▁", "a"], ["ab", "c"], ["a", "bc"], ["▁a", "bc"], ["▁", "abc"]]  # "abc" is a + bc: the best pair is first
    said = pieces(joined, [*LETTERS, "▁a", "ab", "bc", "abc", "▁abc"])
    found["default (SentencePiece)"] = Tokenizer.from_str(json.dumps(said))
    return found


def test_names_that_a_template_uses_and_llama_cpp_does_not_give(tmp_path, tiny, tokenizer):
    """It gives bos_token also where there is none, and no pad_token: both are set in the template."""
    pytest.importorskip("llama_cpp")
    from slmkit.ml.export.llama import Llama

    other = copy.deepcopy(tokenizer)
    other.chat_template = "{{ bos_token }}{{ pad_token }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    gguf_write.write(tiny, tmp_path / "m.gguf", "f16", other, {2})
    llama = Llama(tmp_path / "m.gguf", 64, 1)
    assert llama.render([{"role": "user", "content": "a"}]) == "<|pad|>a<|im_end|>"
    assert readings.same_talks(other, llama.render, "llama.cpp") == 3


def test_a_template_for_ollama_says_what_jinja_says_or_is_not_there(tokenizer):
    written = {}
    for family in ("llama3", "qwen2_5", "gemma", "phi4"):
        written[family] = ollama.modelfile("m.gguf", tokenizer_of(family), ends_of(family), 512, {"temperature": 0})
    assert [f for f, text in written.items() if "\nTEMPLATE " in text] == ["llama3", "phi4"]  # the others have a system message of their own, or none
    assert "TEMPLATE \"\"\"{{ range .Messages }}" in written["llama3"], "llama.cpp puts the BOS there"
    other = copy.deepcopy(tokenizer)
    other.chat_template = "{% for m in messages %}{% if loop.last %}!{% endif %}{{ m['role'] }}:{{ m['content'] }}{% endfor %}"
    assert "\nTEMPLATE " not in ollama.modelfile("m.gguf", other, {2}, 512, {})


def test_ids_without_a_text_are_filled(tokenizer):
    tokens = gguf_tokens.read(tokenizer, 400)
    assert len(tokens.texts) == 400 and tokens.kinds[399] == gguf_tokens.UNUSED and tokens.texts[2] == "<|im_end|>"
    assert tokens.kinds[2] == gguf_tokens.CONTROL and tokens.pre == "gpt-2" and tokens.model == "gpt2"


def lora(tmp_path, tiny, rows_file, **settings):
    """An adapter of a few steps; its B is not zero."""
    from test_train import run as trained

    driver, _ = trained(tmp_path / "t", tiny, rows_file, method="lora", max_steps=2, learning_rate=1e-2, lora={"r": 4, "alpha": 8} | settings)
    return driver.out


def as_vllm_loads(root, adapter, tiny):
    driver = Driver(root)
    base = given(tiny, "model", uri="hf:who/what@" + "0" * 40)
    return driver.out, driver.run("export", {"model": "a", "format": "adapter"}, {"model": given(adapter, "adapter", base=base)})


def said_by(adapter, tiny):
    from peft import PeftModel

    model = PeftModel.from_pretrained(models.load(given(tiny, "model"), CPU), adapter)
    with torch.no_grad():
        return model(torch.tensor([[5, 6, 7, 8, 200, 201, 9, 10]])).logits


def test_an_adapter_goes_to_vllm_as_it_is_or_with_one_rank_and_scale(tmp_path, tiny, rows_file):
    patterns = {"variant": "rslora", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 32}}
    for name, settings in (("plain", {}), ("patterns", patterns)):
        adapter = lora(tmp_path / name, tiny, rows_file, **settings)
        out, result = as_vllm_loads(tmp_path / name / "x", adapter, tiny)
        written = json.loads((out / "adapter_config.json").read_text())
        assert (written["base_model_name_or_path"], written["revision"]) == ("who/what", "0" * 40)
        assert not written["rank_pattern"] and not written["alpha_pattern"] and (out / "chat_template.jinja").is_file()
        assert torch.allclose(said_by(out, tiny), said_by(adapter, tiny), atol=1e-5)
        assert result.values["rewritten"] == bool(settings) and result.values["max_lora_rank"] == 8 and result.values["rank"] == 4
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"alpha_pattern": {}}  # vLLM reads one alpha
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert not torch.allclose(said_by(out, tiny), said_by(adapter, tiny), atol=1e-3)


@pytest.mark.parametrize(("change", "told"), [
    ({"use_dora": True}, "DoRA"), ({"modules_to_save": ["lm_head"]}, "modules_to_save"), ({"bias": "all"}, "trained biases"),
    ({"peft_type": "IA3"}, "of type IA3"), ({"lora_bias": True}, "biases in the adapters"),
])  # fmt: skip
def test_an_adapter_that_vllm_would_not_load_is_refused(change, told):
    weights = {f"base_model.model.model.layers.0.mlp.up_proj.lora_{x}.weight": torch.ones(2, 2) for x in "AB"}
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "bias": "none"}
    assert list(adapter_export.check(said, weights)) == ["model.layers.0.mlp.up_proj"]
    with pytest.raises(RecipeError, match=told):
        adapter_export.check(said | change, weights)
    with pytest.raises(RecipeError, match="outside the decoder blocks .lm_head"):
        adapter_export.check(said, weights | {f"base_model.model.lm_head.lora_{x}.weight": torch.ones(2, 2) for x in "AB"})
    with pytest.raises(RecipeError, match="rank above 512"):
        adapter_export.check(said, {k: torch.ones(600, 600) for k in weights})


@pytest.mark.parametrize("name", ["llama3"])
def test_the_onnx_folder_is_the_model_in_onnxruntime(tmp_path, name):
    pytest.importorskip("onnxruntime_genai")
    model = family(tmp_path / "m", name)
    generation = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": [2, 0]}))
    driver, result = run(tmp_path, model, format="onnx", type="fp32")
    assert json.loads((driver.out / "genai_config.json").read_text())["model"]["eos_token_id"] == [0, 2], "a builder that takes one end only"
    assert result.values["conversations_alike"] == 3
    said = result.values["fidelity"]
    assert said["mean_kl"] < 1e-6 and said["top1"] >= 0.999 and said["answers_identical"] >= 7 and said["template_same"]
    assert said["runtime"].startswith("onnxruntime") and result.values["texts_tokenized_alike"] > 20
    assert str(tmp_path).encode() not in b"".join(f.read_bytes() for f in driver.out.iterdir() if f.is_file())


@pytest.mark.parametrize("name", ["linear", "yarn"])
def test_rotary_angles_that_the_builder_passes_over_are_refused(tmp_path, name):
    model = family(tmp_path / "m", name)
    with pytest.raises(RecipeError, match="do not come out right in ONNX"):
        run(tmp_path, model, format="onnx")
    assert export.refuse(export.Config(model="m", format="onnx"), {"model": (Size(path=model),)})


def test_heads_that_onnxruntime_does_not_run_are_refused(tmp_path):
    with pytest.raises(StepFailed, match="heads of 8"):
        run(tmp_path, family(tmp_path / "m", "llama", head_dim=8), format="onnx")


def test_a_format_has_its_own_types():
    from slmkit.steps.export import Config

    assert Config(model="m").type == "q4_k_m" and Config(model="m", format="onnx").type == "int4"
    assert Config(model="m", format="adapter").type is None
    for wrong in ({"type": "f16"}, {"fidelity": {"top1": 0.9}}):
        with pytest.raises(ValueError, match="is not read by format adapter"):
            Config(model="m", format="adapter", **wrong)
    for settings in ({"format": "onnx", "type": "q8_0"}, {"type": "int4"}):
        with pytest.raises(ValueError, match="has the types"):
            Config(model="m", **settings)


def planned(place, model, **settings):
    from slmkit.artifact.store import Store
    from slmkit.plan import make
    from slmkit.recipe.load import load
    from slmkit.recipe.lock import Lock

    (place / "r.yaml").write_text(json.dumps({"recipe": "r", "steps": {"file": {"kind": "export", "model": model} | settings}}))
    recipe = load(place / "r.yaml")
    return {row.name: row.gives for row in make(recipe, Store(place / "store"), Lock(recipe.lock_path, frozen=True)).rows}


def test_an_adapter_is_merged_for_gguf_and_onnx_and_taken_as_it_is_for_vllm(tmp_path, tiny):
    shutil.copytree(tiny, tmp_path / "model")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora/adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "../model"}')
    (tmp_path / "lora/adapter_model.safetensors").write_bytes(b"")
    assert planned(tmp_path, "lora", format="adapter") == {"file": "adapter"}
    assert planned(tmp_path, "lora") == {"adapter-merge": "model", "file": "gguf"}
    assert planned(tmp_path, "model", format="onnx") == {"file": "onnx"}
    with pytest.raises(RecipeError, match="takes an adapter here, and .* is a model"):
        planned(tmp_path, "model", format="adapter")
