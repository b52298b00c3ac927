"""What a mode works with: the config, the prompts, the templates, the filters, and the answers that are in the ledger."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from slmkit.teach import replies
from slmkit.teach.desk import Desk
from slmkit.teach.prompts import Prompt, Prompts
from slmkit.teach.request import Answer, Request
from slmkit.teach.templates import Template


@dataclass(frozen=True)
class Made:
    """One row that came of the answers, or why none did.

    row: as it goes into the dataset (`messages`, …). also: rows that go with it, each with its file's split. place: what it came from.
    question, reference: for the filters. why: the reason for which there is no row, counted under the filter `by`. finish: of the answer,
    `length` where it was cut. answer: its text, as checked. messages: what the student is asked.
    """

    place: str
    row: dict[str, Any] = field(default_factory=dict)
    answer: str = ""
    question: str = ""
    reference: str | None = None
    finish: str | None = "stop"
    why: str | None = None
    messages: tuple[dict, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)
    by: str = "answered"
    also: tuple[tuple[str, dict], ...] = ()


@dataclass(frozen=True)
class Job:
    """config: of the distill step. model: the name that the teacher goes by. template: None where messages go as they are.

    judge_template: for answers that are judged. tools: functions that all prompts are offered. fresh: a new set of the filters that come before
    a named one (None: all), to see which rows they will let through.
    """

    config: Any
    model: str
    prompts: Prompts | None
    template: Template | None
    desk: Desk
    limit_key: str = "max_tokens"
    judge_template: Template | None = None
    tools: tuple[dict, ...] = ()
    fresh: Callable[[str | None], Any] = lambda before: None

    def request(self, messages: list[dict], sample: int = 0, **more: Any) -> Request:
        """A request with the config's sampling parameters. more: `tools`, `response_format`, …; None leaves one as it would be."""
        c = self.config
        body: dict[str, Any] = {"model": self.model, "messages": messages, self.limit_key: c.max_tokens}
        if c.temperature is not None:
            body["temperature"] = c.temperature
        if c.top_p is not None:
            body["top_p"] = c.top_p
        if c.seed is not None:
            body["seed"] = (c.seed + sample) % 2**31
        body |= dict(getattr(c.teacher, "extra", None) or {})
        return Request(body | {k: v for k, v in more.items() if v is not None}, sample)

    def found(self, request: Request) -> tuple[Answer | None, str]:
        """(the answer, why there is none)."""
        answer = self.desk.ledger.find(request)
        return answer, "" if answer else self.desk.gave_up.get(request.key, "not asked")

    def said(self, answer: Answer) -> tuple[str, dict[str, Any]]:
        """(what an answer says, for `Made.more`): without thinking written before it, and JSON without the code fence around it."""
        thought, text = replies.thought(answer.text)
        return replies.unfenced(text) if self.config.json_schema is not None else text, {"thought": 1} if thought else {}

    @property
    def local(self) -> bool:
        """Is the teacher a model that is run here? It constrains nothing: no schema, no forced call."""
        return isinstance(self.config.teacher, str)

    @property
    def schema(self) -> dict | None:
        """response_format for an endpoint that enforces JSON Schemas."""
        c = self.config
        if c.json_schema is None or not c.structured or self.local:
            return None
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": c.json_schema, "strict": True}}

    def known(self, prompt: Prompt) -> dict[str, Any]:
        """What a template sees of a prompt. A `system` in the recipe stands in place of the row's own."""
        own = self.config.system is None
        messages = [m | {"content": m.get("content") or ""} for m in prompt.messages if own or m["role"] != "system"]
        return {"prompt": prompt.text, "messages": messages, "reference": prompt.reference, "row": prompt.fields}

    def asked(self, prompt: Prompt, **values: Any) -> list[dict]:
        """The messages sent about one prompt: through the template where there is one, else the prompt's own; `system` before them."""
        if self.template is None:
            own = self.config.system is None
            return self.led([sent(m) for m in prompt.messages if own or m["role"] != "system"])
        return self.led(self.template.messages(prompt.place, **self.known(prompt), **values))

    def led(self, messages: list[dict]) -> list[dict]:
        """The messages with the recipe's `system` before them; a template's own system message goes on after it."""
        if self.config.system is None:
            return messages
        said = [self.config.system, *(m["content"] for m in messages if m["role"] == "system")]
        return [{"role": "system", "content": "\n\n".join(said)}, *(m for m in messages if m["role"] != "system")]

    def student(self, messages: tuple[dict, ...] | list[dict]) -> list[dict]:
        """What the student will see of a conversation: as it is, with `student_system` in place of any system message."""
        messages = [dict(m) for m in messages]
        if self.config.student_system is not None:
            messages = [{"role": "system", "content": self.config.student_system}, *(m for m in messages if m["role"] != "system")]
        return messages


def sent(message: dict) -> dict:
    """A message as endpoints want it: the arguments of calls as text."""
    if not message.get("tool_calls"):
        return dict(message)
    calls = []
    for call in message["tool_calls"]:
        arguments = call["function"]["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append(call | {"function": call["function"] | {"arguments": text}})
    return message | {"tool_calls": calls}


def samples(job: Job, build: Callable[[Prompt, int], Request | None]) -> Iterator[Request]:
    """n requests for each prompt; `build(prompt, sample)` makes one, or None where there is nothing to ask."""
    for prompt in job.prompts:
        for sample in range(job.config.n):
            if (request := build(prompt, sample)) is not None:
                yield request


def place(job: Job, prompt: Prompt, sample: int) -> str:
    """`file:line`, and which sample where there are several. Without the file's folder: it is part of what comes out, wherever the file lies."""
    return prompt.place.rpartition("/")[2] + (f"#{sample + 1}" if job.config.n > 1 else "")


def unmade(job: Job, prompt: Prompt, sample: int, why: str, by: str = "answered") -> Made:
    """A row that there is not, and why."""
    return Made(place(job, prompt, sample), why=why, by=by, question=prompt.text, messages=prompt.messages)
