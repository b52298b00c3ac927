"""What the encoder made of rows, as plain numbers and text: for the checks before training, and for people to look at."""

from __future__ import annotations

import random

from slmkit.data import personal, xray
from slmkit.data.rows import Rows
from slmkit.ml import chat, models
from slmkit.steps._step import Context

FIRST, DRAWN = 3, 2  # rows shown: the first ones, the longest, and some by chance
LONGEST = 6000  # characters of a row that are shown


def tokens(encoded: chat.Encoded, max_length: int) -> dict:
    """An encoding as `xray.add_tokens` wants it."""
    made = encoded.examples
    return {
        "lengths": [len(e.ids) for e in made], "trained": [e.trained for e in made], "lines": [e.line for e in made],
        "left_out": list(encoded.too_long), "cut": _cut(encoded), "max_length": max_length,
    }


def _cut(encoded: chat.Encoded) -> dict:
    """Rows cut, by the side they lost, and how many lost a part of an answer."""
    if not encoded.cut:
        return {}
    side = {"end": "right", "start": "left"}[encoded.cut["side"]]
    return {side: encoded.cut["rows"], "answers_cut": encoded.cut["answers_cut"]}


def of_pairs(found: chat.Pairs, max_length: int) -> dict:
    """The same of preferences: a row is as long as the longer of its sequences, and both continuations are learned from."""
    made = found.pairs
    return {
        "lengths": [len(p) for p in made], "trained": [len(p.chosen) + len(p.rejected or ()) for p in made], "lines": [p.line for p in made],
        "left_out": found.too_long, "cut": {}, "max_length": max_length,
    }  # fmt: skip


def of_prompts(found: chat.Prompts, max_length: int) -> dict:
    """The same of prompts. What is learned of them is not there yet: the model will sample it."""
    made = found.prompts
    return {
        "lengths": [len(p) for p in made], "trained": None, "lines": [p.line for p in made], "left_out": found.too_long, "cut": {},
        "max_length": max_length,
    }  # fmt: skip


def check(ctx: Context, data: Rows, tokens: dict) -> None:
    """The train step's look at its tokens (of one of the functions above). Raises DataError on findings that are not allowed."""
    xray.check_tokens(ctx, data, tokens)


def examine(facts: dict, given, config, data: Rows) -> dict:
    """The facts with those of the tokens, and some rows as the model will see them. Loads the tokenizer, no weights."""
    tokenizer = models.tokenizer(given)
    chat.set_template(tokenizer, config.chat_template)
    chat.refuse_form(data, config.objective)
    kwargs = {"max_length": config.max_length, "thinking": config.thinking, "allow_truncation": True}
    ends = models.end_ids(given, tokenizer)
    if config.objective in ("sft", "gkd"):
        encoded = chat.encode(data, tokenizer, loss_on=config.loss_on, ends=ends, too_long=config.too_long, **kwargs)
        made, measured = encoded.examples, tokens(encoded, config.max_length)
    elif config.objective == "grpo":
        found = chat.prompts(data, tokenizer, **kwargs)
        made, measured = found.prompts, of_prompts(found, config.max_length)
    else:
        pairs = chat.encode_pairs(data, tokenizer, ends=ends, **kwargs)
        made, measured = pairs.pairs, of_pairs(pairs, config.max_length)
    return xray.add_tokens(facts, **measured) | {"samples": samples(made, tokenizer, data.name, config.seed)}


def samples(made: list, tokenizer, name: str, seed: int) -> list[dict]:
    """The first rows, the longest, and some by chance: place, why it is shown, and its text in pieces, trained or not."""
    chosen = dict.fromkeys(range(min(FIRST, len(made))), "first")
    if made:
        chosen.setdefault(max(range(len(made)), key=lambda i: _length(made[i])), "longest")
        for i in random.Random(seed).sample(range(len(made)), min(DRAWN, len(made))):
            chosen.setdefault(i, "by chance")
    return [
        {"place": f"{e.file or name}:{e.line}", "why": ", ".join(filter(None, (why, part))), "tokens": len(e.ids), "trained": e.trained,
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
        return [("its answers will be sampled", chat.Example(one.line, one.ids, (), one.file))]
    names = ("chosen", "rejected") if one.label is None else ("marked good" if one.label else "marked bad",)
    return [
        (name, chat.Example(one.line, one.prompt + ids, ((len(one.prompt), len(one.prompt) + len(ids)),), one.file))
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
