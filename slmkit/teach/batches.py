"""Carries requests through a batch API (OpenAI's files and batches): the same requests and answers, half the price, within a day.

What was handed in is noted (slmkit.teach.underway), so that another run, days later, collects it. A request in a batch is reserved in the
budget until its answer has come; what a batch could not answer goes into the next one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from slmkit.errors import Busy, UsageError
from slmkit.teach import underway
from slmkit.teach.batch_api import connected, content, create, field, find
from slmkit.teach.budget import Budget, Limits
from slmkit.teach.desk import Desk, over_budget
from slmkit.teach.endpoint import ROW_CODES, Route
from slmkit.teach.ledger import Ledger
from slmkit.teach.request import Malformed, Request, answer
from slmkit.teach.underway import Batch

MOST, MOST_BYTES = 50_000, 190 << 20  # OpenAI's limits: 50,000 requests and 200 MB a file
ENDED = ("completed", "failed", "expired", "cancelled")
FIRST_WAIT, LONGEST_WAIT = 2.0, 60.0


@dataclass(frozen=True)
class Terms:
    """detach: submit, and end. trials: batches that a request may be in. most: requests in one batch."""

    detach: bool = False
    trials: int = 3
    most: int = MOST


def carry(desk: Desk, requests: Iterator[Request], route: Route, terms: Terms, told: Callable[..., None]) -> None:
    """Bring the answers to all requests into the ledger. Raises Busy (a batch is under way, and `detach`), CannotRun, UsageError."""
    with connected(route) as client:
        work = _Batches(desk, client, terms, told)
        try:
            work.run(requests)
        finally:
            work.let_go()


def carry_beside(
    desk: Desk, requests: Iterator[Request], route: Route, told: Callable[..., None], carrier: Callable[[Iterator[Request]], None]
) -> None:  # fmt: skip
    """By another carrier, but for what is in a batch already: that is waited for."""
    if not underway.found(folder_of(desk)):
        return carrier(requests)
    with connected(route) as client:
        work = _Batches(desk, client, Terms(), told)
        try:
            work.beside(requests, carrier)
        finally:
            work.let_go()


def folder_of(desk: Desk) -> Path:
    """Where the batches of a teacher are."""
    return underway.folder_of(desk.ledger.path)


class _Batches:
    """One after another: collect what is under way, then submit what is still unanswered."""

    def __init__(self, desk: Desk, client: Any, terms: Terms, told: Callable[..., None]):
        self.desk, self.client, self.terms, self.told = desk, client, terms, told
        self.trials: dict[str, int] = {}
        self.created: set[str] = set()  # names of batches, by this run
        self.locks: list[BinaryIO] = []
        self.elsewhere: dict[str, Batch] = {}  # by key: batches that others pay for
        self.theirs: dict[str, Request] = {}  # those of our requests that are in such a batch

    def run(self, requests: Iterator[Request]) -> None:
        self._under_way()
        left: list[Request] = []
        new = (r for r in self.desk.unanswered(self._ours(requests)) if r is not None)
        while True:
            batch, full = self._submit(left, new)
            if batch is None:
                left = self._from_elsewhere()
                if not left:
                    return
                continue
            if self.terms.detach:
                raise Busy(f"batch {batch.id} is under way", mend="run the same command again to collect it")
            left = self._collect(self.desk, batch, {r.key: r for r, _ in batch.requests()})
            if full is not None and not left:
                raise full

    def beside(self, requests: Iterator[Request], carrier: Callable[[Iterator[Request]], None]) -> None:
        """By the carrier what is in no batch."""
        self._under_way()
        carrier(self._ours(requests))
        if left := self._from_elsewhere():
            carrier(iter(left))

    def let_go(self) -> None:
        """Others may work on the batches."""
        for lock in self.locks:
            lock.close()

    def _mine(self, batch: Batch | None) -> Batch | None:
        if batch is not None:
            self.locks.append(batch.lock)
        return batch

    def _under_way(self) -> None:
        """Collect what this step sent before, and know what others sent."""
        self.desk.ledger.refresh()
        for batch in underway.found(folder_of(self.desk)):
            if batch.account == self.desk.ledger.account and (ours := self._mine(batch.claim())):
                self._left_by_earlier_run(self.desk, ours)
            else:
                self.elsewhere |= dict.fromkeys(batch.keys(), batch)
        self.desk.ledger.refresh()  # what was collected while we looked

    def _ours(self, requests: Iterator[Request]) -> Iterator[Request]:
        for request in requests:
            if request.key in self.elsewhere and request not in self.desk.ledger:
                self.theirs[request.key] = request
            else:
                yield request

    def _from_elsewhere(self) -> list[Request]:
        """Wait for the answers that others pay for. Returns the requests that got none."""
        for batch in {self.elsewhere[key].lines: self.elsewhere[key] for key in self.theirs}.values():
            pause = FIRST_WAIT
            while batch.lines.exists():
                if taken := self._mine(batch.claim()):
                    self._for_its_payer(taken)
                    break
                if self.terms.detach:
                    raise Busy(f"batch {batch.id} is under way in another run", mend="run the same command again when it is collected")
                time.sleep(pause)
                pause = min(LONGEST_WAIT, pause * 1.5)
        theirs, self.theirs, self.elsewhere = self.theirs, {}, {}
        return [r for r in theirs.values() if not self.desk.come_meanwhile(r)]

    def _for_its_payer(self, batch: Batch) -> None:
        """Collect a batch that another step sent: the answers are booked on that step's account."""
        book = Ledger(self.desk.ledger.path, batch.account)
        try:
            budget = Budget(Limits(requests=sys.maxsize), self.desk.budget.prices, book.spent)
            self._left_by_earlier_run(Desk(book, budget), batch)
        finally:
            book.close()

    def _left_by_earlier_run(self, desk: Desk, batch: Batch) -> None:
        """Collect it. What it does not answer is asked like any other request."""
        asked = {}
        for request, trials in batch.requests():
            if request not in desk.ledger:  # else it was kept before a kill
                asked[request.key], self.trials[request.key] = request, trials
        sent, batch = self._was_sent(batch)
        if sent is None:  # its reservations stay: they may be billed
            self.told("warning", what=f"a batch of {len(asked)} requests was handed in, and cannot be found again: they are asked anew")
            return batch.end()
        for request in asked.values():
            desk.take_over(request)
        if not sent:
            for request in asked.values():
                desk.refused(request, desk.budget.most(request), "never sent")
            batch.end()
        for request in self._collect(desk, batch, asked) if sent else asked.values():
            desk.ask_again(request)

    def _was_sent(self, batch: Batch) -> tuple[bool | None, Batch]:
        """Is there such a batch? None: nobody can say. And the batch, with its name if there is."""
        if batch.torn or batch.id or not batch.upload:
            return None if batch.torn else bool(batch.id), batch
        known, name = find(self.client, batch)
        return (bool(name) if known else None), (batch.noted(id=name) if name else batch)

    def _submit(self, left: list[Request], new: Iterator[Request]) -> tuple[Batch | None, Exception | None]:
        """Upload the next batch, as much as the budget allows. Returns (the batch, what there is to raise once it is in)."""
        batch = self._mine(underway.fresh(folder_of(self.desk), self.desk.ledger.account))
        size, full, count = 0, None, 0
        with batch.lines.open("ab", buffering=0) as f:  # each line is in the file before its reservation is in the ledger
            while count < self.terms.most and size < MOST_BYTES:
                request = left.pop() if left else next(new, None)
                if request is None:
                    break
                held = self.desk.budget.most(request)
                if self.desk.budget.limits and self.desk.budget.over(held, self.desk.budget.held, self.desk.budget.flying):
                    full = over_budget(self.desk, held, iter([*left, *new]))
                    break
                body = {"custom_id": request.key, "method": "POST", "url": "/v1/chat/completions", "body": request.body}
                more = {"sample": request.sample, "trials": self.trials.get(request.key, 0)}
                size += f.write(json.dumps(body | more, ensure_ascii=False).encode() + b"\n")
                self.desk.reserve(request, held)
                count += 1
        if not count:
            batch.end()
            if full:
                raise full
            return None, None
        return self._start(batch, count), full

    def _start(self, batch: Batch, count: int) -> Batch:
        lines = ({k: v for k, v in json.loads(line).items() if k not in ("sample", "trials")} for line in batch.lines.open("rb"))
        sent = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        upload = self.client.files.create(file=(batch.lines.name, sent.encode()), purpose="batch")
        batch = batch.noted(upload=field(upload, "id"))
        batch = batch.noted(id=create(self.client, batch))
        self.created.add(batch.id)
        self.told("batch", id=batch.id, requests=count)
        return batch

    def _collect(self, desk: Desk, batch: Batch, asked: dict[str, Request]) -> list[Request]:
        """Wait for a batch and keep its answers to what was asked. Returns the requests that must be asked again."""
        done, failed = self._wait(batch.id), []
        gone = None if done else f"batch {batch.id} is not at the endpoint any more"
        for output in (done.output_file_id, done.error_file_id) if done else ():
            lines = content(self.client, output) if output else ()
            if lines is None:
                gone = f"the answers of batch {batch.id} are not at the endpoint any more"
            for said in lines or ():
                if isinstance(name := said.get("custom_id"), str) and name in asked:
                    failed += self._one(desk, asked.pop(name), said)
        if gone:
            self.told("warning", what=f"{gone}: {len(asked)} requests are asked again")
        why = gone or f"batch {done.status}"
        for request in asked.values():
            if gone:
                desk.lose(request, desk.budget.most(request), why)
            else:  # expired, or never looked at: nothing was billed
                desk.refused(request, desk.budget.most(request), why)
        batch.end()
        if done and done.status == "failed":
            told = getattr(done.errors, "data", None) or done.errors or ()
            faults = "; ".join(str(getattr(e, "message", e)) for e in (told if isinstance(told, list) else [told] if told else [])[:3])
            raise UsageError(f"the endpoint refused the batch {batch.id}: {faults or 'no reason given'}", mend="see what it says")
        return [r for r in asked.values() if self._again(desk, r, why)] + failed

    def _wait(self, name: str) -> Any:
        """The batch once it has ended; None where the endpoint knows of none."""
        import openai

        pause = FIRST_WAIT
        while True:
            try:
                batch = self.client.batches.retrieve(name)
            except openai.NotFoundError:
                return None
            if field(batch, "status") in ENDED:
                return batch
            if self.terms.detach:
                done = f"{batch.request_counts.completed} of {batch.request_counts.total}" if batch.request_counts else batch.status
                raise Busy(f"batch {name} is under way ({done})", mend="run the same command again to collect it")
            if pause == FIRST_WAIT and name not in self.created:
                self.told("warning", what=f"batch {name}, which an earlier run handed in, is under way with requests of this step: it is waited for")
            time.sleep(pause)
            pause = min(LONGEST_WAIT, pause * 1.5)

    def _one(self, desk: Desk, request: Request, said: dict) -> list[Request]:
        """Keep one answer. Returns the request if it must be asked again."""
        held, response = desk.budget.most(request), _object(said.get("response"))
        if response.get("status_code") == 200:
            try:
                desk.keep(request, answer(response.get("body")), held)
                return []
            except Malformed as e:
                why = str(e)
        else:
            told = _object(response.get("body")).get("error") or said.get("error") or ""
            fault = _object(told)
            why = f"{response.get('status_code', 'error')}: {fault.get('message') or told}"[:200]
            if fault.get("code") in ROW_CODES:
                desk.refused(request, held, why)
                desk.drop(request, why)
                return []
        desk.refused(request, held, why)
        return [request] if self._again(desk, request, why) else []

    def _again(self, desk: Desk, request: Request, why: str) -> bool:
        self.trials[request.key] = self.trials.get(request.key, 0) + 1
        if self.trials[request.key] < self.terms.trials:
            return True
        desk.drop(request, f"no answer in {self.terms.trials} batches; the last: {why}")
        return False


def _object(value: Any) -> dict:
    """An object where there should be one; endpoints say otherwise at times."""
    return value if isinstance(value, dict) else {}
