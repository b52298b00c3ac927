"""`method: auto` keeps what loses least on rows held out, never what is worse than rounding, and builds nothing twice."""

import hashlib
import json

import pytest
import torch
from pydantic import ValidationError

from slmkit.errors import RecipeError, StepFailed
from slmkit.ml import choosing, gptq, models
from slmkit.ml.quantizers import rtn
from slmkit.steps import _candidates, _shapes
from slmkit.steps import quantize as step
from slmkit.steps.quantize import Config, Execution, estimate
from tests.ml.conftest import chats, make_model, write_jsonl
from tests.support.drive import Driver, given

CANDIDATES = ["rtn-4-g32", "gptq-4-g32", "gptq-4-g32-act", "rtn-3-g32", "gptq-3-g32", "gptq-3-g32-act", "nf4"]
ROOMY = {"mean_kl": 99.0, "perplexity": 99.0, "ended": 1.0}


def run(root, model, data, **config):
    driver = Driver(root)
    config = {"model": "m", "method": "auto", "max_bits_per_weight": 9.5, "calibration": "c", "samples": 24, "fidelity": ROOMY} | config
    return driver, driver.run("quantize", config, {"model": given(model, "model"), "calibration": given(data, "dataset", "calibration")})


def digest(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


@pytest.fixture(scope="module")
def chosen(tmp_path_factory, tiny, rows_file):
    return run(tmp_path_factory.mktemp("auto"), tiny, rows_file)


def test_the_best_of_all_that_fits_is_published(chosen, tiny):
    driver, result = chosen
    table = result.values["candidates"]
    assert sorted(table) == sorted(CANDIDATES) and all(f["bits_per_weight"] <= 9.5 for f in table.values())
    best = result.values["chosen"]
    assert all(table[best]["nats_lost"] <= f["nats_lost"] for f in table.values())
    rounded = table[best.replace("gptq", "rtn").removesuffix("-act")]
    assert best.startswith("gptq-4") and table[best]["mean_kl"] < rounded["mean_kl"] and table[best]["bytes"] == rounded["bytes"]
    assert result.values["bits_per_weight"] == table[best]["bits_per_weight"] and result.values["chosen_on"]["rows"] == 3
    assert result.values["samples"] == 21, "rows that are chosen by are not calibrated on"
    card = result.card.text
    assert f"| **{best}** |" in card and all(f"| {name} |" in card for name in CANDIDATES if name != best)
    said = models.read_config(driver.out)["quantization_config"]
    assert (said["bits"], said["group_size"], said["desc_act"]) == (4, 32, best.endswith("-act"))
    assert [p.parent.name for p in driver.root.glob("state/candidates/*/out")] == [best], "the folders of the others are gone"


def test_a_second_run_builds_nothing(chosen, tiny, rows_file, monkeypatch):
    driver, result = chosen
    monkeypatch.setattr(choosing, "_build", lambda *a: pytest.fail("built again"))
    monkeypatch.setattr(choosing, "_read", lambda *a: pytest.fail("measured again"))
    before = digest(driver.out)
    _, again = run(driver.root, tiny, rows_file)
    assert digest(driver.out) == before and again.values["candidates"] == result.values["candidates"]


def test_what_is_bad_is_not_chosen(tmp_path, tiny, rows_file, monkeypatch):
    """GPTQ spoilt by half a weight's spread, beyond its own comparison with rounding; and a candidate that came out as no numbers at all."""
    original = gptq.gptq
    monkeypatch.setattr(gptq, "gptq", lambda w, *a, **k: original(w + 0.5 * w.std() * torch.randn(w.shape), *a, **k))
    monkeypatch.setattr("slmkit.ml.quantizers.gptq._compare", lambda *a: {"gptq": {"kl": 0.0}, "rtn": {"kl": 1.0}})
    monkeypatch.setattr("slmkit.ml.quantizers.bitsandbytes.quantize", _not_finite)
    _, result = run(tmp_path, tiny, rows_file)
    table = result.values["candidates"]
    assert result.values["chosen"].startswith("rtn-") and table["gptq-4-g32"]["nats_lost"] > 2 * table["rtn-4-g32"]["nats_lost"]
    assert table["nf4"]["nats_lost"] is None and "| nf4 | " in result.card.text and "not finite" in result.card.text


def _not_finite(ctx, config, given, where, rows):
    from safetensors.torch import load_file, save_file

    values = rtn.quantize(ctx, config.model_copy(update={"bits": 2, "group_size": -1, "symmetric": True}), given, where, rows)
    file = ctx.out / "model.safetensors"
    save_file({k: v * float("nan") if k.endswith("scales") else v for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    return values


def test_a_killed_choice_goes_on_with_the_next(tmp_path, chosen, tiny, rows_file, monkeypatch):
    original, built = choosing._build, []

    def build(ctx, home, *args):
        if len(built) == 2:
            raise KeyboardInterrupt
        built.append(home.name)
        original(ctx, home, *args)

    monkeypatch.setattr(choosing, "_build", build)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, tiny, rows_file)
    first, built[:] = list(built), []
    monkeypatch.setattr(choosing, "_build", lambda ctx, home, *a: (built.append(home.name), original(ctx, home, *a))[1])
    again, result = run(tmp_path, tiny, rows_file)
    assert first + built == CANDIDATES and digest(again.out) == digest(chosen[0].out)
    assert result.values["candidates"] == chosen[1].values["candidates"]


@pytest.mark.parametrize(("target", "bound", "names"), [
    ("vllm", 16.0, ["rtn-8-g32", "gptq-8-g32", "gptq-8-g32-act", "rtn-4-g32", "gptq-4-g32", "gptq-4-g32-act", "nf4"]),
    ("cpu", 16.0, ["int8", "nf4"]), ("cpu", 9.5, ["nf4"]),
])  # fmt: skip
def test_each_target_has_its_formats(tiny, target, bound, names):
    assert [c.name for c in _candidates.candidates(target, bound, _shapes.of(tiny))] == names


def test_groups_are_as_fine_as_the_bound_leaves_and_the_layers_divide(tiny, tmp_path):
    shapes = _shapes.of(tiny)
    size = _shapes.packed_bytes(shapes, 4, 64) * 8 / shapes.parameters
    found = _candidates.candidates("vllm", size, shapes)
    assert [c.name for c in found] == ["rtn-4-g64", "gptq-4-g64", "gptq-4-g64-act"]
    assert {c.bytes for c in found} == {_shapes.packed_bytes(shapes, 4, 64)}
    odd = _shapes.of(make_model(tmp_path / "odd", hidden=64, mlp=176))  # 176 = 11 × 16: no group of 32 divides it
    assert {c.grid for c in _candidates.candidates("transformers", 16.0, odd)} == {(8, -1), (4, -1), (None, None)}
    config = Config(model="m", method="auto", max_bits_per_weight=16.0, calibration="c")
    largest = max(c.bytes for c in _candidates.candidates("transformers", 16.0, shapes))
    from slmkit.steps._estimate import weights

    assert estimate(config, Execution(), {"model": (weights(tiny),)})["disk_bytes"] == largest


def test_a_bound_that_nothing_fits_is_refused_with_the_smallest(tmp_path, tiny, rows_file):
    with pytest.raises(RecipeError) as e:
        run(tmp_path, tiny, rows_file, max_bits_per_weight=4.0)
    assert "nothing that transformers loads fits into max_bits_per_weight: 4" in e.value.render() and "the smallest takes " in e.value.render()
    with pytest.raises(RecipeError) as e:
        run(tmp_path, tiny, rows_file, max_bits_per_weight=4.0, target="cpu")
    assert "the smallest takes 9.38 bits per weight; or `target: transformers`" in e.value.render()


def test_too_few_rows_to_choose_by_are_refused(tmp_path, tiny):
    with pytest.raises(StepFailed, match="15 calibration rows are too few to choose by"):
        run(tmp_path, tiny, write_jsonl(tmp_path / "few.jsonl", chats(15)))


@pytest.mark.parametrize(("config", "said"), [
    ({"bits": 4}, "`bits` is not read by method auto"), ({"act_order": True}, "`act_order` is not read by method auto"),
    ({"backend": "gptqmodel"}, "`backend` is not read by method auto"),
    ({"max_bits_per_weight": None}, "method auto needs `max_bits_per_weight`"), ({"calibration": None}, "method auto needs `calibration`"),
    ({"method": "gptq"}, "`max_bits_per_weight` is not read by method gptq"),
    ({"method": "rtn", "target": "cpu"}, "`target` is not read by method rtn"),
])  # fmt: skip
def test_keys_that_are_not_read_are_refused(config, said):
    with pytest.raises(ValidationError) as e:
        Config(**{"model": "m", "method": "auto", "max_bits_per_weight": 5.0, "calibration": "c"} | config)
    assert said in str(e.value)


@pytest.fixture(scope="module")
def typed(tmp_path_factory, tiny, rows_file):
    pytest.importorskip("llama_cpp")
    return run(tmp_path_factory.mktemp("types"), tiny, rows_file, target="llama.cpp", max_bits_per_weight=8.0)


def test_for_llama_cpp_its_types_are_tried_and_the_best_that_fits_is_a_gguf(typed):
    driver, result = typed
    table, best = result.values["candidates"], result.values["chosen"]
    assert [*table] == ["q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q4_0", "q3_k_m", "q2_k"]
    fit = {n: f for n, f in table.items() if f["bits_per_weight"] <= 8.0}
    assert 1 < len(fit) < len(table) and all(("nats_lost" in f) == (n in fit) for n, f in table.items()), "what is too large is not measured"
    assert best in fit and all(fit[best]["nats_lost"] <= f["nats_lost"] for f in fit.values())
    assert result.values["type"] == best and result.values["bytes"] == table[best]["bytes"] == (driver.out / f"model-{best}.gguf").stat().st_size
    assert f"| **{best}** |" in result.card.text and "| too large |" in result.card.text
    assert result.values["fidelity"]["runtime"].startswith("llama.cpp")
    assert [p.parent.name for p in driver.root.glob("state/candidates/*/out")] == [best]


def test_a_killed_choice_of_types_goes_on_with_the_next(tmp_path, typed, tiny, rows_file, monkeypatch):
    from slmkit.ml.export import gguf

    original, made = gguf.make, []

    def make(given, kind, *args):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(kind)
        return original(given, kind, *args)

    monkeypatch.setattr(gguf, "make", make)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, tiny, rows_file, target="llama.cpp", max_bits_per_weight=8.0)
    first, made[:] = list(made), []
    monkeypatch.setattr(gguf, "make", lambda given, kind, *args: (made.append(kind), original(given, kind, *args))[1])
    again, result = run(tmp_path, tiny, rows_file, target="llama.cpp", max_bits_per_weight=8.0)
    assert first + made == [*result.values["candidates"], result.values["chosen"]] and digest(again.out) == digest(typed[0].out)


def test_a_bound_that_no_type_fits_is_told_with_the_smallest(tmp_path, tiny, rows_file):
    pytest.importorskip("llama_cpp")
    with pytest.raises(StepFailed) as e:
        run(tmp_path, tiny, rows_file, target="llama.cpp", max_bits_per_weight=2.0)
    assert "nothing that llama.cpp loads fits into max_bits_per_weight: 2" in e.value.render() and "the smallest, " in e.value.render()


def test_for_llama_cpp_the_step_gives_a_gguf_and_asks_what_export_asks(tmp_path, tiny, monkeypatch):
    config = Config(model="m", method="auto", max_bits_per_weight=5.0, calibration="c", target="llama.cpp")
    assert step.GIVES(config) == "gguf" and step.GIVES(Config(model="m", method="rtn")) == "model"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "slmkit[gguf]" in step.blocked(config, Execution())
    from slmkit.steps._estimate import weights

    odd = make_model(tmp_path / "odd")
    said = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps(said | {"model_type": "mamba"}))
    (told,) = step.refuse(config, {"model": (weights(odd),)})
    assert "`mamba` is not exported to GGUF" in told.what
