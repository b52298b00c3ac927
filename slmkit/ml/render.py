"""One conversation into text: for every assistant turn, the prompt as it will be in use, and what the model has to write after it.

`before` is the rendering of all earlier messages with the generation prompt; the rendering with the turn must continue it. Some
templates change earlier messages when a turn is added (Mistral moves the system prompt, gpt-oss drops the analysis before a
tool call). Then the turn's text is taken from the same conversation without those parts, where the two do line up, and put after
the prompt as it is in use. Where they do not line up even so, the row is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from os.path import commonprefix
from typing import Literal

from jinja2 import TemplateError

from slmkit.data.rows import Row
from slmkit.ml import templates

Thinking = Literal["keep", "strip"]
REASONING = ("reasoning_content", "reasoning", "thinking")
"""The names under which messages carry their reasoning; transformers gives a template all that it reads."""
_THINK = re.compile(r"\A\s*<think>(.*?)</think>(.*)\Z", re.DOTALL)


class Fault(Exception):
    """One row cannot be encoded."""

    def __init__(self, what: str, mend: str | None = None):
        super().__init__(what)
        self.mend = mend


@dataclass(frozen=True, slots=True)
class Turn:
    """The assistant message messages[index]: the prompt, and all that is rendered after it."""

    index: int
    before: str
    answer: str

    @property
    def text(self) -> str:
        return self.before + self.answer


def split_thinking(content: str) -> tuple[str, str]:
    """A content's leading <think> block and the rest; ("", content) without one."""
    found = _THINK.match(content)
    return (found[1].strip(), found[2]) if found else ("", content)


class Renderer:
    """A tokenizer's template for one pass over the rows. notes: what happened, by name, with counts of turns or rows."""

    def __init__(self, tokenizer, thinking: Thinking = "keep"):
        self.tokenizer, self.thinking = tokenizer, thinking
        self.notes: dict[str, int | bool | str] = {}
        self._text: dict[bool, str] = {}
        if templates.dated(tokenizer):
            self.notes["template_date"] = templates.DATE.isoformat()

    def count(self, note: str) -> None:
        self.notes[note] = self.notes.get(note, 0) + 1

    def messages(self, row: Row) -> list[dict]:
        """The row's conversation as it will be rendered."""
        given = row.messages or ({"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.completion})
        messages = [self.message(m, f"messages[{k}]") for k, m in enumerate(given)]
        if any(m != g for m, g in zip(messages, given, strict=True) if g.get("content") is not None):
            self.count("thinking_stripped")
        return messages

    def message(self, given: dict, name: str) -> dict:
        """One message without empty keys and, if asked, without its thinking."""
        message = {"role": "", "content": ""} | {key: value for key, value in given.items() if value is not None}
        if self.thinking == "keep" or message["role"] != "assistant":
            return message
        message = {key: value for key, value in message.items() if key not in REASONING}
        if isinstance(message["content"], str) and message["content"].lstrip().startswith("<think>"):
            message["content"] = split_thinking(message["content"])[1].lstrip()
            if message["content"].startswith("<think>"):
                raise Fault(f"{name}.content opens <think> and never closes it, so thinking and answer cannot be told apart")
        if not message["content"] and not message.get("tool_calls"):
            raise Fault(f"{name} is nothing but thinking: without it there is no answer to learn", mend="write `thinking: keep`, or remove the row")
        return message

    def text(self, messages: list[dict], tools: tuple[dict, ...], prompt: bool) -> str:
        """The rendering, with the generation prompt or without. Raises Fault with the template's own words."""
        template = self._text.get(bool(tools)) or self._text.setdefault(bool(tools), templates.chosen(self.tokenizer, bool(tools)))
        given = {"tools": list(tools)} if tools else {}
        try:
            return self.tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=prompt, **given)
        except (TemplateError, TypeError, ValueError) as e:
            last = f" (at messages[{len(messages) - 1}])" if messages else ""
            raise Fault(f"the chat template refuses this row: {e}{last}") from None

    def prompt(self, messages: list[dict], tools: tuple[dict, ...] = ()) -> str:
        return self.text(messages, tools, True)

    def turns(self, messages: list[dict], tools: tuple[dict, ...] = ()) -> list[Turn]:
        """Every assistant turn, in order."""
        return [self.turn(messages, k, tools) for k, m in enumerate(messages) if m["role"] == "assistant"]

    def turn(self, messages: list[dict], k: int, tools: tuple[dict, ...] = ()) -> Turn:
        """messages[k], which must be the assistant's. Raises Fault when the template gives it no place after its prompt."""
        after = self.text(messages[: k + 1], tools, False)
        before = self.prompt(messages[:k], tools) if k else self._opening(after, messages[0]["content"])
        if after.startswith(before):
            return Turn(k, before, after[len(before) :])
        written = self._without_what_moves(messages, k, tools)
        if written and after.endswith(written):
            self.count("turns_recomposed")
            return Turn(k, before, written)
        where = f"…{_parting(before, after)!r} became …{_parting(after, before)!r}"
        mend = "mend the chat template: a turn may only be added at the end"
        raise Fault(f"the chat template does not render messages[{k}] as a continuation of what comes before: {where}", mend)

    def _without_what_moves(self, messages: list[dict], k: int, tools: tuple[dict, ...]) -> str | None:
        """What messages[k] adds to the conversation without earlier reasoning and system prompt; None if it does not line up even so."""
        rest = [_without_reasoning(m) if m["role"] == "assistant" else m for m in messages[:k] if m["role"] not in ("system", "developer")]
        try:
            before, after = self.prompt(rest, tools), self.text([*rest, messages[k]], tools, False)
        except Fault:  # the template may refuse what is left; what was wrong with the whole is what will be said
            return None
        return after[len(before) :] if after.startswith(before) else None

    def _opening(self, after: str, content: str) -> str:
        """The prompt of a conversation that the assistant begins: up to and with the first generation prompt."""
        question = [{"role": "user", "content": "x"}]
        bare, asked = self.text(question, (), False), self.prompt(question)
        mark = asked[len(commonprefix([bare, asked])) :]
        at = after.find(mark)
        if not mark or at < 0 or content.strip() in after[:at]:
            what = "the conversation begins with the assistant, and the chat template shows no place where such a turn would begin"
            raise Fault(what, mend="put a `system` or `user` message first")
        return after[: at + len(mark)]


def _without_reasoning(message: dict) -> dict:
    kept = {key: value for key, value in message.items() if key not in REASONING}
    return kept | {"content": "" if message.get("tool_calls") else split_thinking(message["content"])[1].lstrip()}


def _parting(one: str, other: str) -> str:
    """Some characters of `one` around the place at which two renderings part."""
    n = len(commonprefix([one, other]))
    return one[max(0, n - 20) : n + 30]
