"""OpenAI's request bodies into what the Writer is asked, for `serve` and the local teacher alike; `responses` makes responses of its answers.

A parameter that would change the answer and is not supported is refused, never ignored.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from slmkit.ml.pieces import Pieces
from slmkit.ml.writer import Ask

HARMLESS = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "stream", "stream_options", "model"}
SAMPLING = {"temperature", "top_p", "seed", "stop", "n"}
CHAT = HARMLESS | SAMPLING | {"messages", "tools", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "response_format", "ignore_eos"}
PLAIN = HARMLESS | SAMPLING | {"prompt", "max_tokens", "logprobs", "echo", "return_tokens_as_token_ids", "ignore_eos"}
NEUTRAL = {"frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "tool_choice": ("auto", "none"), "parallel_tool_calls": (True,),
           "suffix": ("",), "best_of": (1,), "modalities": (["text"],)}  # fmt: skip
"""Parameters that are accepted with the values that change nothing."""
DEFAULT_MOST = {"chat": 1024, "plain": 16}


class BadRequest(ValueError):
    """A body that cannot be answered. code: OpenAI's name of it, where it has one."""

    def __init__(self, what: str, param: str | None = None, code: str | None = None):
        super().__init__(what)
        self.param, self.code = param, code


@dataclass(frozen=True)
class Speaker:
    """What rendering needs of a model: its tokenizer, the ids that end a turn, the longest text (tokens), and what it says it is."""

    tokenizer: Any
    ends: frozenset[int]
    longest: int | None
    fingerprint: str

    @cached_property
    def pieces(self) -> Pieces:
        return Pieces(self.tokenizer)


def chat_asks(body: dict, speaker: Speaker) -> list[Ask]:
    """The n asks of a chat completion's body. Raises BadRequest."""
    _known(body, CHAT)
    if (said := body.get("response_format")) is not None:
        if not isinstance(said, dict) or not isinstance(said.get("type"), str):
            raise BadRequest(f"`response_format` should be an object with a type, this is {said!r}", "response_format")
        if said["type"] != "text":
            raise BadRequest(f"response_format `{said['type']}` is not supported here: answers are not constrained", "response_format")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages):
        raise BadRequest("`messages` should be a list of messages, each with a role and a content", "messages")
    tools = body.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(t, dict) for t in tools)):
        raise BadRequest(f"`tools` should be a list of objects, this is {tools!r}", "tools")
    tokenizer = speaker.tokenizer
    if not tokenizer.chat_template:
        raise BadRequest("this model has no chat template; use /v1/completions", "messages")
    flat = [_flat(m) for m in messages]
    try:
        text = tokenizer.apply_chat_template(
            flat, tools=tools or None, tokenize=False, add_generation_prompt=messages[-1]["role"] != "assistant"
        )  # fmt: skip
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as e:
        raise BadRequest(f"the chat template refuses these messages: {e}", "messages") from None
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    most = body.get("max_tokens") if body.get("max_completion_tokens") is None else body["max_completion_tokens"]
    top = _integer(body, "top_logprobs", 0, 20, 0)
    if not _flag(body, "logprobs"):
        if top:
            raise BadRequest("`top_logprobs` needs `logprobs: true`", "top_logprobs")
        top = None
    return _several(body, speaker, ids, most, "chat", top, False)


def plain_asks(body: dict, speaker: Speaker) -> list[Ask]:
    """The asks of a completion's body: n for each prompt, in order. Prompts are texts or tokens. Raises BadRequest."""
    _known(body, PLAIN)
    prompt = body.get("prompt")
    several = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
    top = _integer(body, "logprobs", 0, 20, None)
    out: list[Ask] = []
    for one in several:
        if isinstance(one, str):
            ids = speaker.tokenizer(one)["input_ids"]
        elif isinstance(one, list) and all(type(i) is int and 0 <= i < len(speaker.tokenizer) for i in one):
            ids = one
        else:
            raise BadRequest("`prompt` should be a text, a list of tokens of this model, or a list of these", "prompt")
        asks = _several(body, speaker, ids, body.get("max_tokens"), "plain", top, _flag(body, "echo"))
        unsaid = _unsaid(one, ids, speaker) if asks[0].echo and isinstance(one, str) else 0
        out += [replace(a, unsaid=unsaid) for a in asks] if unsaid else asks
    return out


def _unsaid(text: str, ids: list[int], speaker: Speaker) -> int:
    """How many tokens the tokenizer puts before a text by itself."""
    own = speaker.tokenizer(text, add_special_tokens=False)["input_ids"]
    return len(ids) - len(own) if ids[len(ids) - len(own) :] == own else 0


def _several(body: dict, speaker: Speaker, ids: list[int], most: Any, kind: str, top: int | None, echo: bool) -> list[Ask]:
    longest, where = speaker.longest, "messages" if kind == "chat" else "prompt"
    if not ids:
        raise BadRequest("the prompt is empty", where)
    if longest is not None and len(ids) > longest - (0 if echo else 1):
        raise BadRequest(f"the prompt has {len(ids)} tokens, and this model's context has {longest}", where, "context_length_exceeded")
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 0):
        raise BadRequest(f"`max_tokens` should be a whole number from 0 on, this is {most!r}", "max_tokens")
    if most and longest is not None and len(ids) + most > longest and not echo:
        what = f"{len(ids)} tokens of the prompt and {most} of the answer are more than the {longest} of this model's context"
        raise BadRequest(what, "max_tokens", "context_length_exceeded")
    room = longest - len(ids) if longest is not None else DEFAULT_MOST[kind]
    most = min(DEFAULT_MOST[kind], room) if most is None else most
    stop = body.get("stop")
    stop = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or not all(isinstance(s, str) for s in stop):
        raise BadRequest(f"`stop` should be a text or a list of texts, this is {stop!r}", "stop")
    if not all(stop):
        raise BadRequest("a text of `stop` is empty, and would end every answer at once: leave it out", "stop")
    seed = _integer(body, "seed", -(2**63), 2**63, None)
    endless = _flag(body, "ignore_eos")  # as vLLM has it: answers of one length, for measuring
    common = {"ends": frozenset() if endless else speaker.ends, "temperature": _number(body, "temperature", 0, 5, 1.0),
              "top_p": _number(body, "top_p", 0, 1, 1.0),
              "stop": tuple(stop), "top_logprobs": top, "echo": echo,
              "numbered": _flag(body, "return_tokens_as_token_ids"),
              "goes_on": kind == "plain" and not all(map(speaker.pieces.left_out, ids))}  # fmt: skip
    n, ids = _integer(body, "n", 1, 128, 1), tuple(ids)
    first = secrets.randbits(62) if seed is None else abs(seed)  # drawn here, so that an ask that is tried again is answered alike
    return [Ask(ids, most, seed=first + k, **common) for k in range(n)]


def whole_text(body: dict) -> None:
    """Refuse halves of characters: they are no text, and neither a tokenizer nor an answer can carry them. Raises BadRequest."""
    for key, value in body.items():
        try:
            json.dumps([key, value], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            name = key.encode("ascii", "backslashreplace").decode()
            raise BadRequest(f"`{name}` has half a character in it (a surrogate without its other half)", name) from None
        except RecursionError:
            raise BadRequest(f"`{key}` is nested too deeply", key) from None


def streamed(body: dict) -> tuple[bool, bool]:
    """Whether the answer should be streamed, and whether the stream should end with its usage. Raises BadRequest."""
    said = body.get("stream_options")
    if said is not None and not isinstance(said, dict):
        raise BadRequest(f"`stream_options` should be an object, this is {said!r}", "stream_options")
    return _flag(body, "stream"), _flag(said or {}, "include_usage", "stream_options")


def _known(body: dict, known: set[str]) -> None:
    for key, value in body.items():
        alike = (*NEUTRAL.get(key, ()), *([body.get("n")] if key == "best_of" else []))  # the best n of n are all of them
        neutral = any(value == v and isinstance(value, bool) is isinstance(v, bool) for v in alike)
        if key not in known and value is not None and not neutral:
            raise BadRequest(f"`{key}` is not supported here" + (f" with the value {value!r}" if key in NEUTRAL else ""), key)


def _flag(body: dict, key: str, param: str | None = None) -> bool:
    value = body.get(key)
    if value is not None and not isinstance(value, bool):
        raise BadRequest(f"`{key}` should be true or false, this is {value!r}", param or key)
    return bool(value)


def _number(body: dict, key: str, least: float, most: float, default: float) -> float:
    value = body.get(key)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise BadRequest(f"`{key}` should be a number from {least} to {most}, this is {value!r}", key)
    return float(value)


def _integer(body: dict, key: str, least: int, most: int, default: int | None) -> int | None:
    value = body.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise BadRequest(f"`{key}` should be a whole number from {least} to {most}, this is {value!r}", key)
    return value


def _flat(message: dict) -> dict:
    """Text parts as one text."""
    content = message.get("content")
    if not isinstance(content, list):
        if content is not None and not isinstance(content, str):
            raise BadRequest(f"a message's `content` should be a text or a list of parts, this is {content!r}", "messages")
        return message | {"content": content or ""}
    if not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content):
        raise BadRequest("only text can be read here: parts of the type text, each with its text", "messages")
    return message | {"content": "".join(p["text"] for p in content)}
