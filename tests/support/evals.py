"""Eval artifacts with samples of one's own, published into a real store: what `slmkit eval` writes, without a model."""

from __future__ import annotations

import json
from pathlib import Path

from slmkit.artifact import digest, manifest
from slmkit.artifact.fingerprint import fingerprint
from slmkit.artifact.manifest import Artifact
from slmkit.artifact.store import Store

Values = dict[str, list]


def write(folder: Path, models: dict[str, dict[str, Values]], scores: dict | None = None, asked: str = "question", **config) -> dict:
    """results.json and samples/ in a folder: models is {model: {task: {metric: [a value an answer]}}}. Scores are means where none are given."""
    told: dict = {}
    for model, tasks in models.items():
        for task, metrics in tasks.items():
            rows = [dict(zip(metrics, values, strict=True)) for values in zip(*metrics.values(), strict=True)]
            file = folder / "samples" / model / f"{task.replace('/', '_')}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            lines = [
                {"doc_id": i, "doc": {"q": f"{asked} {i}"}, "target": f"right {i}", "filter": "none", "prompt": f"<|user|>{asked} {i}",
                 "resps": [[f"{model} says {i}"]], "filtered_resps": [f"{model} says {i}"], **row} for i, row in enumerate(rows)
            ]  # fmt: skip
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
            means = {m: sum(v) / len(v) for m, v in metrics.items() if v and not isinstance(v[0], list)}
            told.setdefault(model, {})[task] = means | (scores or {}).get(model, {}).get(task, {})
    settings = {"fewshot": None, "limit": None, "chat": False, "seed": 1} | config
    (folder / "results.json").write_text(json.dumps({"scores": told, "config": settings}))
    return told


def publish(store: Store, models: dict, name: str = "score", recipe: str = "r", expect: dict | None = None, **more) -> Artifact:
    """The same as an artifact, under the name recipe/step. more: settings of the eval, and what `write` takes."""
    inconclusive = {"inconclusive": more.pop("inconclusive")} if "inconclusive" in more else {}
    body = {"schema": 1, "kind": "eval", "version": 1, "inputs": {"made": [recipe, name, json.dumps(models), str(more)]}, "pins": {}}
    body["config"] = {"expect": expect or {}, **inconclusive}
    mark = fingerprint(body)
    with store.hold("eval", mark, True, print) as work:
        out = work / "out"
        out.mkdir()
        told = write(out, models, **more)
        files = digest.listing(out)
        manifest.write(out, {
            "schema": manifest.SCHEMA, "kind": "eval", "kind_version": 1, "type": "scores", "fingerprint": mark, "fingerprint_payload": body,
            "config": body["config"], "pins": {"lm_eval": "0.4.13"}, "name": name, "recipe": recipe, "overrides": [], "execution": {},
            "run": {"finished": "2026-01-01T00:00:00", "seconds": 1.0, "attempts": 1}, "tool": {}, "environment": {},
            "determinism": {"seed": 1, "claimed": "exact"}, "inputs": [],
            "outputs": {"digest": digest.of_listing(files), "bytes": sum(f["bytes"] for f in files), "files": files}, "result": {"scores": told},
        })  # fmt: skip
        made = store.publish(work, "eval", mark)
    store.name(recipe, name, made)
    return made


def answers(right: int, wrong: int) -> list[float]:
    """So many right answers, then so many wrong ones."""
    return [1.0] * right + [0.0] * wrong
