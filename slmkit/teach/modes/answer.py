"""The teacher answers each prompt, n times; of several answers all are kept, or the one that most agree on (self-consistency, Wang et al. 2022)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

from slmkit.data import sides
from slmkit.teach import rating
from slmkit.teach.filters import WHOLE
from slmkit.teach.job import Job, Made, place, samples, unmade
from slmkit.teach.modes import tools

ROWS = "`messages` with the answer as the assistant's turn"


def _request(job: Job, prompt, sample: int):
    return job.request(job.asked(prompt), sample, response_format=job.schema, tools=list(prompt.tools) or None)


def stages(job: Job) -> Iterator[Callable]:
    yield lambda: samples(job, lambda prompt, sample: _request(job, prompt, sample))
    yield from rating.stages(job, lambda: _rows(job))


def made(job: Job) -> Iterator[Made]:
    return rating.rated(job, _rows(job))


def _rows(job: Job) -> Iterator[Made]:
    for prompt in job.prompts:
        rows = [_made(job, prompt, sample) for sample in range(job.config.n)]
        yield from [majority(rows, job.config.majority)] if job.config.majority else rows


def _made(job: Job, prompt, sample: int) -> Made:
    answer, why = job.found(_request(job, prompt, sample))
    if answer is None:
        return unmade(job, prompt, sample, why)
    if prompt.tools:
        return tools.row(job, prompt, sample, answer, prompt.tools)
    asked, (text, more) = job.student(prompt.messages), job.said(answer)
    row = {"messages": [*asked, {"role": "assistant", "content": text}]}
    return Made(place(job, prompt, sample), row, text, prompt.text, prompt.reference, answer.finish, messages=tuple(asked), more=more)


def majority(rows: list[Made], share: float) -> Made:
    """The first of the rows whose answer most gave. `why` says so when fewer than `share` of the samples agree."""
    whole = [r for r in rows if r.why is None and r.finish in WHOLE and r.answer.strip()]
    votes = Counter(sides.normal(r.answer) for r in whole)
    if not votes:
        return rows[0]
    wanted, count = votes.most_common(1)[0]
    best = next(r for r in whole if sides.normal(r.answer) == wanted)
    agreed = count / len(rows)
    best = replace(best, place=best.place.rpartition("#")[0], more=best.more | {"agreement": round(agreed, 4)})
    return best if agreed >= share else replace(best, why=f"no majority: {count} of {len(rows)} samples agree", by="majority")
