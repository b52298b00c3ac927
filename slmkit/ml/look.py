"""What the encoder made of rows, as plain numbers and text: for the checks before training, and for people to look at."""

from __future__ import annotations

import random

from slmkit.data import personal, xray
from slmkit.data.rows import Rows
from slmkit.ml import chat, models, pairs
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


def check(ctx: Context, data: Rows, encoded: chat.Encoded, max_length: int) -> None:
    """The train step's look at its tokens. Raises DataError on findings that are not allowed."""
    xray.check_tokens(ctx, data, tokens(encoded, max_length))


def examine(facts: dict, given, config, data: Rows) -> dict:
    """The facts with those of the tokens, and some rows as the model will see them. Loads the tokenizer, no weights."""
    tokenizer = models.tokenizer(given)
    chat.set_template(tokenizer, config.chat_template)
    pairs.refuse_form(config.objective, data)
    encoded = _encoded(data, tokenizer, config, models.end_ids(given, tokenizer))
    facts = xray.add_tokens(facts, **tokens(encoded, config.max_length))
    if config.objective == "grpo":  # a prompt teaches nothing by itself: answers are sampled
        facts["tokens"]["untrained"] = {"rows": 0, "shown": []}
    return facts | {"samples": samples(encoded, tokenizer, data.name, config.seed)}


def _encoded(data: Rows, tokenizer, config, ends: set[int]) -> chat.Encoded:
    """The rows as the objective has them: of a pair both continuations, of grpo the prompts."""
    kwargs = {"max_length": config.max_length, "thinking": config.thinking, "allow_truncation": True}
    if config.objective in ("sft", "gkd"):
        return chat.encode(data, tokenizer, loss_on=config.loss_on, ends=ends, too_long=config.too_long, **kwargs)
    if config.objective == "grpo":
        asked = chat.prompts(data, tokenizer, **kwargs)
        return chat.Encoded([chat.Example(p.line, p.ids, (), p.file) for p in asked.prompts], asked.too_long, asked.notes)
    found = chat.encode_pairs(data, tokenizer, ends=ends, **kwargs)
    made = []
    for pair in found.pairs:
        for ids in (pair.chosen, pair.rejected):
            if ids is not None:
                whole = pair.prompt + ids
                made.append(chat.Example(pair.line, whole, ((len(pair.prompt), len(whole)),), pair.file))
    return chat.Encoded(made, found.too_long, found.notes)


def samples(encoded: chat.Encoded, tokenizer, name: str, seed: int) -> list[dict]:
    """The first rows, the longest, and some by chance: place, why it is shown, and its text in pieces, trained or not."""
    made = encoded.examples
    chosen = dict.fromkeys(range(min(FIRST, len(made))), "first")
    if made:
        chosen.setdefault(max(range(len(made)), key=lambda i: len(made[i].ids)), "longest")
        for i in random.Random(seed).sample(range(len(made)), min(DRAWN, len(made))):
            chosen.setdefault(i, "by chance")
    return [
        {"place": f"{made[i].file or name}:{made[i].line}", "why": why, "tokens": len(made[i].ids), "trained": made[i].trained,
         "pieces": pieces(made[i], tokenizer)}
        for i, why in chosen.items()
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
