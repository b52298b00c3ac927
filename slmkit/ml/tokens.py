"""Texts into token ids, many in one call: a tokenizer costs far more a call than a text.

What a model is given is tokenised alone, and what it writes follows: so a prompt's ids must begin the ids of prompt + answer. Where a token
would straddle the boundary, the two are tokenised apart, as they are in use, and counted.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from slmkit.data.rows import Row
from slmkit.ml.render import Fault

ROWS, CHARACTERS = 1000, 4_000_000
"""What is rendered and tokenised at once: at most so many rows, and about so many characters (a tokenizer holds some 100 bytes a token)."""


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    part, weight = [], 0
    for row in rows:
        part.append(row)
        weight += _characters(row)
        if len(part) == ROWS or weight >= CHARACTERS:
            yield part
            part, weight = [], 0
    if part:
        yield part


def _characters(row: Row) -> int:
    """About how many characters a row's renderings have: of every assistant turn, twice the conversation up to it."""
    so_far, total = 0, 0
    for message in (*row.messages, *row.chosen, *row.rejected):
        so_far += len(message.get("content") or "")
        total += 2 * so_far if message.get("role") == "assistant" else 0
    return total + 2 * len(row.prompt) + len(row.completion) + len(row.text)


def ids_of(tokenizer, texts: Iterable[str], *, special: bool = False) -> dict[str, array]:
    """Ids of every distinct text. special: with the BOS and EOS a tokenizer adds by itself (never for rendered chats, which have theirs)."""
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return {}
    # verbose=False: what is longer than the model's window is ours to count and refuse, not to be told by a library in passing
    found = tokenizer(distinct, add_special_tokens=special, return_attention_mask=False, return_token_type_ids=False, verbose=False)["input_ids"]
    return {text: array("i", ids) for text, ids in zip(distinct, found, strict=True)}


def joined(tokenizer, before: array, whole: array, answer: str) -> tuple[array, bool]:
    """Ids of a prompt and its answer, and whether a token straddled the boundary. before, whole: ids of the prompt and of both in one text."""
    if whole[: len(before)] == before:
        return whole, False
    return before + continuation(tokenizer, answer), True


def continuation(tokenizer, text: str) -> array:
    """Ids of a text that follows another. SentencePiece tokenizers put a space before a text; after a newline they do not."""
    newline, both, alone = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in ("\n", "\n" + text, text))
    return array("i", both[len(newline) :] if both[: len(newline)] == newline else alone)


def end_of_turn(tokenizer, ids: array, start: int, ends: set[int], name: str) -> int:
    """Index of the first token from `start` on that ends a turn: there generation stops. Raises Fault if there is none."""
    for at in range(start, len(ids)):
        if ids[at] in ends:
            return at
    names = ", ".join(repr(tokenizer.convert_ids_to_tokens(i)) for i in sorted(ends)) or "the model names none"
    mend = "mend the chat template, or name its end-of-turn token as `eos_token_id` in the model's generation_config.json"
    raise Fault(f"no end-of-turn token ({names}) after {name}: the model would never learn to stop", mend)


def refuse_two_bos(tokenizer, ids: array, mend: str) -> None:
    """Raise Fault when a row begins with BOS twice."""
    bos = tokenizer.bos_token_id
    if bos is not None and len(ids) > 1 and ids[0] == ids[1] == bos:
        raise Fault("the rendered row begins with two BOS tokens", mend)
