"""The teacher answers each prompt, n times; of several answers all are kept, or the one that most agree on (self-consistency, Wang et al. 2022)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from slmkit.data import sides
from slmkit.teach.job import Job, Made, samples


def _request(job: Job, prompt, sample: int):
    return job.request(job.asked(prompt), sample, response_format=job.schema, tools=list(prompt.tools) or None)


def stages(job: Job) -> list:
    return [lambda: samples(job, lambda prompt, sample: _request(job, prompt, sample))]


def made(job: Job) -> Iterator[Made]:
    for prompt in job.prompts:
        rows = [_made(job, prompt, sample) for sample in range(job.config.n)]
        yield from [majority(rows, job.config.majority)] if job.config.majority else rows


def _made(job: Job, prompt, sample: int) -> Made:
    answer, why = job.found(_request(job, prompt, sample))
    place = prompt.place + (f"#{sample + 1}" if job.config.n > 1 else "")
    if answer is None:
        return Made(place, why=why, question=prompt.text, messages=prompt.messages)
    said = {"role": "assistant", "content": answer.text}
    row = {"messages": [*job.student(prompt), said]}
    return Made(place, row, answer.text, prompt.text, prompt.reference, answer.finish, messages=prompt.messages)


def majority(rows: list[Made], share: float) -> Made:
    """The first of the rows whose answer most gave. `why` says so when fewer than `share` of the samples agree."""
    votes = Counter(sides.normal(r.answer) for r in rows if r.why is None and r.finish != "length" and r.answer.strip())
    if not votes:
        return rows[0]
    wanted, count = votes.most_common(1)[0]
    best = next(r for r in rows if r.why is None and sides.normal(r.answer) == wanted)
    agreed = count / len(rows)
    more = {"agreement": round(agreed, 4)}
    why = None if agreed >= share else f"no majority: {count} of {len(rows)} samples agree"
    return Made(best.place.partition("#")[0], best.row, best.answer, best.question, best.reference, best.finish, why, best.messages, more)
