"""What an endpoint thinks of a text that it is given, place by place: POST /completions with `echo` and `logprobs`, and token ids as the prompt.

`slmkit serve` and vLLM answer that. Tokens are asked for by number (`return_tokens_as_token_ids`, vLLM's own name for it), since two tokens may read
the same. Nothing of this is billed by the token at any endpoint known to offer it, so it goes over no ledger.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from slmkit.errors import CannotRun, StepFailed
from slmkit.teach.endpoint import Endpoint, Failure, Route
from slmkit.teach.pace import backoff

AT_ONCE = 8  # requests in flight: a server batches them
RETRIES = 6
NUMBERED = "token_id:"
MEND = "serve the teacher with `slmkit serve` or vLLM, or run it here: `teacher: FOLDER`"


def of(route: Route, model: str, texts: Sequence[Sequence[int]], k: int) -> list[list[list[tuple[int, float]]]]:
    """For each text and each place after its first: the k likeliest tokens as (id, natural logarithm of the probability), best first.

    Raises CannotRun, UsageError, StepFailed.
    """
    bodies = [_body(model, ids, k) | {"return_tokens_as_token_ids": True} for ids in texts]
    return [_places(found, len(ids), k) for found, ids in zip(_ask(route, bodies), texts, strict=True)]


def read(route: Route, model: str, texts: Sequence[Sequence[int]]) -> list[list[str]]:
    """How the endpoint reads each text's tokens."""
    found = _ask(route, [_body(model, ids, 1) for ids in texts])
    return [[str(t) for t in _logprobs(one)["tokens"][: len(ids)]] for one, ids in zip(found, texts, strict=True)]


def _body(model: str, ids: Sequence[int], k: int) -> dict:
    return {"model": model, "prompt": list(ids), "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": k}


def _ask(route: Route, bodies: list[dict]) -> list[dict]:
    async def all_of_them() -> list[dict]:
        room = asyncio.Semaphore(AT_ONCE)
        async with Endpoint(route) as endpoint:
            return await asyncio.gather(*(_one(endpoint, body, room) for body in bodies))

    return asyncio.run(all_of_them())


async def _one(endpoint: Endpoint, body: dict, room: asyncio.Semaphore) -> dict:
    async with room:
        started = time.monotonic()
        for trial in range(RETRIES + 1):
            try:
                return await endpoint.post("/completions", body)
            except Failure as e:
                if e.means == "row" or trial == RETRIES or (e.means == "unreachable" and trial >= 2):
                    what = f"{endpoint.route.base_url} gave no logprobs in {trial + 1} trials over {time.monotonic() - started:.0f} s: {e.why}"
                    raise CannotRun(what, mend="check `teacher.base_url`; the same command goes on from the last checkpoint") from None
                await asyncio.sleep(backoff(trial) if e.after is None else e.after)
    raise AssertionError("unreachable")


def _logprobs(response: dict) -> dict:
    try:
        return response["choices"][0]["logprobs"] or {}
    except (KeyError, IndexError, TypeError):
        raise StepFailed("the teacher's response is no completion", mend=MEND) from None


def _places(response: dict, count: int, k: int) -> list[list[tuple[int, float]]]:
    tops = _logprobs(response).get("top_logprobs") or []
    if len(tops) < count:
        raise StepFailed(f"the teacher reports logprobs of {len(tops)} places of a prompt with {count} tokens", mend=MEND)
    return [_top(one, k) for one in tops[1:count]]


def _top(named: dict[str, float] | None, k: int) -> list[tuple[int, float]]:
    try:
        pairs = [(int(name.removeprefix(NUMBERED)), value) for name, value in (named or {}).items() if name.startswith(NUMBERED)]
    except ValueError:
        pairs = []
    if len(pairs) < k:
        what = f"the teacher names {len(pairs)} tokens by number where {k} were asked for"
        raise StepFailed(what, mend=f"lower `gkd.top_k` to what it gives; else {MEND}")
    return sorted(pairs, key=lambda p: (-p[1], p[0]))[:k]
