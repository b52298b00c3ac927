"""OpenAI's HTTP interface: chat and plain completions, streamed or whole, the list of models, and /health."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from slmkit.ml import completions, responses
from slmkit.ml.completions import BadRequest, Speaker
from slmkit.ml.writer import Ask, Token, Wrote
from slmkit.serve.bench import Bench, Job

LOG = logging.getLogger("uvicorn.error")
GONE = "the client has hung up"  # an answer that nobody reads


@dataclass(frozen=True)
class Served:
    """name → what is served under it; the first is the model itself."""

    speakers: dict[str, Speaker]
    bench: Bench
    key: str | None = None


def app(served: Served) -> FastAPI:
    api = FastAPI(title="slmkit serve", docs_url=None, redoc_url=None, openapi_url=None)
    started = int(time.time())

    @api.exception_handler(BadRequest)
    async def bad(_: Request, e: BadRequest) -> JSONResponse:
        return _error(400, str(e), e.code, e.param)

    @api.exception_handler(HTTPException)
    async def other(_: Request, e: HTTPException) -> JSONResponse:
        return _error(e.status_code, str(e.detail))

    @api.exception_handler(Exception)
    async def broken(_: Request, e: Exception) -> JSONResponse:
        return _error(500, _said(e))

    if served.key:
        api.add_middleware(_Allowed, key=served.key)

    @api.get("/health")
    async def health() -> dict:
        return {"status": "ok", "models": list(served.speakers), "running": served.bench.running, "waiting": served.bench.queued}

    @api.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": [_model(n, s, started) for n, s in served.speakers.items()]}

    @api.get("/v1/models/{name:path}")
    async def model(name: str) -> dict:
        return _model(name, _speaker(served, name), started)

    @api.post("/v1/chat/completions")
    async def chat(request: Request) -> Any:
        return await _complete(served, request, "chat.completion")

    @api.post("/v1/completions")
    async def plain(request: Request) -> Any:
        return await _complete(served, request, "text_completion")

    return api


class _Allowed:
    """Lets in who has the key. Plain ASGI: FastAPI's own kind of middleware keeps a hang-up from what it wraps."""

    def __init__(self, inner: ASGIApp, key: str):
        self.inner, self.expected = inner, f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        said = Headers(scope=scope).get("authorization", "").encode()
        if scope["path"] == "/health" or secrets.compare_digest(said, self.expected):
            await self.inner(scope, receive, send)
        else:
            await _error(401, "the key is missing or wrong", "invalid_api_key")(scope, receive, send)


def _model(name: str, speaker: Speaker, started: int) -> dict:
    return {"id": name, "object": "model", "created": started, "owned_by": "slmkit", "max_model_len": speaker.longest,
            "fingerprint": speaker.fingerprint}  # fmt: skip


def _speaker(served: Served, name: Any) -> Speaker:
    if not isinstance(name, str):
        raise BadRequest(f"`model` should be the name of a model, this is {name!r}", "model")
    if name not in served.speakers:
        raise HTTPException(404, f"no model `{name}` here; there is {', '.join(served.speakers)}")
    return served.speakers[name]


async def _complete(served: Served, request: Request, kind: str) -> Any:
    try:
        body = json.loads(await request.body())
    except ClientDisconnect:
        raise HTTPException(499, GONE) from None
    except (ValueError, RecursionError) as e:
        raise BadRequest(f"the body is no JSON: {e}") from None
    if not isinstance(body, dict):
        raise BadRequest("the body should be a JSON object")
    completions.whole_text(body)
    name = body.get("model")
    speaker = _speaker(served, name)
    chat = kind == "chat.completion"
    build = completions.chat_asks if chat else completions.plain_asks
    streamed, counted = completions.streamed(body)
    asks = await asyncio.to_thread(build, body, speaker)
    loop = asyncio.get_running_loop()
    job = Job(name, asks, loop, loop.create_future())
    if streamed:
        return StreamingResponse(_stream(served, job, speaker, chat, counted), media_type="text/event-stream")
    served.bench.put(job)
    wrote = await _unless_gone(request, job)
    respond = responses.chat_response if chat else responses.plain_response
    return JSONResponse(respond(name, asks, wrote, speaker))


async def _unless_gone(request: Request, job: Job) -> list:
    """The answer; a client that hangs up frees its rows of the batch."""
    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watch = asyncio.create_task(gone())
    try:
        await asyncio.wait({watch, job.done}, return_when=asyncio.FIRST_COMPLETED)
        if not job.done.done():
            raise HTTPException(499, GONE)
        return job.done.result()
    finally:
        job.gone.set()
        watch.cancel()


async def _stream(served: Served, job: Job, speaker: Speaker, chat: bool, counted: bool) -> AsyncIterator[str]:
    """Server-sent events: a chunk for each piece of text that is whole, each answer's end with its reason, usage if asked for, [DONE].

    What fails on the way ends in an event that says so, and no [DONE]: its status was sent long before.
    """
    heard: asyncio.Queue = asyncio.Queue()
    job.heard = lambda index, token: heard.put_nowait((index, token))
    job.done.add_done_callback(lambda _: heard.put_nowait(None))
    served.bench.put(job)
    head = responses.head("chat.completion.chunk" if chat else "text_completion", job.model, speaker)
    rows = [_Row(i, ask, speaker, chat) for i, ask in enumerate(job.asks)]
    try:
        for row in rows if chat else ():
            yield _event(head | {"choices": [row.choice({"role": "assistant", "content": ""})]})
        for row in rows:
            if row.ask.echo and row.ask.top_logprobs is None:  # else it comes with its logprobs
                yield _event(head | {"choices": [row.choice(responses.echoed(row.ask, speaker))]})
        while (one := await heard.get()) is not None:
            for choice in rows[one[0]].heard(one[1]):
                yield _event(head | {"choices": [choice]})
        if (broke := job.done.exception()) is not None:
            LOG.error("a streamed answer failed", exc_info=broke)
            yield _event(_told(500, _said(broke)))
            return
        if counted:
            yield _event(head | {"choices": [], "usage": responses.usage(job.asks, job.done.result())})
        yield "data: [DONE]\n\n"
    finally:
        job.gone.set()


class _Row:
    """One answer as it is streamed: text is held back while it might be half a character, or the beginning of a stop."""

    def __init__(self, index: int, ask: Ask, speaker: Speaker, chat: bool):
        self.index, self.ask, self.speaker, self.chat = index, ask, speaker, chat
        self.ids: list[int] = []
        self.sent = ""
        self.spelt = responses.spelling(ask, speaker)

    def heard(self, of: Token | list[Token] | Wrote) -> Iterator[dict]:
        """The choices that may be sent now: of a token, of the prompt's (a list), or of the end, which has what was held back and the reason."""
        if isinstance(of, list):
            yield self.choice(responses.echoed(self.ask, self.speaker), responses.prompt_logprobs(of, self.ask, self.speaker))
        elif isinstance(of, Wrote):
            rest, logs = self._more(of.text), None if of.end is None or self.chat else self._logprobs([], of.end)
            if rest or logs:
                yield self.choice(rest, logs)
            yield self.choice(None, finish=of.finish)
        elif of.id not in self.ask.ends:
            piece, logs = self._more(self._whole(of.id)), self._logprobs([of])
            if piece or logs:
                yield self.choice(piece, logs)

    def _whole(self, id_: int) -> str:
        """As much of the text with this token as may be sent."""
        self.ids.append(id_)
        text = self.speaker.pieces.text(self.ids, self.ask.goes_on)
        if text.endswith("\ufffd") or any(s in text for s in self.ask.stop):
            return self.sent
        hold = max((k for s in self.ask.stop for k in range(1, len(s) + 1) if text.endswith(s[:k])), default=0)
        return text[: len(text) - hold]

    def _more(self, text: str) -> str:
        """What of it was not sent."""
        piece = text[len(self.sent) :]
        self.sent += piece
        return piece

    def _logprobs(self, tokens: list[Token], end: Token | None = None) -> dict | None:
        if self.ask.top_logprobs is None:
            return None
        if self.chat:
            return {"content": responses.chat_logprobs(tokens, self.spelt)}
        return responses.plain_logprobs(tokens, self.spelt, self.ask.numbered, end)

    def choice(self, piece: Any, logs: dict | None = None, finish: str | None = None) -> dict:
        if not self.chat:
            return {"index": self.index, "text": piece or "", "logprobs": logs, "finish_reason": finish}
        delta = piece if isinstance(piece, dict) else ({"content": piece} if piece is not None else {})
        return {"index": self.index, "delta": delta, "logprobs": logs, "finish_reason": finish}


def _event(value: dict) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _error(status: int, message: str, code: str | None = None, param: str | None = None) -> JSONResponse:
    return JSONResponse(_told(status, message, code, param), status)


def _told(status: int, message: str, code: str | None = None, param: str | None = None) -> dict:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _said(e: BaseException) -> str:
    return f"{type(e).__name__}: {str(e)[:200]}"
