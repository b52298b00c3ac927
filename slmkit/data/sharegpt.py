"""ShareGPT's turns (`from`, `value`) and glaive's call transcripts into messages.

A call is a turn of its own there; here it joins the assistant's words before it, or other calls, in one message.
"""

from __future__ import annotations

import json
import re
from typing import Any

from slmkit.data import conversation
from slmkit.data.conversation import text
from slmkit.data.faults import Bad, kind

ROLES = {
    "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "model": "assistant",
    "bot": "assistant", "system": "system", "developer": "developer",
    "function_call": "call", "tool_call": "call",
    "function_response": "tool", "observation": "tool", "tool": "tool", "tool_response": "tool", "function": "tool",
}  # fmt: skip
_TURN = re.compile(r"(?:^|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):")
_CALL = re.compile(r'<functioncall>\s*\{\s*"name":\s*"([^"]+)"\s*(?:,\s*"arguments":\s*(?:\'(.*)\'|(\{.*\})))?\s*\}', re.S)
_NO_MORE = re.compile(r"\s*with access to the following functions\. Use them if required\s*-?\s*$")


def messages(value: Any, where: str, system: Any, alone: bool = False) -> list[dict]:
    """A whole conversation; alone: an answer, which has no prompt before it. Raises Bad."""
    value = conversation.listed(value, where)
    if not isinstance(value, list) or not value:
        raise Bad(f"`{where}` should be a list of turns, this is {kind(value)}")
    found = [_turn(turn, f"{where}[{i}]") for i, turn in enumerate(value)]
    if alone and found[0]["role"] != "assistant":
        raise Bad(f"`{where}` should be the assistant's")
    return conversation.opened(conversation.messages(_joined(found), where), system, where)


def _turn(turn: Any, where: str) -> dict:
    if not isinstance(turn, dict):
        raise Bad(f"{where} should be an object, this is {kind(turn)}")
    for key in ("from", "value"):
        if key not in turn:
            raise Bad(f"{where} has no `{key}` (found: {', '.join(map(str, turn)) or 'nothing'})")
    role = ROLES.get(turn["from"].lower()) if isinstance(turn["from"], str) else None
    if role is None:
        raise Bad(f"{where}.from is `{turn['from']}`; known are {', '.join(ROLES)}")
    rest = {k: v for k, v in turn.items() if k not in ("from", "value")}
    if role == "call":
        return {"role": "assistant", "content": "", "tool_calls": _calls(turn["value"], where)} | rest
    return {"role": role, "content": text(turn["value"], f"{where}.value")} | rest


def _calls(value: Any, where: str) -> list[dict]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as e:
            raise Bad(f"{where}.value is a function call, and no JSON: {e}") from None
    calls = value if isinstance(value, list) else [value]
    return [conversation.call(one, f"{where}.value") for one in calls]


def _joined(found: list[dict]) -> list[dict]:
    out: list[dict] = []
    for message in found:
        before = out[-1] if out else {}
        if message.get("tool_calls") and before.get("role") == "assistant":
            out[-1] = before | {"tool_calls": [*before.get("tool_calls", []), *message["tool_calls"]]}
        else:
            out.append(message)
    return out


def glaive(chat: str, system: str) -> tuple[list[dict], list[dict]]:
    """(messages, tools) of glaive-function-calling-v2's `system` and `chat` texts. Raises Bad."""
    said, tools = _offered(system)
    found = [{"role": "system", "content": said}] if said else []
    parts = _TURN.split(chat)
    if len(parts) < 3:
        raise Bad("`chat` has no turns: they begin with USER:, ASSISTANT: or FUNCTION RESPONSE:")
    for who, body in zip(parts[1::2], parts[2::2], strict=True):
        body = body.replace("<|endoftext|>", "").strip()
        if who == "USER":
            found.append({"role": "user", "content": body})
        elif who == "FUNCTION RESPONSE":
            found.append({"role": "tool", "content": body})
        else:
            found.append({"role": "assistant"} | _called(body))
    return conversation.messages(found, "chat"), tools


def _called(body: str) -> dict:
    if "<functioncall>" not in body:
        return {"content": body}
    match = _CALL.search(body)
    if not match:
        raise Bad("`chat` holds a <functioncall> that cannot be read")
    arguments = (match[2] or match[3] or "{}").replace("\\'", "'")
    call = {"name": match[1], "arguments": arguments}
    return {"content": body[: match.start()].strip(), "tool_calls": [call]}


def _offered(system: str) -> tuple[str, list[dict]]:
    """The system text without its functions, and the functions: JSON objects one after another."""
    system = system.removeprefix("SYSTEM:").strip()
    start = system.find("{")
    if start < 0:
        return system, []
    decoder, tools, pos = json.JSONDecoder(), [], start
    try:
        while pos < len(system):
            tool, pos = decoder.raw_decode(system, pos)
            tools.append(tool)
            while pos < len(system) and system[pos] in " \t\r\n,":
                pos += 1
    except ValueError as e:
        raise Bad(f"`system` offers functions that are no JSON: {e}") from None
    return _NO_MORE.sub(".", system[:start].strip()), tools
