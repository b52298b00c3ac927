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
    rows = demo.path("train").read_text().splitlines()[:60]
    recipe = cli.folder / "p/recipe.yaml"  # rows that are there already, in place of a teacher's
    text = recipe.read_text()
    start, end = text.index("  teach:"), text.index("  sft:")
    recipe.write_text((text[:start] + text[end:]).replace("$teach\n", "data/train.jsonl\n"))
    asked, answered = "<script>alert(1)</script> mail marie@sorbonne.fr", "x\x1b[31m"
    hostile = {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]}
    (cli.folder / "p/data/train.jsonl").write_text("\n".join([json.dumps(hostile), *rows, rows[0]]) + "\n")
    return cli


def test_text_json_and_page_agree(project: Cli) -> None:
    text = project("data", "p/recipe.yaml")
    assert text.returncode == 0, text.stderr
    assert "sft  62 rows, messages" in text.stdout and "⟦{\"order\"" in text.stdout and "copies of another row: 1 row\n" in text.stdout
    assert "p/data/train.jsonl:2 ↔ p/data/train.jsonl:62" in text.stdout and "\x1b" not in text.stdout and "marie" not in text.stdout
    made = project("data", "p/recipe.yaml", "--step", "sft", "--json", "--html", "x.html")
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


PAIRS = [
    {"prompt": f"Name a fruit, number {i}.", "chosen": f"An apple of kind {i}.", "rejected": f"A brick of kind {i}, {'very ' * 40 * (i == 3)}red."}
    for i in range(20)
]  # fmt: skip
OTHER_OBJECTIVES = {
    "dpo": (PAIRS, ["⟦An apple of kind 0.<|end|>⟧", "⟦A brick of kind 0, red.<|end|>⟧", "first, chosen", "first, rejected"]),
    "kto": (
        [{"prompt": r["prompt"], "completion": r["chosen"], "label": bool(i % 2)} for i, r in enumerate(PAIRS)],
        ["⟦An apple of kind 1.<|end|>⟧", "first, marked bad", "first, marked good"],
    ),
    "grpo": ([{"prompt": r["prompt"], "completion": r["chosen"]} for r in PAIRS], ["of prompts; the model samples", "its answers will be sampled"]),
}  # fmt: skip


@pytest.mark.parametrize("objective", OTHER_OBJECTIVES)
def test_rows_are_shown_as_their_objective_learns_from_them(cli: Cli, objective: str) -> None:
    rows, shown = OTHER_OBJECTIVES[objective]
    (cli.folder / "d.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    block = "    grpo: {rewards: [{exact_match: {}}]}\n" if objective == "grpo" else ""
    head = "recipe: r\nbase: demo:student\nsteps:\n  sft:\n    kind: train\n    model: $base\n    data: d.jsonl\n"
    (cli.folder / "r.yaml").write_text(f"{head}    objective: {objective}\n    max_steps: 1\n{block}")
    done = cli("data", "r.yaml")
    assert done.returncode == 0, done.stderr
    assert [s for s in shown if s not in done.stdout] == [], done.stdout
    assert "0 rows left out" in done.stdout and ("⟦" in done.stdout) == (objective != "grpo")
    page = cli("data", "r.yaml", "--html", "x.html")
    assert page.returncode == 0 and "its answers will be sampled" in (cli.folder / "x.html").read_text() or objective != "grpo", page.stderr


def test_too_long_preferences_stop_train_with_the_key_that_allows_them(cli: Cli) -> None:
    (cli.folder / "d.jsonl").write_text("\n".join(map(json.dumps, PAIRS[:5])) + "\n")
    head = "recipe: r\nbase: demo:student\nsteps:\n  sft:\n    kind: train\n    model: $base\n    data: d.jsonl\n"
    (cli.folder / "r.yaml").write_text(head + "    objective: dpo\n    max_steps: 1\n    batch_size: 2\n    max_length: 96\n")
    stopped = cli("train", "r.yaml")
    assert stopped.returncode == 2 and "1 row of 5 (20%)" in stopped.stderr and "--set 'steps.sft.execution.allow=[truncation]'" in stopped.stderr
    assert "Token indices" not in stopped.stderr
    allowed = cli("train", "r.yaml", "--set", "steps.sft.execution.allow=[truncation]")
    assert allowed.returncode == 0, allowed.stderr
    written = json.loads((cli.folder / allowed.stdout.strip() / "xray.json").read_text())
    assert written["tokens"]["left_out"]["rows"] == 1 and [f["level"] for f in written["findings"] if f["kind"] == "truncation"] == ["allowed"]
