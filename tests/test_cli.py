"""The command line's surface: what help loads, how verbs come from kinds, and that every shipped recipe plans."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import ROOT, Cli

HEAVY = {"torch", "transformers", "datasets", "pydantic", "rich", "yaml", "peft", "lm_eval", "trl", "bitsandbytes", "numpy", "jinja2", "matplotlib"}
VERBS = ["train", "merge", "quantize", "eval", "run", "plan", "data", "show", "ls", "diff", "verify", "compare", "cost", "gate", "report", "lock",
         "pin", "gc", "schema", "doctor", "init", "quickstart", "reproduce"]


def modules(cli: Cli, *words: str) -> set[str]:
    """Which heavy packages a command line loads."""
    code = (
        "import sys\nfrom slmkit.cli.main import main\n"
        f"try: main({list(words)!r})\nexcept SystemExit: pass\n"
        f"print(' '.join(sorted({HEAVY!r} & set(sys.modules))), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=cli.folder, env=cli.environment(), capture_output=True, text=True)
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["run", "-h"], ["gate", "--help"], ["report", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(cli: Cli, words: list[str]) -> None:
    assert modules(cli, *words) == set()


def test_plan_and_a_cached_run_load_no_torch(toy: Cli) -> None:
    toy.write("r.yaml", "recipe: r\nsteps: {one: {kind: toy}}\n")
    toy("run", "r.yaml")
    assert modules(toy, "plan", "r.yaml") <= {"pydantic", "yaml"}
    assert modules(toy, "run", "r.yaml") <= {"pydantic", "yaml"}


def test_help_names_every_verb_and_is_the_same_each_time(cli: Cli) -> None:
    first, second = cli("--help"), cli("--help")
    assert first.stdout == second.stdout and first.returncode == 0
    assert [v for v in VERBS if f"\n  {v} " not in first.stdout] == []
    for verb in VERBS:
        done = cli(verb, "--help")
        assert done.returncode == 0 and f"slmkit {verb}" in done.stdout and "Traceback" not in done.stderr
        options = done.stdout.index("Options:")
        assert done.stdout.index(f"slmkit {verb}", 20) < options, "examples come first"


def test_a_dropped_in_kind_has_all_that_a_kind_has(toy: Cli) -> None:
    assert "\n  toy " in toy("--help").stdout
    shown = toy("toy", "--help").stdout
    assert "Count lines into a file" in shown and "A kind that lives outside the package." in shown
    schema = json.loads(toy("schema").stdout)
    assert schema["$defs"]["toy"]["properties"]["count"]["anyOf"][0]["minimum"] == 1
    assert schema["$defs"]["toy"]["properties"]["count"]["description"] == "How many lines to add."
    toy.write("r.yaml", "recipe: r\nsteps: {toy: {count: 2}}\n")
    assert json.loads(toy("plan", "r.yaml", "--json").stdout)["steps"][0]["kind"] == "toy"
    assert toy("toy", "r.yaml").returncode == 0
    toy.write("bad.yaml", "recipe: r\nsteps: {toy: {coutn: 2}}\n")
    assert "did you mean `count`?" in toy("run", "bad.yaml").stderr


def test_a_third_party_kind_that_is_not_one_is_said(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    info = folder / "slmkit_broken-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "slmkit_broken.py").write_text('"""Nothing in it."""\n')
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slmkit-broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[slmkit.steps]\nbroken = slmkit_broken\n")
    cli.paths = (folder,)
    cli.write("r.yaml", "recipe: r\nsteps: {broken: {}}\n")
    done = cli("run", "r.yaml")
    assert done.returncode == 2 and "lacks VERSION" in done.stderr


@pytest.mark.parametrize("words", [["trian"], ["train"], ["train", "r.yaml", "--sett", "x"], ["--bogus"], ["run", "r.yaml", "--from", "model"]])
def test_a_wrong_command_line_is_two(cli: Cli, words: list[str]) -> None:
    cli.write("r.yaml", "recipe: r\nbase: demo:student\nsteps: {train: {data: demo:train}}\n")
    done = cli(*words)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr


def test_shipped_recipes_plan(cli: Cli) -> None:
    place = cli.folder / "recipes"
    shutil.copytree(ROOT / "recipes", place, symlinks=False)
    (place / "data/gsm8k").mkdir(parents=True)
    for name in ("train.jsonl", "test.jsonl"):
        (place / "data/gsm8k" / name).write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
    bank = place / "data/banking77"
    bank.mkdir(parents=True)
    for name in ("train.csv", "test.csv"):
        (bank / name).write_text("text,category\nWhere is my card?,card_arrival\n")
    found = sorted(place.glob("*.yaml"))
    assert {p.name for p in found} == {"quickstart.yaml", "banking77.yaml", "hub-qlora.yaml", "gsm8k.yaml", "distill-support.yaml"}
    for path in found:
        text = path.read_text().splitlines()
        assert text[0].startswith("# yaml-language-server: $schema=") and text[2].startswith("# ")
        done = cli("plan", path, "--locked", "--json", OPENAI_API_KEY="none")
        assert done.returncode == 0, done.stderr
        steps = json.loads(done.stdout)["steps"]
        assert {s["action"] for s in steps} == {"build"}
        if path.name == "hub-qlora.yaml":
            assert [s["name"] for s in steps] == ["sft", "sft-merge", "int4", "score"]


def test_init_writes_a_project_that_plans(cli: Cli) -> None:
    made = cli("init", "my-task")
    assert made.returncode == 0 and made.stdout.strip() == "my-task/recipe.yaml"
    steps = json.loads(cli("plan", "my-task/recipe.yaml", "--json").stdout)["steps"]
    assert [s["kind"] for s in steps] == ["distill", "train", "merge", "quantize", "eval"]
    assert "demo:prompts" not in (cli.folder / "my-task/recipe.yaml").read_text()
    again = cli("init", "my-task")
    assert again.returncode == 2 and "already" in again.stderr


def test_a_step_is_named_after_the_recipe_or_by_an_option(toy: Cli) -> None:
    toy.write("r.yaml", "recipe: r\nsteps: {one: {kind: toy}, two: {kind: toy, word: b, source: $one}, three: {kind: toy, count: 5}}\n")
    for words in (["two"], ["--step", "two"], ["--step=two", "two"]):
        done = toy("plan", "r.yaml", *words, "--json")
        assert done.returncode == 0 and [s["name"] for s in json.loads(done.stdout)["steps"]] == ["one", "two"], done.stderr
    for verb in ("plan", "run", "toy"):
        done = toy(verb, "r.yaml", "two", "--step", "one")
        assert done.returncode == 2 and "leave one of them out" in done.stderr, done.stderr
    assert [s["name"] for s in json.loads(toy("run", "r.yaml", "--step", "one", "--json").stdout)["steps"]] == ["one"]
    assert json.loads(toy("toy", "r.yaml", "--step", "three", "--json").stdout)["steps"][-1]["name"] == "three"


def test_verbs_that_look(toy: Cli) -> None:
    toy.write("r.yaml", "recipe: r\nsteps: {one: {kind: toy}, two: {kind: toy, word: b, source: $one}}\n")
    path = Path(toy("run", "r.yaml").stdout.strip())
    for ref in ("r/two", path.name, path.name.rpartition("-")[2][:8], str(path), "artifacts/refs/r/two"):
        assert json.loads(toy("show", ref, "--json").stdout)["path"] == str(path)
    assert "lines.txt" in toy("show", "r/two").stdout
    assert [row["names"] for row in json.loads(toy("ls", "--json").stdout)] == [["r/one"], ["r/two"]]
    diff = json.loads(toy("diff", "r/one", "r/two", "--json").stdout)
    assert {"path": "config.word", "a": "a", "b": "b"} in diff["fingerprint_payload"]
    assert toy("diff", "r/one", "r/one").stdout.strip() == "no difference"
    assert toy("verify", "r/two").returncode == 0
    for words in (["show", "nope"], ["verify", "r/three"], ["diff", "r/one", "zzz"]):
        done = toy(*words)
        assert done.returncode == 2 and "slmkit ls" in done.stderr


def test_plan_says_why_in_fields(toy: Cli) -> None:
    toy.write("r.yaml", "recipe: r\nsteps: {one: {kind: toy, count: 2}, two: {kind: toy, source: $one}}\n")
    assert [s["action"] for s in json.loads(toy("plan", "r.yaml", "--json").stdout)["steps"]] == ["build", "build"]
    toy("run", "r.yaml")
    assert "2 of 2 steps are done" in toy("plan", "r.yaml").stdout
    steps = json.loads(toy("plan", "r.yaml", "--json", "--set", "steps.one.count=3").stdout)["steps"]
    assert [(s["action"], s["why"]) for s in steps] == [("stale", ["count 2 → 3"]), ("stale", ["source changed (one)"])]


def test_github_annotations(toy: Cli) -> None:
    toy.write("r.yaml", "recipe: r\nsteps: {one: {kind: toy, count: 0}}\n")
    done = toy("run", "r.yaml", GITHUB_ACTIONS="true", CI="true")
    assert "::error file=r.yaml,line=2,col=33::" in done.stderr
