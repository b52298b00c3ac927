"""One question to a teacher: the body as it is sent, the sample's number, and the key under which its answer is kept.

The key is a hash of what could change the answer: model, messages, parameters, sample. Where the teacher is reached, how, and
how fast are no part of it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Request:
    """body: of POST /chat/completions, without `n` and `stream`. sample: 0 … n - 1, several answers to one body."""

    body: dict[str, Any]
    sample: int = 0
    key: str = field(init=False)

    def __post_init__(self) -> None:
        text = json.dumps([self.body, self.sample], sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        object.__setattr__(self, "key", hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest())

    @property
    def most(self) -> int:
        """The most tokens that an answer may have; 0 where the body names no limit."""
        return self.body.get("max_completion_tokens") or self.body.get("max_tokens") or 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one request. message: the assistant's, as OpenAI writes it. usage: input, output, cached tokens.

    observed: what the endpoint said it was: model, system_fingerprint. logprobs: as OpenAI writes them, where asked for. seconds: from sending
    the request to having all of the answer; None where that was no single call.
    """

    message: dict[str, Any]
    finish: str | None
    usage: dict[str, int]
    observed: dict[str, Any] = field(default_factory=dict)
    logprobs: dict | None = None
    seconds: float | None = None

    @property
    def text(self) -> str:
        return self.message.get("content") or ""

    @property
    def reasoning(self) -> str:
        return self.message.get("reasoning_content") or self.message.get("reasoning") or ""


class Malformed(ValueError):
    """A response that is no chat completion."""


def answer(response: Any) -> Answer:
    """An Answer from the JSON of a chat completion. Raises Malformed."""
    try:
        choice = response["choices"][0]
        message = {k: v for k, v in choice["message"].items() if v is not None}
        content = message.get("content")
        if isinstance(content, list):  # parts, as some endpoints have them
            message["content"] = "".join(p.get("text", "") for p in content)
        elif content is not None and not isinstance(content, str):
            raise Malformed("the answer's content is no text")
        message.setdefault("role", "assistant")
        ended = choice.get("finish_reason")
        if message.get("refusal") and not message.get("content"):  # as OpenAI says no to a schema
            message["content"], ended = str(message["refusal"]), "refusal"
        seen = {k: response[k] for k in ("model", "system_fingerprint") if response.get(k)}
        return Answer(message, ended, _usage(response.get("usage")), seen, choice.get("logprobs"))
    except (KeyError, IndexError, TypeError, AttributeError) as e:
        raise Malformed(f"the response is no chat completion ({type(e).__name__}: {e})") from None


def _usage(said: Any) -> dict[str, int]:
    """The endpoint's counts. `uncounted` where it gave none; of `total_tokens` alone all are taken for output, the dearer of the two."""
    said = said if isinstance(said, dict) else {}
    total, prompt, wrote = (_number(said.get(k)) for k in ("total_tokens", "prompt_tokens", "completion_tokens"))
    details = said.get("prompt_tokens_details")
    cached = _number(details.get("cached_tokens")) if isinstance(details, dict) else None
    if total is not None and wrote is None:
        wrote = max(0, total - (prompt or 0))
    if total is not None and prompt is None:
        prompt = max(0, total - wrote)
    counted = {} if prompt is not None and wrote is not None else {"uncounted": 1}
    return {"input": prompt or 0, "output": wrote or 0, "cached": cached or 0} | counted


def _number(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12 else None
