"""Scores are those of lm-eval's own command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import chats, write_jsonl
from test_train import run as train

from slmkit.errors import CannotRun, UsageError
from slmkit.steps import eval as step
from tests.support.drive import Driver, given

GENERATE = """\
task: notes
dataset_path: json
dataset_kwargs: {data_files: {test: data/t.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{messages[-2]['content']}}"
doc_to_target: "{{messages[-1]['content']}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
  - {metric: !function metrics.first_letter, aggregation: mean, higher_is_better: true}
"""
CHOOSE = """\
task: city
dataset_path: json
dataset_kwargs: {data_files: {test: data/t.jsonl, train: data/t.jsonl}}
test_split: test
training_split: train
fewshot_split: train
num_fewshot: 2
output_type: multiple_choice
doc_to_text: "{{messages[-2]['content']}} ->"
doc_to_choice: [Graz, Linz, Wien, Enns, Wels, Steyr, Krems]
doc_to_target: "{{messages[-1]['content'].split(' ')[0]}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "data").mkdir()
    write_jsonl(folder / "data" / "t.jsonl", chats(20))
    (folder / "metrics.py").write_text("def first_letter(predictions, references, **_):\n    return float(predictions[0][:1] == references[0][:1])\n")
    (folder / "notes.yaml").write_text(GENERATE)
    (folder / "city.yaml").write_text(CHOOSE)
    return folder


def evaluate(root, models, files, execution=None, **config):
    driver = Driver(root)
    inputs = {"models": tuple(models), "tasks": tuple(given(f, "task", "tasks") for f in files)}
    return driver, driver.run("eval", {"models": ["m"], "tasks": ["t"]} | config, inputs, execution)


def command(model, tasks, out, *more) -> dict:
    """lm_eval's own command, in its own process, run where the task's relative data paths hold."""
    args = ["--model", "hf", "--model_args", f"pretrained={model}", "--include_path", str(tasks), "--tasks", "notes,city"]
    # Its index of built-in tasks takes 14 CPU-seconds and is not what is compared.
    script = (
        "import lm_eval.tasks.manager as m\n"
        "original = m.TaskManager.__init__\n"
        "m.TaskManager.__init__ = lambda self, *a, **k: original(self, *a, **(k | {'include_defaults': False}))\n"
        "from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
    )
    env = os.environ | {"HF_DATASETS_CACHE": str(out / "cache"), "HF_HOME": str(out / "home"), "HF_HUB_OFFLINE": "1"}
    run = [sys.executable, "-c", script, *args, "--device", "cpu", "--batch_size", "4", "--output_path", str(out), *more]
    done = subprocess.run(run, cwd=tasks, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = out.rglob("results_*.json")
    return json.loads(file.read_text())["results"]


@pytest.mark.parametrize("chat", [False, True])
def test_scores_equal_those_of_lm_evals_command(tmp_path, tiny, tasks, chat):
    more = ["--apply_chat_template", "true"] if chat else []
    theirs = command(tiny, tasks, tmp_path / "theirs", *more)
    driver, result = evaluate(
        tmp_path / "ours", [given(tiny, "model", name="m")], [tasks / "notes.yaml", tasks / "city.yaml"], {"batch_size": 4}, chat=chat
    )
    ours = result.values["scores"]["m"]
    assert set(ours) == {"notes", "city"}
    for task, metrics in ours.items():
        for metric, value in metrics.items():
            key = f"{metric},none"
            assert theirs[task][key] == value, (task, metric)
        assert {k.partition(",")[0] for k, v in theirs[task].items() if isinstance(v, float)} <= set(metrics)
    assert 0 < ours["city"]["acc"] < 1 and ours["city"]["acc_stderr"] > 0


def test_adapters_and_quantized_models_are_scored_side_by_side(tmp_path, tiny, tasks, rows_file):
    driver, _ = train(tmp_path / "t", tiny, rows_file, max_steps=2)
    quantizer = Driver(tmp_path / "q")
    quantizer.run("quantize", {"model": "m", "method": "rtn", "group_size": 32}, {"model": given(tiny, "model")})
    base = given(tiny, "model", name="base")
    models = [base, given(driver.out, "adapter", name="sft", base=base), given(quantizer.out, "model", name="int4")]
    expect = {"int4.city.acc": ">= 0", "int4.city.acc - base.city.acc": ">= 2", "sft.city.f1": ">= 0"}
    ran, result = evaluate(tmp_path / "e", models, [tasks / "city.yaml"], expect=expect, limit=7)
    values = result.values
    assert list(values["scores"]) == ["base", "sft", "int4"]
    assert values["size_bytes"]["int4"] < values["size_bytes"]["base"] < values["size_bytes"]["sft"]
    assert all(v["tokens_per_second"] > 0 and v["seconds"] > 0 for v in values["speed"].values())
    assert [c.ok for c in result.checks] == [True, False, False]
    assert "city has no metric `f1`; it has acc, " in result.checks[2].detail
    samples = [json.loads(line) for line in (ran.out / "samples" / "int4" / "city.jsonl").read_text().splitlines()]
    assert len(samples) == 7 and {"doc", "target", "prompt", "resps", "acc"} <= set(samples[0])
    assert "city.acc" not in result.card.text and "| int4 | city | acc |" in result.card.text


def test_the_payload_repeats_and_holds_no_time_or_place(tmp_path, tiny, tasks):
    files = []
    for name in ("a", "b"):
        driver, _ = evaluate(tmp_path / name, [given(tiny, "model", name="m")], [tasks / "notes.yaml"])
        files.append({str(p.relative_to(driver.out)): p.read_bytes() for p in driver.out.rglob("*") if p.is_file()})
    assert files[0] == files[1] and "results.json" in files[0]
    everything = b"".join(files[0].values())
    assert str(tmp_path).encode() not in everything and str(tasks).encode() not in everything and b"seconds" not in everything
    assert (tmp_path / "a" / "state" / "datasets").is_dir()


def test_expectations_are_checked_for_names_before_anything_is_loaded(tmp_path, tasks):
    gone = given("/nowhere", "model", name="base")
    with pytest.raises(UsageError, match="`in4.city.acc`") as e:
        evaluate(tmp_path / "a", [gone], [tasks / "city.yaml"], expect={"in4.city.acc": "> 0"})
    assert "the models are base" in e.value.render()
    with pytest.raises(UsageError, match="unknown task: `base.town.acc`"):
        evaluate(tmp_path / "b", [gone], [tasks / "city.yaml"], expect={"base.town.acc": "> 0"})


def test_chat_without_a_template_is_refused(tmp_path, untemplated, tasks):
    with pytest.raises(UsageError, match="has no chat template"):
        evaluate(tmp_path, [given(untemplated, "model", name="m")], [tasks / "city.yaml"], chat=True)


def test_the_short_form_of_one_model():
    assert step.Config(model="$sft", tasks=["arc_easy"]).models == ["$sft"]


def test_a_task_whose_data_is_on_the_hub_is_one_line_offline(tmp_path, tiny, tasks):
    remote = tasks / "remote.yaml"
    remote.write_text("\n".join(["task: far", "dataset_path: nobody/nothing", *CHOOSE.splitlines()[3:]]))
    with pytest.raises(CannotRun, match="cannot be fetched"):
        evaluate(tmp_path, [given(tiny, "model", name="m")], [remote])
