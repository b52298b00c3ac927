"""Loads what is served, listens, and stops gently: uvicorn ends running requests on SIGTERM and SIGINT, then the bench ends."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from slmkit.errors import CannotRun, Stopped, UsageError
from slmkit.ml import models, teacher
from slmkit.ml.writer import Writer
from slmkit.serve.app import Served, app
from slmkit.serve.bench import Bench
from slmkit.steps._step import Given

PARENT = "SLMKIT_SERVE_FOR"  # set by slmkit.teach.hosted
GRACE = 60  # seconds that running requests get


@dataclass(frozen=True)
class Place:
    """Where it listens and on what it runs. dtype: auto, fp32, bf16 or fp16."""

    host: str
    port: int
    device: str
    dtype: str


def run(given: dict[str, Given], place: Place, batch: int, key: str | None, ready: Callable[[str], None]) -> None:
    """Serve until a signal. given: name → model or adapter; the first is the model, the others adapters on it. Raises SlmkitError."""
    listener = _listen(place.host, place.port)
    where = models.device(place.device)
    writers, speakers = {}, {}
    (first, base), *others = given.items()
    writers[first], speakers[first] = teacher.load(base, where, models.DTYPES.get(place.dtype))
    for name, adapter in others:
        writers[name], speakers[name] = _adapter(name, adapter, first, base, where)
    _end_with(os.environ.get(PARENT))
    bench = Bench(lambda name, asks, each: writers[name].write(asks, each), batch)
    config = uvicorn.Config(app(Served(speakers, bench, key)), log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE, lifespan="off")
    server = _Server(config, lambda: ready(f"http://{_host(place.host)}:{listener.getsockname()[1]}/v1"))
    try:
        server.run(sockets=[listener])
    except Stopped:  # uvicorn raises the signal again once all is answered: that is how a server is meant to end
        pass
    finally:
        bench.close()
        listener.close()


class _Server(uvicorn.Server):
    """uvicorn, which says when it answers."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]):
        super().__init__(config)
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.ready()


def _adapter(name: str, adapter: Given, first: str, base: Given, where) -> tuple[Writer, object]:
    """An adapter on the model: its base must be what is served. It is loaded with a base of its own, in the numerics it was trained in."""
    if adapter.type != "adapter":
        raise UsageError(f"--adapter {name}: this is a {adapter.type}", mend="serve it alone, as MODEL")
    if adapter.base is not None and Path(adapter.base.path).resolve() != Path(base.path).resolve() and adapter.base.digest != base.digest:
        raise UsageError(f"--adapter {name} was trained on {adapter.base.uri}, and {first} is another model", mend="serve its own base")
    return teacher.load(adapter, where)


def _end_with(parent: str | None) -> None:
    """Of a server that runs for another process: end when that is gone. A kill -9 tells nobody, but it changes our parent."""
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # TCP by name: asyncio turns Nagle's algorithm off only where that is said, and with it streamed tokens wait 40 ms for an acknowledgement
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as e:
        listener.close()
        if e.errno == errno.EADDRINUSE:
            raise CannotRun(f"port {port} is in use", mend="choose another with --port, or let --port 0 find one") from None
        raise CannotRun(f"cannot listen on {host}:{port}: {e.strerror or e}", mend="check --host and --port") from None
    return listener


def _host(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
