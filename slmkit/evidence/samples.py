"""The answers that an eval kept, read back: per model and task the questions, and per metric what each answer scored.

Two models are comparable where they answered the same questions: the same numbers (doc_id) and, by a hash, the same rows of the task's data with
the same right answer. The prompt is no part of it: another template around the same question is part of what is being compared.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from slmkit.errors import StoreError, UsageError

NOT_METRICS = {"doc_id", "doc", "target", "resps", "filtered_resps", "filter", "prompt"}
REPEATS = "a task with `repeats` has no one answer a question; leave it out (--task another), or judge it by a bound that ends in `point`"
_DIGITS = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?\Z")


@dataclass(frozen=True)
class Samples:
    """One model's answers to one task. values: metric → doc_id → what the answer scored, a number or what the task's own aggregation reads."""

    model: str
    task: str
    file: Path
    rows: dict[int, dict]
    values: dict[str, dict[int, Any]]

    @cached_property
    def questions(self) -> dict[int, str]:
        """doc_id → hash of the question and its right answer."""
        return {i: question(row) for i, row in self.rows.items()}

    def array(self, metric: str) -> Any:
        """The metric's numbers in the order of doc_id; None where they are no numbers."""
        import numpy as np

        values = [v for _, v in sorted(self.values.get(metric, {}).items())]
        return np.array(values, float) if values and all(isinstance(v, float) for v in values) else None


@dataclass(frozen=True)
class Evidence:
    """Scores by model, task and metric, and the samples behind them. `where` says for each model the folder it is in."""

    scores: dict[str, dict[str, dict[str, Any]]]
    where: dict[str, tuple[Path, str]]
    settings: dict[str, dict]
    read: dict[tuple[str, str], Samples | None]

    def samples(self, model: str, task: str) -> Samples | None:
        """What was kept of a model's answers to a task; None where nothing was (a group's mean, say)."""
        if (model, task) not in self.read:
            folder, own = self.where[model]
            self.read[model, task] = load(folder, own, task, model)
        return self.read[model, task]


def together(parts: list[Evidence], prefixes: list[str]) -> Evidence:
    """Several evals in one, the models of each under its prefix."""
    scores, where, settings = (
        {prefix + m: v for part, prefix in zip(parts, prefixes, strict=True) for m, v in getattr(part, name).items()}
        for name in ("scores", "where", "settings")
    )
    return Evidence(scores, where, settings, {})


def of_folder(folder: Path) -> Evidence:
    """The evidence in an eval's folder. Raises StoreError when it has no results, or they cannot be read."""
    path = folder / "results.json"
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        scores = body["scores"]
    except FileNotFoundError:
        raise StoreError("this is no eval: it has no results.json", where=folder, mend="name what `slmkit eval` made") from None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise StoreError(f"results.json cannot be read: {e!r}", where=folder, mend="`slmkit verify` it; remove it and run the eval again") from None
    return Evidence(scores, {m: (folder, m) for m in scores}, {m: body.get("config") or {} for m in scores}, {})


def load(folder: Path, model: str, task: str, label: str | None = None) -> Samples | None:
    """Read one file of samples; None when there is none. Raises StoreError for one that cannot be read or has a question twice."""
    path = folder / "samples" / model / f"{task.replace('/', '_')}.jsonl"
    if not path.is_file():
        return None
    rows: dict[int, dict] = {}
    values: dict[str, dict[int, Any]] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                name, doc = str(row.get("filter", "none")), int(row["doc_id"])
            except (ValueError, KeyError, TypeError, AttributeError) as e:
                raise StoreError(f"a sample cannot be read: {e!r}", where=f"{path}:{number}", mend="`slmkit verify` says what was altered") from None
            rows.setdefault(doc, row)
            for metric in row.keys() - NOT_METRICS:
                by_doc = values.setdefault(metric if name == "none" else f"{metric}_{name}", {})
                if doc in by_doc:
                    what = f"question {doc} of `{task}` is there twice for {label or model}, so answers cannot be paired"
                    raise StoreError(what, where=f"{path}:{number}", mend=REPEATS)
                by_doc[doc] = value_of(row[metric])
    return Samples(label or model, task, path, rows, values)


def asked(folder: Path) -> tuple[list[str], list[str]]:
    """One model's samples of all tasks as texts: the prompt of every question, and its answer where it was written (not chosen among several)."""
    prompts: dict[tuple[str, int], str] = {}
    answers: dict[tuple[str, int], str] = {}
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for row in map(json.loads, file):
                key = path.name, int(row["doc_id"])
                prompts.setdefault(key, row["prompt"])
                first = row["resps"][0] if isinstance(row.get("resps"), list) and row["resps"] else None
                first = first[0] if isinstance(first, list) and first else first
                if isinstance(first, str):
                    answers.setdefault(key, first)
    return list(prompts.values()), list(answers.values())


def value_of(value: Any) -> Any:
    """A float where it is one; numpy's numbers were written as text. A list stays one, of such."""
    if isinstance(value, list):
        return [value_of(v) for v in value]
    if isinstance(value, bool | int | float):
        return float(value)
    if value in ("True", "False"):
        return float(value == "True")
    return float(value) if isinstance(value, str) and (_DIGITS.match(value) or value == "nan") else value


def question(row: dict) -> str:
    """16 hex digits of a row's question and its right answer."""
    text = json.dumps([row.get("doc"), row.get("target")], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def check_same_questions(one: Samples, other: Samples, limits: tuple[Any, Any] = (None, None)) -> None:
    """Raises UsageError that says what differs, unless both answered the same questions. limits: what each eval's `limit` was."""
    if one.questions == other.questions:
        return
    here, there = one.questions.keys(), other.questions.keys()
    pair = f"`{one.task}` of {one.model} and of {other.model}"
    if here != there:
        said = [f"{len(s.questions)} questions" + (f" (limit {limit})" if limit else "") for s, limit in zip((one, other), limits, strict=True)]
        if len(here) == len(there):
            said = [f"questions {min(here - there)}, … are in the first alone", f"{min(there - here)}, … in the second"]
        raise UsageError(f"{pair} are not the same questions: {' and '.join(said)}", mend="score both with the same task file and the same `limit`")
    differ = [i for i in sorted(here) if one.questions[i] != other.questions[i]]
    first = differ[0]
    shown = " and ".join(f"`{_short(s.rows[first])}`" for s in (one, other))
    what = f"{pair} are not the same questions: {len(differ)} of {len(here)} differ, the first is {first}: {shown}"
    raise UsageError(what, mend="the task's data changed in between: score both on the same file")


def _short(row: dict) -> str:
    text = json.dumps([row.get("doc"), row.get("target")], ensure_ascii=False)
    return text if len(text) <= 90 else text[:89] + "…"


def binary(values: Any) -> bool:
    """Is every number 0 or 1?"""
    return bool(((values == 0) | (values == 1)).all())
