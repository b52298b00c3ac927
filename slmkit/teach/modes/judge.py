"""The teacher scores rows as they are: a prompt and its own answer, by a rubric, once or n times and averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from slmkit.teach import rating
from slmkit.teach.job import Job, Made

ROWS = "`messages` as they were given, with the teacher's `score` and `reason`"


def stages(job: Job) -> Iterator[Callable]:
    return rating.stages(job, lambda: _rows(job), job.template, job.config.n)


def _rows(job: Job) -> Iterator[Made]:
    for prompt in job.prompts:
        asked = tuple(job.student(prompt.messages))
        if prompt.reference is None or not prompt.reference.strip():
            yield Made(prompt.place, why="the row has no answer of its own", by="readable", question=prompt.text, messages=asked)
            continue
        row = {"messages": [*asked, {"role": "assistant", "content": prompt.reference}]}
        yield Made(prompt.place, row, prompt.reference, prompt.text, None, messages=asked, more={"fields": prompt.fields})


def made(job: Job) -> Iterable[Made]:
    for one in rating.rated(job, _rows(job), job.template, job.config.n):
        if one.why is not None:
            yield one
        elif "score" in one.more:
            yield replace(one, row=one.row | {"score": float(one.more["score"]), "reason": one.more["reason"]})
        else:
            yield replace(one, why=f"no score: {one.more['unscored']}", by="verdict")
