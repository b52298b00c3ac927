"""Scores are those of lm-eval's own command."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_train import run as train

from slmkit.errors import CannotRun, UsageError
from slmkit.steps import eval as step
from slmkit.steps._task_form import Task
from tests.ml.conftest import chats, make_model, write_jsonl
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


SAID = """\
task: said
dataset_path: json
dataset_kwargs: {data_files: {test: data/t.jsonl}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{messages[-2]['content']}}"
doc_to_target: " {{messages[-1]['content']}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
TEXT = """\
task: text
dataset_path: json
dataset_kwargs: {data_files: {test: data/t.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{messages[-2]['content']}} {{messages[-1]['content']}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
"""
DIGIT = """\
filter_list:
  - {name: number, filter: [{function: regex, regex_pattern: "([0-9])"}, {function: take_first}]}
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "data").mkdir()
    write_jsonl(folder / "data" / "t.jsonl", chats(20))
    (folder / "metrics.py").write_text("def first_letter(predictions, references, **_):\n    return float(predictions[0][:1] == references[0][:1])\n")
    (folder / "notes.yaml").write_text(GENERATE)
    (folder / "city.yaml").write_text(CHOOSE)
    (folder / "said.yaml").write_text(SAID)
    (folder / "text.yaml").write_text(TEXT)
    (folder / "digit.yaml").write_text(GENERATE.replace("task: notes", "task: digit") + DIGIT)
    return folder


def evaluate(root, models, files, execution=None, **config):
    driver = Driver(root)
    inputs = {"models": tuple(models), "tasks": tuple(given(f, "task", "tasks") for f in files)}
    return driver, driver.run("eval", {"models": ["m"], "tasks": ["t"]} | config, inputs, execution)


def command(out, tasks, *args) -> dict:
    """lm_eval's own command, in its own process, run where the task's relative data paths hold."""
    # Its index of built-in tasks takes 14 CPU-seconds and is not what is compared.
    script = (
        "import lm_eval.tasks.manager as m\n"
        "original = m.TaskManager.__init__\n"
        "m.TaskManager.__init__ = lambda self, *a, **k: original(self, *a, **(k | {'include_defaults': False}))\n"
        "import bitsandbytes.nn.modules as b; b.has_avx512bf16 = lambda: False\n"  # whose repacked weights are other ones
        "from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
    )
    here = str(Path(__file__).parents[2])
    env = os.environ | {"HF_DATASETS_CACHE": str(out / "cache"), "HF_HOME": str(out / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": here}
    run = [sys.executable, "-c", script, "--include_path", str(tasks), "--batch_size", "4", "--output_path", str(out), *args]
    done = subprocess.run(run, cwd=tasks, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = out.rglob("results_*.json")
    return json.loads(file.read_text())["results"]


KINDS = ["notes", "city", "said", "text", "digit", "short"]
"""A task of each sort: written answers, choices after examples, likelihood, perplexity of texts, a regular expression, the short form."""


def same(ours: dict, theirs: dict) -> None:
    assert set(ours) == set(theirs)
    for task, metrics in ours.items():
        for metric, value in metrics.items():
            name, _, own = metric.partition("_number")
            assert theirs[task][f"{name}{own},{'number' if '_number' in metric else 'none'}"] == value, (task, metric)
        assert sum(isinstance(v, float) for v in theirs[task].values()) == len(metrics), task


def short(tasks: Path):
    form = Task(name="short", data="t.jsonl", user="{{messages[-2]['content']}}", answer="{{messages[-1]['content']}}", stop=["\n"], max_tokens=6,
                metric=["exact_match", "f1_macro", "rougeL", "chrf"])  # fmt: skip
    return given(tasks / "data" / "t.jsonl", "dataset", "tasks", name="short", columns=form)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory, tiny, rows_file):
    """The model, an adapter on it, and it in four bits; each as ours, and as lm_eval's command is told of it."""
    root = tmp_path_factory.mktemp("subjects")
    fitted = make_model(root / "fitted", vocabulary=323)  # lm_eval cuts a base's vocabulary to its tokenizer's, where an adapter is on it
    adapter, _ = train(root / "t", fitted, rows_file, max_steps=2, method="lora", precision="fp32")
    quantizer = Driver(root / "q")
    quantizer.run("quantize", {"model": "m", "method": "nf4"}, {"model": given(tiny, "model")})
    base = given(tiny, "model", name="base")
    return {
        "model": (base, f"pretrained={tiny}"),
        "adapter": (given(adapter.out, "adapter", name="sft", base=given(fitted, "model", name="base")), f"pretrained={fitted},peft={adapter.out}"),
        "nf4": (given(quantizer.out, "model", name="nf4"), f"pretrained={quantizer.out}"),
    }


@pytest.mark.parametrize(("kind", "chat"), [("model", False), ("adapter", True), ("nf4", False)])
def test_scores_equal_those_of_lm_evals_command(tmp_path, subjects, tasks, kind, chat):
    ours, theirs = subjects[kind]
    driver = Driver(tmp_path / "ours")
    inputs = {"models": (ours,), "tasks": (*(given(tasks / f"{k}.yaml", "task", "tasks") for k in KINDS[:-1]), short(tasks))}
    result = driver.run("eval", {"models": ["m"], "tasks": ["t"], "chat": chat}, inputs, {"batch_size": 4})
    shutil.copytree(tasks, tmp_path / "tasks")
    shutil.copytree(driver.out / "tasks", tmp_path / "tasks", dirs_exist_ok=True)
    more = ["--apply_chat_template", "true"] if chat else []
    args = ["--model", "hf", "--model_args", theirs, "--device", "cpu", "--tasks", ",".join(KINDS), *more]
    scores = result.values["scores"][ours.name]
    same(scores, command(tmp_path / "theirs", tmp_path / "tasks", *args))
    assert set(scores) == set(KINDS) and 0 < scores["city"]["acc"] < 1 and scores["city"]["acc_stderr"] > 0
    assert scores["text"]["word_perplexity"] > 1 and scores["short"]["rougeL"] >= 0


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
