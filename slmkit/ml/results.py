"""What lm-eval says of one model, as an eval's artifact keeps it: scores by task and metric, and a line for each answer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def metrics(values: dict) -> dict[str, float]:
    """`exact_match,none` → exact_match, `exact_match_stderr,strict` → exact_match_strict_stderr; "N/A" is left out."""
    found = {}
    for key, value in values.items():
        metric, comma, filter_name = key.partition(",")
        if not comma or isinstance(value, bool | str) or metric == "bypass":
            continue
        error = metric.endswith("_stderr")
        metric = metric.removesuffix("_stderr") + ("" if filter_name == "none" else f"_{filter_name}")
        found[metric + ("_stderr" if error else "")] = float(value)
    return dict(sorted(found.items()))


KEPT = ("doc_id", "doc", "target", "resps", "filtered_resps", "filter")


def write_samples(folder: Path, samples: dict[str, list[dict]]) -> None:
    """One JSONL per task: question, what the model was given, what it answered, how that scored. Half a character is written as JSON escapes it."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, rows in samples.items():
        with (folder / f"{task.replace('/', '_')}.jsonl").open("w", encoding="utf-8", errors="backslashreplace") as file:
            for row in rows:
                kept = {k: row[k] for k in KEPT if k in row} | {m: row[m] for m in row.get("metrics", ()) if m in row and m != "bypass"}
                kept["prompt"] = _prompt(row.get("arguments"))
                file.write(json.dumps(kept, ensure_ascii=False, sort_keys=True, default=str) + "\n")


def _prompt(arguments: Any) -> str:
    """The text before the answer, of the first request."""
    while isinstance(arguments, list | tuple | dict) and arguments:
        arguments = next(iter(arguments.values())) if isinstance(arguments, dict) else arguments[0]
    return str(arguments)


def hashes(samples: dict[str, list[dict]]) -> dict[str, dict[str, str]]:
    """task → sha256 of its questions with their right answers, of the prompts as the model got them, of how it was to answer (stops, length, …)."""
    out = {}
    for task, rows in samples.items():
        said = {"questions": ("doc_hash", "target_hash"), "prompts": ("prompt_hash",)}
        out[task] = {name: _hash([[row.get(k) for k in keys] for row in rows]) for name, keys in said.items()}
        out[task]["generation"] = _hash([_settings(row.get("arguments")) for row in rows[:1]])
    return out


def _settings(arguments: Any) -> Any:
    """All but the prompt, of a request to write."""
    while isinstance(arguments, list | tuple | dict) and arguments:
        if isinstance(arguments, dict) and "until" in arguments:
            return arguments
        inner = list(arguments.values()) if isinstance(arguments, dict) else list(arguments)
        arguments = next((one for one in reversed(inner) if isinstance(one, list | tuple | dict)), None)
    return None


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
