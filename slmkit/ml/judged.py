"""The metric `judge` of an eval: a teacher scores what the models wrote, by the task's rubric, alone or side by side, and from 0 to 1.

Side by side, all models' answers to a question are seen at once, in a drawn order and in that order turned round: a judge likes what it sees
first, and how far it agrees with itself is reported. Answers that read the same are shown once. A verdict that cannot be read is asked for once
more; then the question counts for no model, so that the same questions are compared. All verdicts are in the ledger, none is paid twice.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from slmkit.ml import asking
from slmkit.ml.subjects import talk
from slmkit.steps._step import Context
from slmkit.steps._task_form import Task
from slmkit.teach import judging, templates
from slmkit.teach.judging import Scale
from slmkit.teach.replies import Unreadable
from slmkit.teach.request import Request

SCALE = Scale(0, 10)


@dataclass(frozen=True)
class Asked:
    """A question of a task with distinct answers to it that are judged at once, in a fixed order."""

    task: Task
    doc: int
    known: dict[str, Any]
    texts: tuple[str, ...]


def judge(ctx: Context, said: Any, tasks: list[Task], names: list[str], seed: int) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, Any]]:
    """({model: {task: {judge, judge_stderr}}}, what came of it). The samples of the eval are read, and get their scores."""
    bench = _Bench(asking.opened(ctx, "judge", said.teacher, said.budget, said.prices, key="judge.teacher"), said, seed)
    scores: dict[str, dict[str, dict[str, float]]] = {name: {} for name in names}
    counts = {"questions": 0, "unjudged": 0, "pairs": 0, "pairs_agreed": 0}
    try:
        for task in tasks:
            kept = {name: _read(ctx.out / "samples" / name / f"{task.name}.jsonl") for name in names}
            values = bench.values(task, kept, counts)
            for name in names:
                scores[name][task.name] = _mean([values[doc][text] for doc, (_, text) in _answers(kept[name]).items() if doc in values])
                _write(ctx.out / "samples" / name / f"{task.name}.jsonl", kept[name], values)
    finally:
        bench.asking.close()
    agreed = {"consistency": counts["pairs_agreed"] / counts["pairs"]} if counts["pairs"] else {}
    return scores, {k: counts[k] for k in ("questions", "unjudged")} | agreed | bench.asking.told()


class _Bench:
    def __init__(self, opened: asking.Asking, said: Any, seed: int):
        self.asking, self.said, self.seed = opened, said, seed
        self.alone, self.group = templates.load("judge", None), templates.load("rank", None)

    def values(self, task: Task, kept: dict[str, list[dict]], counts: dict[str, int]) -> dict[int, dict[str, float]]:
        """doc_id → answer → score, of the questions of which every answer was judged."""
        units = self._units(task, kept)
        for trial in range(judging.TRIALS):
            open_ = [(u, o) for u in units for o in self._orders(u) if trial == 0 or self._found(u, o, trial) is None]
            self.asking.carry((self._request(u, o, trial)[0] for u, o in open_), self.said.concurrency)
            self.asking.desk.gave_up.clear()
        out: dict[int, dict[str, float]] = {u.doc: {} for u in units}
        lacking = set()
        for u in units:
            found = [self._found(u, o, judging.TRIALS) for o in self._orders(u)]
            if None in found:
                lacking.add(u.doc)
                continue
            out[u.doc] |= {text: fmean(one[i] for one in found) for i, text in enumerate(u.texts)}
            pairs = list(combinations(range(len(u.texts)), 2))
            counts["pairs"] += len(pairs)
            counts["pairs_agreed"] += sum(_sign(found[0], p) == _sign(found[-1], p) for p in pairs)
        counts["questions"] += len(out)
        counts["unjudged"] += len(lacking)
        return {doc: values for doc, values in out.items() if doc not in lacking}

    def _units(self, task: Task, kept: dict[str, list[dict]]) -> list[Asked]:
        """What is judged at once: all answers to a question side by side, or each of them."""
        texts: dict[int, dict[str, None]] = {}
        known: dict[int, dict[str, Any]] = {}
        for rows in kept.values():
            for doc, (row, text) in _answers(rows).items():
                texts.setdefault(doc, {})[text] = None
                known.setdefault(doc, _known(row))
        groups = [Asked(task, doc, known[doc], tuple(sorted(texts[doc]))) for doc in sorted(texts)]
        return groups if self.said.side_by_side else [Asked(g.task, g.doc, g.known, (t,)) for g in groups for t in g.texts]

    def _orders(self, q: Asked) -> range:
        """Two orders where there is anything to order."""
        return range(2 if len(q.texts) > 1 else 1)

    def _request(self, q: Asked, order: int, trial: int) -> tuple[Request, list[int]]:
        place = f"{q.task.name}, question {q.doc}"
        shown = judging.shuffled(len(q.texts), self.seed, json.dumps([q.known["messages"], q.texts]), number=order)
        if len(q.texts) == 1:
            messages = judging.ask_score(self.alone, place, q.known, q.texts[0], q.task.rubric, SCALE)
        else:
            messages = judging.ask_scores(self.group, place, q.known, q.texts, shown, q.task.rubric, SCALE)
        teacher = self.said.teacher
        body: dict[str, Any] = {"model": teacher.model, "messages": messages, teacher.limit_key: self.said.max_tokens}
        if self.said.temperature is not None:
            body["temperature"] = self.said.temperature
        return Request(body | dict(teacher.extra), trial), shown

    def _found(self, q: Asked, order: int, trials: int) -> list[float] | None:
        """The scores of the first verdict that can be read, from 0 to 1."""
        for trial in range(trials):
            request, shown = self._request(q, order, trial)
            answer = self.asking.book.find(request)
            if answer is None:
                continue
            try:
                one = [judging.score(answer.text, SCALE)] if len(q.texts) == 1 else judging.scores(answer.text, shown, SCALE)
            except Unreadable:
                continue
            return [v.score / SCALE.most for v in one]
        return None


def _known(row: dict) -> dict[str, Any]:
    """What a judge is shown of a question: the conversation as it was asked, before any template, and the right answer."""
    messages, _ = talk.unfolded([{"role": "user", "content": row["doc"]["user"]}])
    if row["doc"].get("system"):
        messages = [{"role": "system", "content": row["doc"]["system"]}, *messages]
    messages = [m | {"content": m.get("content") or ""} for m in messages]
    return {"prompt": messages[-1]["content"], "messages": messages, "reference": row["doc"]["answer"], "row": {}}


def _answers(rows: list[dict]) -> dict[int, tuple[dict, str]]:
    return {row["doc_id"]: (row, row["filtered_resps"][0] if isinstance(row["filtered_resps"], list) else str(row["filtered_resps"])) for row in rows}


def _read(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _write(path: Path, rows: list[dict], values: dict[int, dict[str, float]]) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for doc, (row, text) in _answers(rows).items():
            more = {"judge": values[doc][text]} if doc in values else {}
            file.write(json.dumps(row | more, ensure_ascii=False, sort_keys=True) + "\n")


def _mean(values: list[float]) -> dict[str, float]:
    """The mean with its standard error, as lm-eval has it; nothing where nothing was judged."""
    if not values:
        return {}
    return {"judge": fmean(values)} | ({"judge_stderr": stdev(values) / math.sqrt(len(values))} if len(values) > 1 else {})


def _sign(scores: list[float], pair: tuple[int, int]) -> int:
    a, b = scores[pair[0]], scores[pair[1]]
    return (a > b) - (a < b)
