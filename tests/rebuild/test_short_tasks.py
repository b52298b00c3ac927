"""An eval of short tasks and of an endpoint is asked for again as it was: from its manifest, and from the recipe that is written of it."""

from __future__ import annotations

from pathlib import Path

from slmkit import engine, inputs
from slmkit.artifact.manifest import Artifact
from slmkit.artifact.store import Store
from slmkit.cli.given import load_and_plan
from slmkit.rebuild import recorded, written
from slmkit.steps._teacher import Budget

RECIPE = """\
recipe: r
steps:
  score:
    kind: eval
    models: [demo:student]
    chat: true
    apis: {gpt: {model: t-1, base_url: "http://127.0.0.1:9/v1", api_key_env: KEY, budget: {requests: 500}}}
    tasks: [{name: intents, data: rows.csv, user: text, answer: label, metric: [exact_match, f1_macro]}]
"""


def test_it_is_asked_for_again_and_nobody_is_asked(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\nhello,a\nbye,b\n")
    (tmp_path / "r.yaml").write_text(RECIPE)
    made, store, _ = load_and_plan(str(tmp_path / "r.yaml"), "eval", None, None, None, tmp_path / "s", None)
    (row,) = made.rows
    given = [engine._recorded(p, inputs.seen(p)) for p in row.inputs]
    for one, planned in zip(given, row.inputs, strict=True):
        one["digest"] = planned.digest
    (tmp_path / "a").mkdir()
    artifact = Artifact(tmp_path / "a", {
        "kind": "eval", "name": "score", "recipe": "r", "fingerprint": row.fingerprint, "fingerprint_payload": row.payload, "overrides": [],
        "execution": row.execution.model_dump(mode="json"), "inputs": given, "outputs": {"digest": "0"}, "type": "scores",
    })  # fmt: skip
    again, problems = recorded.row(artifact, "score", Store(tmp_path / "s"), {})
    assert problems == [] and again.fingerprint == row.fingerprint and again.inputs[-1].said() == row.inputs[-1].said()
    api = again.config.apis["gpt"]
    assert api.api_key_env is None and api.budget == Budget(tokens=1) and recorded.asks(again.config), "no key, and nothing to spend"
    (tmp_path / "w.yaml").write_text(written.recipe({"score": artifact}).text)
    (rewritten,) = load_and_plan(str(tmp_path / "w.yaml"), "eval", None, None, None, tmp_path / "s", None)[0].rows
    assert rewritten.fingerprint == row.fingerprint
