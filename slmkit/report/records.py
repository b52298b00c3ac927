"""What steps left behind of their work: the course of a training, its data's x-ray, a teacher's bill, certificates.

Read with suspicion: what cannot be read is left out, with a note.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from slmkit.artifact.manifest import FOLDER, Artifact
from slmkit.report.facts import Curve, Fidelity, Teaching, Xray

POINTS = 240  # of a curve: more than a picture of it can show
CERTIFIED = ("probes", "source", "mean_kl", "p99_kl", "top1", "perplexity_before", "perplexity_after", "answers", "answers_identical", "worst_layer",
             "runtime")


def curve(artifact: Artifact) -> Curve | None:
    """Losses by step from the attempts' events; an attempt that went on from a checkpoint overwrites what came after it."""
    loss: dict[int, float] = {}
    held_out: dict[int, float] = {}
    reward: dict[int, float] = {}
    attempts = sorted((artifact.path / FOLDER).glob("attempt-*/events.jsonl"), key=lambda p: (len(p.parent.name), p.parent.name))
    for path in attempts:
        with path.open("rb") as file:
            for line in file:
                _entry(line, loss, held_out, reward)
    if not loss:
        return None
    steps = sorted(loss)
    every = -(-len(steps) // POINTS)
    return Curve(artifact.path.name, steps[-1], every, _thinned(loss, every), tuple(sorted(held_out.items())), _thinned(reward, every))


def _entry(line: bytes, loss: dict, held_out: dict, reward: dict) -> None:
    try:
        said = json.loads(line.decode(errors="replace"))
        event, step = said["event"], int(said.get("step", 0))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return
    for name, key, kept in (("step", "loss", loss), ("validation", "loss", held_out), ("step", "reward", reward)):
        value = said.get(key)
        if event == name and isinstance(value, int | float) and math.isfinite(value):
            kept[step] = float(value)


def _thinned(values: dict[int, float], every: int) -> tuple[tuple[int, float], ...]:
    """Means of so many steps each, at the last of them."""
    steps = sorted(values)
    parts = [steps[i : i + every] for i in range(0, len(steps), every)]
    return tuple((part[-1], sum(values[s] for s in part) / len(part)) for part in parts)


def xray(artifact: Artifact) -> tuple[Xray | None, str | None]:
    """(what train's x-ray recorded, or a note of why it cannot be read)."""
    from slmkit.data import report

    body, note = _json(artifact, "xray.json")
    if body is None:
        return None, note
    try:
        lines = tuple((name, value) for name, value in report.table(body) if name and value)
        found = tuple((f["level"], f["what"]) for f in body["findings"])
        tokens = body.get("tokens") or {}
        bins = tokens.get("histogram") or {"edges": [], "counts": []}
        return Xray(artifact.path.name, body["data"]["name"], body["data"]["rows"], lines, found, tuple(bins["edges"]), tuple(bins["counts"]),
                    tokens.get("max_length")), None
    except (KeyError, TypeError, ValueError) as e:
        return None, f"the x-ray of `{artifact.name}` cannot be read: {e!r}"


def teaching(artifact: Artifact) -> Teaching:
    m = artifact.manifest
    result, config, cost = m["result"], m["config"], m.get("cost") or {}
    given = next((i["uri"] for i in m["inputs"] if i["role"] == "teacher"), None)
    asked = config.get("teacher")
    name = given or (asked.get("model") if isinstance(asked, dict) else None) or "a teacher that is not recorded"
    counts = (result.get(k) for k in ("requests", "answered", "from_ledger", "rows"))
    lost = (dict(result.get(k) or {}) for k in ("dropped", "failures"))
    spent = (result.get(k, cost.get(k)) for k in ("tokens", "usd"))
    return Teaching(artifact.path.name, str(name), str(config.get("mode", "")), *counts, *lost, *spent, m["run"].get("seconds"))


def fidelity(artifact: Artifact) -> tuple[Fidelity | None, str | None]:
    """(the certificate of a merge, quantize or export, or a note of why it cannot be read)."""
    body, note = _json(artifact, f"{FOLDER}/fidelity.json")
    if body is None:
        return None, note
    bounds = body.get("bounds")
    return Fidelity(artifact.path.name, artifact.kind, *(body.get(k) for k in CERTIFIED), dict(bounds) if isinstance(bounds, dict) else {}), None


def recipe(artifact: Artifact) -> str | None:
    """The recipe that was run, as it was written."""
    try:
        return (artifact.path / FOLDER / "recipe.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _json(artifact: Artifact, name: str) -> tuple[dict[str, Any] | None, str | None]:
    path = Path(artifact.path, name)
    if not path.is_file():
        return None, None
    try:
        body = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError) as e:
        return None, f"{name} of `{artifact.name}` cannot be read: {e}"
    return (body, None) if isinstance(body, dict) else (None, f"{name} of `{artifact.name}` is no JSON object")
