"""The teacher writes new prompts and answers out of a description and examples (self-instruct, https://arxiv.org/abs/2212.10560).

Request number i is a function of the config, the seeds and i alone: which examples it shows, its topic and its difficulty are drawn by i. So the
ledger holds whatever the concurrency, and a larger `count` goes on where the smaller one ended. It is asked in rounds: another one only
if too few rows came through the novelty check and the filters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

from slmkit.data import shingles, sides
from slmkit.teach import draws, rating, replies
from slmkit.teach.job import Job, Made
from slmkit.teach.request import Request

ROWS = "`messages` with a prompt and an answer, both written by the teacher"
PROMPT, ANSWER = ("prompt", "question", "instruction", "input", "user"), ("answer", "completion", "output", "response", "assistant")


def stages(job: Job) -> Iterator[Callable]:
    """Rounds. How many requests there are depends on what earlier rounds brought; what each is does not."""
    seeds = _seeds(job)
    for first, last in _rounds(job, seeds):
        yield lambda first=first, last=last: (_request(job, i, seeds) for i in range(first, last))
        yield from rating.stages(job, lambda last=last: _rows(job, last, seeds))


def _rounds(job: Job, seeds: list[dict]) -> Iterator[tuple[int, int]]:
    """(first, after the last) request of each round; the next is asked for when the answers of this one are there."""
    said, asked = job.config.generate, 0
    for _ in range(said.rounds):
        missing = said.count - (_kept(job, asked, seeds) if asked else 0)
        if missing <= 0:
            return
        first, asked = asked, asked + math.ceil(missing / said.per_request)
        yield first, asked


def _kept(job: Job, asked: int, seeds: list[dict]) -> int:
    """Rows that come through all filters."""
    every = job.fresh(None)
    return sum(every.why(made) is None for made in rating.rated(job, _rows(job, asked, seeds)))


def made(job: Job) -> Iterator[Made]:
    seeds = _seeds(job)
    asked = max(last for _, last in _rounds(job, seeds))
    return rating.rated(job, _rows(job, asked, seeds))


def _seeds(job: Job) -> list[dict]:
    return [{"prompt": p.text, "answer": p.reference} for p in job.prompts] if job.prompts else []


def _drawn(job: Job, number: int) -> dict[str, str]:
    """The topic and the difficulty of a request."""
    said, generator = job.config.generate, draws.by("generate", job.config.seed or 0, number)
    topic, difficulty = draws.one(generator, said.topics), draws.one(generator, said.difficulties)
    return {"topic": topic, "difficulty": difficulty}


def _request(job: Job, number: int, seeds: list[dict]) -> Request:
    said = job.config.generate
    examples = draws.some(draws.by("examples", job.config.seed or 0, number), seeds, said.examples)
    values = {"description": said.description, "examples": examples, "count": said.per_request, "number": number} | _drawn(job, number)
    return job.request(job.led(job.template.messages(f"request {number + 1}", **values)), number)


def _rows(job: Job, asked: int, seeds: list[dict]) -> Iterator[Made]:
    new = _Novel(job.config.generate.novelty, seeds)
    for number in range(asked):
        place = f"request {number + 1}"
        answer, why = job.found(_request(job, number, seeds))
        if answer is None:
            yield Made(place, why=why)
            continue
        items, fault = replies.items(answer.text)
        drawn = {k: v for k, v in _drawn(job, number).items() if v is not None}
        for row, item in enumerate(items, 1):
            yield _made(job, f"{place}.{row}", item, drawn, new)
        if fault:
            yield Made(place, answer=answer.text, finish=answer.finish, why=fault, by="readable")


def _made(job: Job, place: str, item: Any, drawn: dict, new: _Novel) -> Made:
    prompt, answer = (_text(item, names) for names in (PROMPT, ANSWER))
    if prompt is None or answer is None:
        return Made(place, answer=answer or prompt or "?", why="an entry without `prompt` and `answer`", by="readable")
    asked = job.student([{"role": "user", "content": prompt}])
    row = {"messages": [*asked, {"role": "assistant", "content": answer}]} | drawn
    why = new.why(prompt, place)
    return Made(place, row, answer, prompt, why=why, messages=tuple(asked), by="novelty")


def _text(item: Any, names: tuple[str, ...]) -> str | None:
    value = next((item[n] for n in names if n in item), None) if isinstance(item, dict) else None
    if isinstance(value, dict | list):
        value = json.dumps(value, ensure_ascii=False)
    elif isinstance(value, int | float):
        value = json.dumps(value)
    return value.strip() if isinstance(value, str) and value.strip() else None


class _Novel:
    """Which prompts are new: unlike the seeds and all before. Short ones, where likeness is chance, must differ to the letter."""

    def __init__(self, threshold: float, seeds: list[dict]):
        self.threshold = threshold
        self.index = shingles.Index(threshold) if threshold < 1 else None
        self.seen: dict[str, str] = {}
        self.marks: list[tuple[Any, str]] = []
        for number, seed in enumerate(seeds, 1):
            self.why(seed["prompt"], f"seed {number}")

    def why(self, prompt: str, place: str) -> str | None:
        text = sides.normal(prompt)
        if text in self.seen:
            return f"the same prompt as {self.seen[text]}"
        if self.index is not None and len(text) >= shingles.SHORTEST:
            mark = self.index.mark(shingles.pieces(text))
            for other in self.index.near(mark):
                if mark.jaccard(self.marks[other][0]) >= self.threshold:
                    return f"nearly the same prompt as {self.marks[other][1]}"
            self.index.add(len(self.marks), mark)
            self.marks.append((mark, place))
        self.seen[text] = place
        return None
