"""What a mode works with: the config, the prompts, the template, and the answers that are in the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from slmkit.teach.desk import Desk
from slmkit.teach.prompts import Prompts
from slmkit.teach.request import Answer, Request
from slmkit.teach.templates import Template


@dataclass(frozen=True)
class Made:
    """One row that came of the answers, or why none did.

    row: as it goes into the dataset (`messages`, …). place: what it came from. question, reference: for the filters.
    why: the reason for which there is no row. finish: of the answer, `length` where it was cut. answer: its text, as checked.
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


@dataclass(frozen=True)
class Job:
    """config: of the distill step. model: the name that the teacher goes by. template: None where messages go as they are."""

    config: Any
    model: str
    prompts: Prompts | None
    template: Template | None
    desk: Desk
    limit_key: str = "max_tokens"

    def request(self, messages: list[dict], sample: int = 0, **more: Any) -> Request:
        """A request with the config's sampling parameters. more: `tools`, `response_format`, …; None leaves one out."""
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

    @property
    def schema(self) -> dict | None:
        """response_format for an endpoint that enforces JSON Schemas."""
        c = self.config
        if c.json_schema is None or not c.structured:
            return None
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": c.json_schema, "strict": True}}

    def asked(self, prompt, **values: Any) -> list[dict]:
        """The messages sent about one prompt: through the template where there is one, else the prompt's own; `system` before them."""
        if self.template is None:
            messages = [dict(m) for m in prompt.messages]
        else:
            known = {"prompt": prompt.text, "messages": [dict(m) for m in prompt.messages], "reference": prompt.reference, "row": prompt.fields}
            messages = self.template.messages(prompt.place, **known, **values)
        if self.config.system is not None:
            messages = [{"role": "system", "content": self.config.system}, *(m for m in messages if m["role"] != "system")]
        return messages

    def student(self, prompt) -> list[dict]:
        """What the student will see of a prompt: the row's own messages, with `student_system` in place of any system message."""
        messages = [dict(m) for m in prompt.messages]
        if self.config.student_system is not None:
            messages = [{"role": "system", "content": self.config.student_system}, *(m for m in messages if m["role"] != "system")]
        return messages


def samples(job: Job, build) -> Iterator[Request]:
    """n requests for each prompt; `build(prompt, sample)` makes one."""
    for prompt in job.prompts:
        for sample in range(job.config.n):
            yield build(prompt, sample)
