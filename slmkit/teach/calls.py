"""Carries requests to an endpoint, as many at once as it bears: one dispatcher sends, paces and retries; memory does not grow with their number.

What ends at once: a wrong key, a bad request, an empty budget, a teacher that answers nothing for a long time. What is tried again, with
growing pauses: refusals, server faults, broken connections, time-outs, pages that are no JSON. What is given up: a request refused for what
it holds, or tried too often.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import heapq
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from slmkit.errors import CannotRun, Stopped, UsageError
from slmkit.teach.budget import Held, most_input
from slmkit.teach.desk import Desk, first_unanswered, over_budget
from slmkit.teach.endpoint import Endpoint, Failure, Route
from slmkit.teach.pace import Pace, backoff
from slmkit.teach.request import Request

FIRST_TRIALS = 3  # of a connection that never stood: a wrong address is told within seconds
FIRST_GARBLED = 5  # answers that are none, before there was any: it is another kind of server, and each may be billed
FIRST_REFUSED = 20  # requests, each for what it holds, before there was any answer: the rest will be, too
ELSEWHERE = 0.5  # seconds until it is looked again whether another process has the answer to what it has sent
YOUNG = 10_000  # new objects between two looks of the garbage collector
GRACE = 5.0  # seconds that requests in flight get to come back when the run has to end


@dataclass(frozen=True)
class Manners:
    """concurrency: most requests at once. retries: trials after the first. patience: seconds without one answer after which it ends."""

    concurrency: int = 32
    retries: int = 8
    patience: float = 300.0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


def carry(desk: Desk, requests: Iterator[Request], route: Route, manners: Manners) -> None:
    """Bring the answers to all requests into the ledger. Raises CannotRun, UsageError, OverBudget."""
    waiting, requests = first_unanswered(desk, requests)
    if waiting:  # else the SDK need not even be loaded
        asyncio.run(_Dispatcher(desk, requests, route, manners).run())


class _Dispatcher:
    """The one that sends. Results come back in tasks, which only note and wake it."""

    def __init__(self, desk: Desk, requests: Iterator[Request], route: Route, manners: Manners):
        self.desk, self.route, self.manners = desk, route, manners
        self.new = desk.unanswered(requests)
        self.pace = Pace(manners.concurrency, manners.requests_per_minute, manners.tokens_per_minute)
        self.due: list[tuple[float, int, Request, int]] = []  # (when, tie, request, trials so far)
        self.tasks: set[asyncio.Task] = set()
        self.woken = asyncio.Event()
        self.fatal: BaseException | None = None
        self.number, self.ended, self.refused = 0, False, 0

    async def run(self) -> None:
        self.pace.last_success = time.monotonic()
        with _signals(self._stop):
            await self._run()
        if self.fatal:
            raise self.fatal

    def _stop(self, number: int) -> None:
        """The first SIGINT, SIGTERM or SIGHUP: no new requests; a second one is left to whoever handled it before."""
        self.fatal = self.fatal or Stopped(128 + number)
        self.woken.set()

    async def _run(self) -> None:
        async with Endpoint(self.route) as self.endpoint:
            with _seldom_collected():
                try:
                    while (item := await self._next()) is not None:
                        await self._send(*item)
                finally:
                    await self._settle()

    async def _settle(self) -> None:
        """Those in flight are paid for: their answers are waited for, a little."""
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=GRACE)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _next(self) -> tuple[Request, int] | None:
        """The next request to send: one whose pause is over, else a new one; None when all are through."""
        while True:
            if self.fatal:
                return None
            now = time.monotonic()
            if self.due and self.due[0][0] <= now:
                _, _, request, trials = heapq.heappop(self.due)
                return request, trials
            if not self.ended and len(self.due) < (4 * self.manners.concurrency if self.pace.proven else 1):
                one = next(self.new, self)
                if one is None:
                    await asyncio.sleep(0)
                    continue
                if one is not self:
                    return one, 0
                self.ended = True
            if self.ended and not self.due and not self.tasks:
                return None
            await self._wait(self.due[0][0] - now if self.due else None)

    async def _wait(self, seconds: float | None) -> None:
        self.woken.clear()
        try:
            await asyncio.wait_for(self.woken.wait(), seconds)
        except TimeoutError:
            pass

    async def _send(self, request: Request, trials: int) -> None:
        tokens = most_input(request) // 4 + request.most
        while not self.fatal:
            if self.desk.come_meanwhile(request):
                self.pace.last_success = time.monotonic()  # of another process, from the same endpoint
                return
            held = self.desk.budget.most(request)
            fits = self.desk.budget.fits(held)
            delay = self.pace.delay(tokens)
            if fits == "never" and not self.due:
                self.fatal = over_budget(self.desk, held, self.new)
                return
            if fits == "never":  # others wait for their next trial, and may be smaller
                self.fatal = over_budget(self.desk, held, iter([*(r for _, _, r, _ in self.due), *self.new]))
                return
            if fits == "yes" and delay == 0.0:
                if not self.desk.ledger.claim(request):  # another process has sent it, and pays for it
                    return self._later(request, trials, random.uniform(0.5, 1.0) * ELSEWHERE)
                if self.desk.come_meanwhile(request):  # between the look and the claim
                    return self.desk.ledger.unclaim(request)
                self.desk.reserve(request, held)
                task = asyncio.create_task(self._call(request, held, trials, self.pace.sent(tokens)))
                self.tasks.add(task)
                task.add_done_callback(self._done)
                return
            await self._wait(delay if fits == "yes" else None)

    def _done(self, task: asyncio.Task) -> None:
        self.tasks.discard(task)
        self.pace.back()
        if not task.cancelled() and task.exception() is not None:
            self.fatal = self.fatal or task.exception()
        self.woken.set()

    async def _call(self, request: Request, held: Held, trials: int, sent: float) -> None:
        try:
            answer = await self.endpoint.call(request.body)
        except Failure as e:
            self._failed(request, held, trials, sent, e)
        except asyncio.CancelledError:
            self.desk.lose(request, held, "interrupted")
            raise
        except Exception:
            self.desk.refused(request, held, "refused")
            raise
        else:
            self.pace.answered()
            self.desk.keep(request, answer, held)
        finally:
            self.desk.ledger.unclaim(request)

    def _failed(self, request: Request, held: Held, trials: int, sent: float, failure: Failure) -> None:
        if failure.means in ("lost", "slow", "garbled"):
            self.desk.lose(request, held, failure.why)
        else:
            self.desk.refused(request, held, failure.why)
        if failure.means == "row":
            self.refused += 1
            if not self.pace.proven and self.refused >= FIRST_REFUSED:
                what = f"{self.route.base_url} refused each of the first {self.refused} requests for what it holds; the last: {failure.why}"
                mend = "see whether `max_tokens` and the prompts fit into the model's context"
                self.fatal = self.fatal or UsageError(what, mend=mend, key=self.route.block)
            return self.desk.drop(request, failure.why)
        if failure.means in ("busy", "slow"):
            self.pace.refused(sent, failure.after)
        self.pace.failed()
        if hopeless := self._hopeless(failure):
            self.fatal = self.fatal or hopeless
        elif trials >= self.manners.retries and failure.means != "busy":
            self.desk.drop(request, f"no answer in {trials + 1} trials; the last: {failure.why}")
        else:  # `after` of a busy endpoint holds for all requests: the pace knows of it
            own = min(failure.after or 0.0, self.manners.patience) if failure.means not in ("busy", "slow") else 0.0
            pause = backoff(trials) if failure.after is None else own
            self._later(request, trials + 1, pause)

    def _hopeless(self, failure: Failure) -> CannotRun | None:
        """Why there is no use in going on."""
        url, block, patience = self.route.base_url, self.route.block, self.manners.patience
        silent = time.monotonic() - self.pace.last_success
        if failure.means == "unreachable" and not self.pace.proven and self.pace.failures >= FIRST_TRIALS:
            return CannotRun(f"{url}: {failure.why}", mend=f"check `{block}.base_url` and the network", key=f"{block}.base_url")
        if failure.means == "garbled" and not self.pace.proven and self.pace.failures >= FIRST_GARBLED:
            mend = f"check that `{block}.base_url` is an OpenAI-compatible endpoint (it ends in /v1 at most of them)"
            return CannotRun(f"{url} answers, but not as such an endpoint does: {failure.why}", mend=mend, key=f"{block}.base_url")
        if self.pace.broken and silent > patience:
            mend = "all answers so far are kept: run the same command again when it is back"
            return CannotRun(f"{url} has answered nothing for {silent:.0f} s; the last failure: {failure.why}", mend=mend, key=block)
        rest = failure.after if failure.means in ("busy", "slow") and failure.after else 0.0
        alone = len(self.tasks) <= 1  # what else is in flight may be answered yet
        if rest > patience or (rest and alone and silent + rest > patience):
            what = f"{url} wants to be left alone for {rest:.0f} s ({failure.why}), {silent:.0f} s after the last answer"
            mend = f"all answers so far are kept: run the same command again then (`execution.patience` of a distill step is {patience:g} s)"
            return CannotRun(what, mend=mend, key=block)
        return None

    def _later(self, request: Request, trials: int, pause: float) -> None:
        self.number += 1
        heapq.heappush(self.due, (time.monotonic() + pause, self.number, request, trials))


@contextlib.contextmanager
def _seldom_collected() -> Iterator[None]:
    """The garbage collector leaves alone what is loaded by now, and comes less often: it would take a fifth of the CPU time of many calls."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(max(before[0], YOUNG), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


@contextlib.contextmanager
def _signals(stop: Callable[[int], None]) -> Iterator[None]:
    """While requests are in flight, a signal ends the run by way of the loop: what is under way can still come in and be kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    loop, before = asyncio.get_running_loop(), {n: h for n, h in found.items() if n != signal.SIGHUP or h is not signal.SIG_IGN}  # nohup

    def first(number: int) -> None:
        for n, handler in before.items():
            loop.remove_signal_handler(n)
            signal.signal(n, handler)
        stop(number)

    for number in before:
        loop.add_signal_handler(number, first, number)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
