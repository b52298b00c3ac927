"""Writes answers in batches whose rows need nothing in common: each has its own length, temperature, seed, stops and end.

Rows are padded on the left and leave the batch when they have ended. Greedy answers are those of the row alone (to rounding); a
sampled row draws from its own generator, so that its neighbours change nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from slmkit.ml.pieces import Pieces

TAIL = 48  # tokens that are decoded again to look for a stop: longer stops are found a few tokens late
COLDEST = 1e-5  # temperatures below are greedy: divided by them, logits would be no numbers


@dataclass(frozen=True)
class Ask:
    """One prompt. ids: its tokens. temperature 0 is greedy. top_logprobs: how many alternatives to report a token; None for no logprobs.

    echo: report the prompt's own tokens too; the tokenizer put the first `unsaid` of them before what the client said.
    ends: ids that end the answer. stop: texts that end it, left out of it.
    numbered: logprobs name tokens as `token_id:7`, not by text, which two tokens may share. goes_on: the answer's text follows the prompt's.
    """

    ids: tuple[int, ...]
    most: int
    ends: frozenset[int]
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    echo: bool = False
    numbered: bool = False
    goes_on: bool = False
    unsaid: int = 0


@dataclass(frozen=True)
class Token:
    """A token with its log probability (natural) before temperature, and the likeliest ones: [(id, logprob)], best first."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class Wrote:
    """What came of an Ask. finish: stop or length. prompt: logprobs of the prompt's tokens, where echoed (the first has none).

    end: the token that ended it, where one of the Ask's ends did; it is not among tokens.
    """

    tokens: list[Token] = field(default_factory=list)
    text: str = ""
    finish: str | None = None
    end: Token | None = None
    prompt: list[Token] = field(default_factory=list)


class Writer:
    """A model that writes. Not for use by two threads at once."""

    def __init__(self, model: torch.nn.Module, tokenizer, where: torch.device):
        self.model, self.tokenizer, self.where = model.eval(), tokenizer, where
        self.pieces = Pieces(tokenizer)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        config = model.config.get_text_config()
        self.longest: int | None = getattr(config, "max_position_embeddings", None)

    @torch.inference_mode()
    def write(self, asks: list[Ask], each: Callable[[int, Any], bool] | None = None) -> list[Wrote]:
        """Answers to all asks, as one batch. each(row, token) hears of every token as it is written, the end's too; False ends that row.

        Before them it hears of the prompt's tokens, as one list, where their logprobs are reported; after them of what was Wrote.
        """
        wrote = [Wrote() for _ in asks]
        live = list(range(len(asks)))
        ids, mask = self._padded(asks)
        cache = DynamicCache(config=self.model.config)
        generators = [_generator(a, self.where) for a in asks]
        logits = self._prefill(asks, ids, mask, cache, wrote)
        positions = mask.sum(1)
        for row, one in enumerate(wrote):
            if each is not None and one.prompt:
                each(row, one.prompt)
        while live:
            chosen, going = [], []
            for row, index in enumerate(live):
                token = _choose(logits[row], asks[index], generators[index])
                heard = each is None or asks[index].most <= 0 or each(index, token)
                if self._take(wrote[index], token, asks[index], heard):
                    going.append(row)
                    chosen.append(token.id)
                elif each is not None:
                    each(index, wrote[index])
            if not going:
                break
            if len(going) < len(live):
                keep = torch.tensor(going, device=self.where)
                cache.batch_select_indices(keep)
                mask, positions = mask[keep], positions[keep]
                live = [live[r] for r in going]
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], 1)
            step = torch.tensor(chosen, device=self.where)[:, None]
            found = self.model(input_ids=step, attention_mask=mask, position_ids=positions[:, None], past_key_values=cache, use_cache=True)
            logits, positions = found.logits[:, -1].float(), positions + 1
        return wrote

    def _padded(self, asks: list[Ask]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(len(a.ids) for a in asks)
        ids, mask = torch.full((len(asks), width), self.pad), torch.zeros(len(asks), width, dtype=torch.long)
        for row, ask in enumerate(asks):
            ids[row, width - len(ask.ids) :], mask[row, width - len(ask.ids) :] = torch.tensor(ask.ids), 1
        return ids.to(self.where), mask.to(self.where)

    def _prefill(self, asks: list[Ask], ids, mask, cache, wrote: list[Wrote]) -> torch.Tensor:
        """The prompts' pass: fills the cache, notes the prompts' logprobs where asked, gives the logits of the first new token."""
        echoes = any(a.echo and a.top_logprobs is not None for a in asks)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        keep = 0 if echoes else 1  # 0: logits of every place
        found = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=keep
        )
        for row, ask in enumerate(asks) if echoes else ():
            if ask.echo and ask.top_logprobs is not None:
                own = found.logits[row, ids.shape[1] - len(ask.ids) :].float()
                wrote[row].prompt = [Token(ask.ids[0]), *(_token(one, i, ask.top_logprobs) for one, i in zip(own, ask.ids[1:], strict=False))]
        return found.logits[:, -1].float()

    def _take(self, wrote: Wrote, token: Token, ask: Ask, wanted: bool) -> bool:
        """Add a token to an answer; does it go on?"""
        if ask.most <= 0:
            wrote.finish = "length"
            return False
        if token.id in ask.ends:
            wrote.finish, wrote.text, wrote.end = "stop", self._text(ask, wrote), token
            return False
        wrote.tokens.append(token)
        if ask.stop:
            tail = self.pieces.text([t.id for t in wrote.tokens[-TAIL:]], ask.goes_on)
            if any(s in tail for s in ask.stop):
                text = self._text(ask, wrote)
                wrote.finish, wrote.text = "stop", text[: min(i for s in ask.stop if (i := text.find(s)) >= 0)]
                return False
        if not wanted or len(wrote.tokens) >= ask.most or self._full(ask, wrote):
            wrote.finish, wrote.text = "length", self._text(ask, wrote)
            return False
        return True

    def _full(self, ask: Ask, wrote: Wrote) -> bool:
        return self.longest is not None and len(ask.ids) + len(wrote.tokens) >= self.longest

    def _text(self, ask: Ask, wrote: Wrote) -> str:
        return self.pieces.text([t.id for t in wrote.tokens], ask.goes_on)


def _generator(ask: Ask, where: torch.device) -> torch.Generator | None:
    if ask.temperature < COLDEST:
        return None
    return torch.Generator(where).manual_seed(secrets.randbits(63) if ask.seed is None else ask.seed)


def _choose(logits: torch.Tensor, ask: Ask, generator: torch.Generator | None) -> Token:
    if generator is None:
        chosen = int(logits.argmax())
    else:
        chances = torch.softmax(logits / ask.temperature, -1)
        if ask.top_p < 1:
            ordered, order = chances.sort(descending=True)
            out = ordered.cumsum(0) - ordered >= ask.top_p
            out[0] = False  # the likeliest is always kept
            ordered[out] = 0
            chances = torch.zeros_like(chances).scatter_(0, order, ordered)
        chosen = int(torch.multinomial(chances, 1, generator=generator))
    return Token(chosen) if ask.top_logprobs is None else _token(logits, chosen, ask.top_logprobs)


def _token(logits: torch.Tensor, chosen: int, top: int) -> Token:
    logs = torch.log_softmax(logits, -1)
    best = logs.topk(top) if top else None
    pairs = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)) if best else ()
    return Token(chosen, float(logs[chosen]), pairs)
