"""`slmkit data` end to end on the demo's project: text, JSON and HTML, exit codes, and an input that is not there yet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slmkit import demo
from tests.support.cli import Cli
from tests.support.hub import Hub


@pytest.fixture
def project(cli: Cli) -> Cli:
    assert cli("init", "p").returncode == 0
    rows = (cli.folder / "p/data/train.jsonl").read_text().splitlines()[:60]
    asked, answered = "<script>alert(1)</script> mail marie@sorbonne.fr", "x\x1b[31m"
    hostile = {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]}
    (cli.folder / "p/data/train.jsonl").write_text("\n".join([json.dumps(hostile), *rows, rows[0]]) + "\n")
    return cli


def test_text_json_and_page_agree(project: Cli) -> None:
    text = project("data", "p/recipe.yaml")
    assert text.returncode == 0, text.stderr
    assert "sft  62 rows of" in text.stdout and "⟦{\"order\"" in text.stdout and "copies of another row: 1 row\n" in text.stdout
    assert "p/data/train.jsonl:2 ↔ p/data/train.jsonl:62" in text.stdout and "\x1b" not in text.stdout and "marie" not in text.stdout
    made = project("data", "p/recipe.yaml", "sft", "--json", "--html", "x.html")
    facts = json.loads(made.stdout)["steps"]["sft"]
    assert {f["kind"]: f["count"] for f in facts["findings"]} == {"duplicates": 1, "personal": 1}
    assert sum(facts["tokens"]["histogram"]["counts"]) == facts["data"]["rows"] == 62
    assert [leak["against"] for leak in facts["leaks"]] == ["notes"]
    for sample in facts["samples"]:
        assert sample["pieces"][-1]["trained"] and sample["pieces"][-1]["text"].endswith("<|end|>") and not sample["pieces"][0]["trained"]
    page = (project.folder / "x.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "<mark>" in page and "<rect" in page and "marie" not in page
    assert not (project.folder / "artifacts").exists() or not list((project.folder / "artifacts").glob("train-*"))


def test_colour_marks_what_is_trained_where_there_is_colour(project: Cli) -> None:
    coloured = project("data", "p/recipe.yaml", FORCE_COLOR="1").stdout
    assert "\x1b[32m{\"order\"" in coloured and "⟦" not in coloured and "\\x1b[31m" in coloured


def test_a_leak_is_exit_three_and_stops_train_until_it_is_allowed(project: Cli) -> None:
    test = json.loads((project.folder / "p/tasks/test.jsonl").read_text().splitlines()[4])
    row = {"messages": [{"role": "user", "content": test["note"]}, {"role": "assistant", "content": test["answer"]}]}
    with open(project.folder / "p/data/train.jsonl", "a") as f:
        f.write(json.dumps(row) + "\n")
    done = project("data", "p/recipe.yaml")
    assert done.returncode == 3 and "train.jsonl:63 ↔ p/tasks/test.jsonl:5 (exact)" in done.stdout
    stopped = project("train", "p/recipe.yaml")
    assert stopped.returncode == 2 and "--set 'steps.sft.execution.allow=[leaks]'" in stopped.stderr and "train.jsonl:63" in stopped.stderr
    short = ("--set", "steps.sft.epochs=", "--set", "steps.sft.max_steps=1")
    allowed = project("train", "p/recipe.yaml", "--set", "steps.sft.execution.allow=[leaks]", *short)
    assert allowed.returncode == 0, allowed.stderr
    place = project.folder / allowed.stdout.strip()
    written = json.loads((place / "xray.json").read_text())
    assert {f["kind"]: f["level"] for f in written["findings"]} == {"leaks": "allowed", "duplicates": "warning", "personal": "warning"}
    seen = [i for i in json.loads((place / ".slmkit/manifest.json").read_text())["inputs"] if i.get("witness")]
    assert [(i["role"], Path(i["uri"]).name) for i in seen] == [("tasks", "delivery_notes.yaml")]


def test_what_cannot_be_looked_at_is_said(project: Cli) -> None:
    recipe = (project.folder / "p/recipe.yaml").read_text()
    (project.folder / "p/two.yaml").write_text(recipe + "\n  again:\n    kind: train\n    model: $tuned\n    data: data/train.jsonl\n")
    done = project("data", "p/two.yaml", "again")
    assert done.returncode == 4 and done.stdout == "" and "slmkit run p/two.yaml tuned" in done.stderr
    done = project("data", "p/recipe.yaml", "score")
    assert done.returncode == 2 and "sft" in done.stderr
    assert project("data", "p/recipe.yaml", "--html", "no/such/x.html").returncode == 1


def test_a_model_of_the_hub_is_looked_at_without_its_weights(project: Cli) -> None:
    with Hub() as hub:
        hub.commit_folder("me/student", demo.path("student"))
        done = project("data", "p/recipe.yaml", "--set", "base=hf:me/student", "--no-locked", **hub.environment(project.folder / "hub"))
        assert done.returncode == 0 and "⟦" in done.stdout, done.stderr
        assert hub.count("tokenizer.json") and not hub.count("safetensors")
