"""What an endpoint thinks of a text that it is given, place by place: POST /completions with `echo` and `logprobs`, and token ids as the prompt.

`slmkit serve` and vLLM answer that. Tokens are asked for by number (`return_tokens_as_token_ids`, vLLM's own name for it), since two tokens may read
the same. Nothing of this is billed by the token at any endpoint known to offer it, so it goes over no ledger. What comes back is learned from, so
all of it is looked at: what is no logarithm of a probability is told with its place, and not handed on.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Sequence
from typing import Any

from slmkit.errors import CannotRun, StepFailed, UsageError
from slmkit.teach.endpoint import Endpoint, Failure, Route
from slmkit.teach.pace import backoff

AT_ONCE = 8  # requests in flight: a server batches them
RETRIES = 6
PATIENCE = 300.0  # seconds of rest that an endpoint may ask for
NUMBERED = "token_id:"
LEAST = -1e4  # what is less is taken for this, -inf too (in JSON vLLM writes -9999 for it)
ABOVE = 0.05  # nats over 0 that a logarithm of a probability may have by rounding: of 16-bit numbers it has less
MEND = "serve the teacher with `slmkit serve` or vLLM, or run it here: `teacher: FOLDER`"
REFUSED = re.compile(r"log_?probs|echo", re.I)  # what a refusal says that is about these, and not about the prompt


def of(route: Route, model: str, texts: Sequence[Sequence[int]], k: int, names: Sequence[str]) -> list[list[list[tuple[int, float]]]]:
    """For each text and each place after its first: the k likeliest tokens as (id, natural logarithm of the probability), best first.

    LEAST is none at all. names: what errors call each text. Raises CannotRun, UsageError, StepFailed.
    """
    bodies = [_body(model, ids, k) | {"return_tokens_as_token_ids": True} for ids in texts]
    try:
        responses = _ask(route, bodies)
    except UsageError as e:
        if _of_these(e, route):
            e.mend, e.key = f"lower `gkd.top_k` (now {k}) to what the teacher gives", "gkd.top_k"
        raise
    found = zip(responses, texts, names, strict=True)
    return [[_top(one, k, f"token {at} of {name}") for at, one in enumerate(_entries(r, "top_logprobs", len(ids))[1:], 1)] for r, ids, name in found]


def read(route: Route, model: str, texts: Sequence[Sequence[int]]) -> list[list[str]]:
    """How the endpoint reads each text's tokens. Raises CannotRun, UsageError, StepFailed."""
    try:
        responses = _ask(route, [_body(model, ids, 1) for ids in texts])
    except UsageError as e:
        if _of_these(e, route):
            raise _no_teacher(f"the teacher tells nothing of a prompt's tokens ({e.what[:160]})") from e
        raise
    return [[_text(t) for t in _entries(one, "tokens", len(ids))] for one, ids in zip(responses, texts, strict=True)]


def _body(model: str, ids: Sequence[int], k: int) -> dict:
    return {"model": model, "prompt": list(ids), "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": k}


def _ask(route: Route, bodies: list[dict]) -> list[Any]:
    async def all_of_them() -> list[Any]:
        room = asyncio.Semaphore(AT_ONCE)
        async with Endpoint(route) as endpoint:
            return await asyncio.gather(*(_one(endpoint, body, room) for body in bodies))

    return asyncio.run(all_of_them())


async def _one(endpoint: Endpoint, body: dict, room: asyncio.Semaphore) -> Any:
    async with room:
        started = time.monotonic()
        for trial in range(RETRIES + 1):
            try:
                return await endpoint.post("/completions", body)
            except Failure as e:
                if e.means == "row" or trial == RETRIES or (e.means == "unreachable" and trial >= 2):
                    what = f"{endpoint.route.base_url} gave no logprobs in {trial + 1} trials over {time.monotonic() - started:.0f} s: {e.why}"
                    mend = "check `teacher.base_url`; the same command goes on from the last checkpoint"
                    raise CannotRun(what, mend=mend, key="teacher.base_url") from None
                if (e.after or 0.0) > PATIENCE:
                    what = f"{endpoint.route.base_url} wants to be left alone for {e.after:.0f} s ({e.why})"
                    raise CannotRun(what, mend="the same command goes on from the last checkpoint then", key="teacher") from None
                await asyncio.sleep(backoff(trial) if e.after is None else e.after)
    raise AssertionError("unreachable")


def _of_these(refusal: UsageError, route: Route) -> bool:
    return bool(REFUSED.search(refusal.what.replace(route.base_url, "")))


def _no_teacher(what: str) -> StepFailed:
    return StepFailed(what, mend=MEND, key="teacher")


def _entries(response: Any, kind: str, count: int) -> list:
    """What a response has of that kind (`tokens`, `top_logprobs`), for each token of the prompt."""
    try:
        logs = response["choices"][0]["logprobs"]
    except (KeyError, IndexError, TypeError):
        said = f" but {str(response['error'])[:160]}" if isinstance(response, dict) and response.get("error") else ""
        raise _no_teacher(f"the teacher's response is no completion with logprobs{said}") from None
    found = logs.get(kind) if isinstance(logs, dict) else None
    if not isinstance(found, list):
        raise _no_teacher(f"the teacher gives no logprobs of a prompt: its response has no list `{kind}` in `logprobs`")
    if len(found) < count:
        raise _no_teacher(f"the teacher tells `{kind}` of {len(found)} places of a prompt with {count} tokens")
    return found[:count]


def _text(token: Any) -> str:
    if not isinstance(token, str):
        raise _no_teacher(f"the teacher says {token!r} where a token's text should stand, in `tokens` of its `logprobs`")
    return token


def _top(named: Any, k: int, where: str) -> list[tuple[int, float]]:
    """The k likeliest of one place."""
    if named is not None and not isinstance(named, dict):
        raise _no_teacher(f"the teacher says {str(named)[:80]!r} at {where}, where its `top_logprobs` should name tokens and their logprobs")
    pairs = [(int(name.removeprefix(NUMBERED)), value) for name, value in (named or {}).items() if re.fullmatch(rf"{NUMBERED}\d{{1,9}}", name)]
    for id_, value in pairs:
        if not isinstance(value, int | float) or isinstance(value, bool) or not value <= ABOVE:
            raise _no_teacher(f"the teacher says that token {id_} has the logprob {value!r} at {where}, which is no logarithm of a probability")
    if (total := sum(math.exp(max(value, LEAST)) for _, value in pairs)) > math.exp(ABOVE):
        raise _no_teacher(f"the teacher's probabilities add up to {total:.3g} at {where}")
    if len(pairs) < k:
        unnumbered = f", and {len(named) - len(pairs)} by their texts" if named and len(named) > len(pairs) else ""
        what = f"the teacher names {len(pairs)} tokens by number where {k} were asked for{unnumbered}, at {where}"
        if not pairs:
            raise _no_teacher(what)
        raise StepFailed(what, mend=f"lower `gkd.top_k` to what it gives; else {MEND}", key="gkd.top_k")
    return sorted(((id_, float(max(value, LEAST))) for id_, value in pairs), key=lambda p: (-p[1], p[0]))[:k]
