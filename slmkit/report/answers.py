"""The answers of an eval, read as a stream: what stays in memory is numbers, 24 bytes an answer and 8 for each metric, and few texts.

A first pass keeps each answer's number, a hash of its question, its place in the file and its scores; what is to be shown is chosen from
those, and a second look fetches those lines alone.
"""

from __future__ import annotations

import json
import math
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmkit.evidence import paired, samples
from slmkit.report.facts import Answer, Sample

FEW = 5_000  # questions up to which values that are no plain numbers are kept, and statistics are resampled
EACH, MOST = 4, 24  # questions shown for each reason, and in all
LONGEST = 1_200  # characters of a text that are shown


@dataclass
class Answers:
    """One model's answers to one task under one of the task's filters, in the order of doc_id once `settled`. raw: values that are no numbers."""

    file: Path
    ids: Any = field(default_factory=lambda: array("q"))
    hashes: Any = field(default_factory=lambda: array("Q"))
    places: Any = field(default_factory=lambda: array("q"))
    values: dict[str, Any] = field(default_factory=dict)
    raw: dict[str, dict[int, Any]] = field(default_factory=dict)
    twice: bool = False

    def add(self, row: dict, doc: int, place: int, suffix: str) -> None:
        at = len(self.ids)
        self.ids.append(doc)
        self.hashes.append(int(samples.question(row), 16))
        self.places.append(place)
        for key in row.keys() - samples.NOT_METRICS:
            value, name = samples.value_of(row[key]), key + suffix
            if isinstance(value, float):
                column = self.values.setdefault(name, array("d"))
                column.extend([math.nan] * (at - len(column)))
                column.append(value)
            elif at < FEW:
                self.raw.setdefault(name, {})[doc] = value

    def settled(self) -> Answers:
        """As numpy arrays, sorted by doc_id."""
        import numpy as np

        count = len(self.ids)
        ids = np.frombuffer(self.ids, np.int64) if count else np.zeros(0, np.int64)
        order = np.argsort(ids, kind="stable")
        self.twice = len(np.unique(ids)) < count
        for name, column in self.values.items():
            column.extend([math.nan] * (count - len(column)))
            self.values[name] = np.frombuffer(column, np.float64)[order]
        self.hashes = np.frombuffer(self.hashes, np.uint64)[order] if count else np.zeros(0, np.uint64)
        self.places = np.frombuffer(self.places, np.int64)[order] if count else ids
        self.ids = ids[order]
        return self

    def same_questions(self, other: Answers) -> bool:
        return not self.twice and not other.twice and len(self.ids) == len(other.ids) and bool(
            (self.ids == other.ids).all() and (self.hashes == other.hashes).all())

    def row(self, at: int) -> dict:
        with self.file.open("rb") as file:
            file.seek(int(self.places[at]))
            return json.loads(file.readline().decode(errors="replace"))


def read(folder: Path, model: str, task: str) -> tuple[dict[str, Answers], int]:
    """(metric → the answers that have it, lines that could not be read) of one file; nothing where there is none."""
    path = folder / "samples" / model / f"{task.replace('/', '_')}.jsonl"
    by_filter: dict[str, Answers] = {}
    broken = place = 0
    if not path.is_file():
        return {}, 0
    with path.open("rb") as file:
        for line in file:
            start, place = place, place + len(line)
            try:
                row = json.loads(line.decode(errors="replace"))
                name, doc = str(row.get("filter", "none")), int(row["doc_id"])
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                broken += 1
                continue
            by_filter.setdefault(name, Answers(path)).add(row, doc, start, "" if name == "none" else f"_{name}")
    found: dict[str, Answers] = {}
    for answers in by_filter.values():
        answers.settled()
        found |= dict.fromkeys([*answers.values, *answers.raw], answers)
    return found, broken


def worst(eval_: str, task: str, metric: str, by_model: dict[str, Answers], subject: str, base: str, room: int) -> list[Sample]:
    """Questions that went wrong, side by side: first those that `base` had right and `subject` has not, then where models disagree,
    then what all have wrong. by_model: answers to the same questions. room: how many may be shown."""
    import numpy as np

    sign = -1.0 if paired.better_when_lower(metric) else 1.0
    scores = {m: np.nan_to_num(sign * a.values[metric], nan=-np.inf) for m, a in by_model.items()}
    own, before, every = scores[subject], scores[base], np.array(list(scores.values()))
    best, least, top = every.max(0), every.min(0), max(every.max(), 0.0)
    several = len(by_model) > 1
    lost = np.flatnonzero(own < before)
    apart = np.flatnonzero((best > least) & ~(own < before) & (own < top))
    wrong = np.flatnonzero((best == least) & (own < top)) if several else np.flatnonzero(own < top)
    with np.errstate(invalid="ignore"):
        ranked = (lost[np.argsort((own - before)[lost], kind="stable")], apart[np.lexsort((-(best - least)[apart], own[apart]))],
                  wrong[np.argsort(own[wrong], kind="stable")])
    alike = "the lowest scores" if len(np.unique(every)) > 2 else "all models are wrong" if several else f"`{subject}` is wrong"
    out = []
    for why, order in zip((f"`{base}` scores higher than `{subject}`", "models disagree", alike), ranked, strict=True):
        for at in order[: min(EACH, max(0, room - len(out)))]:
            out.append(_sample(eval_, task, metric, why, by_model, int(at)))
    return out


def _sample(eval_: str, task: str, metric: str, why: str, by_model: dict[str, Answers], at: int) -> Sample:
    rows = {m: a.row(at) for m, a in by_model.items()}
    first = next(iter(rows.values()))
    question, question_cut = _end(str(first.get("prompt", "")))
    target, target_cut = _start(_text(first.get("target")))
    told = []
    for model, row in rows.items():
        text, cut = _start(paired.answer(row))
        value = float(by_model[model].values[metric][at])
        told.append(Answer(model, text, cut, value if math.isfinite(value) else None))
    ids = next(iter(by_model.values())).ids
    return Sample(eval_, task, metric, why, int(ids[at]), question, question_cut, target, target_cut, tuple(told))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _start(text: str) -> tuple[str, int]:
    return text[:LONGEST], max(0, len(text) - LONGEST)


def _end(text: str) -> tuple[str, int]:
    """The end of a prompt is where its question stands; few-shot examples come before it."""
    return text[-LONGEST:], max(0, len(text) - LONGEST)
