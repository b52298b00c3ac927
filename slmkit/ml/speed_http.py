"""The speed of an endpoint, as its clients meet it: streamed completions of token ids, many at once, each on a connection of its own.

The client does as little as it can (a line's time is noted, and the JSON of the last one read), since on one machine it takes from the server
what it needs itself. Ends are put off by `ignore_eos`, which vLLM, llama.cpp's server and `slmkit serve` have; what an endpoint counts in `usage`
is believed.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from slmkit.errors import StepFailed
from slmkit.evidence.timing import Batch
from slmkit.steps._step import Given

Ids = tuple[int, ...]
TIMEOUT = 600.0  # seconds without a byte


@dataclass(frozen=True)
class Hosting:
    """What `slmkit serve` is started with."""

    concurrency: int
    device: str


class OverHttp:
    """Answers over HTTP; a Runtime (slmkit/ml/speed.py). url: up to /v1. own_ends: answers end where the model ends them."""

    def __init__(self, url: str, model: str, own_ends: bool, most: int):
        self.url, self.model, self.own_ends = urlsplit(url), model, own_ends
        self.pool = ThreadPoolExecutor(most)
        self.kept = threading.local()

    def __call__(self, prompts: list[Ids], new: int) -> Batch:
        bodies = [json.dumps(self._body(ids, new)) for ids in prompts]
        started = time.perf_counter()
        rows = list(self.pool.map(lambda body: self._ask(body, started), bodies))
        first, last, wrote = zip(*rows, strict=True)
        return Batch(first, last, tuple(map(len, prompts)), wrote)

    def _body(self, ids: Ids, new: int) -> dict:
        more = {} if self.own_ends else {"ignore_eos": True}
        usage = {"include_usage": True}
        return {"model": self.model, "prompt": list(ids), "max_tokens": new, "temperature": 0, "stream": True, "stream_options": usage} | more

    def _connection(self) -> http.client.HTTPConnection:
        if not hasattr(self.kept, "connection"):
            kind = http.client.HTTPSConnection if self.url.scheme == "https" else http.client.HTTPConnection
            self.kept.connection = kind(self.url.netloc, timeout=TIMEOUT)
        return self.kept.connection

    def _reply(self, body: str) -> http.client.HTTPResponse:
        """A connection that was kept may have been closed by the server meanwhile: then another is opened, once."""
        connection = self._connection()
        try:
            try:
                return self._post(connection, body)
            except (ConnectionError, http.client.HTTPException):
                connection.close()
                return self._post(connection, body)
        except (OSError, http.client.HTTPException) as e:
            connection.close()
            raise StepFailed(f"the endpoint {self.url.geturl()} cannot be reached: {e}") from None

    def _post(self, connection: http.client.HTTPConnection, body: str) -> http.client.HTTPResponse:
        connection.request("POST", f"{self.url.path}/completions", body, {"Content-Type": "application/json"})
        return connection.getresponse()

    def _ask(self, body: str, started: float) -> tuple[float, float, int]:
        """(seconds until the first token, until the last, tokens written)."""
        reply = self._reply(body)
        if reply.status != 200:
            raise StepFailed(f"the endpoint answers {reply.status}: {reply.read().decode(errors='replace')[:300]}")
        first, last, said = 0.0, 0.0, b""
        while line := reply.readline():
            if line.startswith(b"data: {"):
                said = line
                if b'"choices": []' not in line and b'"choices":[]' not in line:  # that is the chunk with the usage
                    last = time.perf_counter() - started
                    first = first or last
        reply.read()  # nothing is left to read, and a reply of a told length ends only here: before that its connection takes no other
        usage = json.loads(said[6:] or b"{}").get("usage") or {}
        if not usage.get("completion_tokens"):
            raise StepFailed("the endpoint told no usage at the end of its stream, so its tokens cannot be counted")
        return first, last, usage["completion_tokens"]

    def close(self) -> None:
        self.pool.shutdown()


@contextlib.contextmanager
def served(given: Given, own_ends: bool, most: int, device: str) -> Iterator[OverHttp]:
    """A model in a `slmkit serve` of its own, which is started and stopped here, asked by at most so many at once."""
    from slmkit.teach import hosted

    with hosted.server(given, "measured", Hosting(most, device)) as url:
        client = OverHttp(url, "measured", own_ends, most)
        try:
            yield client
        finally:
            client.close()
