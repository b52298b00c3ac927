"""Messages as people write them into messages of one shape (see `Row`): tool calls with objects as arguments, one name for thinking.

What nothing here would read is refused rather than lost: images, unknown keys, unknown roles, a tool's answer without a call.
"""

from __future__ import annotations

import json
import re
from typing import Any

from slmkit.data.faults import Bad, kind
from slmkit.data.rows import ROLES

THINKING = ("reasoning_content", "reasoning", "thinking")
READ = {"role", "content", "name", "tool_call_id", "tool_calls", "function_call", "weight", *THINKING}
CALL_MARKS = ("<tool_call", "<function", "<|tool_call", "[TOOL_CALLS]", "<|python_tag|>", "<|action_start|>")
"""How models write a call into their text: rows that hold calls as text have no `tool_calls`."""
WRITTEN = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
"""A call in a text, as Hermes, Qwen and others write it."""


def messages(value: Any, where: str = "messages") -> list[dict]:
    """A whole conversation. Raises Bad."""
    value = listed(value, where)
    if not isinstance(value, list) or not value:
        raise Bad(f"`{where}` should be a list of messages, this is {kind(value)}")
    out: list[dict] = []
    for i, message in enumerate(value):
        out.append(_message(message, f"{where}[{i}]"))
        if out[-1]["role"] == "tool":
            _answers(out, f"{where}[{i}]")
    return out


def opened(found: list[dict], system: Any, where: str) -> list[dict]:
    """A conversation with the row's own `system` field as its system message. Raises Bad where it has another one already."""
    if system in (None, ""):
        return found
    first = {"role": "system", "content": text(system, "`system`")}
    if not found or found[0]["role"] not in ("system", "developer"):
        return [first, *found]
    if found[0]["content"] != system:
        raise Bad(f"`system` and {where}[0] are two system messages, which differ; keep one")
    return found


def answered(found: list[dict]) -> list[dict]:
    if not any(m["role"] == "assistant" for m in found):
        raise Bad("no assistant message: there is no answer to learn")
    return found


def listed(value: Any, where: str) -> Any:
    """A list may come as JSON text: CSV and many Parquet files have no other way."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as e:
        raise Bad(f"`{where}` holds text that is no JSON: {e}") from None


def text(value: Any, where: str) -> str:
    """A string that can be written as UTF-8. Raises Bad."""
    if not isinstance(value, str):
        raise Bad(f"{where} should be a string, this is {kind(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as e:
            raise Bad(f"{where} holds a lone surrogate (\\u{ord(value[e.start]):04x}), half a character: text was cut in the middle") from None
    return value


def _message(message: Any, where: str) -> dict:
    if not isinstance(message, dict):
        raise Bad(f"{where} should be an object, this is {kind(message)}")
    if "role" not in message:
        raise Bad(f"{where} has no `role` (found: {', '.join(map(str, message)) or 'nothing'})")
    role = message["role"]
    if not isinstance(role, str):
        raise Bad(f"{where}.role should be a string, this is {kind(role)}")
    role = "tool" if role == "function" else role
    if role not in ROLES:
        raise Bad(f"{where}.role is `{role}`; roles are {', '.join(ROLES)}")
    _all_read(message, role, where)
    calls = _calls(message, where) if role == "assistant" else []
    out = {"role": role, "content": _content(message, where, bool(calls))}
    if role == "assistant":
        if not calls and not out["content"].strip():
            raise Bad(f"{where}.content is empty: there is no answer to learn")
        out |= _thinking(message, where) | ({"tool_calls": calls} if calls else {})
    else:
        out |= {k: text(message[k], f"{where}.{k}") for k in ("name", "tool_call_id") if message.get(k) is not None}
    return out


def _all_read(message: dict, role: str, where: str) -> None:
    mine = {"assistant": READ - {"name", "tool_call_id"}, "tool": {"role", "content", "name", "tool_call_id", "weight"}}
    read = mine.get(role, {"role", "content", "weight"})
    for key, value in message.items():
        if key not in read and value not in (None, [], {}):
            raise Bad(f"{where} has `{key}`, which nothing here reads: it would be lost")
    if role == "assistant" and message.get("weight") not in (None, 1):
        raise Bad(f"{where}.weight is {message['weight']}: every assistant message is learned; leave the row out, or cut it before this message")


def _content(message: dict, where: str, calls: bool) -> str:
    if "content" not in message and not calls:
        raise Bad(f"{where} has no `content` (found: {', '.join(map(str, message)) or 'nothing'})")
    value = message.get("content")
    if value is None and calls:
        return ""
    if not isinstance(value, list):
        return text(value, f"{where}.content")
    parts = []
    for i, part in enumerate(value):
        at = f"{where}.content[{i}]"
        if not isinstance(part, dict) or part.get("type") != "text":
            what = part.get("type") if isinstance(part, dict) else kind(part)
            raise Bad(f"{at} is {what}; only parts of type text are read")
        parts.append(text(part.get("text"), f"{at}.text"))
    return "".join(parts)


def _thinking(message: dict, where: str) -> dict:
    found = {k: text(message[k], f"{where}.{k}") for k in THINKING if message.get(k)}
    if len(set(found.values())) > 1:
        raise Bad(f"{where} has {' and '.join(f'`{k}`' for k in found)}, which differ: keep one")
    return {"reasoning_content": next(iter(found.values()))} if found else {}


def _calls(message: dict, where: str) -> list[dict]:
    value, at = message.get("tool_calls"), f"{where}.tool_calls"
    if value is None and message.get("function_call") is not None:  # OpenAI's older way: one call
        value, at = [message["function_call"]], f"{where}.function_call"
    value = listed(value, at)
    if value in (None, [], ""):
        return []
    if not isinstance(value, list):
        raise Bad(f"{at} should be a list, this is {kind(value)}")
    return [call(one, f"{at}[{i}]") for i, one in enumerate(value)]


def call(value: Any, where: str) -> dict:
    """One tool call in OpenAI's shape, its arguments an object. The function may also stand alone, without `type` and `id`."""
    if not isinstance(value, dict):
        raise Bad(f"{where} should be an object, this is {kind(value)}")
    function = value.get("function", value)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise Bad(f"{where} has no function name")
    given = function.get("arguments", function.get("parameters"))
    arguments = {} if given is None or given == "" else listed(given, f"{where}.arguments")
    if not isinstance(arguments, dict):
        raise Bad(f"{where}.arguments should be an object or its JSON text, this is {kind(arguments)}")
    _clean(arguments, f"{where}.arguments")
    ident = {"id": text(value["id"], f"{where}.id")} if value.get("id") not in (None, "") else {}
    return ident | {"type": "function", "function": {"name": text(function["name"], f"{where}.name"), "arguments": arguments}}


def _clean(value: Any, where: str) -> None:
    """No lone surrogate, no NaN, anywhere in an object."""
    try:
        whole = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as e:
        raise Bad(f"{where} is no JSON: {e}") from None
    text(whole, where)


def _answers(found: list[dict], where: str) -> None:
    """A tool's message must answer a call that was made just before."""
    asked = next((m for m in reversed(found) if m["role"] != "tool"), None)
    calls = asked.get("tool_calls", []) if asked and asked["role"] == "assistant" else None
    if calls is None or (not calls and not any(mark in asked["content"] for mark in CALL_MARKS)):
        raise Bad(f"{where} is a tool's answer, and no tool call comes before it")
    ids = [c["id"] for c in calls if "id" in c]
    answer = found[-1].get("tool_call_id")
    if answer and ids and answer not in ids:
        raise Bad(f"{where}.tool_call_id is `{answer}`; the calls before it are {', '.join(ids)}")


def tools(value: Any, where: str = "tools") -> list[dict]:
    """Functions on offer, as OpenAI writes them; a bare `{name, parameters}` is put into that shape."""
    value = listed(value, where)
    if value in (None, "", [], {}):
        return []
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list):
        raise Bad(f"`{where}` should be a list of functions or its JSON text, this is {kind(value)}")
    out = []
    for i, one in enumerate(value):
        one = listed(one, f"{where}[{i}]")
        function = one.get("function", one) if isinstance(one, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Bad(f"{where}[{i}] has no function name")
        _clean(one, f"{where}[{i}]")
        out.append(one if "function" in one else {"type": "function", "function": one})
    return out
