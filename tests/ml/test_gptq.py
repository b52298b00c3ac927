"""GPTQ beats rounding where it must, and a folder holds bit for bit what was measured."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

from slmkit.errors import DataError, RecipeError, StepFailed
from slmkit.ml import blocks, gptq, gptq_format, models
from slmkit.ml.gptq import Grid
from slmkit.ml.quantizers import gptq as quantizer
from slmkit.ml.quantizers import packed
from slmkit.steps import quantize as quantize_step
from slmkit.steps._estimate import weights
from tests.ml.conftest import chats, make_model, write_jsonl
from tests.support.drive import Driver, given


def inputs(n=64, rows=512, seed=0):
    """Correlated inputs, as real activations are: 8 directions and a little noise."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 8, generator=g) @ torch.randn(8, n, generator=g) + 0.1 * torch.randn(rows, n, generator=g)


def weight(out=96, n=64, seed=1):
    return torch.randn(out, n, generator=torch.Generator().manual_seed(seed)) * 0.1


def factor(x, act_order=False):
    return gptq.factor(x.T @ x / len(x), damping=0.01, act_order=act_order)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [32, -1])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
def test_packing_is_exact(bits, group, symmetric, act_order):
    grid, x = Grid(bits, group, symmetric), inputs()
    layer = gptq.gptq(weight(), factor(x, act_order), grid)
    parts = gptq_format.tensors(layer, bits)
    groups = 1 if group == -1 else 64 // group
    assert parts["qweight"].shape == (64 * bits // 32, 96) and parts["qweight"].dtype == torch.int32
    assert parts["qzeros"].shape == (groups, 96 * bits // 32) and parts["scales"].shape == (groups, 96)
    again = gptq_format.layer(parts, bits)
    for name in ("codes", "scales", "zeros", "g_idx"):
        assert torch.equal(getattr(layer, name), getattr(again, name)), name
    assert torch.equal(layer.dense(), again.dense())
    assert layer.zeros.min() >= 1 and layer.zeros.max() <= grid.top + (bits == 1)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_layout_is_autogptqs(bits):
    """Word w of a column holds codes w·32/bits …, the first in the lowest bits; zeros are stored minus one."""
    layer = gptq.rtn(weight(), Grid(bits, 32, False))
    parts, per = gptq_format.tensors(layer, bits), 32 // bits
    word = sum(int(layer.codes[5, per + k]) << (bits * k) for k in range(per))
    assert int(parts["qweight"][1, 5]) & 0xFFFFFFFF == word
    word = sum((int(layer.zeros[1, per + k]) - 1) << (bits * k) for k in range(per))
    assert int(parts["qzeros"][1, 1]) & 0xFFFFFFFF == word


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("act_order", [True, False])
def test_gptq_beats_rounding_on_correlated_inputs(bits, act_order):
    w, x, grid = weight(), inputs(), Grid(bits, 32, True)
    h = x.T @ x / len(x)
    ours = gptq.relative_error(w, gptq.gptq(w, factor(x, act_order), grid).dense(), h)
    rounded = gptq.relative_error(w, gptq.rtn(w, grid).dense(), h)
    assert ours < 0.6 * rounded


def test_the_error_is_that_of_the_outputs():
    w, x = weight(), inputs()
    dense = gptq.rtn(w, Grid(4, 32, True)).dense()
    direct = ((x @ (w - dense).T).square().sum() / (x @ w.T).square().sum()).item()
    assert gptq.relative_error(w, dense, x.T @ x / len(x)) == pytest.approx(direct, rel=1e-3)


def test_groups_wider_and_narrower_than_a_block_agree_with_no_blocks(monkeypatch):
    """Block size is bookkeeping: it must not change the result beyond rounding of sums."""
    w, x = weight(n=256), inputs(256)
    for group in (32, 128, 256):
        got = []
        for block in (32, 96, 256):
            monkeypatch.setattr(gptq, "BLOCK", block)
            got.append(gptq.gptq(w, factor(x), Grid(4, group, True)).dense())
        for other in got[1:]:
            assert (other != got[0]).float().mean() < 0.02


def test_uncorrelated_inputs_leave_nothing_to_make_up_for():
    w = weight()
    layer = gptq.gptq(w, gptq.factor(torch.eye(64), damping=0.01, act_order=False), Grid(4, -1, True))
    assert torch.equal(layer.dense(), gptq.rtn(w, Grid(4, -1, True)).dense())


def test_weights_of_one_sign_keep_a_zero_that_every_reader_understands():
    layer = gptq.rtn(weight().abs() + 0.01, Grid(4, 32, False))
    assert layer.zeros.min() == 1
    w = weight().abs() + 0.01
    assert (layer.dense() - w).abs().max() <= layer.scales.float().max() / 2 * 1.01


@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_are_the_nearest_under_the_scale_that_is_stored(symmetric):
    """Rounding to a scale and then rounding the scale to fp16 would leave some weights on the wrong side."""
    w = torch.randn(512, 64, generator=torch.Generator().manual_seed(2))
    layer = gptq.rtn(w, Grid(8, 64, symmetric))
    nearest = torch.round(w / layer.scales.float().T) + layer.zeros.T
    assert torch.equal(layer.codes, nearest.clamp(0, 255).to(torch.uint8))


def test_dead_inputs_and_zero_weights_are_no_trouble():
    x, w = inputs(), weight()
    x[:, :8] = 0
    w[3] = 0
    layer = gptq.gptq(w, factor(x, True), Grid(4, 32, True))
    assert torch.isfinite(layer.dense()).all() and (layer.dense()[3] == 0).all()


def run(tmp_path, model, data, **config):
    driver = Driver(tmp_path)
    wanted = {"model": given(model, "model")}
    if config.get("method", "gptq") == "gptq":
        wanted["calibration"] = given(data, "dataset", "calibration")
        config = {"calibration": "c", "samples": 24} | config
    return driver, driver.run("quantize", {"model": "m"} | config, wanted)


def digest(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


@pytest.mark.parametrize("config", [{"act_order": True}, {"bits": 3, "symmetric": False}, {"method": "rtn", "bits": 8}])
def test_a_folder_reads_back_as_what_was_measured(tmp_path, tiny, rows_file, config, monkeypatch):
    kept = {}
    original = gptq_format.save

    def save(tensors, *args):  # looks at what is written; changes nothing
        read = {name: stored.read() for name, stored in tensors.items()}
        parts = {name for name in read if name.rpartition(".")[2] in gptq_format.PARTS}
        kept.update(rest={n: v for n, v in read.items() if n not in parts}, packed={n: read[n] for n in parts})
        return original(tensors, *args)

    monkeypatch.setattr(gptq_format, "save", save)
    driver, result = run(tmp_path, tiny, rows_file, group_size=32, **config)
    read = models.load(given(driver.out, "model"), torch.device("cpu"))
    assert read.dtype == torch.float32
    for name, value in kept["rest"].items():
        assert torch.equal(read.state_dict()[name], value.float()), name
    layers = {name.rpartition(".")[0] for name in kept["packed"]}
    for name in layers:
        parts = {part: kept["packed"][f"{name}.{part}"] for part in gptq_format.PARTS}
        assert torch.equal(read.state_dict()[f"{name}.weight"], gptq_format.layer(parts, config.get("bits", 4)).dense()), name
    assert result.values["layers"] == len(layers) == 14
    assert result.values["quantized_parameters"] == sum(read.state_dict()[f"{n}.weight"].numel() for n in layers)


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_damping_is_said_where_there_is_one(tmp_path, tiny, rows_file, method):
    """auto-gptq, gptqmodel and transformers refuse a `damp_percent` outside of 0 to 1, 0 too, and take a folder that has none."""
    driver, _ = run(tmp_path, tiny, rows_file, group_size=32, method=method)
    config, alone = (json.loads((driver.out / name).read_text()) for name in ("config.json", "quantize_config.json"))
    for said in (config["quantization_config"], alone):
        assert said.get("damp_percent") == (0.01 if method == "gptq" else None)


def test_the_folder_is_one_that_others_read(tmp_path, tiny, rows_file):
    driver, result = run(tmp_path, tiny, rows_file, group_size=32)
    config = json.loads((driver.out / "config.json").read_text())
    quantization = config["quantization_config"]
    assert quantization["quant_method"] == "gptq" and quantization["checkpoint_format"] == "gptq"
    assert (quantization["bits"], quantization["group_size"], quantization["sym"], quantization["desc_act"]) == (4, 32, True, False)
    assert config["dtype"] == "float16"
    assert json.loads((driver.out / "quantize_config.json").read_text())["bits"] == 4
    weights = load_file(driver.out / "model.safetensors")
    assert "lm_head.weight" not in weights  # tied
    assert {v.dtype for v in weights.values()} == {torch.float16, torch.int32}
    assert result.values["bits_per_quantized_weight"] < 5.6
    assert str(tmp_path).encode() not in b"".join(p.read_bytes() for p in driver.out.iterdir() if p.is_file())


def test_twice_gives_the_same_bytes(tmp_path, tiny, rows_file):
    first, _ = run(tmp_path / "a", tiny, rows_file, group_size=32)
    second, _ = run(tmp_path / "b", tiny, rows_file, group_size=32)
    assert digest(first.out) == digest(second.out)


CPU = torch.device("cpu")
NAMES = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")


def moments(model, rows, zeroed=()):
    """Hessians of the layers, the blocks run one after another; layers whose names end as in `zeroed` hold nothing."""
    opened = blocks.Blocks(model, CPU, torch.float32, torch.float32)
    batches, found = opened.enter(rows), {}
    for i in range(2):
        with opened.block(i):
            for name, module in opened.linear(i).items():
                if name.endswith(tuple(zeroed)):
                    module.weight.data.zero_()
            assert [len(g) for g in blocks.groups(opened, i, batches[0])] == [3, 1, 2, 1]  # q k v, o, gate up, down
            found |= {f"{i}.{n}": blocks.hessian(opened, i, f"model.layers.{i}.{n}", batches) for n in NAMES}
            for batch in batches:
                batch.hidden = opened.run(i, batch)
    return found, opened, batches


def test_padding_does_not_leak_into_the_hessians(tiny, monkeypatch):
    rows = [list(range(5, 5 + n)) for n in (3, 30, 17, 9, 30)]
    found = []
    for batch in (8, 1):
        monkeypatch.setattr(blocks, "BATCH", batch)
        found.append(moments(tiny, rows)[0])
    for name in found[0]:
        assert torch.allclose(found[0][name], found[1][name], rtol=1e-3, atol=1e-5), name


def test_later_layers_see_the_quantized_ones_before_them(tiny):
    rows = [[5, 6, 7, 8, 9, 10], [11, 12, 13]]
    kept, wiped = moments(tiny, rows)[0], moments(tiny, rows, ("v_proj",))[0]
    assert torch.equal(kept["0.self_attn.q_proj"], wiped["0.self_attn.q_proj"])
    assert wiped["0.self_attn.o_proj"].abs().max() == 0 and not torch.allclose(kept["1.self_attn.q_proj"], wiped["1.self_attn.q_proj"])


@pytest.mark.parametrize("twice", [False, True])
def test_a_hessian_is_of_every_call_and_goes_no_further_than_to_it(tiny, monkeypatch, twice):
    """Against whole passes. twice: one layer in two places, which must not end a pass at the first of them."""
    monkeypatch.setattr(blocks, "BATCH", 1)
    opened = blocks.Blocks(tiny, CPU, torch.float32, torch.float32)
    batches = opened.enter([[5, 6, 7, 8, 9], [10, 11, 12], [13, 14]])
    with opened.block(0):
        block = opened.list[0]
        if twice:
            block.self_attn.q_proj = block.self_attn.o_proj
        seen, ends = [], []
        hook = block.self_attn.o_proj.register_forward_pre_hook(lambda _m, args: seen.append(args[0].flatten(0, -2)))
        for batch in batches:
            opened.run(0, batch)
        hook.remove()
        block.mlp.down_proj.register_forward_pre_hook(lambda *_: ends.append(1))
        found = blocks.hessian(opened, 0, next(n for n, m in opened.linear(0).items() if m is block.self_attn.o_proj), batches)
        assert not block.self_attn.o_proj._forward_pre_hooks
    x = torch.cat(seen)
    assert len(x) == (20 if twice else 10) and len(ends) == (3 if twice else 1)
    assert torch.allclose(found, x.T @ x / len(x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2"])
def test_block_by_block_is_the_whole_model(tmp_path, tiny, family):
    """Biases, soft caps, layers of two kinds; and a model whose blocks hold no linear layers is refused."""
    folder = tiny if family == "llama" else _family(tmp_path / family, family)
    row = list(range(5, 35))
    with torch.no_grad():
        whole = models.load(given(folder, "model"), CPU)(torch.tensor([row])).logits
    opened = blocks.Blocks(folder, CPU, torch.float32, torch.float32)
    batches = opened.enter([row, row[:9]])
    for i in range(2):
        with opened.block(i):
            for batch in batches:
                batch.hidden = opened.run(i, batch)
        assert all(p.is_meta for p in opened.list[i].parameters())
    assert torch.allclose(opened.leave(batches[0])[0], whole[0], atol=1e-5)


def _family(folder, family):
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.ml.conftest import make_tokenizer

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    if family == "gpt2":
        sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4}
    config = AutoConfig.for_model(family, vocab_size=384, eos_token_id=2, pad_token_id=3, bos_token_id=1, head_dim=16, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    make_tokenizer(folder)
    return folder


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_biases_and_norms_come_through(tmp_path, rows_file, family):
    folder = _family(tmp_path / "m", family)
    driver, result = run(tmp_path / "q", folder, rows_file, bits=8, group_size=32)
    assert result.values["fidelity"]["mean_kl"] < 1e-3 and result.values["layers"] == 14


def test_layers_that_are_no_linear_ones_are_refused(tmp_path, rows_file):
    folder = _family(tmp_path / "m", "gpt2")
    with pytest.raises(StepFailed, match="is a Conv1D, and only linear layers"):
        run(tmp_path / "q", folder, rows_file, bits=8, group_size=32)


def test_rounding_is_kept_where_it_is_closer(tmp_path, tiny, rows_file, monkeypatch):
    """A GPTQ that is spoilt loses to rounding on the rows held out; a sound one does not."""
    sound, result = run(tmp_path / "a", tiny, rows_file, group_size=32, bits=3)
    compared = result.values["held_out"]
    assert result.values["kept"] == "gptq" and compared["gptq"]["kl"] < compared["rtn"]["kl"] and compared["rows"] == 3
    assert result.values["samples"] == 21
    original = gptq.gptq
    monkeypatch.setattr(gptq, "gptq", lambda w, *a, **k: original(w + 0.05 * w.std() * torch.randn(w.shape), *a, **k))
    spoilt, result = run(tmp_path / "b", tiny, rows_file, group_size=32, bits=8, act_order=True)
    assert result.values["kept"] == "rtn" and [e for e in spoilt.events if e["event"] == "warning" and "closer" in e["what"]]
    plain, _ = run(tmp_path / "c", tiny, None, method="rtn", group_size=32, bits=8)
    one, two = (load_file(d.out / "model.safetensors") for d in (spoilt, plain))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert not json.loads((spoilt.out / "quantize_config.json").read_text())["desc_act"]


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, tiny, rows_file, monkeypatch):
    whole, _ = run(tmp_path / "a", tiny, rows_file, group_size=32)
    done = []
    original = packed.keep

    def keep(file, *args):
        if done:
            raise KeyboardInterrupt
        original(file, *args)
        done.append(file)

    monkeypatch.setattr(packed, "keep", keep)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", tiny, rows_file, group_size=32)
    assert [f.name for f in done] == ["block-0.safetensors"]
    monkeypatch.setattr(packed, "keep", original)
    made = []
    monkeypatch.setattr(quantizer, "_block", lambda o, i, *a, real=quantizer._block: (made.append(i), real(o, i, *a))[1])
    again, _ = run(tmp_path / "b", tiny, rows_file, group_size=32)
    assert made == [1] and digest(again.out) == digest(whole.out)


@pytest.mark.parametrize("config", [
    {"bits": 4, "group_size": 32}, {"bits": 3, "group_size": -1, "symmetric": False}, {"bits": 8, "group_size": 64}, {"method": "nf4"},
    {"method": "int8"}, {"bits": 2, "group_size": 16, "method": "rtn"},
])  # fmt: skip
def test_the_size_is_predicted(tmp_path, tiny, rows_file, config):
    driver, result = run(tmp_path, tiny, rows_file, fidelity={"mean_kl": 99.0, "perplexity": 99.0}, **config)
    settings = {"model": "m", "method": "gptq"} | ({"calibration": "c"} if config.get("method", "gptq") == "gptq" else {}) | config
    said = quantize_step.estimate(quantize_step.Config(**settings), quantize_step.Execution(), {"model": (weights(tiny),)})
    assert said["disk_bytes"] == pytest.approx(result.values["bytes"], rel=0.01)


def test_shapes_that_do_not_fit_are_refused_before_any_work(tmp_path_factory, rows_file):
    odd = make_model(tmp_path_factory.mktemp("odd") / "m", hidden=64, mlp=172)
    for path in odd.glob("*.safetensors"):  # no weight may be needed to say so
        head = path.read_bytes()[:8]
        path.write_bytes(path.read_bytes()[: 8 + int.from_bytes(head, "little")])
    with pytest.raises(RecipeError) as e:
        run(tmp_path_factory.mktemp("w"), odd, rows_file, group_size=32)
    text = e.value.render()
    assert "group_size: 32 does not divide the 172 inputs of model.layers.0.mlp.down_proj (172 → 64)" in text
    assert "-1" in text and "bits that fit: 8" in text
    with pytest.raises(RecipeError) as e:
        run(tmp_path_factory.mktemp("w"), odd, rows_file, group_size=-1)
    text = e.value.render()
    assert "bits: 4 cannot be packed: model.layers.0.mlp.down_proj is (172 → 64), and both sides must be multiples of 8" in text
    assert "bits that fit every layer of this model: 8" in text


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_bitsandbytes_folders_load_back(tmp_path, tiny, method):
    driver, result = run(tmp_path, tiny, None, method=method)
    ids = torch.tensor([[5, 6, 7, 8]])
    full = models.load(given(tiny, "model"), torch.device("cpu"))
    with torch.no_grad():
        reference = full(ids).logits
        for _ in range(2):  # the second load must be as good as the first
            model = models.load(given(driver.out, "model"), torch.device("cpu"))
            off = (model(ids).logits.float() - reference).norm() / reference.norm()
            assert off < (0.3 if method == "nf4" else 0.1)
    assert result.values["bytes"] < 0.5 * result.values["bytes_before"]


def test_a_question_of_the_evaluation_is_no_calibration_row(tmp_path, tiny):
    rows = chats(40)
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    write_jsonl(tmp_path / "test.jsonl", [{"q": rows[3]["messages"][1]["content"], "a": rows[3]["messages"][2]["content"]}])
    (tmp_path / "t.yaml").write_text("task: t\ndataset_path: json\ndataset_kwargs: {data_files: {test: test.jsonl}}\ntest_split: test\n"
                                     "output_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n")
    inputs = {"model": given(tmp_path / "none", "model"), "calibration": given(file, "dataset", "calibration"),
              "tasks": given(tmp_path / "t.yaml", "task", "tasks")}
    with pytest.raises(DataError) as e:  # before any model is loaded: there is none
        Driver(tmp_path / "a").run("quantize", {"model": "m", "calibration": "c", "group_size": 32}, inputs)
    assert "rows.jsonl:4: this calibration row is a question of `t`" in e.value.render() and "allow: [leaks]" in e.value.render()
    inputs["model"] = given(tiny, "model")
    assert Driver(tmp_path / "b").run("quantize", {"model": "m", "calibration": "c", "group_size": 32}, inputs, {"allow": ["leaks"]})
