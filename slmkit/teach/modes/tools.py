"""The teacher answers with calls of the functions on offer, which are checked against each function's own schema."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from slmkit.teach import rating, toolcalls
from slmkit.teach.job import Job, Made, place, samples, unmade
from slmkit.teach.request import Answer

ROWS = "`messages` with the assistant's `tool_calls` (or words), and the functions on offer in `tools`"


def _request(job: Job, prompt, sample: int):
    offered = prompt.tools or job.tools
    if not offered:
        return None
    choice = "required" if job.config.tool_choice == "required" and not job.local else None
    return job.request(job.asked(prompt, tools=list(offered)) if job.template else job.asked(prompt), sample, tools=list(offered), tool_choice=choice)


def stages(job: Job) -> Iterator[Callable]:
    yield lambda: samples(job, lambda prompt, sample: _request(job, prompt, sample))
    yield from rating.stages(job, lambda: _rows(job))


def made(job: Job) -> Iterator[Made]:
    return rating.rated(job, _rows(job))


def _rows(job: Job) -> Iterator[Made]:
    return (_made(job, prompt, sample) for prompt in job.prompts for sample in range(job.config.n))


def _made(job: Job, prompt, sample: int) -> Made:
    request = _request(job, prompt, sample)
    if request is None:
        return unmade(job, prompt, sample, "no functions are on offer: give the row `tools`, or the step `tools: FILE`", "readable")
    answer, why = job.found(request)
    return row(job, prompt, sample, answer, prompt.tools or job.tools) if answer else unmade(job, prompt, sample, why)


def row(job: Job, prompt, sample: int, answer: Answer, offered: tuple[dict, ...]) -> Made:
    """A row from an answer that may hold calls."""
    calls, text = toolcalls.calls_of(answer)
    why = toolcalls.fault(calls, offered)
    if why is None and not calls and job.config.tool_choice == "required":
        why = "an answer in words, and `tool_choice` is required"
    asked = job.student(prompt.messages)
    messages = [*(_kept(m) for m in asked), toolcalls.said(calls, text)]
    made = {"messages": messages, "tools": json.dumps(list(offered), ensure_ascii=False)}
    shown = text if not calls else "\n".join([text, *(f"{name}({json.dumps(a, ensure_ascii=False)})" for _, name, a in calls)]).strip()
    return Made(
        place(job, prompt, sample), made, shown, prompt.text, prompt.reference, answer.finish, why, tuple(asked), {"calls": len(calls)}, "readable"
    )


def _kept(message: dict) -> dict:
    """Earlier calls with their arguments as text, like the new ones: one column, one type."""
    if not message.get("tool_calls"):
        return message
    return message | toolcalls.said(
        [(c.get("id") or f"call_{i + 1}", c["function"]["name"], c["function"]["arguments"]) for i, c in enumerate(message["tool_calls"])],
        message.get("content") or "",
    )
