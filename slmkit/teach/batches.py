"""Carries requests through a batch API (OpenAI's files and batches): the same requests and answers, half the price, within a day.

What was handed in is noted (slmkit.teach.underway), so that another run, days later, collects it. A request in a batch is reserved in the
budget until its answer has come; what a batch could not answer goes into the next one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from slmkit.errors import Busy, CannotRun, SlmkitError, UsageError
from slmkit.teach import underway
from slmkit.teach.desk import Desk, over_budget
from slmkit.teach.endpoint import ROW_CODES, Route
from slmkit.teach.request import Malformed, Request, answer
from slmkit.teach.underway import Batch

MOST, MOST_BYTES = 50_000, 190 << 20  # OpenAI's limits: 50,000 requests and 200 MB a file
ENDED = ("completed", "failed", "expired", "cancelled")
FIRST_WAIT, LONGEST_WAIT = 2.0, 60.0
PAUSES = (1.0, 3.0)  # between trials to create a batch
UNSURE = (408, 409, 425, 429)  # with all from 500 on: the same request may succeed later
NO_LIST = (404, 405, 501)  # what endpoints answer that cannot list batches
LISTED = 1000  # of the newest batches, so many are looked through


@dataclass(frozen=True)
class Terms:
    """detach: submit, and end. trials: batches that a request may be in. most: requests in one batch."""

    detach: bool = False
    trials: int = 3
    most: int = MOST


def carry(desk: Desk, requests: Iterator[Request], route: Route, state: Path, terms: Terms, told: Callable[..., None]) -> None:
    """Bring the answers to all requests into the ledger. Raises Busy (a batch is under way, and `detach`), CannotRun, UsageError."""
    import openai

    client = openai.OpenAI(api_key=route.key or "none", base_url=route.base_url, max_retries=5, timeout=route.timeout)
    try:
        _Batches(desk, client, state, terms, told).run(requests)
    except openai.APIError as e:
        raise _meaning(e, route) from None
    finally:
        client.close()


def _meaning(e: Exception, route: Route) -> SlmkitError:
    """What an error of the SDK means once its own trials are over."""
    import openai

    url, status = route.base_url, getattr(e, "status_code", None)
    if isinstance(e, openai.APIConnectionError):
        return CannotRun(f"{url}: {e.__cause__ or e}", mend="check the network; the same command goes on")
    if status in (401, 403):
        return CannotRun(f"{url}: {e}", mend=f"check the key in {route.key_name}")
    if status == 404:
        return CannotRun(f"{url} has no batch API: {e}", mend="set `execution.transport: auto`")
    if status == 429 and "insufficient_quota" in (e.code, e.type):
        return CannotRun(f"{url}: {e}", mend="the account has no money left: top it up and run the same command again")
    if status is None or status >= 500 or status in UNSURE:
        return CannotRun(f"{url}: {e}", mend="the endpoint cannot just now; everything is kept, and the same command goes on")
    return UsageError(f"{url}: {e}", mend="the endpoint does not take this batch: see what it says")


class _Batches:
    """One after another: collect what is under way, then submit what is still unanswered."""

    def __init__(self, desk: Desk, client: Any, state: Path, terms: Terms, told: Callable[..., None]):
        self.desk, self.client, self.state, self.terms, self.told = desk, client, state, terms, told
        self.trials: dict[str, int] = {}

    def run(self, requests: Iterator[Request]) -> None:
        self.desk.ledger.refresh()
        for batch in underway.found(self.state):
            self._left_by_earlier_run(batch)
        left: list[Request] = []
        new = (r for r in self.desk.unanswered(requests) if r is not None)
        while True:
            batch, full = self._submit(left, new)
            if batch is None:
                return
            if self.terms.detach:
                raise Busy(f"batch {batch.id} is under way", mend="run the same command again to collect it")
            left = self._collect(batch, {r.key: r for r, _ in batch.requests()})
            if full is not None and not left:
                raise full

    def _left_by_earlier_run(self, batch: Batch) -> None:
        """Collect it. What it does not answer is asked like any other request."""
        asked = {}
        for request, trials in batch.requests():
            if request not in self.desk.ledger:  # else it was kept before a kill
                asked[request.key], self.trials[request.key] = request, trials
        sent, batch = self._was_sent(batch)
        if sent is None:  # its reservations stay: they may be billed
            self.told("warning", what=f"a batch of {len(asked)} requests was handed in, and cannot be found again: they are asked anew")
            return batch.end()
        for request in asked.values():
            self.desk.take_over(request)
        if not sent:
            for request in asked.values():
                self.desk.refused(request, self.desk.budget.most(request), "never sent")
            batch.end()
        for request in self._collect(batch, asked) if sent else asked.values():
            self.desk.ask_again(request)

    def _was_sent(self, batch: Batch) -> tuple[bool | None, Batch]:
        """Is there such a batch? None: nobody can say. And the batch, with its name if there is."""
        if batch.torn or batch.id or not batch.upload:
            return None if batch.torn else bool(batch.id), batch
        known, name = self._find(batch)
        return (bool(name) if known else None), (batch.noted(id=name) if name else batch)

    def _find(self, batch: Batch) -> tuple[bool, str | None]:
        """(whether the endpoint can tell, the name of the batch that was created with this token)."""
        import openai

        try:
            for one in islice(self.client.batches.list(limit=100), LISTED):
                if (one.metadata or {}).get("slmkit") == batch.token or one.input_file_id == batch.upload:
                    return True, one.id
        except openai.APIStatusError as e:
            if e.status_code not in NO_LIST:
                raise
            return False, None
        return True, None

    def _submit(self, left: list[Request], new: Iterator[Request]) -> tuple[Batch | None, Exception | None]:
        """Upload the next batch, as much as the budget allows. Returns (the batch, what there is to raise once it is in)."""
        batch = underway.fresh(self.state)
        size, full, count = 0, None, 0
        with batch.lines.open("wb", buffering=0) as f:  # each line is in the file before its reservation is in the ledger
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
            batch.lines.unlink()
            if full:
                raise full
            return None, None
        return self._start(batch, count), full

    def _start(self, batch: Batch, count: int) -> Batch:
        lines = ({k: v for k, v in json.loads(line).items() if k not in ("sample", "trials")} for line in batch.lines.open("rb"))
        sent = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        upload = self.client.files.create(file=(batch.lines.name, sent.encode()), purpose="batch")
        batch = batch.noted(upload=upload.id)
        batch = batch.noted(id=self._create(batch))
        self.told("batch", id=batch.id, requests=count)
        return batch

    def _create(self, batch: Batch) -> str:
        """Create it once: not by the SDK's trials, which know nothing of a batch whose creation was not answered in time."""
        import openai

        client = self.client.with_options(max_retries=0)
        for pause in (*PAUSES, None):
            try:
                return client.batches.create(
                    input_file_id=batch.upload, endpoint="/v1/chat/completions", completion_window="24h", metadata={"slmkit": batch.token}
                ).id
            except openai.APIError as e:
                status = getattr(e, "status_code", 500)
                if status < 500 and status not in UNSURE or "insufficient_quota" in (e.code, e.type):
                    batch.note.unlink()  # refused
                    raise
                known, name = self._find(batch)
                if name:
                    return name
                if pause is None or not (known or status == 429):
                    raise
                time.sleep(pause)
        raise AssertionError

    def _collect(self, batch: Batch, asked: dict[str, Request]) -> list[Request]:
        """Wait for a batch and keep its answers to what was asked. Returns the requests that must be asked again."""
        done, failed = self._wait(batch.id), []
        gone = None if done else f"batch {batch.id} is not at the endpoint any more"
        for output in (done.output_file_id, done.error_file_id) if done else ():
            lines = self._content(output) if output else ()
            if lines is None:
                gone = f"the answers of batch {batch.id} are not at the endpoint any more"
            for line in lines or ():
                if line.strip() and (said := json.loads(line)).get("custom_id") in asked:
                    failed += self._one(asked.pop(said["custom_id"]), said)
        if gone:
            self.told("warning", what=f"{gone}: {len(asked)} requests are asked again")
        why = gone or f"batch {done.status}"
        for request in asked.values():
            if gone:
                self.desk.lose(request, self.desk.budget.most(request), why)
            else:  # expired, or never looked at: nothing was billed
                self.desk.refused(request, self.desk.budget.most(request), why)
        batch.end()
        if done and done.status == "failed":
            faults = "; ".join(e.message for e in (done.errors.data if done.errors and done.errors.data else [])[:3])
            raise UsageError(f"the endpoint refused the batch {batch.id}: {faults or 'no reason given'}", mend="see what it says")
        return [r for r in asked.values() if self._again(r, why)] + failed

    def _content(self, name: str) -> Iterator[str] | None:
        """The lines of a file, None where it is gone."""
        import openai

        try:
            return self.client.files.content(name).iter_lines()
        except openai.NotFoundError:
            return None

    def _wait(self, name: str) -> Any:
        """The batch once it has ended; None where the endpoint knows of none."""
        import openai

        pause = FIRST_WAIT
        while True:
            try:
                batch = self.client.batches.retrieve(name)
            except openai.NotFoundError:
                return None
            if batch.status in ENDED:
                return batch
            if self.terms.detach:
                done = f"{batch.request_counts.completed} of {batch.request_counts.total}" if batch.request_counts else batch.status
                raise Busy(f"batch {name} is under way ({done})", mend="run the same command again to collect it")
            time.sleep(pause)
            pause = min(LONGEST_WAIT, pause * 1.5)

    def _one(self, request: Request, said: dict) -> list[Request]:
        """Keep one answer. Returns the request if it must be asked again."""
        held, response = self.desk.budget.most(request), said.get("response") or {}
        if response.get("status_code") == 200:
            try:
                self.desk.keep(request, answer(response["body"]), held)
                return []
            except Malformed as e:
                why = str(e)
        else:
            fault = (response.get("body") or {}).get("error") or said.get("error") or {}
            why = f"{response.get('status_code', 'error')}: {fault.get('message', '')}"[:200]
            if fault.get("code") in ROW_CODES:
                self.desk.refused(request, held, why)
                self.desk.drop(request, why)
                return []
        self.desk.refused(request, held, why)
        return [request] if self._again(request, why) else []

    def _again(self, request: Request, why: str) -> bool:
        self.trials[request.key] = self.trials.get(request.key, 0) + 1
        if self.trials[request.key] < self.terms.trials:
            return True
        self.desk.drop(request, f"no answer in {self.terms.trials} batches; the last: {why}")
        return False
