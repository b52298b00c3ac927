"""The thread that owns the model: takes what waits, as one batch, and tells each request of its tokens as they are written.

Requests that come while a batch is being written wait for the next one. Clients whose answers came together ask again together, so
a batch is not begun while requests keep coming in: else two halves would take turns. Those for one adapter are taken together.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LINGER, LONGEST_LINGER = 0.01, 0.2  # seconds without a new request after which a batch begins; and in all


@dataclass
class Job:
    """asks of one HTTP request, for one model. heard: called in the loop with (ask's index, token), where tokens are streamed."""

    model: str
    asks: list[Any]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future
    heard: Callable[[int, Any], None] | None = None
    gone: threading.Event = field(default_factory=threading.Event)
    told: list[list[int]] = field(init=False)  # for each ask, the tokens that `heard` was told of

    def __post_init__(self) -> None:
        self.told = [[] for _ in self.asks]


class Bench:
    """write(model name, asks, each) -> list of what was written. Started once; `close` ends it after the batch at hand."""

    def __init__(self, write: Callable, most: int):
        self.write, self.most = write, most
        self.waiting: queue.Queue[Job | None] = queue.Queue()
        self.left: list[Job] = []
        self.running = 0
        self.thread = threading.Thread(target=self._work, name="bench", daemon=True)
        self.thread.start()

    def put(self, job: Job) -> None:
        self.waiting.put(job)

    @property
    def queued(self) -> int:
        return self.waiting.qsize() + len(self.left)

    def close(self) -> None:
        self.waiting.put(None)
        self.thread.join()

    def _take(self) -> list[Job] | None:
        """All that wait and fit into one batch; None to end."""
        if not self.left:
            one = self.waiting.get()
            if one is None:
                return None
            self.left.append(one)
        until = time.monotonic() + LONGEST_LINGER
        while time.monotonic() < until and sum(len(job.asks) for job in self.left) < self.most:
            try:
                one = self.waiting.get(timeout=LINGER)
            except queue.Empty:
                break
            if one is None:
                self.waiting.put(None)
                break
            self.left.append(one)
        batch: list[Job] = []
        for job in list(self.left):
            if job.model == self.left[0].model and (not batch or sum(len(j.asks) for j in batch) + len(job.asks) <= self.most):
                batch.append(job)
        self.left = [job for job in self.left if job not in batch]
        return batch

    def _work(self) -> None:
        while (batch := self._take()) is not None:
            batch = [job for job in batch if not job.gone.is_set()]
            if batch:
                self.running = sum(len(job.asks) for job in batch)
                self._batch(batch)
                self.running = 0

    def _batch(self, batch: list[Job]) -> None:
        """Answer all of a batch. If that fails, each is tried alone: one that cannot be answered must not take its neighbours along."""
        owner = [(job, i, list(job.told[i])) for job in batch for i in range(len(job.asks))]

        def each(row: int, token: Any) -> bool:
            job, index, before = owner[row]
            mark = -1 if isinstance(token, list) else token.id  # -1: the prompt's
            if before:  # tried again: what was streamed is not streamed twice
                if before.pop(0) != mark:
                    raise RuntimeError("an answer that was begun with others came out differently alone")
            elif job.heard is not None:
                job.told[index].append(mark)
                job.loop.call_soon_threadsafe(job.heard, index, token)
            return not job.gone.is_set()

        wrote = None
        try:
            wrote = self.write(batch[0].model, [a for job in batch for a in job.asks], each)
        except Exception as e:  # noqa: BLE001  whatever broke, those who wait must hear of it
            if len(batch) == 1:
                batch[0].loop.call_soon_threadsafe(_set, batch[0].done, None, e)
                return
        if wrote is None:
            for job in batch:
                if not job.gone.is_set():
                    self._batch([job])
            return
        for job in batch:
            own, wrote = wrote[: len(job.asks)], wrote[len(job.asks) :]
            job.loop.call_soon_threadsafe(_set, job.done, own, None)


def _set(future: asyncio.Future, value: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)
