"""The server's parts in this process: a small real model that writes, and the HTTP interface over it on a port of its own."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import uvicorn

from slmkit import demo
from slmkit.ml import models
from slmkit.ml.completions import Speaker
from slmkit.ml.writer import Writer
from slmkit.serve.app import Served, app
from slmkit.serve.bench import Bench
from slmkit.serve.server import _listen
from tests.support.drive import given

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def writer() -> Writer:
    source = given(demo.path("student"), "model")
    return Writer(models.load(source, CPU), models.tokenizer(source), CPU)


@pytest.fixture(scope="session")
def speaker(writer) -> Speaker:
    return Speaker(writer.tokenizer, frozenset(), writer.longest, "f")


@contextmanager
def listening(speaker: Speaker, bench: Bench) -> Iterator[str]:
    """The interface over a bench, on a port of its own."""
    listener = _listen("127.0.0.1", 0)
    listener.listen()  # who connects before the server runs waits for it
    server = uvicorn.Server(uvicorn.Config(app(Served({"m": speaker}, bench)), log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(20)
        bench.close()


def post(url: str, body: dict) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()
