"""Nothing a row says may be lost on the way into text: templates drop roles, keys and tools without a word.

A message's content must be found in the rendering, in order, up to outer whitespace; so must tools' names, the names of tool calls and the
values of their arguments. What is trained must hold the whole turn, reasoning too; reasoning of earlier turns may be dropped, as
it will be in use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from slmkit.ml.render import REASONING, Fault, split_thinking

_SWITCH = re.compile(r"/(no_)?think")


def check_context(messages: list[dict], tools: tuple[dict, ...], text: str) -> None:
    """Raise Fault unless all that `messages` say is in `text`. System prompts may stand anywhere: some templates move them."""
    at = 0
    for k, message in enumerate(messages):
        content, role = message["content"], message["role"]
        if role == "assistant":
            content = split_thinking(content)[1]
        if not (role == "assistant" and message.get("tool_calls")):  # beside calls, gpt-oss takes the content for analysis, and drops it later
            moved = role in ("system", "developer")
            found = _find(content, text, 0 if moved else at)
            if found < 0 and moved:  # SmolLM3 takes these two out of the system prompt and says by other words what they ask for
                found = _find(_SWITCH.sub("", content), text)
            if found < 0:
                raise Fault(f"the chat template loses messages[{k}].content (role `{role}`): it is not in the rendering", _MEND)
            at = at if moved else found
        at = _calls(message, k, text, at, "it is not in the rendering")
    for tool in tools:
        name = tool.get("function", tool).get("name", "")
        if name not in text:
            raise Fault(f"the chat template does not render `tools`: `{name}` is not in the rendering", "choose a model whose template takes tools")


def check_answer(message: dict, k: int, trained: str, answer: str) -> None:
    """Raise Fault unless `trained` (the text up to the end of turn, of all that is rendered: `answer`) holds the whole turn messages[k]."""
    thought, content = split_thinking(message["content"])
    given = next(((key, message[key]) for key in REASONING if message.get(key)), None)
    for key, said in ((given,) if given else ()) + ((("content", thought),) if thought else ()):
        if _find(said, trained) < 0:
            mend = "write `thinking: strip` to train on the answers alone"
            raise Fault(f"the chat template drops the reasoning of messages[{k}].{key}, which would be trained", mend)
    at = _find(content, trained)
    if at < 0 and _find(content, answer) >= 0:
        raise Fault(f"messages[{k}].content holds an end-of-turn token itself, so the turn would end in the middle", "take it out of the content")
    if at < 0:
        raise Fault(f"the chat template loses messages[{k}].content: what would be trained is {_excerpt(trained)}", _MEND)
    _calls(message, k, trained, 0, f"what would be trained is {_excerpt(trained)}")


_MEND = "take out of the rows what this template cannot express, or give another `chat_template`"


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "…")


def _calls(message: dict, k: int, text: str, at: int, why: str) -> int:
    """Look for the message's tool calls from `at` on; returns the place of the last one."""
    for i, call in enumerate(message.get("tool_calls") or ()):
        function = call.get("function", call)
        found = _find(function.get("name", ""), text, at)
        if found < 0:
            raise Fault(f"the chat template loses messages[{k}].tool_calls[{i}] (`{function.get('name')}`): {why}", _MEND)
        at = found
        for value in _leaves(function.get("arguments")):
            if _find(value, text, at) < 0:
                where = f"messages[{k}].tool_calls[{i}].function.arguments"
                raise Fault(f"the chat template loses {value!r} of {where}: {why}", _MEND)
    return at


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    elif value is not None:
        yield value


def _find(value: Any, text: str, start: int = 0) -> int:
    """Where `value` stands in `text`, as it is or as JSON or Python write it; -1 if nowhere."""
    if isinstance(value, str):
        bare = value.strip()
        at = text.find(bare, start)
        if at >= 0:
            return at
        forms = (json.dumps(bare, ensure_ascii=False)[1:-1], json.dumps(bare)[1:-1], repr(bare)[1:-1])
    else:
        forms = (json.dumps(value), str(value))
    return min((at for form in forms if (at := text.find(form, start)) >= 0), default=-1)
