"""The teacher rewrites what rows hold already: their answers into better ones, or their prompts into other words for the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from slmkit.data import sides
from slmkit.teach import rating
from slmkit.teach.job import Job, Made, place, samples, unmade

ROWS = "`messages`, rewritten by the teacher"


def _request(job: Job, prompt, sample: int):
    said = job.config.rewrite
    if prompt.reference is None or not prompt.reference.strip():
        return None
    asked = job.asked(prompt, answer=prompt.reference, what=said.what, instruction=said.instruction)
    return job.request(asked, sample, response_format=job.schema if said.what == "answer" else None)


def stages(job: Job) -> Iterator[Callable]:
    yield lambda: samples(job, lambda prompt, sample: _request(job, prompt, sample))
    yield from rating.stages(job, lambda: _rows(job))


def made(job: Job) -> Iterator[Made]:
    return rating.rated(job, _rows(job))


def _rows(job: Job) -> Iterator[Made]:
    return (_made(job, prompt, sample) for prompt in job.prompts for sample in range(job.config.n))


def _made(job: Job, prompt, sample: int) -> Made:
    request, said = _request(job, prompt, sample), job.config.rewrite
    if request is None:
        return unmade(job, prompt, sample, "the row has no answer of its own", "readable")
    answer, why = job.found(request)
    if answer is None:
        return unmade(job, prompt, sample, why)
    asked, (text, more) = job.student(prompt.messages), job.said(answer)
    text = text.strip()
    old = prompt.reference if said.what == "answer" else prompt.text
    reply = text if said.what == "answer" else prompt.reference
    question = prompt.text
    if said.what == "prompt":
        last = max(i for i, m in enumerate(asked) if m["role"] == "user")
        asked, question = [m | {"content": text} if i == last else m for i, m in enumerate(asked)], text
    row = {"messages": [*asked, {"role": "assistant", "content": reply}]} | ({"original": old} if said.keep else {})
    same = said.what == "prompt" and sides.normal(text) == sides.normal(old)
    why, by = ("the prompt is still the same", "novelty") if same else (None, "answered")
    return Made(place(job, prompt, sample), row, text, question, prompt.reference, answer.finish, why, tuple(asked), {"judged": reply} | more, by)
