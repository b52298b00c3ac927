"""What rows look like in the wild, and how each look becomes a `Row`: the format is told by the fields of the first row.

A format says how a row writes its conversation (messages, sharegpt, alpaca, …); the form says what the row is for: to learn
from (messages, completion, text), a preference pair, or an answer with a label. The three conversational formats can each
have every form. All later rows must have the fields of the first.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

from slmkit.data import conversation, pairs, sharegpt
from slmkit.data.conversation import answered, text
from slmkit.data.faults import Bad, kind
from slmkit.data.rows import Form
from slmkit.data.tables import Cells

TALKS = ("messages", "conversations", "conversation")
NAMES = ("messages", "completion", "alpaca", "sharegpt", "preference", "label", "text", "glaive")
FIELDS = {
    "messages": {"messages", "conversations", "conversation"}, "sharegpt": {"messages", "conversations", "conversation", "kto_tag"},
    "alpaca": {"instruction", "input", "output", "history", "kto_tag"}, "glaive": {"chat"}, "text": {"text"}, "completion": {"prompt", "completion"},
    "preference": {"prompt", "chosen", "rejected", "messages"}, "label": {"prompt", "completion", "messages", "label", "kto_tag"},
}  # fmt: skip
"""By which fields each format is told."""
ALL_FIELDS = set().union(*FIELDS.values())
UNKNOWN = (
    "no known format (found: {}); known are `messages`, `prompt` + `completion`, `instruction` + `output`, `conversations`, "
    "`chosen` + `rejected`, `text`; a column mapping can name the fields"
)


def has(record: dict, *keys: str) -> bool:
    """Are these fields there, and not null (in a table: not an empty cell)?"""
    for key in keys:
        value = record.get(key)
        if value is None or (value == "" and isinstance(record, Cells)):
            return False
    return True


def talk(record: dict) -> str | None:
    """The field that holds the conversation."""
    for key in TALKS:
        if has(record, key):
            return key
    return None


def detect(record: dict) -> tuple[str, Form]:
    """(format, form) of a record. Raises Bad."""
    if has(record, "chosen", "rejected"):
        if talk(record) and _is_sharegpt(record):
            return "sharegpt", "preference"
        return ("alpaca" if has(record, "instruction") else "preference"), "preference"
    labelled = has(record, "kto_tag") or _is_bool(record)
    if talk(record):
        if not labelled:
            return _talk_format(record), "messages"
        return ("sharegpt" if _is_sharegpt(record) else "label"), "label"
    if has(record, "instruction", "output") or ("instruction" in record and "output" in record):
        return "alpaca", "label" if labelled else "messages"
    if "prompt" in record and "completion" in record:
        return ("label", "label") if labelled else ("completion", _completion_form(record))
    if has(record, "chat") and isinstance(record["chat"], str):
        return "glaive", "messages"
    if "text" in record:
        return "text", "text"
    raise Bad(_unknown(record))


def _unknown(record: dict) -> str:
    inner = next((k for k, v in record.items() if isinstance(v, list) and v and isinstance(v[0], dict)), None)
    wrapped = f"; do the rows lie under `{inner}`? `jq -c '.{inner}[]' FILE > rows.jsonl` takes them out" if inner and len(record) < 4 else ""
    return UNKNOWN.format(", ".join(map(str, record)) or "nothing") + wrapped


def named(format: str, record: dict) -> tuple[str, Form]:
    """(format, form) where the recipe named the format: the form still follows the fields."""
    plain: dict[str, Form] = {"text": "text", "preference": "preference", "label": "label", "glaive": "messages", "columns": "messages"}
    if format == "completion":
        return format, _completion_form(record)
    if format in plain:
        return format, plain[format]
    if has(record, "chosen", "rejected"):
        return ("preference" if format == "messages" else format), "preference"
    if has(record, "kto_tag") or _is_bool(record):
        return ("label" if format == "messages" else format), "label"
    return format, "messages"


def _talk_format(record: dict) -> str:
    return "sharegpt" if _is_sharegpt(record) else "messages"


def _is_sharegpt(record: dict) -> bool:
    key = talk(record)
    value = conversation.listed(record[key], key)
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and "from" in first and "role" not in first


def _is_bool(record: dict) -> bool:
    value = record.get("label")
    return isinstance(value, bool) or (isinstance(record, Cells) and str(value).lower() in ("true", "false"))


def _completion_form(record: dict) -> Form:
    parts = [_said(record, key, "completion") for key in ("prompt", "completion")]
    return "messages" if any(isinstance(p, list) for p in parts) else "completion"


def converter(format: str, form: Form, system: str | None) -> Callable[[dict], dict[str, Any]]:
    """The function from a record to the fields of its Row. It raises Bad."""
    make = _MAKERS[format, form]
    if system is None:
        return make
    if form in ("completion", "text"):
        raise Bad(f"a fixed `system` message needs a conversation, and these rows are {form}")

    def with_system(record: dict) -> dict[str, Any]:
        made = make(record)
        if made["messages"] and made["messages"][0]["role"] in ("system", "developer"):
            raise Bad("the row has a system message of its own, and the recipe's `system` would be a second")
        return made | {"messages": ({"role": "system", "content": system}, *made["messages"])}

    return with_system


def need(record: dict, key: str, format: str) -> Any:
    if key not in record:
        raise Bad(f"no `{key}`, which rows of format {format} have (found: {', '.join(map(str, record)) or 'nothing'})")
    return record[key]


def _said(record: dict, key: str, format: str) -> Any:
    """A prompt or an answer. In a text cell, a JSON list of messages is that list; elsewhere text is text, even if it looks like JSON."""
    value = need(record, key, format)
    if isinstance(record, Cells) and isinstance(value, str) and value.lstrip()[:1] == "[":
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(value)
            if found and all(isinstance(m, dict) and ("role" in m or "from" in m) for m in found):
                return found
    return value


def _tools(record: dict) -> tuple[dict, ...]:
    return tuple(conversation.tools(record.get("tools") or record.get("functions")))


def _string(record: dict, key: str, format: str) -> str:
    return text(need(record, key, format), f"`{key}`")


def _messages(record: dict) -> dict:
    key = talk(record) or next((k for k in TALKS if k in record), None) or "messages"
    need(record, key, "messages")
    return {"messages": tuple(answered(conversation.messages(record[key], key))), "tools": _tools(record)}


def _sharegpt(record: dict) -> list[dict]:
    key = talk(record) or "conversations"
    return sharegpt.messages(need(record, key, "sharegpt"), key, record.get("system"))


def _completion(record: dict) -> dict:
    prompt, completion = _string(record, "prompt", "completion"), _string(record, "completion", "completion")
    if not completion.strip():
        raise Bad("`completion` is empty")
    if _tools(record):
        raise Bad("`tools` need messages, and prompt and completion are strings here")
    return {"prompt": prompt, "completion": completion}


def _completion_messages(record: dict) -> dict:
    prompt = _prompt(record)
    if prompt is None:
        raise Bad("no `prompt`, which rows of format completion have")
    return {"messages": (*prompt, *pairs.answer(_said(record, "completion", "completion"), "completion", prompt)), "tools": _tools(record)}


def _text(record: dict) -> dict:
    if not _string(record, "text", "text").strip():
        raise Bad("`text` is empty")
    return {"text": record["text"]}


def _columns(record: dict) -> dict:
    """A mapping of `user` and `assistant`."""
    user, answer = (text(record[k], f"`{k}`") for k in ("user", "assistant"))
    if not answer.strip():
        raise Bad("the assistant's content is empty: there is no answer to learn")
    return {"messages": ({"role": "user", "content": user}, {"role": "assistant", "content": answer}), "tools": _tools(record)}


def _alpaca_prompt(record: dict) -> list[dict]:
    """system, history, then instruction and input on a line of its own, as LLaMA-Factory joins them."""
    parts = [text(record[k], f"`{k}`") for k in ("instruction", "input") if has(record, k) and record[k]]
    need(record, "instruction", "alpaca")
    if not any(p.strip() for p in parts):
        raise Bad("`instruction` is empty")
    found = [{"role": "system", "content": text(record["system"], "`system`")}] if has(record, "system") and record["system"] else []
    history = conversation.listed(record.get("history"), "history") or []
    if not isinstance(history, list):
        raise Bad(f"`history` should be a list of [user, assistant] pairs, this is {kind(history)}")
    for i, turn in enumerate(history):
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise Bad(f"history[{i}] should be a pair [user, assistant], this is {kind(turn)}")
        roles = zip(("user", "assistant"), turn, strict=True)
        found += [{"role": role, "content": text(said, f"history[{i}]")} for role, said in roles]
    return [*found, {"role": "user", "content": "\n".join(parts)}]


def _alpaca(record: dict) -> dict:
    answer = pairs.answer(need(record, "output", "alpaca"), "output", [])
    return {"messages": (*_alpaca_prompt(record), *answer), "tools": _tools(record)}


def _glaive(record: dict) -> dict:
    found, tools = sharegpt.glaive(_string(record, "chat", "glaive"), text(record.get("system") or "", "`system`"))
    return {"messages": tuple(answered(found)), "tools": tuple(conversation.tools(tools))}


def _prompt(record: dict) -> list[dict] | None:
    """The explicit prompt of a pair or a labelled answer, if there is one."""
    if has(record, "prompt"):
        prompt = _said(record, "prompt", "completion")
        if not isinstance(prompt, str):
            return conversation.messages(prompt, "prompt")
        first = [{"role": "system", "content": text(record["system"], "`system`")}] if has(record, "system") and record["system"] else []
        return [*first, {"role": "user", "content": text(prompt, "`prompt`")}]
    key = talk(record)
    return conversation.messages(record[key], key) if key else None


def _preference(prompt: Callable[[dict], list[dict] | None]) -> Callable[[dict], dict]:
    def make(record: dict) -> dict:
        chosen, rejected = (_said(record, k, "preference") for k in ("chosen", "rejected"))
        return pairs.preference(prompt(record), chosen, rejected) | {"tools": _tools(record)}

    return make


def _label(record: dict) -> dict:
    label = pairs.label(need(record, "label" if "kto_tag" not in record else "kto_tag", "label"), isinstance(record, Cells))
    if "completion" in record:
        prompt = _prompt(record)
        if prompt is None:
            raise Bad("no `prompt`, which rows of format label have")
        made = {"messages": tuple(prompt), "chosen": pairs.answer(_said(record, "completion", "label"), "completion", prompt)}
    else:
        key = talk(record) or "messages"
        made = pairs.cut_answer(conversation.messages(need(record, key, "label"), key))
    return made | {"label": label, "tools": _tools(record)}


def _tagged(whole: Callable[[dict], list[dict]]) -> Callable[[dict], dict]:
    def make(record: dict) -> dict:
        key = "kto_tag" if "kto_tag" in record else "label"
        label = pairs.label(need(record, key, "label"), isinstance(record, Cells))
        return pairs.cut_answer(whole(record)) | {"label": label, "tools": _tools(record)}

    return make


_MAKERS: dict[tuple[str, str], Callable[[dict], dict]] = {
    ("messages", "messages"): _messages,
    ("completion", "completion"): _completion,
    ("completion", "messages"): _completion_messages,
    ("text", "text"): _text,
    ("columns", "messages"): _columns,
    ("glaive", "messages"): _glaive,
    ("alpaca", "messages"): _alpaca,
    ("alpaca", "preference"): _preference(_alpaca_prompt),
    ("alpaca", "label"): _tagged(lambda record: list(_alpaca(record)["messages"])),
    ("sharegpt", "messages"): lambda record: {"messages": tuple(answered(_sharegpt(record))), "tools": _tools(record)},
    ("sharegpt", "preference"): _preference(_sharegpt),
    ("sharegpt", "label"): _tagged(_sharegpt),
    ("preference", "preference"): _preference(_prompt),
    ("label", "label"): _label,
}
