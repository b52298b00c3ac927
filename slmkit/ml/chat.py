"""Rows into token ids and labels, with the tokenizer's own chat template.

What is trained is found by rendering prefixes: the text up to an assistant turn, with the generation prompt, must be a
token prefix of the text with that turn. What lies between, up to and with the end-of-turn token, is exactly what the
model will have to write. It needs no `{% generation %}` marks and works for any number of turns; a template that breaks
the property (one that rewrites earlier turns, say) is refused rather than masked wrongly.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from jinja2 import TemplateError

from slmkit.data.rows import SHOWN, Row, Rows
from slmkit.errors import DataError, Problem

IGNORED = -100
TOO_LONG_SHARE = 0.05  # beyond it, rows are being lost to a wrong max_length rather than to outliers
TEMPLATES = {
    "plain": (
        "{{ bos_token }}{% for m in messages %}### {{ m['role'] }}\n{{ m['content'] | trim }}"
        "{{ eos_token if m['role'] == 'assistant' }}{{ '\n' }}{% endfor %}"  # a newline after a block would be trimmed
        "{% if add_generation_prompt %}### assistant\n{% endif %}"
    ),
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}


@dataclass(frozen=True)
class Example:
    """Token ids and labels of one row; labels are -100 where nothing is learned."""

    line: int
    input_ids: list[int]
    labels: list[int]

    @property
    def trained(self) -> int:
        """Tokens whose loss counts; the first token of a row is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass
class Encoded:
    """All rows of a file that fit, and what was left out."""

    examples: list[Example]
    too_long: list[int] = field(default_factory=list)
    notes: dict[str, int | bool | str] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return sum(len(e.input_ids) for e in self.examples)

    @property
    def trained(self) -> int:
        return sum(e.trained for e in self.examples)


class _Fault(Exception):
    """One row cannot be encoded."""


def set_template(tokenizer, template: str | None) -> None:
    """Give the tokenizer a named or inline template. Raises DataError when its tokens are not in the vocabulary."""
    if template is None:
        return
    if template == "chatml":
        unknown = [t for t in ("<|im_start|>", "<|im_end|>") if t not in tokenizer.get_vocab()]
        if unknown:
            mend = "write `chat_template: plain`, which needs no tokens of its own"
            raise DataError([Problem(f"chat_template chatml needs {' and '.join(unknown)}, which the tokenizer lacks", mend=mend)])
    tokenizer.chat_template = TEMPLATES.get(template, template)


def encode(data: Rows, tokenizer, *, loss_on: str, max_length: int, ends: set[int], strict: bool = True) -> Encoded:
    """Encode every row. `ends`: ids that end a turn (the model's EOS ids). Raises DataError naming the rows that cannot be.

    With `strict`, rows longer than max_length are left out, and more than 5 % of them is an error; without it they are cut
    (calibration reads text, it learns no ends).
    """
    chat = _is_chat(data, tokenizer)
    examples, problems, too_long, notes = [], [], [], {}
    if chat and data.form == "completion":
        notes["prompt_as_messages"] = True
    ids = _all_ids(data, tokenizer) if chat else {}
    for row in data:
        try:
            example = _chat(row, tokenizer, ids, loss_on, ends) if chat else _plain(row, tokenizer, loss_on, notes)
        except _Fault as e:
            problems.append(Problem(str(e), data.name, row.line))
            continue
        if len(example.input_ids) > max_length:
            too_long.append(row.line)
            if not strict:
                examples.append(Example(row.line, example.input_ids[:max_length], example.labels[:max_length]))
        else:
            examples.append(example)
    if problems:
        more = f"; the first {SHOWN} are shown" if len(problems) > SHOWN else ""
        raise DataError(problems[:SHOWN], f"{len(problems)} of {len(data)} rows cannot be rendered{more}")
    if strict and len(too_long) > TOO_LONG_SHARE * len(data):
        raise _lengths(data, too_long, max_length)
    if tokenizer.bos_token_id is not None and chat and examples[0].input_ids[0] != tokenizer.bos_token_id:
        # lm-eval tokenises a rendered prompt with special tokens: such a tokenizer adds a BOS that training never saw.
        notes["bos_added_outside_template"] = tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    return Encoded(examples, too_long, notes)


def _lengths(data: Rows, too_long: list[int], max_length: int) -> DataError:
    share = len(too_long) / len(data)
    problems = [Problem(f"longer than max_length ({max_length} tokens)", data.name, line) for line in too_long[:SHOWN]]
    return DataError(
        problems,
        f"{len(too_long)} of {len(data)} rows ({share:.0%}) are longer than max_length: {max_length}; "
        "raise `max_length`, or shorten the rows (up to 5 % are left out with a note)",
    )


def _is_chat(data: Rows, tokenizer) -> bool:
    has = bool(tokenizer.chat_template)
    if data.form == "messages" and not has:
        mend = "write `chat_template: plain` (or Jinja text), or give `prompt` and `completion` rows"
        raise DataError([Problem("these rows are chats, and the model has no chat template", data.name, mend=mend)])
    return has and data.form != "text"


def _all_ids(data: Rows, tokenizer) -> dict[str, list[int]]:
    """Token ids of every rendering that will be needed, in one call: a tokenizer costs far more a call than a text."""
    texts: dict[str, None] = {}
    for row in data:
        with contextlib.suppress(_Fault):  # met again, and reported, when the row's turn comes
            texts.update(dict.fromkeys(t for _, pair in _renderings(row, tokenizer) for t in pair if t is not None))
    return dict(zip(texts, tokenizer(list(texts), add_special_tokens=False)["input_ids"], strict=True)) if texts else {}


def _messages(row: Row) -> list[dict]:
    return list(row.messages) or [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.completion}]


def _renderings(row: Row, tokenizer) -> list[tuple[int, tuple[str | None, str]]]:
    """For every assistant message: its index, the text before it with the generation prompt, and the text with it; then the whole."""
    messages = _messages(row)
    whole = _render(tokenizer, messages, False)
    found: list = []
    for k, message in enumerate(messages):
        if message["role"] == "assistant":
            before = _render(tokenizer, messages[:k], True) if k else None
            after = whole if k == len(messages) - 1 else _render(tokenizer, messages[: k + 1], False)
            found.append((k, (before, after)))
    return [*found, (len(messages), (None, whole))]


def _render(tokenizer, messages: list[dict], prompt: bool) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except TemplateError as e:
        raise _Fault(f"the chat template refuses this row: {e}") from None


def _chat(row: Row, tokenizer, ids_of: dict[str, list[int]], loss_on: str, ends: set[int]) -> Example:
    *turns, (_, (_, text)) = _renderings(row, tokenizer)
    ids = ids_of[text]
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise _Fault("the rendered row begins with two BOS tokens; mend the chat template")
    trained = [False] * len(ids)
    for k, (before_text, after_text) in turns:
        before, after = ids_of[before_text] if before_text is not None else [], ids_of[after_text]
        if ids[: len(after)] != after or after[: len(before)] != before:
            where = _where(tokenizer, before, after)
            raise _Fault(f"the chat template does not render messages[{k}] as a continuation of what comes before: {where}")
        end = next((i for i in range(len(after) - 1, len(before) - 1, -1) if after[i] in ends), None)
        if end is None:
            names = ", ".join(repr(tokenizer.convert_ids_to_tokens(i)) for i in sorted(ends))
            raise _Fault(f"no end-of-turn token ({names}) after messages[{k}]: the model would never learn to stop; mend the chat template")
        trained[len(before) : end + 1] = [True] * (end + 1 - len(before))
    if not any(trained[1:]):
        raise _Fault("no token of this row is trained")
    labels = list(ids) if loss_on == "all" else [i if t else IGNORED for i, t in zip(ids, trained, strict=True)]
    return Example(row.line, ids, labels)


def _where(tokenizer, before: list[int], after: list[int]) -> str:
    """The place at which two renderings part, for the message."""
    n = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
    return f"…{tokenizer.decode(before[max(0, n - 4) : n + 4])!r} became …{tokenizer.decode(after[max(0, n - 4) : n + 4])!r}"


def _plain(row: Row, tokenizer, loss_on: str, notes: dict) -> Example:
    """Text, or prompt + completion, with EOS appended; the prompt is tokenised as it will be when the model is used."""
    eos = tokenizer.eos_token_id
    if eos is None:
        raise _Fault("the tokenizer has no EOS token: the model would never learn to stop")
    if not row.completion:
        ids = [i for i in tokenizer(row.text)["input_ids"]]
        ids = ids if ids[-1:] == [eos] else [*ids, eos]
        return Example(row.line, ids, list(ids))
    prompt = _without_end(tokenizer(row.prompt)["input_ids"], eos)
    whole = _without_end(tokenizer(row.prompt + row.completion)["input_ids"], eos)
    if whole[: len(prompt)] != prompt:
        # A token would straddle the boundary; in use the prompt is tokenised alone, so the completion follows it alone.
        notes["boundary_merges"] = notes.get("boundary_merges", 0) + 1
        whole = prompt + _ids(tokenizer, row.completion)
    ids = [*whole, eos]
    return Example(row.line, ids, list(ids) if loss_on == "all" else [IGNORED] * len(prompt) + ids[len(prompt) :])


def _without_end(ids: list[int], eos: int) -> list[int]:
    return ids[:-1] if ids[-1:] == [eos] else ids


def _ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
