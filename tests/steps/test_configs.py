"""Every key is read by something, or refused with its place; nothing heavy is imported to say so."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from slmkit.steps import distill, merge, quantize, train
from slmkit.steps import eval as eval_step
from slmkit.steps._step import Takes

KINDS = {"distill": distill, "train": train, "merge": merge, "quantize": quantize, "eval": eval_step}
MINIMAL = {
    "distill": {"teacher": {"model": "t"}, "prompts": "p"},
    "train": {"model": "m", "data": "d"},
    "merge": {"model": "m"},
    "quantize": {"model": "m", "calibration": "c"},
    "eval": {"models": ["m"], "tasks": ["t"]},
}


def errors(kind, **more) -> list[tuple]:
    with pytest.raises(ValidationError) as e:
        KINDS[kind].Config(**(MINIMAL[kind] | more))
    return [(error["loc"], error["msg"]) for error in e.value.errors()]


@pytest.mark.parametrize(
    ("kind", "more", "place", "said"),
    [
        ("train", {"rank": 8}, ("rank",), "Extra inputs"),
        ("train", {"lora": {"rank": 8}}, ("lora", "rank"), "Extra inputs"),
        ("train", {"lora": {"r": 0}}, ("lora", "r"), "greater than or equal to 1"),
        ("train", {"lora": {"target": []}}, ("lora", "target"), "would train nothing"),
        ("train", {"method": "full", "lora": {"r": 8}}, ("lora",), "methods lora and qlora only"),
        ("train", {"method": "galore"}, ("method",), "'full', 'lora' or 'qlora'"),
        ("train", {"epochs": 1, "max_steps": 5}, ("epochs",), "keep one"),
        ("train", {"learning_rate": float("nan")}, ("learning_rate",), "finite number"),
        ("train", {"learning_rate": "1e-4"}, ("learning_rate",), "valid number"),
        ("train", {"batch_size": True}, ("batch_size",), "valid integer"),
        ("train", {"data": 3}, ("data", "reference"), "valid string"),
        ("train", {"data": {"path": "x", "usr": "q"}}, ("data", "columns", "usr"), "Extra inputs"),
        ("train", {"chat_template": "llama"}, ("chat_template",), "plain, chatml"),
        ("quantize", {"calibration": None}, ("calibration",), "method gptq needs `calibration`"),
        ("quantize", {"bits": 5}, ("bits",), "2, 3, 4 or 8"),
        ("quantize", {"group_size": 100}, ("group_size",), "or -1 for one group"),
        ("quantize", {"method": "rtn"}, ("calibration",), "not read by method rtn"),
        ("quantize", {"method": "rtn", "calibration": None, "damping": 0.1}, ("damping",), "not read by method rtn, only by gptq"),
        ("quantize", {"method": "int8", "calibration": None, "bits": 8}, ("bits",), "not read by method int8"),
        ("quantize", {"method": "nf4", "calibration": None, "backend": "gptqmodel"}, (), "`backend` is not read by method nf4"),
        ("eval", {"expect": {"m.t.acc": "0.9"}}, ("expect",), "no bound"),
        ("eval", {"model": "m"}, (), "keep one"),
        ("eval", {"models": []}, (), "`models` is empty"),
        ("distill", {"prompts": None}, ("prompts",), "`prompts` is missing"),
        ("distill", {"mode": "generate"}, ("generate",), "needs `generate: {description"),
        ("distill", {"rewrite": {}}, ("rewrite",), "not read by mode answer"),
        ("distill", {"mode": "judge"}, ("judge",), "mode judge needs `judge: {rubric: …}`"),
        ("distill", {"judge": {"rubric": "r"}}, ("judge",), "not read by mode answer; set `filters.min_score`"),
        ("distill", {"filters": {"min_score": 3}}, ("judge",), "`filters.min_score` needs `judge"),
        ("distill", {"filters": {"min_score": 30}, "judge": {"rubric": "r"}}, ("judge",), "goes from 1 to 10"),
        ("distill", {"mode": "judge", "judge": {"rubric": "r", "scale": [5, 5]}}, ("judge", "scale"), "least and the most"),
        ("distill", {"mode": "judge", "judge": {"rubric": "r"}, "filters": {"verify": "exact"}}, ("filters",), "the row's own"),
        ("distill", {"judge_template": "j"}, ("judge",), "set `filters.min_score`"),
        ("distill", {"mode": "preference", "judge": {"rubric": "r"}}, ("n",), "set `n`, such as `n: 4`"),
        ("distill", {"mode": "preference", "n": 2, "majority": 0.5, "judge": {"rubric": "r"}}, ("majority",), "not read by mode preference"),
        ("distill", {"mode": "generate", "n": 2, "generate": {"description": "d", "count": 1}}, ("n",), "not read by mode generate"),
        ("distill", {"mode": "generate", "generate": {"description": "d", "count": 1}, "filters": {"verify": "exact"}}, ("filters",), "no other"),
        ("distill", {"mode": "tools", "json_schema": {}}, ("json_schema",), "not read by mode tools"),
        ("distill", {"tools": "f"}, ("tools",), "read by mode tools only"),
        ("distill", {"tool_choice": "required"}, ("tool_choice",), "mode tools only"),
        ("distill", {"mode": "rewrite", "rewrite": {"what": "prompt"}, "filters": {"verify": "numeric"}}, ("filters",), "writes prompts"),
        ("distill", {"mode": "rewrite", "filters": {"verify": "exact"}}, ("filters",), "only an answer that is as it was"),
        ("distill", {"mode": "rewrite", "rewrite": {"what": "prompt"}, "json_schema": {}}, ("json_schema",), "writes prompts"),
        ("distill", {"mode": "preference", "n": 2, "judge": {"rubric": "r"}, "preference": {"margin": 10}}, ("judge",), "no answer leads by that"),
        ("distill", {"mode": "rationale", "rationale": {"source": "reasoning", "marker": "A:"}}, ("rationale",), "`source: reply` only"),
        ("distill", {"mode": "rationale", "rationale": {"rows": "thinking", "prefix": "r "}}, ("rationale",), "makes one"),
        ("distill", {"structured": False}, ("structured",), "there is none"),
        ("distill", {"prompts": {"path": "p", "weight": 2.0}}, ("prompts",), "`weight` says nothing of prompts"),
        ("distill", {"prompts": ["q", {"path": "p", "format": "alpaca"}]}, ("prompts",), "`format` says nothing of prompts"),
        ("merge", {"dtype": "fp8"}, ("dtype",), "'auto', 'fp32', 'bf16' or 'fp16'"),
    ],
)
def test_what_is_wrong_is_refused_at_its_place(kind, more, place, said):
    found = errors(kind, **more)
    assert any(loc[: len(place)] == place and said in message for loc, message in found), found


@pytest.mark.parametrize("kind", KINDS)
def test_the_minimum_is_enough_and_a_round_trip_keeps_it(kind):
    module = KINDS[kind]
    config = module.Config(**MINIMAL[kind])
    assert module.Config(**config.model_dump()) == config
    module.Execution()


def test_defaults_that_depend_on_others_are_written_out():
    assert train.Config(model="m", data="d").lora == train.Lora()
    assert train.Config(model="m", data="d").epochs == 3.0
    assert train.Config(model="m", data="d", max_steps=5).epochs is None
    assert train.Config(model="m", data="d", method="full").lora is None
    gptq = quantize.Config(model="m", calibration="c")
    assert (gptq.bits, gptq.group_size, gptq.damping, gptq.samples) == (4, 128, 0.01, 256)
    rtn = quantize.Config(model="m", method="rtn")
    assert (rtn.bits, rtn.damping, rtn.samples) == (4, None, None)


def test_what_a_kind_gives_follows_its_config():
    assert train.GIVES(train.Config(model="m", data="d")) == "adapter"
    assert train.GIVES(train.Config(model="m", data="d", method="full")) == "model"


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_documented_and_every_input_is_a_field(kind):
    module = KINDS[kind]
    for model in (module.Config, module.Execution):
        assert all(field.description for field in model.model_fields.values()), kind
    for name, takes in module.TAKES.items():
        assert (name in module.Config.model_fields) != takes.witness and isinstance(takes, Takes)
    first = ast.get_docstring(ast.parse(Path(module.__file__).read_text())).splitlines()[0]
    assert first.endswith(".") and len(first) < 100


def test_importing_the_kinds_imports_nothing_heavy():
    script = (
        "import sys; from slmkit.steps import distill, train, merge, quantize, eval\n"
        "sys.exit(', '.join(m for m in ('torch', 'transformers', 'datasets', 'lm_eval', 'numpy', 'yaml', 'slmkit.ml') if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr


def test_step_kinds_do_not_import_each_other():
    for kind, module in KINDS.items():
        source = Path(module.__file__).read_text()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("slmkit.steps."):
                assert node.module.rpartition(".")[2].startswith("_"), (kind, node.module)


def test_a_missing_backend_is_said_without_importing_it():
    config = quantize.Config(model="m", calibration="c", backend="gptqmodel")
    said = quantize.blocked(config, quantize.Execution())
    import importlib.util

    assert (said is None) == (importlib.util.find_spec("gptqmodel") is not None)
    assert said is None or "slmkit[gptqmodel]" in said


def test_a_tracker_that_is_not_installed_is_told_before_anything_runs(monkeypatch):
    from slmkit.steps import train

    config = train.Config(model="m", data="d")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else name)
    assert "pip install 'slmkit[wandb]'" in train.blocked(config, train.Execution(trackers=["tensorboard", "wandb"]))
    assert train.blocked(config, train.Execution(trackers=["tensorboard"])) is None
