"""Answers that are compared or judged: preference pairs (chosen, rejected) and labelled answers (KTO).

The prompt becomes `messages`, an answer becomes the messages that continue it. Whole conversations that share a beginning
are cut where they part.
"""

from __future__ import annotations

import re
from typing import Any

from slmkit.data import conversation, sharegpt
from slmkit.data.conversation import text
from slmkit.data.faults import Bad, kind

_HH = re.compile(r"\n\n(Human|Assistant):")


def answer(value: Any, where: str, prompt: list[dict]) -> tuple[dict, ...]:
    """An answer as text, as one message, as a list of them, or as a list that repeats the prompt first. Raises Bad."""
    if isinstance(value, str):
        if not text(value, f"`{where}`").strip():
            raise Bad(f"`{where}` is empty: there is no answer to learn")
        return ({"role": "assistant", "content": value},)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        raise Bad(f"`{where}` should be text or a list of messages, this is {kind(value)}")
    bare = prompt[1:] if prompt and prompt[0]["role"] == "system" else []  # a system message from a field of its own is not repeated
    told = next((p for p in (prompt, bare) if _repeats(value, where, p)), None)
    rest = _talk(value, where, 0)[len(told) :] if told else _talk([*prompt, *value], where, len(prompt))[len(prompt) :]
    if not rest or rest[0]["role"] != "assistant":
        raise Bad(f"`{where}` should go on with the assistant, this is {rest[0]['role'] if rest else 'empty'}")
    return tuple(rest)


def _talk(value: list, where: str, before: int) -> list[dict]:
    """Messages or sharegpt turns; the first `before` are the prompt's, done already."""
    if isinstance(value[-1], dict) and "from" in value[-1] and "role" not in value[-1]:
        return value[:before] + sharegpt.messages(value[before:], where, None, alone=True)
    done, rest = value[:before], value[before:]
    if any(isinstance(m, dict) and m.get("role") in ("tool", "function") for m in rest[:1]):
        raise Bad(f"`{where}` begins with a tool's message; the assistant's comes first")
    return done + conversation.messages(rest, where)


def _repeats(value: list, where: str, prompt: list[dict]) -> bool:
    """Does a list of messages begin with the prompt?"""
    if not prompt or len(value) <= len(prompt) or not all(isinstance(m, dict) and ("role" in m or "from" in m) for m in value):
        return False
    try:
        return _talk(value, where, 0)[: len(prompt)] == prompt
    except Bad:
        return False  # the fault is told when the list is read as a continuation


def preference(prompt: list[dict] | None, chosen: Any, rejected: Any) -> dict:
    """The Row fields of a pair. Raises Bad."""
    if prompt is None:
        prompt, good, bad = _parted(chosen, rejected)
    else:
        good, bad = answer(chosen, "chosen", prompt), answer(rejected, "rejected", prompt)
    if good == bad:
        raise Bad("`chosen` and `rejected` are the same: there is nothing to prefer")
    _open_end(prompt)
    return {"messages": tuple(prompt), "chosen": good, "rejected": bad}


def _parted(chosen: Any, rejected: Any) -> tuple[list[dict], tuple[dict, ...], tuple[dict, ...]]:
    """Two whole conversations into what they share and how each goes on."""
    good, bad = _whole(chosen, "chosen"), _whole(rejected, "rejected")
    same = 0
    while same < min(len(good), len(bad)) and good[same] == bad[same]:
        same += 1
    if same == len(good) == len(bad):
        raise Bad("`chosen` and `rejected` are the same: there is nothing to prefer")
    if not same:
        raise Bad("no `prompt`, and `chosen` and `rejected` do not begin alike: what is the prompt?")
    for name, rest in (("chosen", good[same:]), ("rejected", bad[same:])):
        if not rest or rest[0]["role"] != "assistant":
            found = f"with a {rest[0]['role']} message" if rest else "nowhere"
            raise Bad(f"`{name}` should part from the other with an assistant message, it goes on {found}")
    return good[:same], tuple(good[same:]), tuple(bad[same:])


def _whole(value: Any, where: str) -> list[dict]:
    value = conversation.listed(value, where)
    if isinstance(value, str):  # Anthropic's hh-rlhf writes whole conversations as text
        parts = _HH.split(value)
        if len(parts) < 4 or parts[0].strip():
            raise Bad(f"no `prompt`, and `{where}` is plain text: what is the prompt?")
        roles = {"Human": "user", "Assistant": "assistant"}
        value = [{"role": roles[who], "content": said.strip()} for who, said in zip(parts[1::2], parts[2::2], strict=True)]
    if not isinstance(value, list) or not value:
        raise Bad(f"`{where}` should be a conversation, this is {kind(value)}")
    return _talk(value, where, 0)


def cut_answer(whole: list[dict]) -> dict:
    """A conversation cut before its last message, which is the answer that is judged. Raises Bad."""
    if whole[-1]["role"] != "assistant":
        raise Bad(f"the last message is the {whole[-1]['role']}'s: there is no answer to judge")
    _open_end(whole[:-1])
    return {"messages": tuple(whole[:-1]), "chosen": (whole[-1],)}


def _open_end(prompt: list[dict]) -> None:
    if not any(m["role"] != "system" for m in prompt):
        raise Bad("the prompt is empty: there is nothing to answer")
    if prompt[-1]["role"] == "assistant":
        raise Bad("the prompt ends with an assistant message: the answer would be a second in a row")


def label(value: Any, cells: bool) -> bool:
    """true or false, or 1 and 0; in a table's text cells as words."""
    if cells and isinstance(value, str):
        value = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}.get(value.strip().lower(), value)
    if not isinstance(value, int | float) or value not in (0, 1):
        raise Bad(f"`label` should be true or false, or 1 and 0, this is {kind(value)}")
    return bool(value)
