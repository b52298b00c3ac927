"""Ollama's Modelfile. Ollama does not run a file's own (Jinja) chat template: without a TEMPLATE in its own (Go) language, or a template it
happens to know, it gives a model the bare question.

Most chat templates only put something before and after each message, by its role. That much is found by rendering conversations and looking
at what stands around the contents, written as Go, and then tried against the Jinja template on others. What is more than that is left out, and said.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

ROLES = ("system", "user", "assistant")
_MARKS = ("\u2039first\u203a", "\u2039second\u203a", "\u2039third\u203a")


def modelfile(name: str, tokenizer: Any, ends: set[int], context: int, sampling: dict[str, float]) -> str:
    """The text of a Modelfile for `ollama create NAME -f Modelfile`. context: the most tokens of the model."""
    lines = [f"FROM ./{name}", f"PARAMETER num_ctx {min(context, 8192)}"]
    lines += [f"PARAMETER {key} {value}" for key, value in sorted(sampling.items())]
    lines += [f"PARAMETER stop {json.dumps(t, ensure_ascii=False)}" for t in tokenizer.convert_ids_to_tokens(sorted(ends)) if t]
    parts = _parts(tokenizer)
    ids = tokenizer("a")["input_ids"]
    bos = tokenizer.bos_token if ids and ids[0] == tokenizer.bos_token_id else None  # llama.cpp puts it there
    if parts is None:
        lines.append("# No TEMPLATE: the chat template is more than was found to be said in Ollama's language. Ask with `raw`, a prompt of your own.")
    else:
        lines.append(f'TEMPLATE """{go(parts, bos)}"""')
    return "\n".join(lines) + "\n"


def said(modelfile: str) -> str:
    """What the card says of it."""
    if "\nTEMPLATE " in modelfile:
        return "The Modelfile's TEMPLATE was made from the chat template and agrees with it on conversations without tools; it was not run in Ollama."
    return "The Modelfile has no TEMPLATE: the chat template says more than could be written for Ollama. Use llama.cpp, or write one."


def sampling(folder: Path) -> dict[str, float]:
    """How the model's makers sample it, by Ollama's names; greedy where they do not sample."""
    file = folder / "generation_config.json"
    told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not told.get("do_sample"):
        return {"temperature": 0}
    known = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "repetition_penalty": "repeat_penalty"}
    return {theirs: told[ours] for ours, theirs in known.items() if told.get(ours) is not None}


def go(parts: dict[str, str], bos: str | None) -> str:
    """The parts as a Go template. bos: what Ollama puts before the prompt by itself, left out here."""
    start = parts["start"].removeprefix(bos) if bos else parts["start"]
    branches = []
    for number, role in enumerate(ROLES):
        head = f'{{{{ {"else if" if number else "if"} eq .Role "{role}" }}}}'
        branches.append(head + parts[f"{role}.before"] + "{{ .Content }}" + parts[f"{role}.after"])
    return f"{start}{{{{ range .Messages }}}}{''.join(branches)}{{{{ end }}}}{{{{ end }}}}{parts['prompt']}"


def render(parts: dict[str, str], messages: list[dict]) -> str:
    """What the parts say of a conversation."""
    return parts["start"] + "".join(parts[f"{m['role']}.before"] + m["content"] + parts[f"{m['role']}.after"] for m in messages) + parts["prompt"]


def _parts(tokenizer: Any) -> dict[str, str] | None:
    """What stands before and after the contents of each role, at the start, and as the generation prompt; None where that is not all."""

    def rendered(*turns: tuple[str, str], prompt: bool = False) -> str:
        talk = [{"role": role, "content": text} for role, text in turns]
        return tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=prompt)

    if not tokenizer.chat_template:
        return None
    try:
        parts = _found(rendered)
        if parts is None or any(bad in text for text in parts.values() for bad in ("{{", "}}", '"""')):
            return None
        talks = (
            [("user", "a")], [("system", "x y"), ("user", "b\nc")], [("user", "d"), ("assistant", "e"), ("user", "f")],
            [("system", "g"), ("user", "h"), ("assistant", "i"), ("user", "j"), ("assistant", "k"), ("user", "l")],
        )  # fmt: skip
        if all(render(parts, [{"role": r, "content": c} for r, c in talk]) == rendered(*talk, prompt=True) for talk in talks):
            return parts
    except (TemplateError, ValueError):
        pass  # a template that refuses one of these
    return None


def _found(rendered: Callable[..., str]) -> dict[str, str] | None:
    one, two, three = _MARKS
    long = rendered(("system", one), ("user", two), ("assistant", three), ("user", one))
    ask = rendered(("user", two), ("assistant", three), ("user", two))
    again = rendered(("user", two), ("assistant", three), ("user", two), ("assistant", three), ("user", two))
    if long.count(one) != 2 or ask.count(two) != 2 or again.count(three) != 2:
        return None
    between = again.split(three)[1].split(two)[0]  # after an assistant, before a user
    middle = ask.split(two)[1].split(three)[0]  # after a user, before an assistant
    user_after = rendered(("user", two)).split(two)[1]
    opening = ask.split(two)[0]  # at the start, before a user
    assistant_after = rendered(("user", two), ("assistant", three)).split(three)[1]
    if not middle.startswith(user_after) or not between.startswith(assistant_after) or not opening.endswith(between[len(assistant_after) :]):
        return None
    user_before = between[len(assistant_after) :]
    start = opening[: len(opening) - len(user_before)]
    head, tail = long.split(one)[0], long.split(one)[1].split(two)[0]
    if not head.startswith(start) or not tail.endswith(user_before):
        return None
    prompt = rendered(("user", two), prompt=True).split(two)[1]
    return {
        "start": start, "system.before": head[len(start) :], "system.after": tail[: len(tail) - len(user_before)],
        "user.before": user_before, "user.after": user_after,
        "assistant.before": middle[len(user_after) :], "assistant.after": assistant_after, "prompt": prompt[len(user_after) :],
    }  # fmt: skip
