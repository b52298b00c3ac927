"""`slmkit cost` over artifacts of a real store: whose prices it reckons with, what making a model took, and what it says where it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from slmkit.artifact import digest, manifest
from slmkit.artifact.fingerprint import fingerprint
from slmkit.artifact.manifest import Artifact
from slmkit.artifact.store import Store
from slmkit.cli.cost import cost
from slmkit.errors import UsageError
from slmkit.plan import Row, make
from slmkit.recipe.load import load
from slmkit.recipe.lock import Lock
from slmkit.steps import _speed
from slmkit.steps.eval import Config

SPEED = _speed.asked(_speed.Speed(new_tokens=8))
MEASURED = {
    "asked": SPEED, "rounds": 9, "prompts": 5, "mix": {"input_tokens": 200.0, "output_tokens": 11.0, "questions": 5, "answers": 5},
    "runtime": {"name": "transformers", "device": "cpu", "dtype": "float32", "threads": 1}, "peak_memory_bytes": 5_000_000,
    "latency": {name: {p: {"value": 0.01, "low": 0.01, "high": 0.02, "level": 0.96} for p in ("p50", "p95")}
                for name in ("time_to_first_token", "time_per_token")} | {"requests": 9},
    "curve": {size: {"input_tokens_per_second": {"value": 2000.0, "low": 1000.0, "high": 4000.0}, "output_tokens_per_second":
              {"value": float(rate), "low": rate / 2, "high": rate * 2.0}, "batches": 9, "mean_input_tokens": 200.0, "mean_output_tokens": 8.0}
              for size, rate in (("1", 20), ("8", 100))},
}  # fmt: skip


def published(store: Store, kind: str, name: str, payload: dict, result: dict, inputs: list[dict] = (), seconds: float = 1.0, type: str = "model",
              recipe: str = "r") -> Artifact:  # fmt: skip
    """An artifact of a few bytes with a manifest of one's own, under recipe/name."""
    mark = fingerprint(payload)
    with store.hold(kind, mark, True, print) as work:
        out = work / "out"
        out.mkdir(exist_ok=True)
        (out / "x.txt").write_text(name)
        files = digest.listing(out)
        manifest.write(out, {
            "schema": manifest.SCHEMA, "kind": kind, "kind_version": 1, "type": type, "fingerprint": mark, "fingerprint_payload": payload,
            "config": payload.get("config", {}), "pins": {}, "name": name, "recipe": recipe, "overrides": [], "execution": {},
            "run": {"finished": "2026-01-01T00:00:00", "seconds": seconds, "attempts": 1}, "tool": {}, "environment": {"platform": "here"},
            "determinism": {"seed": 1, "claimed": "exact"}, "inputs": list(inputs),
            "outputs": {"digest": digest.of_listing(files), "bytes": 1, "files": files}, "result": result,
        })  # fmt: skip
        made = store.publish(work, kind, mark)
    store.name(recipe, name, made)
    return made


def entry(role: str, made: Artifact, **more) -> dict:
    return {"role": role, "name": made.name, "uri": f"artifact:{made.path.name}", "fingerprint": made.fingerprint, "digest": made.digest} | more


def eval_of(*models: str, measured: dict | None = MEASURED) -> dict:
    speed = {"tokens_per_second": 1.0, "seconds": 1.0} | ({"measured": measured} if measured else {})
    return {"scores": {m: {"t": {"acc": 1.0}} for m in models}, "speed": dict.fromkeys(models, speed), "size_bytes": dict.fromkeys(models, 2_000_000)}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """r/score has a base, `zero`, from elsewhere and `tuned`, for which a teacher was paid 3 USD and two steps took an hour and a half."""
    home = Store(tmp_path_factory.mktemp("cost") / "artifacts")
    config = {"config": {"teacher": {"model": "big", "base_url": "https://api"}}}
    paid = {"usd": 3.0, "prices": {"input": 2.0, "output": 10.0, "batch": 0.5}}
    teach = published(home, "distill", "teach", config, paid, seconds=9000, type="dataset")
    looked_at = published(home, "merge", "other", {"a": 2}, {}, seconds=9999)
    sft = published(home, "train", "sft", {"a": 3}, {}, [entry("data", teach), entry("tasks", looked_at, witness=True)], 3600, "adapter")
    tuned = published(home, "merge", "tuned", {"a": 4}, {}, [entry("model", sft)], 1800)
    base = {"role": "models", "name": "zero", "uri": "demo:student", "fingerprint": None, "digest": "d"}
    block = {"usd_per_hour": 3.6, "idle": 0.5, "requests_per_day": 5000}
    published(home, "eval", "score", {"a": 5}, eval_of("tuned", "zero") | {"cost": block}, [base, entry("models", tuned)], type="scores")
    published(home, "eval", "bare", {"a": 6}, eval_of("zero", measured=None), [base], type="scores")
    gone = entry("models", tuned) | {"fingerprint": "f" * 64}
    published(home, "eval", "orphan", {"a": 7}, eval_of("tuned"), [gone], type="scores")
    return home


def told(capsys, store: Store, ref: str = "r/score", **options) -> dict:
    cost(ref, store=store.root, json=True, **options)
    return json.loads(capsys.readouterr().out)["models"]


def test_prices_of_the_block_of_the_chain_and_of_flags(capsys, store) -> None:
    tuned = told(capsys, store)["tuned"]
    figures = tuned["figures"]
    assert tuned["batch"] == 8 and figures["usd_per_thousand_requests"] == pytest.approx({"value": 0.4, "low": 0.2, "high": 0.8})
    assert figures["usd_one_off"]["value"] == pytest.approx(3 + 1.5 * 3.6), "the teacher, and the hours of what made it; not what was looked at"
    assert tuned["given"]["api"] == {"input": 2.0, "output": 10.0} and figures["api_usd_per_thousand_requests"]["value"] == pytest.approx(0.51)
    assert figures["break_even_requests"]["value"] == pytest.approx(8.4 / 0.00011)
    assert figures["break_even_days"]["value"] == pytest.approx(8.4 / 0.00011 / 5000)
    base = told(capsys, store, model="zero")
    assert list(base) == ["zero"] and base["zero"]["figures"]["usd_one_off"]["value"] == 0
    assert base["zero"]["given"]["api"] == {"input": 2.0, "output": 10.0}, "one API is to be replaced, by whichever of the models"
    other = told(capsys, store, "r/score:tuned", usd_per_hour=7.2, idle=0.0, batch=1, one_off_usd=1.0, api_input=1.0, training_usd_per_hour=1.0,
                 api_output=4.0, api_cached=0.5, cached_share=0.5, api_input_tokens=100.0, api_output_tokens=10.0, requests=1000.0,
                 input_tokens=400.0, output_tokens=21.0, requests_per_day=10.0)["tuned"]  # fmt: skip
    found = other["figures"]
    assert found["usd_per_thousand_requests"]["value"] == pytest.approx((400 / 2000 + 20 / 20) * 0.002 * 1000)
    assert found["api_usd_per_thousand_requests"]["value"] == pytest.approx((100 * 0.75 + 10 * 4) / 1000) and found["usd_one_off"]["value"] == 1
    assert found["usd_per_thousand_requests_with_one_off"]["value"] == pytest.approx(2.4 + 1)
    assert told(capsys, store, training_usd_per_hour=1.0)["tuned"]["figures"]["usd_one_off"]["value"] == pytest.approx(4.5)


def test_the_report_says_figures_intervals_reasons_and_assumptions(capsys, store) -> None:
    cost("r/score", store=store.root)
    shown = capsys.readouterr().out
    assert "0.4 [0.2, 0.8]" in shown and "10 ms" in shown and "5.0 MB" in shown and "2.0 MB" in shown
    assert shown.index("\nzero ") < shown.index("\ntuned "), "in the recipe's order"
    assert "say requests" in shown and "- distill `teach`: teacher: 3.0000 USD" in shown
    assert "of the paid hours 50% are idle" in shown and "idle would be" in shown
    assert shown.count("the machine that was measured costs") == 1, "what holds for all models is said once"


@pytest.mark.parametrize(("ref", "options", "what"), [
    ("r/bare", {}, "was measured in r/bare"), ("r/bare:zero", {}, "the speed of zero was not measured"),
    ("r/score", {"model": "x"}, "did not score `x`"),
    ("r/score:zero", {"model": "tuned"}, "names one model and --model another"), ("r/score", {"batch": 4}, "batch 4 was not measured"),
    ("r/score", {"idle": 1.0}, "--idle: "), ("r/score", {"api_input": 1.0}, "--api-output: "), ("r/score", {"step": "a"}, "no recipe"),
    ("r/score", {"api_input": 1.0, "api_output": 1.0, "cached_share": 0.5}, "belong together"), ("r/sft", {}, "not an eval"),
])  # fmt: skip
def test_what_cannot_be_reckoned_is_said(store, ref, options, what) -> None:
    with pytest.raises(UsageError, match=what):
        cost(ref, store=store.root, **options)


def test_what_is_gone_from_the_store_leaves_the_making_unknown(capsys, store) -> None:
    figures = told(capsys, store, "r/orphan", usd_per_hour=3.6)["tuned"]["figures"]
    assert "no longer in the store" in figures["usd_one_off"]["why"] and figures["usd_per_thousand_requests"]["value"] > 0


RECIPE = "recipe: n\nsteps:\n  score: {kind: eval, models: [demo:student], tasks: [demo:notes], limit: 2%s}\n"


def planned(folder: Path, more: str, store: Store) -> Row:
    (folder / "n.yaml").write_text(RECIPE % more)
    recipe = load(folder / "n.yaml")
    return make(recipe, store, Lock(recipe.lock_path, frozen=True)).rows[0]


def test_an_eval_without_the_speed_that_is_asked_is_no_hit(tmp_path, capsys) -> None:
    store, speed = Store(tmp_path / "store"), ", speed: {new_tokens: 8}"
    row = planned(tmp_path, "", store)
    assert planned(tmp_path, speed, store).fingerprint == row.fingerprint, "speed changes no score"
    published(store, "eval", "score", row.payload, eval_of("student", measured=None), type="scores", recipe="n")
    assert planned(tmp_path, "", store).action == "cached"
    stale = planned(tmp_path, speed, store)
    assert (stale.action, stale.why) == ("stale", ("the speed of student was not measured",))
    with pytest.raises(UsageError, match="not made yet, or not as the recipe has it now: the speed of student was not measured"):
        cost(str(tmp_path / "n.yaml"), store=store.root)
    published(store, "eval", "score", row.payload, eval_of("student") | {"cost": {"usd_per_hour": 99.0}}, type="scores", recipe="n")
    assert planned(tmp_path, speed, store).action == "cached" and planned(tmp_path, "", store).action == "cached"
    assert planned(tmp_path, ", speed: {new_tokens: 9}", store).why == ("speed.new_tokens 8 → 9",)
    priced = planned(tmp_path, speed + ", cost: {usd_per_hour: 3.6, idle: 0.5}", store)
    assert priced.action == "cached", "another price measures nothing anew"
    found = told(capsys, store, str(tmp_path / "n.yaml"))["student"]["figures"]
    assert found["usd_per_thousand_requests"]["value"] == pytest.approx(0.4), "a recipe's block is read as it stands now"


@pytest.mark.parametrize(("said", "why"), [
    ({"cost": {"usd_per_hour": 1.0}}, "reckoned from speed that was measured"), ({"speed": {}, "cost": {"batch": 3}}, "`cost.batch` is 3"),
])  # fmt: skip
def test_a_block_that_nothing_reads_is_refused(said, why) -> None:
    with pytest.raises(ValidationError, match=why):
        Config(models=["m"], tasks=["t"], **said)
