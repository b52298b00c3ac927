"""Calls of functions in a teacher's answer: read, checked against the functions on offer, and put into the row as OpenAI writes them.

Arguments and functions stay JSON text in the row: as nested columns, `datasets` would give every call the fields of all others.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from slmkit.data.conversation import WRITTEN
from slmkit.data.conversation import tools as read_tools
from slmkit.data.faults import Bad
from slmkit.data.read import shown
from slmkit.errors import Problem, RecipeError
from slmkit.teach import replies
from slmkit.teach.request import Answer

MEND = 'a JSON list of functions: [{"type": "function", "function": {"name": …, "parameters": {…}}}]'


def offered(path: Path) -> tuple[dict, ...]:
    """The functions of a file. Raises RecipeError."""
    try:
        found = read_tools(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError, Bad) as e:
        raise RecipeError([Problem(f"no functions: {e}", shown(path), mend=MEND)]) from None
    if not found:
        raise RecipeError([Problem("no functions in this file", shown(path), mend=MEND)])
    for one in found:
        if fault := unfit(one):
            raise RecipeError([Problem(fault, shown(path), mend="`parameters` is a JSON Schema of type object")])
    return tuple(found)


def unfit(tool: dict) -> str | None:
    """What is wrong with a function's own schema."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(tool["function"].get("parameters") or {})
    except SchemaError as e:
        return f"the parameters of `{tool['function']['name']}` are no JSON Schema: {e.message[:120]}"
    return None


def calls_of(answer: Answer) -> tuple[list[tuple[str, str, Any]], str]:
    """([(id, name, arguments)], the words beside them). Models without a parser at their endpoint write calls into the text."""
    said, (_, text) = answer.message.get("tool_calls"), replies.thought(answer.text)
    if isinstance(said, list) and said:
        return [_call(one, i) for i, one in enumerate(said)], text
    written = WRITTEN.findall(text)
    if written:
        return [_call(_json(one), i) for i, one in enumerate(written)], WRITTEN.sub("", text).strip()
    return [], text


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _call(value: Any, number: int) -> tuple[str, str, Any]:
    value = value if isinstance(value, dict) else {}
    function = value.get("function") if isinstance(value.get("function"), dict) else value
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        arguments = _json(arguments) if arguments.strip() else {}
    ident = value.get("id")
    return ident if isinstance(ident, str) and ident else f"call_{number + 1}", str(function.get("name") or ""), {} if arguments == {} else arguments


@functools.lru_cache(maxsize=1024)
def _validator(schema: str):
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(schema))


def fault(calls: list[tuple[str, str, Any]], tools: tuple[dict, ...]) -> str | None:
    """Why the calls are no good: an unknown function, arguments that its schema refuses."""
    known = {t["function"]["name"]: t for t in tools}
    for _, name, arguments in calls:
        if name not in known:
            return f"a call of `{name[:60]}`, which was not on offer"
        if not isinstance(arguments, dict):
            return f"the arguments of `{name}` are no JSON object"
        if wrong := unfit(known[name]):
            return wrong
        schema = json.dumps(known[name]["function"].get("parameters") or {}, sort_keys=True)
        first = next(iter(sorted(_validator(schema).iter_errors(arguments), key=str)), None)
        if first is not None:
            at = ".".join(map(str, first.absolute_path))
            return f"the arguments of `{name}` do not satisfy its schema{f' at {at}' if at else ''}: {first.message[:120]}"
    return None


def said(calls: list[tuple[str, str, Any]], text: str) -> dict:
    """The assistant's message."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {"id": ident, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}}
            for ident, name, arguments in calls
        ]
    return message
