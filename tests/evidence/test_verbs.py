"""compare, gate, pin and init --ci over artifacts of a real store: what they name, what they say, and how they exit."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import typer
import yaml
from scipy import stats

from slmkit.artifact import gc
from slmkit.artifact.store import Store
from slmkit.cli import ci, evals
from slmkit.cli.compare import compare
from slmkit.cli.gate import gate
from slmkit.errors import CheckFailed, StoreError, UsageError
from tests.support import chains
from tests.support.cli import Cli
from tests.support.evals import answers, publish

RNG = np.random.default_rng(11)
BASE = {"t": {"acc": answers(120, 80), "f1": RNG.beta(3, 1, 200).tolist()}}
TUNED = {"t": {"acc": [*answers(110, 10), *answers(60, 20)], "f1": np.clip(np.array(BASE["t"]["f1"]) + RNG.normal(0.04, 0.1, 200), 0, 1).tolist()}}
INT4 = {"t": {"acc": [*answers(108, 12), *answers(58, 22)], "f1": TUNED["t"]["f1"]}}
HOLD = {"tuned.t.acc": ">= 0.8", "int4.t.acc - tuned.t.acc": ">= -0.05"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """r/score with three models; r/worse, whose int4 lost much; other/score with other questions."""
    home = Store(tmp_path_factory.mktemp("gate") / "artifacts")
    publish(home, {"base": BASE, "tuned": TUNED, "int4": INT4}, expect=HOLD)
    publish(home, {"tuned": TUNED, "int4": BASE}, "worse", chat=True)
    publish(home, {"m": BASE}, "score", "other", asked="another", limit=200)
    return home


def told(capsys, verb, *words, **options) -> tuple[int, str]:
    """(exit, stdout) of a verb called as the command line calls it."""
    try:
        verb(*words, **options)
        return 0, capsys.readouterr().out
    except typer.Exit as e:
        return e.exit_code, capsys.readouterr().out


def rows(capsys, store: Store, *refs: str, **options) -> list[dict]:
    code, out = told(capsys, compare, list(refs), store=store.root, json=True, **({"show": 3} | options))
    assert code == 0
    return json.loads(out)["rows"]


def test_compare_is_paired_and_corrected(capsys, store):
    found = rows(capsys, store, "r/score")
    assert [(r["before"], r["after"], r["metric"]) for r in found] == [("base", m, k) for m in ("tuned", "int4") for k in ("acc", "f1")]
    acc, f1 = found[:2]
    assert (acc["up"], acc["down"], acc["questions"]) == (60, 10, 200) and acc["difference"] == pytest.approx(0.25)
    assert acc["p"] == pytest.approx(stats.binomtest(60, 70).pvalue) and acc["low"] < 0.25 < acc["high"]
    pairs = np.array(TUNED["t"]["f1"]) - np.array(BASE["t"]["f1"])
    theirs = stats.bootstrap((pairs,), np.mean, n_resamples=5000, rng=0).confidence_interval
    assert (f1["low"], f1["high"]) == pytest.approx((theirs.low, theirs.high), abs=0.001) and f1["p"] < 0.001
    raw = [r["p"] for r in found]
    theirs = np.maximum.accumulate(np.sort(raw) * np.arange(4, 0, -1))
    assert sorted(r["corrected"] for r in found) == pytest.approx(np.minimum(theirs, 1))
    losses = [f for f in acc["flips"] if f["scores"] == [1.0, 0.0]]
    assert [f["doc_id"] for f in losses] == [110, 111, 112] and len(acc["flips"]) == 6
    assert losses[0] | {"scores": 0} == {"doc_id": 110, "question": "<|user|>question 110", "target": "right 110", "before": "base says 110",
                                         "after": "tuned says 110", "scores": 0}
    one = rows(capsys, store, "r/score", metric="acc", show=0)
    assert {r["metric"] for r in one} == {"acc"} and one[0]["corrected"] < acc["corrected"] and one[0]["flips"] == []


def test_the_first_model_is_the_recipes_first(capsys, tmp_path):
    home = Store(tmp_path / "artifacts")
    chains.build(home, dict(sorted(chains.questions().items())))  # as files hold them: by the alphabet
    found = rows(capsys, home, "score", metric="exact_match")
    assert [(r["before"], r["after"]) for r in found] == [("base", m) for m in ("teacher", "tuned", "int4")]
    assert home.resolve("score") == home.resolve("shop/score"), "a step's name is enough where one recipe has it, for every verb"


def test_the_ways_to_name_two_models(capsys, store):
    pairs = lambda *refs: [(r["before"], r["after"]) for r in rows(capsys, store, *refs, metric="acc")]  # noqa: E731
    assert pairs("r/score:tuned", "r/score:int4") == [("tuned", "int4")]
    assert pairs("r/score:int4", "r/score") == [("int4", "base"), ("int4", "tuned")]
    assert pairs("r/score", "worse") == [("r/score:tuned", "worse:tuned"), ("r/score:int4", "worse:int4")]
    assert pairs("refs/r/score:base", str(store.refs / "r/worse")) == [("refs/r/score:base", f"{store.refs}/r/worse:{m}") for m in ("tuned", "int4")]
    _, out = told(capsys, compare, ["r/score", "worse"], store=store.root, task=None, metric="acc", show=1, json=False)
    assert "note: r/score:tuned was scored with chat false, worse:tuned with true" in out and "McNemar, Tango" in out
    assert "t acc, question 60: 1 → 0" not in out and out.count("question 108: ") == 1
    for refs, said in (
        (["score"], "`score` is ambiguous"), (["other/score"], "nothing to compare"), (["r/score:nope"], "did not score `nope`"),
        (["gone"], "no artifact `gone`"), (["r/score", "other/score"], "no two models"), (["r/score:base", "other/score"], "200 of 200 differ"),
    ):
        with pytest.raises(UsageError, match=said):
            compare(refs, store=store.root)
    for options, said in (({"task": "u"}, "no task `u` in common"), ({"metric": "bleu"}, "no metric `bleu`")):
        with pytest.raises(UsageError, match=said):
            compare(["r/score"], store=store.root, **options)


def test_what_cannot_be_paired_is_said_and_not_guessed(capsys, tmp_path):
    store = Store(tmp_path / "s")
    nan = {"t": {"acc": [*answers(9, 0), math.nan], "pairs": [[i % 2, (i + i // 7) % 2] for i in range(10)], "len": [3.0] * 9 + [4.0]}}
    own = {"t": {"acc": 0.9, "pairs": 0.5, "len": 3.0, "len_stderr": 0.2}}
    publish(store, {"a": nan, "b": nan}, scores={"a": own, "b": own})
    acc, pairs, length = sorted(rows(capsys, store, "score"), key=lambda r: ["acc", "pairs", "len"].index(r["metric"]))
    assert acc["p"] is acc["low"] is None and "NaN" in acc["method"]
    assert pairs["p"] is None and "no standard error" in pairs["method"] and pairs["corrected"] is None
    assert length["p"] == 1.0 and "independent" in length["method"]


def test_gate_says_pass_fail_and_inconclusive(capsys, store):
    code, out = told(capsys, gate, "r/score", store=store.root)
    assert code == 0 and out.count("\npass") + out.startswith("pass") == 2 and out.endswith("r/score: 2 pass\n")
    code, out = told(capsys, gate, "r/score", store=store.root, expect=["tuned.t.acc: >= 0.84"], json=True)
    said = json.loads(out)
    assert code == 3 and said["ok"] is False and [v["verdict"] for v in said["verdicts"]] == ["pass", "inconclusive"]
    assert said["verdicts"][1]["needed"] > 200
    assert told(capsys, gate, "r/score", store=store.root, expect=["tuned.t.acc: >= 0.84"], inconclusive="pass")[0] == 0
    assert told(capsys, gate, "r/score", store=store.root, expect=["tuned.t.acc: >= 0.95"], inconclusive="pass")[0] == 3


def test_the_recipes_own_word_on_the_inconclusive(capsys, tmp_path):
    store = Store(tmp_path / "s")
    publish(store, {"m": BASE}, expect={"m.t.acc": ">= 0.6"}, inconclusive="pass")
    assert told(capsys, gate, "score", store=store.root)[0] == 0
    assert told(capsys, gate, "score", store=store.root, inconclusive="fail")[0] == 3


def test_gate_against_a_baseline(capsys, store):
    ask = {"store": store.root, "json": True}
    code, out = told(capsys, gate, "worse", against="r/score", **ask)
    verdicts = {v["expect"]: v["verdict"] for v in json.loads(out)["verdicts"]}
    assert code == 3 and verdicts == {
        "tuned.t.acc - against:tuned.t.acc": "pass", "tuned.t.f1 - against:tuned.t.f1": "pass",
        "int4.t.acc - against:int4.t.acc": "fail", "int4.t.f1 - against:int4.t.f1": "inconclusive",
    }  # fmt: skip
    assert told(capsys, gate, "worse:tuned", against="refs/r/score", **ask)[0] == 0
    own = "int4.t.acc - against:base.t.acc"
    code, out = told(capsys, gate, "worse", against="r/score", expect=[f"{own}: >= -0.02"], **ask)
    assert code == 0 and [v["expect"] for v in json.loads(out)["verdicts"]] == [own]
    assert told(capsys, gate, "worse:int4", against="r/score:base", margin=0.02, **ask)[0] == 0
    with pytest.raises(UsageError, match="200 of 200 differ"):
        gate("worse:int4", against="other/score", store=store.root)


@pytest.mark.parametrize(
    ("ref", "options", "said"),
    [
        ("worse", {}, "nothing is expected of worse"), ("r/score", {"margin": 0.1}, "--margin says"),
        ("r/score", {"inconclusive": "maybe"}, "pass or fail"), ("r/score", {"expect": ["nonsense"]}, "not of the form"),
        ("r/score", {"expect": ["tuned.t.acc: 0.9"]}, "no bound"), ("r/score", {"expect": ["tuned.t.f2: > 0"]}, "no metric `f2`"),
        ("r/score", {"expect": ["against:m.t.acc: > 0"]}, "nothing to hold it against"), ("r/score", {"against": "nope"}, "no artifact `nope`"),
        ("r/score", {"against": "other/score", "expect": ["tuned.t.acc - against:base.t.acc: > 0"]}, "no model of `against:base.t.acc`"),
    ],
)  # fmt: skip
def test_a_wrong_word_is_an_error(store, ref, options, said):
    with pytest.raises(UsageError, match=said):
        gate(ref, store=store.root, **options)


def test_altered_answers_are_not_judged(tmp_path):
    store = Store(tmp_path / "s")
    made = publish(store, {"m": BASE}, expect={"m.t.acc": ">= 0.5"})
    file = made.path / "samples/m/t.jsonl"
    file.write_text(file.read_text().replace('"acc": 0.0', '"acc": 1.0'))
    with pytest.raises(CheckFailed, match="altered"):
        gate("score", store=store.root)
    with pytest.raises(UsageError, match="is a model by train"):
        made.manifest["type"], made.manifest["kind"] = "model", "train"
        (made.path / ".slmkit/manifest.json").write_text(json.dumps(made.manifest))
        evals.find(store.root, "score")


def test_what_build_servers_read(capsys, store, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "step.md"))
    bounds = ["tuned.t.acc: >= 0.84", "base.t.acc: >= 0.7"]
    for told_to, failures, skipped, level in (("fail", 2, 0, "error"), ("pass", 1, 1, "warning")):
        with pytest.raises(typer.Exit):
            gate("r/score", expect=bounds, inconclusive=told_to, junit=tmp_path / "x/j.xml", summary=tmp_path / "s.md", github=True, store=store.root)
        err = capsys.readouterr().err.splitlines()
        assert err[0].startswith("::error title=gate fail::base.t.acc: 0.6 is not >= 0.7") or err[1].startswith("::error title=gate fail::")
        assert sum(line.startswith(f"::{level} title=gate inconclusive::tuned.t.acc: 0.85 leaves") for line in err) == 1 and len(err) == 2
        assert all("%25" in line and "95 % " not in line for line in err)
        suite = ElementTree.parse(tmp_path / "x/j.xml").getroot()[0]
        assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", str(failures), str(skipped))
        assert len(suite.findall("testcase/failure")) == failures and len(suite.findall("testcase/skipped")) == skipped
        page = (tmp_path / "s.md").read_text()
        assert "does not hold" in page and "| **inconclusive** | `tuned.t.acc` >= 0.84 | 0.85 |" in page and page.count("\n| **") == 3
    assert (tmp_path / "step.md").read_text().count("### slmkit gate") == 2
    with pytest.raises(StoreError, match="cannot write"):
        gate("r/score", summary=store.root, store=store.root)


def test_a_pinned_name_is_kept(tmp_path, capsys):
    store = Store(tmp_path / "s")
    old = publish(store, {"m": BASE})
    assert store.pin("r/prod", old) == store.refs / "r/prod" and store.resolve("r/prod").path == old.path
    new = publish(store, {"m": TUNED})
    assert [g.path for g in gc.find(store)] == [] and store.resolve("r/score").path == new.path
    with pytest.raises(UsageError, match="is a step of recipe r"):
        store.pin("r/score", old)
    for wrong in ("prod", "a/b/c", "../x", "a/..", "a/-b", ""):
        with pytest.raises(UsageError, match="is no name"):
            store.pin(wrong, old)
    with pytest.raises(UsageError, match="lies in another store"):
        Store(tmp_path / "elsewhere").pin("r/prod", old)
    store.unpin("r/prod")
    assert [g.path for g in gc.find(store)] == [old.path]
    with pytest.raises(UsageError, match="no name r/prod"):
        store.unpin("r/prod")


def test_the_whole_command_line(cli: Cli):
    store = Store(cli.folder / "artifacts")
    publish(store, {"base": BASE, "tuned": TUNED}, expect={"tuned.t.acc": ">= 0.84"})
    done = cli("gate", "score", "--json")
    assert done.returncode == 3 and json.loads(done.stdout)["verdicts"][0]["verdict"] == "inconclusive" and done.stderr == ""
    assert cli("pin", "r/score", "r/prod").stdout.strip().endswith("refs/r/prod")
    done = cli("gate", "score", "--against", "refs/r/prod", "--inconclusive", "pass", "--margin", "0.05")
    assert done.returncode == 0 and "against:tuned.t.acc: 0 is >= -0.05" in done.stdout
    done = cli("compare", "score", "--metric", "acc", "--show", "0")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2 and "+0.2500" in done.stdout


EVAL = """\
recipe: mine
steps:
  score: {kind: eval, models: [demo:student], tasks: [demo:notes], expect: {student.notes.exact_match: "<= 0.5"}}
  more: {kind: eval, models: [demo:student], tasks: [demo:notes], limit: 9}
  teach: {kind: distill, prompts: demo:prompts, teacher: {model: t, base_url: "http://localhost:1/v1", api_key_env: MY_KEY}}
"""


def test_a_workflow_gates_what_has_bounds(tmp_path):
    (tmp_path / "recipe.yaml").write_text(EVAL)
    made = yaml.safe_load(ci.write(tmp_path).read_text())
    job = made["jobs"]["gate"]
    ran = [s["run"] for s in job["steps"] if "run" in s]
    assert job["env"]["MY_KEY"] == "${{ secrets.MY_KEY }}" and made[True] == {"pull_request": None, "workflow_dispatch": None}
    assert ran[1:] == ["slmkit run recipe.yaml --locked || test $? -eq 3",
                       "slmkit gate mine/score --github --summary gate-score.md --junit gate-score.xml"]
    for code, passes in ((0, True), (3, True), (1, False), (2, False)):
        shell = f"slmkit() {{ return {code}; }}\n{ran[1]}"
        assert (subprocess.run(["bash", "-e", "-c", shell]).returncode == 0) is passes
    with pytest.raises(UsageError, match="not overwritten"):
        ci.write(tmp_path)
    other = Path(tmp_path / "b")
    other.mkdir()
    (other / "recipe.yaml").write_text("recipe: b\nsteps: {score: {kind: eval, models: [demo:student], tasks: [demo:notes]}}\n")
    with pytest.raises(UsageError, match="no eval of the recipe has an `expect`"):
        ci.write(other)
