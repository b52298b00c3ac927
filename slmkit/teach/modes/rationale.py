"""The teacher answers with its reasoning, which the student learns as a second task (Distilling Step-by-Step, https://arxiv.org/abs/2305.02301).

The reasoning is what stands before the answer's marker in the reply, or what a reasoning model thought. The paper's student learns both tasks
from prefixed inputs; in use it only answers, so reasoning costs it nothing then.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from slmkit.teach import rating, replies
from slmkit.teach.job import Job, Made, place, samples, unmade
from slmkit.teach.modes.answer import majority

ROWS = "`messages` with the answer, and with the reasoning as a second task (column `task`)"


def _request(job: Job, prompt, sample: int):
    said = job.config.rationale
    return job.request(job.asked(prompt, marker=said.marker), sample, response_format=job.schema if said.source == "reasoning" else None)


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
    said = job.config.rationale
    thought, text = replies.thought(answer.text)
    if said.source == "reasoning":
        thought, why = answer.reasoning.strip() or thought, "the reply has no reasoning beside the answer"
    else:
        (thought, text), why = parted(text, said.marker), "the reply has no reasoning with the marker and the answer after it"
    asked, where = job.student(prompt.messages), place(job, prompt, sample)
    whole = {"answer": text or answer.text, "question": prompt.text, "reference": prompt.reference, "finish": answer.finish, "messages": tuple(asked)}
    if not thought or not text.strip():
        return Made(where, why=why, by="readable", **whole)
    first, also = _pair(said, asked, text, thought)
    return Made(where, first, also=also, more={"reasoning": thought}, **whole)


def _pair(said, asked: list[dict], text: str, thought: str) -> tuple[dict, tuple]:
    """The row, and the one that goes with it."""
    if said.rows == "thinking":
        return {"messages": [*asked, {"role": "assistant", "content": text, "reasoning_content": thought}]}, ()
    first = {"messages": [*_prefixed(asked, said.answer_prefix), {"role": "assistant", "content": text}], "task": "answer"}
    second = {"messages": [*_prefixed(asked, said.prefix), {"role": "assistant", "content": thought}], "task": "rationale"}
    return first, (("rationale" if said.rows == "apart" else "train", second),)


def _prefixed(messages: list[dict], prefix: str) -> list[dict]:
    last = max(i for i, m in enumerate(messages) if m["role"] == "user")
    return [m | {"content": prefix + m["content"]} if i == last else m for i, m in enumerate(messages)]


def parted(reply: str, marker: str) -> tuple[str, str]:
    """(reasoning, answer), by the last line that begins with the marker, in bold or not; ("", "") without one."""
    found = list(re.finditer(rf"^[ \t>#*_]*{re.escape(marker.strip())}[*_]*[ \t]*", reply, re.MULTILINE | re.IGNORECASE))
    if not found:
        return "", ""
    return reply[: found[-1].start()].strip(), reply[found[-1].end() :].strip()
