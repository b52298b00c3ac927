"""How each look of a row becomes a `Row`: a function for every format and form, which `telling` has told by the first row.

A row's own `system` field becomes the system message of its conversation, whatever the format (in glaive's it holds the functions, too).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slmkit.data import conversation, pairs, sharegpt
from slmkit.data.conversation import answered, opened, text
from slmkit.data.faults import Bad, kind
from slmkit.data.rows import Form
from slmkit.data.tables import Cells
from slmkit.data.telling import SYSTEMS, TALKS, Otherwise, has, need, said, talk


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


def _tools(record: dict) -> tuple[dict, ...]:
    return tuple(conversation.tools(record.get("tools") or record.get("functions")))


def _string(record: dict, key: str, format: str) -> str:
    return text(need(record, key, format), f"`{key}`")


def _messages(record: dict) -> dict:
    key = talk(record) or next((k for k in TALKS if k in record), None) or "messages"
    need(record, key, "messages")
    found = opened(conversation.messages(record[key], key), record.get("system"), key)
    return {"messages": tuple(answered(found)), "tools": _tools(record)}


def _sharegpt(record: dict) -> list[dict]:
    key = talk(record) or "conversations"
    return sharegpt.messages(need(record, key, "sharegpt"), key, record.get("system"))


def _completion(record: dict) -> dict:
    prompt, completion = _string(record, "prompt", "completion"), _string(record, "completion", "completion")
    if record.get("system"):
        raise Otherwise(SYSTEMS)
    if not completion.strip():
        raise Bad("`completion` is empty")
    if _tools(record):
        raise Bad("`tools` need messages, and prompt and completion are strings here")
    return {"prompt": prompt, "completion": completion}


def _completion_messages(record: dict) -> dict:
    prompt = _prompt(record)
    if prompt is None:
        raise Bad("no `prompt`, which rows of format completion have")
    return {"messages": (*prompt, *pairs.answer(said(record, "completion", "completion"), "completion", prompt)), "tools": _tools(record)}


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


def earlier(record: dict) -> list[dict]:
    """The turns of an alpaca row's `history`."""
    found: list[dict] = []
    history = conversation.listed(record.get("history"), "history") or []
    if not isinstance(history, list):
        raise Bad(f"`history` should be a list of [user, assistant] pairs, this is {kind(history)}")
    for i, turn in enumerate(history):
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise Bad(f"history[{i}] should be a pair [user, assistant], this is {kind(turn)}")
        roles = zip(("user", "assistant"), turn, strict=True)
        found += [{"role": role, "content": text(words, f"history[{i}]")} for role, words in roles]
    return found


def _alpaca_prompt(record: dict) -> list[dict]:
    """system, history, then instruction and input on a line of its own, as LLaMA-Factory joins them."""
    parts = [text(record[k], f"`{k}`") for k in ("instruction", "input") if has(record, k) and record[k]]
    need(record, "instruction", "alpaca")
    if not any(p.strip() for p in parts):
        raise Bad("`instruction` is empty")
    return opened([*earlier(record), {"role": "user", "content": "\n".join(parts)}], record.get("system"), "history")


def _alpaca(record: dict) -> dict:
    answer = pairs.answer(need(record, "output", "alpaca"), "output", [])
    return {"messages": (*_alpaca_prompt(record), *answer), "tools": _tools(record)}


def _glaive(record: dict) -> dict:
    found, tools = sharegpt.glaive(_string(record, "chat", "glaive"), text(record.get("system") or "", "`system`"))
    return {"messages": tuple(answered(found)), "tools": tuple(conversation.tools(tools))}


def _prompt(record: dict) -> list[dict] | None:
    """The explicit prompt of a pair or a labelled answer, if there is one."""
    if has(record, "prompt"):
        key, prompt = "prompt", said(record, "prompt", "completion")
        found = [{"role": "user", "content": text(prompt, "`prompt`")}] if isinstance(prompt, str) else conversation.messages(prompt, "prompt")
    elif key := talk(record):
        found = conversation.messages(record[key], key)
    else:
        return None
    return opened(found, record.get("system"), key)


def _preference(prompt: Callable[[dict], list[dict] | None]) -> Callable[[dict], dict]:
    def make(record: dict) -> dict:
        chosen, rejected = (said(record, k, "preference") for k in ("chosen", "rejected"))
        given = prompt(record)
        made = pairs.preference(given, chosen, rejected) | {"tools": _tools(record)}
        if given is None:  # two whole conversations, whose beginning is known only now
            made["messages"] = tuple(opened(list(made["messages"]), record.get("system"), "chosen"))
        return made

    return make


def _label(record: dict) -> dict:
    label = pairs.label(need(record, "label" if "kto_tag" not in record else "kto_tag", "label"), isinstance(record, Cells))
    if "completion" in record:
        prompt = _prompt(record)
        if prompt is None:
            raise Bad("no `prompt`, which rows of format label have")
        made = {"messages": tuple(prompt), "chosen": pairs.answer(said(record, "completion", "label"), "completion", prompt)}
    else:
        key = talk(record) or "messages"
        made = pairs.cut_answer(opened(conversation.messages(need(record, key, "label"), key), record.get("system"), key))
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
