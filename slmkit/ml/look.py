"""What the encoder made of rows, as plain numbers and text: for the checks before training, and for people to look at."""

from __future__ import annotations

import random

from slmkit.data import personal, xray
from slmkit.data.rows import Rows
from slmkit.ml import chat, models
from slmkit.ml.examples import Fitted
from slmkit.steps._step import Context

FIRST, DRAWN = 3, 2  # rows shown: the first ones, the longest, and some by chance
LONGEST = 6000  # characters of a row that are shown


def tokens(made: Fitted, max_length: int, name: str) -> dict:
    """What was made of rows, as `xray.add_tokens` wants it. name: of the rows."""
    return {"lengths": made.lengths, "kept": made.tokens, "trained": made.trained_each()} | losses(made, max_length, name)


def losses(made: Fitted, max_length: int, name: str) -> dict:
    """What max_length cost."""
    left_out, untrained = ({"rows": one.count, "shown": one.shown(name)} for one in (made.too_long, made.untrained))
    return {"left_out": left_out, "untrained": untrained, "cut": _cut(made, name), "max_length": max_length}


def _cut(made: Fitted, name: str) -> dict:
    """Rows cut, by the side they lost, and how many lost a part of an answer, with the first of these."""
    if not made.cut:
        return {}
    side = {"end": "right", "start": "left"}[made.cut["side"]]
    return {side: made.cut["rows"], "answers_cut": made.answers_cut.count, "shown": made.answers_cut.shown(name)}


def check(ctx: Context, max_length: int, data: Rows, made: Fitted, validation: Rows | None, held_out: Fitted | None) -> None:
    """The train step's look at what was made of its rows. Raises DataError on findings that are not allowed."""
    held = losses(held_out, max_length, validation.name) if validation is not None and held_out is not None else None
    xray.check_tokens(ctx, data, tokens(made, max_length, data.name), held)


def examine(facts: dict, given, config, data: Rows, validation: Rows | None) -> dict:
    """The facts with those of the tokens, and some rows as the model will see them. Loads the tokenizer, no weights."""
    tokenizer = models.tokenizer(given)
    chat.set_template(tokenizer, config.chat_template)
    for rows in (data, validation):
        if rows is not None:
            chat.refuse_form(rows, config.objective)
    made = _made(data, tokenizer, given, config)
    held = losses(_made(validation, tokenizer, given, config), config.max_length, validation.name) if validation is not None else None
    some = samples(_items(made), tokenizer, data.name, config.seed)
    return xray.add_tokens(facts, **tokens(made, config.max_length, data.name), held_out=held) | {"samples": some}


def _made(rows: Rows, tokenizer, given, config) -> chat.Encoded | chat.Pairs | chat.Prompts:
    """What the objective learns from."""
    kwargs = {"max_length": config.max_length, "thinking": config.thinking, "allow_truncation": True}
    if config.objective == "grpo":
        return chat.prompts(rows, tokenizer, **kwargs)
    kwargs["ends"] = models.end_ids(given, tokenizer)
    if config.objective in ("sft", "gkd"):
        return chat.encode(rows, tokenizer, loss_on=config.loss_on, too_long=config.too_long, **kwargs)
    return chat.encode_pairs(rows, tokenizer, **kwargs)


def _items(made: chat.Encoded | chat.Pairs | chat.Prompts) -> list:
    return made.examples if isinstance(made, chat.Encoded) else made.pairs if isinstance(made, chat.Pairs) else made.prompts


def samples(made: list, tokenizer, name: str, seed: int) -> list[dict]:
    """The first rows, the longest, and some by chance: place, why it is shown, and its text in pieces, trained or not."""
    chosen = dict.fromkeys(range(min(FIRST, len(made))), "first")
    if made:
        chosen.setdefault(max(range(len(made)), key=lambda i: _length(made[i])), "longest")
        for i in random.Random(seed).sample(range(len(made)), min(DRAWN, len(made))):
            chosen.setdefault(i, "by chance")
    return [
        {"place": e.place(name), "why": ", ".join(filter(None, (why, part))), "tokens": len(e.ids), "trained": e.trained,
         "pieces": pieces(e, tokenizer)}
        for i, why in chosen.items() for part, e in _sequences(made[i])
    ]  # fmt: skip


def _length(one: chat.Example | chat.Pair | chat.Prompt) -> int:
    return len(one.ids) if isinstance(one, chat.Example) else len(one)


def _sequences(one: chat.Example | chat.Pair | chat.Prompt) -> list[tuple[str, chat.Example]]:
    """What the model sees of a row, each with its name: an example, a prompt with each of its continuations, or a prompt."""
    if isinstance(one, chat.Example):
        return [("", one)]
    if isinstance(one, chat.Prompt):
        return [("its answers will be sampled", chat.Example(one.line, one.ids, (), one.file, one.begins))]
    names = ("chosen", "rejected") if one.label is None else ("marked good" if one.label else "marked bad",)
    return [
        (name, chat.Example(one.line, one.prompt + ids, ((len(one.prompt), len(one.prompt) + len(ids)),), one.file, one.begins))
        for name, ids in zip(names, (one.chosen, one.rejected), strict=False)
    ]


def pieces(example: chat.Example, tokenizer) -> list[dict]:
    """Runs of tokens that are all trained or all not, decoded; likely personal data is dotted out."""
    ids = example.input_ids
    marks = [False, *(label != chat.IGNORED for label in example.labels[1:])]
    ends = [i for i in range(1, len(ids)) if marks[i] != marks[i - 1]] + [len(ids)]
    texts = [tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False) for end in ends]
    whole = personal.masked(texts[-1])
    out, start = [], 0
    for end, text in zip(ends, texts, strict=True):
        stop = len(whole) if end == len(ids) else len(text)
        if start < min(stop, LONGEST):
            out.append({"text": whole[start : min(stop, LONGEST)], "trained": marks[end - 1]})
        start = stop
    return out + ([{"text": f" … {len(whole) - LONGEST:,} characters more", "trained": False}] if len(whole) > LONGEST else [])
