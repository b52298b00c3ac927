"""GPTQ beats rounding where it must, and a folder holds bit for bit what was measured."""

import hashlib
import json

import pytest
import torch
from conftest import make_model
from safetensors.torch import load_file

from slmkit.errors import RecipeError
from slmkit.ml import calibrate, gptq, gptq_format, models
from slmkit.ml.gptq import Grid
from tests.support.drive import Driver, given


def inputs(n=64, rows=512, seed=0):
    """Correlated inputs, as real activations are: 8 directions and a little noise."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 8, generator=g) @ torch.randn(8, n, generator=g) + 0.1 * torch.randn(rows, n, generator=g)


def weight(out=96, n=64, seed=1):
    return torch.randn(out, n, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [32, -1])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
def test_packing_is_exact(bits, group, symmetric, act_order):
    grid, x = Grid(bits, group, symmetric), inputs()
    layer = gptq.gptq(weight(), x.T @ x / len(x), grid, damping=0.01, act_order=act_order)
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
    ours = gptq.relative_error(w, gptq.gptq(w, h, grid, damping=0.01, act_order=act_order).dense(), h)
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
        h = x.T @ x / len(x)
        got = []
        for block in (32, 96, 256):
            monkeypatch.setattr(gptq, "BLOCK", block)
            got.append(gptq.gptq(w, h, Grid(4, group, True), damping=0.01, act_order=False).dense())
        for other in got[1:]:
            assert (other != got[0]).float().mean() < 0.02


def test_uncorrelated_inputs_leave_nothing_to_make_up_for():
    w = weight()
    layer = gptq.gptq(w, torch.eye(64), Grid(4, -1, True), damping=0.01, act_order=False)
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
    layer = gptq.gptq(w, x.T @ x / len(x), Grid(4, 32, True), damping=0.01, act_order=True)
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

    def save(model, *args):  # looks at the model at the moment of writing; changes nothing
        kept["state"] = {k: v.clone() for k, v in model.state_dict().items()}
        return original(model, *args)

    monkeypatch.setattr(gptq_format, "save", save)
    driver, result = run(tmp_path, tiny, rows_file, group_size=32, **config)
    read = models.load(given(driver.out, "model"), torch.device("cpu"))
    assert read.dtype == torch.float32
    for name, value in kept["state"].items():
        assert torch.equal(read.state_dict()[name], value), name
    assert result.values["layers"] == 14
    assert result.values["quantized_parameters"] == sum(m.weight.numel() for m in calibrate.layers(read).values())


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


def test_padding_does_not_leak_into_the_hessians(tiny, monkeypatch):
    model = models.load(given(tiny, "model"), torch.device("cpu"))
    rows = [list(range(5, 5 + n)) for n in (3, 30, 17, 9, 30)]
    found = []
    for batch in (8, 1):
        monkeypatch.setattr(calibrate, "BATCH", batch)
        found.append({})
        calibrate.walk(model, rows, lambda name, module, h: found[-1].update({name: h}), lambda *_: None)
    for name in found[0]:
        assert torch.allclose(found[0][name], found[1][name], rtol=1e-3, atol=1e-5), name


def test_later_layers_see_the_quantized_ones_before_them(tmp_path, tiny, rows_file):
    """Hessians are taken after what comes before was quantized: with everything propagated, the last layer's differs."""
    model = models.load(given(tiny, "model"), torch.device("cpu"))
    rows = [[5, 6, 7, 8, 9, 10], [11, 12, 13]]
    seen: dict[str, dict] = {"kept": {}, "wiped": {}}

    def keep(name, module, h):
        seen["kept"][name] = h

    def wipe(name, module, h):
        seen["wiped"][name] = h
        module.weight.data.zero_()

    calibrate.walk(model, rows, keep, lambda *_: None)
    calibrate.walk(model, rows, wipe, lambda *_: None)
    names = list(seen["kept"])
    assert names[0].endswith("layers.0.self_attn.q_proj") and names[-1].endswith("layers.1.mlp.down_proj")
    assert torch.equal(seen["kept"][names[0]], seen["wiped"][names[0]])
    assert seen["wiped"]["model.layers.0.self_attn.o_proj"].abs().max() == 0
    assert seen["kept"]["model.layers.0.self_attn.q_proj"] is seen["kept"]["model.layers.0.self_attn.v_proj"]


def test_shapes_that_do_not_fit_are_refused_before_any_work(tmp_path_factory, rows_file):
    odd = make_model(tmp_path_factory.mktemp("odd") / "m", hidden=64, mlp=172)
    for path in odd.glob("*.safetensors"):
        path.write_bytes(b"not read")  # no weight may be needed to say so
    with pytest.raises(RecipeError) as e:
        run(tmp_path_factory.mktemp("w"), odd, rows_file, group_size=32)
    text = e.value.render()
    assert "group_size: 32 does not divide the 172 inputs of model.layers.0.mlp.down_proj (172 → 64)" in text
    assert "-1" in text and "bits that fit: 8" in text
    with pytest.raises(RecipeError) as e:
        run(tmp_path_factory.mktemp("w"), odd, rows_file, group_size=-1)
    text = e.value.render()
    assert "bits: 4 cannot be packed: model.layers.0.mlp.gate_proj is (64 → 172), and both sides must be multiples of 8" in text
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
