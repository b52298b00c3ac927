"""The Writer's answers as OpenAI's responses: texts, usage, and what logprobs tell of each token."""

from __future__ import annotations

import time
import uuid

from slmkit.ml.completions import Speaker
from slmkit.ml.pieces import Spelling
from slmkit.ml.writer import Ask, Token, Wrote


def usage(asks: list[Ask], wrote: list[Wrote]) -> dict:
    """Each prompt counts once, however many answers it has; an end of turn counts as written."""
    given = sum(len(ids) for ids in {id(a.ids): a.ids for a in asks}.values())
    new = sum(len(w.tokens) + (w.end is not None) for w in wrote)
    return {"prompt_tokens": given, "completion_tokens": new, "total_tokens": given + new}


def head(kind: str, model: str, speaker: Speaker) -> dict:
    prefix = "chatcmpl" if kind.startswith("chat") else "cmpl"
    return {"id": f"{prefix}-{uuid.uuid4().hex[:24]}", "object": kind, "created": int(time.time()), "model": model,
            "system_fingerprint": speaker.fingerprint}  # fmt: skip


def chat_response(model: str, asks: list[Ask], wrote: list[Wrote], speaker: Speaker) -> dict:
    choices = [
        {"index": i, "message": {"role": "assistant", "content": w.text}, "finish_reason": w.finish,
         "logprobs": {"content": chat_logprobs(w.tokens, spelling(a, speaker))} if a.top_logprobs is not None else None}
        for i, (a, w) in enumerate(zip(asks, wrote, strict=True))
    ]  # fmt: skip
    return head("chat.completion", model, speaker) | {"choices": choices, "usage": usage(asks, wrote)}


def spelling(ask: Ask, speaker: Speaker) -> Spelling:
    """Of an answer, as it begins."""
    return Spelling(speaker.pieces, len(echoed(ask, speaker)), ask.goes_on)


def chat_logprobs(tokens: list[Token], spelt: Spelling) -> list[dict]:
    """Each token's text, as `\\xf0\\x9f` where it is a part of a character, its bytes (none where the answer leaves it out) and its rivals.

    The token that ended the answer is not told, as at OpenAI: clients put the tokens together to find their places in the answer.
    """
    def one(id_: int, logprob: float | None) -> dict:
        own = spelt.bytes_of(id_)
        return {"token": spelt.name(id_), "logprob": logprob, "bytes": None if own is None else list(own), "token_id": id_}

    out = []
    for token in tokens:
        out.append(one(token.id, token.logprob) | {"top_logprobs": [one(i, p) for i, p in token.top]})
        spelt.add(token.id)
    return out


def echoed(ask: Ask, speaker: Speaker) -> str:
    """The prompt's text, where it is to be sent back."""
    return speaker.pieces.text(list(ask.ids[ask.unsaid :]), whole=True) if ask.echo else ""


def plain_response(model: str, asks: list[Ask], wrote: list[Wrote], speaker: Speaker) -> dict:
    choices = []
    for i, (ask, w) in enumerate(zip(asks, wrote, strict=True)):
        logs = None
        if ask.top_logprobs is not None:
            logs = _joined(prompt_logprobs(w.prompt, ask, speaker), plain_logprobs(w.tokens, spelling(ask, speaker), ask.numbered, w.end))
        choices.append({"index": i, "text": echoed(ask, speaker) + w.text, "finish_reason": w.finish, "logprobs": logs})
    return head("text_completion", model, speaker) | {"choices": choices, "usage": usage(asks, wrote)}


def prompt_logprobs(tokens: list[Token], ask: Ask, speaker: Speaker) -> dict:
    unsaid = plain_logprobs(tokens[: ask.unsaid], Spelling(speaker.pieces), ask.numbered)
    return _joined(unsaid, plain_logprobs(tokens[ask.unsaid :], Spelling(speaker.pieces, whole=True), ask.numbered))


def _joined(one: dict, other: dict) -> dict:
    return {key: one[key] + other[key] for key in one}


def plain_logprobs(tokens: list[Token], spelt: Spelling, numbered: bool, end: Token | None = None) -> dict:
    """A part of a character is called `bytes:\\xf0\\x9f`, as OpenAI does; text_offset: the characters before each token.

    end: the token that ended the answer, which stands behind the text and is no part of it. lm-eval takes the last entry for what the model
    wrote after a prompt, whatever that was, and leaves it out.
    """
    def name(id_: int) -> str:
        text = spelt.name(id_)
        return f"token_id:{id_}" if numbered else text if spelt.is_text(id_) else f"bytes:{text}"

    out: dict[str, list] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for t in [*tokens, *([end] if end else [])]:
        out["tokens"].append(name(t.id))
        out["token_logprobs"].append(t.logprob)
        rivals: dict[str, float] = {}
        for i, p in sorted(((t.id, t.logprob), *t.top), key=lambda pair: -pair[1]) if t.logprob is not None else ():
            rivals.setdefault(name(i), p)  # of two that read the same the likelier counts
        out["top_logprobs"].append(rivals or None)
        out["text_offset"].append(spelt.end() if t is end else spelt.add(t.id))
    return out
