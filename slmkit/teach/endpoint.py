"""An OpenAI-compatible endpoint, through the official SDK on its aiohttp transport: one call, and what every failure means.

The SDK's own retries are off, since they know nothing of budgets and ledgers. The SDK makes the first request of each kind: its address, its
headers, its key; those that follow are that one with another body, sent by the SDK's HTTP client as they are. A call takes 0.24 ms of a CPU so,
beside 0.55 when the SDK builds each one anew and 1.0 with its response models.
"""

from __future__ import annotations

import email.utils
import json
import re
import time
from dataclasses import dataclass, replace
from typing import Any, Literal

from slmkit.errors import CannotRun, UsageError
from slmkit.teach.request import Answer, Malformed, answer

Means = Literal["busy", "slow", "lost", "garbled", "again", "unreachable", "row"]
ROW_CODES = ("context_length_exceeded", "content_filter", "content_policy_violation", "string_above_max_length", "invalid_prompt")
TOO_LONG = re.compile(
    r"context.{0,20}(length|window|size)|(prompt|input|request|message).{0,30}too (long|large)|too many (input |prompt )?tokens", re.I
)
"""How vLLM, Anthropic, Google, Ollama and others say that a prompt does not fit."""
SECRET = 12  # characters of a key that is looked for in what comes back: shorter ones (`EMPTY`) may be words
OVERLOAD = (429, 503, 529)
NO_MONEY = "the account has no money left: top it up and run the same command again"
DAY = 86_400.0  # seconds; an endpoint that wants more rest than that means something else


@dataclass(frozen=True)
class Route:
    """How a teacher is reached. key: the secret itself, never shown or kept. block: the recipe's, which errors name."""

    base_url: str
    key: str | None
    key_name: str | None
    timeout: float
    block: str = "teacher"

    def key_of(self, name: str) -> str:
        """The recipe's key of that name, for errors."""
        return f"{self.block}.{name}"


class Failure(Exception):
    """A call without an answer.

    means: busy (slower, then again), slow (the same, and it may have been billed), lost (again, and it may have been billed), garbled (the same: an
    answer came, and is none), again, unreachable (nothing was sent), row (this request will never be answered).
    after: seconds of Retry-After.
    """

    def __init__(self, means: Means, why: str, after: float | None = None):
        super().__init__(why)
        self.means, self.why, self.after = means, why, after


class Endpoint:
    """Calls one teacher. Use as an async context manager."""

    def __init__(self, route: Route):
        import aiohttp
        import httpx2
        import openai

        self.route, self.openai, self.httpx = route, openai, httpx2
        self.broken = (openai.APIConnectionError, httpx2.HTTPError, aiohttp.ClientError, OSError)  # a time-out is one too
        self.first: dict[str, tuple[httpx2.URL, httpx2.Headers]] = {}  # by path
        # Said to the SDK as well: it takes a client's time-out of 5 s for the library's default, and waits 600 s instead (seen in 3.54).
        timeout = httpx2.Timeout(route.timeout, connect=min(10.0, route.timeout))
        self.http = openai.DefaultAioHttpClient(timeout=timeout)
        self.client = openai.AsyncOpenAI(api_key=route.key or "none", base_url=route.base_url, max_retries=0, timeout=timeout, http_client=self.http)

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def call(self, body: dict[str, Any]) -> Answer:
        """One chat completion. Raises Failure, or a SlmkitError that ends everything (a wrong key, a bad request)."""
        started = time.perf_counter()
        response = await self.post("/chat/completions", body)
        try:
            return replace(answer(response), seconds=time.perf_counter() - started)
        except Malformed as e:
            error = response.get("error") if isinstance(response, dict) else None
            why = f"the response is an error: {str(error)[:120]}" if error else str(e)[:120]
            raise Failure("garbled", why) from None

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON of a response. Raises as `call` does."""
        try:
            response = await (self._again(path, body) if path in self.first else self._first(path, body))
            if not response.is_success:
                raise self._status(response)
            return json.loads(self._content(response))
        except UnicodeEncodeError:  # out of an earlier answer: a model may write one
            raise Failure("row", "the request holds half a character (a lone surrogate), which cannot be sent") from None
        except ValueError as e:  # status 200 and no JSON: a proxy's page
            raise Failure("garbled", f"the response is no JSON: {str(e)[:80]}") from None
        except self.openai.APIStatusError as e:
            raise self._status(e.response) from None
        except self.broken as e:
            raise self._connection(e) from None

    def _content(self, response: Any) -> bytes:
        """What came back, without the key, should it say that again: it would be kept and shown."""
        content, key = response.content, (self.route.key or "").encode()
        return content.replace(key, b"***") if len(key) >= SECRET and key in content else content

    async def _first(self, path: str, body: dict[str, Any]) -> Any:
        """By the SDK. What it sent is kept once there was an answer to it."""
        response = await self.client.post(path, cast_to=self.httpx.Response, body=body)
        request = (response.history or [response])[0].request
        own = ("content-length", "x-stainless")  # of that one request: its length, the SDK's count of trials and the like
        self.first[path] = request.url, self.httpx.Headers([(k, v) for k, v in request.headers.multi_items() if not k.startswith(own)])
        return response

    async def _again(self, path: str, body: dict[str, Any]) -> Any:
        """The same request with another body, by the SDK's HTTP client."""
        url, headers = self.first[path]
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        return await self.http.send(self.httpx.Request("POST", url, headers=headers, content=text))

    def _connection(self, error: Exception) -> Exception:
        """Told by the root of the chain: the SDK calls a refused and a broken connection a time-out as well (seen in 3.54)."""
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        name, text = type(cause).__name__, str(cause)[:120]
        if isinstance(cause, OSError) and cause.errno or name.startswith("ClientConnector"):
            return Failure("unreachable", f"cannot connect: {text}")
        if name in ("UnsupportedProtocol", "InvalidURL", "NonHttpUrlClientError", "InvalidUrlClientError"):
            mend = f"{self.route.block}.base_url is like https://api.openai.com/v1"
            return UsageError(f"{self.route.base_url} is no URL of an endpoint ({text})", mend=mend, key=self.route.key_of("base_url"))
        if isinstance(cause, TimeoutError) or "Timeout" in name:
            return Failure("slow", f"no answer within {self.route.timeout:g} s")
        return Failure("lost", f"the connection broke: {name}{f' ({text})' if text else ''}")

    def _status(self, response: Any) -> Exception:
        status, (said, codes) = response.status_code, _said(self._content(response))
        place, account = f"{self.route.base_url} answered {status}", self.route.key_of("api_key_env")
        if status in OVERLOAD:
            if "insufficient_quota" in codes:
                return CannotRun(f"{place}: {said}", mend=NO_MONEY, key=account)
            return Failure("busy", f"{status}: {said}", _retry_after(response.headers))
        if status == 402:
            return CannotRun(f"{place}: {said}", mend=NO_MONEY, key=account)
        if status in (401, 403):
            mend = f"check the key in {self.route.key_name}" if self.route.key_name else f"name the key's variable: `{account}`"
            return CannotRun(f"{place}: {said}", mend=mend, key=account)
        if status == 404:
            mend = f"check `{self.route.block}.model` and its base_url (it ends in /v1 at most endpoints)"
            return CannotRun(f"{place}: {said}", mend=mend, key=self.route.key_of("model"))
        if status in (408, 409, 425) or status >= 500:
            return Failure("slow" if status in (408, 504) else "again", f"{status}: {said}", _retry_after(response.headers))
        if codes[0] in ROW_CODES or status == 413 or TOO_LONG.search(said):
            return Failure("row", f"{status}: {said}")
        return UsageError(f"{place}: {said}", mend=_mend(said, self.route.block), key=self.route.block)


def _said(content: bytes) -> tuple[str, tuple[Any, Any]]:
    """(what a refusal says, its code and type), as OpenAI writes one, or the text as it is."""
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    error = body.get("error", body) if isinstance(body, dict) else None
    error = error if isinstance(error, dict) else {}
    return " ".join(str(error.get("message") or content.decode("utf-8", "replace")).split())[:200], (error.get("code"), error.get("type"))


def _mend(said: str, block: str) -> str:
    if "max_completion_tokens" in said or "max_tokens" in said:
        return f"this endpoint counts under the other name: set `{block}.limit_key` to max_tokens or max_completion_tokens"
    if "response_format" in said or "json_schema" in said:
        return "this endpoint does not enforce a schema: set `structured: false`, and the answers are only checked"
    if "temperature" in said or "top_p" in said or "seed" in said:
        return "this model takes no such parameter: leave it out (`temperature:` with nothing behind it)"
    return "the endpoint does not take this request: see what it says"


def _retry_after(headers: Any) -> float | None:
    """Seconds: `retry-after-ms`, or `Retry-After` as seconds or as a date."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name)
        if not text:
            continue
        try:
            return min(DAY, max(0.0, float(text) / scale))
        except ValueError:
            try:
                return min(DAY, max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time()))
            except ValueError:  # neither: as if it said nothing
                return None
    return None


