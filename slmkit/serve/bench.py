"""The thread that owns the model: takes what waits, as one batch, and tells each request of its tokens as they are written.

Requests that come while a batch is being written wait for the next one. Clients whose answers came together ask again together, so
a batch is not begun while requests keep coming in: else two halves would take turns. Those for one adapter are taken together.
A request of more answers than a batch holds is written in several batches, and takes turns with those that wait; others are never cut up.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from slmkit.ml.writer import Token

LINGER, LONGEST_LINGER = 0.01, 0.2  # seconds without a new request after which a batch begins; and in all


@dataclass(eq=False)
class Job:
    """asks of one HTTP request, for one model. heard: called in the loop with (ask's index, what the Writer tells of it), where they are streamed."""

    model: str
    asks: list[Any]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future
    heard: Callable[[int, Any], None] | None = None
    gone: threading.Event = field(default_factory=threading.Event)
    taken: int = 0  # asks that a batch has taken
    wrote: list[Any] = field(default_factory=list)
    told: list[list[int]] = field(init=False)  # for each ask, the marks of what `heard` was told of

    def __post_init__(self) -> None:
        self.told = [[] for _ in self.asks]

    @property
    def left(self) -> int:
        return len(self.asks) - self.taken


@dataclass(frozen=True)
class Part:
    """What a batch has of a job: which of its asks."""

    job: Job
    rows: range


class Bench:
    """write(model name, asks, each) -> list of what was written, for `most` asks at most. Started once; `close` ends it when nobody waits."""

    def __init__(self, write: Callable, most: int):
        self.write, self.most = write, most
        self.waiting: queue.Queue[Job | None] = queue.Queue()
        self.left: list[Job] = []
        self.begun: list[Job] = []  # those that the batch before had a part of, and that have more
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

    def _take(self) -> list[Part] | None:
        """All that wait and fit into one batch, those that have had a part of one last; None to end."""
        if not self.left and not self.begun:
            one = self.waiting.get()
            if one is None:
                return None
            self.left.append(one)
        until = time.monotonic() + LONGEST_LINGER
        while time.monotonic() < until:
            full = sum(job.left for job in self.left + self.begun) >= self.most
            try:
                one = self.waiting.get(timeout=0 if full else LINGER)
            except queue.Empty:
                break
            if one is None:
                self.waiting.put(None)
                break
            self.left.append(one)
        self.left, self.begun = [job for job in self.left + self.begun if not job.gone.is_set()], []
        batch: list[Part] = []
        room = self.most
        for job in self.left:
            count = min(job.left, room) if job.left <= room or job.left > self.most else 0
            if job.model == self.left[0].model and count:
                batch.append(Part(job, range(job.taken, job.taken + count)))
                room -= count
        taken = [part.job for part in batch]
        self.left = [job for job in self.left if job not in taken]
        return batch

    def _work(self) -> None:
        while (batch := self._take()) is not None:
            for part in batch:
                part.job.taken = part.rows.stop
            self.running = sum(len(part.rows) for part in batch)
            if batch:
                self._batch(batch)
            self.running = 0
            self.begun = [part.job for part in batch if part.job.left]

    def _batch(self, batch: list[Part]) -> None:
        """Answer all of a batch. If that fails, each is tried alone: one that cannot be answered must not take its neighbours along."""
        owner = [(part.job, i, list(part.job.told[i])) for part in batch for i in part.rows]

        def each(row: int, token: Any) -> bool:
            job, index, before = owner[row]
            mark = token.id if isinstance(token, Token) else -1  # -1: the prompt's tokens, or the end
            if before:  # tried again: what was streamed is not streamed twice
                if before.pop(0) != mark:
                    raise RuntimeError("an answer that was begun with others came out differently alone")
            elif job.heard is not None:
                job.told[index].append(mark)
                job.loop.call_soon_threadsafe(job.heard, index, token)
            return not job.gone.is_set()

        wrote = None
        try:
            wrote = self.write(batch[0].job.model, [job.asks[i] for job, i, _ in owner], each)
        except Exception as e:  # noqa: BLE001  whatever broke, those who wait must hear of it
            if len(batch) == 1:
                job = batch[0].job
                job.gone.set()  # the rest of it is not begun
                job.loop.call_soon_threadsafe(_set, job.done, None, e)
                return
        if wrote is None:
            for part in batch:
                if not part.job.gone.is_set():
                    self._batch([part])
            return
        for (job, _, _), one in zip(owner, wrote, strict=True):
            job.wrote.append(one)
            if len(job.wrote) == len(job.asks):
                job.loop.call_soon_threadsafe(_set, job.done, job.wrote, None)


def _set(future: asyncio.Future, value: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)
