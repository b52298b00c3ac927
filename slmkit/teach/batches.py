"""Carries requests through a batch API (OpenAI's files and batches): the same requests and answers, half the price, within a day.

What was uploaded stays in the step's state, so that another run, days later, collects it. A request in a batch is reserved in the budget
until its answer has come; what a batch could not answer goes into the next one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmkit.errors import Busy, CannotRun, UsageError
from slmkit.teach.desk import Desk, over_budget
from slmkit.teach.endpoint import ROW_CODES, Route
from slmkit.teach.request import Malformed, Request, answer

MOST, MOST_BYTES = 50_000, 190 << 20  # OpenAI's limits: 50,000 requests and 200 MB a file
ENDED = ("completed", "failed", "expired", "cancelled")
FIRST_WAIT, LONGEST_WAIT = 2.0, 60.0


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
    except (openai.AuthenticationError, openai.PermissionDeniedError) as e:
        raise CannotRun(f"{route.base_url}: {e}", mend=f"check the key in {route.key_name}") from None
    except openai.NotFoundError as e:
        raise CannotRun(f"{route.base_url} has no batch API: {e}", mend="set `execution.transport: auto`") from None
    except openai.APIConnectionError as e:
        raise CannotRun(f"{route.base_url}: {e.__cause__ or e}", mend="check the network; the same command goes on") from None
    except openai.BadRequestError as e:
        raise UsageError(f"{route.base_url}: {e}", mend="the endpoint does not take this batch: see what it says") from None
    finally:
        client.close()


class _Batches:
    """One after another: collect what is under way, then submit what is still unanswered."""

    def __init__(self, desk: Desk, client: Any, state: Path, terms: Terms, told: Callable[..., None]):
        self.desk, self.client, self.state, self.terms, self.told = desk, client, state, terms, told
        self.trials: dict[str, int] = {}

    def run(self, requests: Iterator[Request]) -> None:
        for file in sorted(self.state.glob("batch-*.json")):
            self._collect(file, again=True)
        left: list[Request] = []
        new = (r for r in self.desk.unanswered(requests) if r is not None)
        while True:
            file, full = self._submit(left, new)
            if file is None:
                return
            if self.terms.detach:
                name = json.loads(file.read_text())["id"]
                raise Busy(f"batch {name} is under way", mend="run the same command again to collect it")
            left = self._collect(file, again=False)
            if full is not None and not left:
                raise full

    def _submit(self, left: list[Request], new: Iterator[Request]) -> tuple[Path | None, Exception | None]:
        """Upload the next batch, as much as the budget allows. Returns (its file, what there is to raise once it is in)."""
        number = 1 + len(list(self.state.glob("batch-*.jsonl")))
        lines, size, full, count = self.state / f"batch-{number}.jsonl", 0, None, 0
        with lines.open("wb") as f:
            while count < self.terms.most and size < MOST_BYTES:
                request = left.pop() if left else next(new, None)
                if request is None:
                    break
                held = self.desk.budget.most(request)
                if self.desk.budget.limits and self.desk.budget.over(held, self.desk.budget.held, self.desk.budget.flying):
                    full = over_budget(self.desk, held, iter([*left, *new]))
                    break
                self.desk.reserve(request, held)
                body = {"custom_id": request.key, "method": "POST", "url": "/v1/chat/completions", "body": request.body}
                size += f.write(json.dumps(body | {"sample": request.sample}, ensure_ascii=False).encode() + b"\n")
                count += 1
        if not count:
            lines.unlink()
            if full:
                raise full
            return None, None
        return self._start(lines, count), full

    def _start(self, lines: Path, count: int) -> Path:
        sent = "".join(json.dumps({k: v for k, v in json.loads(line).items() if k != "sample"}, ensure_ascii=False) + "\n" for line in lines.open())
        upload = self.client.files.create(file=(lines.name, sent.encode()), purpose="batch")
        batch = self.client.batches.create(input_file_id=upload.id, endpoint="/v1/chat/completions", completion_window="24h")
        file = lines.with_suffix(".json")
        file.write_text(json.dumps({"id": batch.id, "requests": count}))
        self.told("batch", id=batch.id, requests=count)
        return file

    def _collect(self, file: Path, again: bool) -> list[Request]:
        """Wait for a batch and keep its answers. Returns the requests that must be asked again."""
        asked = {r.key: r for r in _requests(file.with_suffix(".jsonl"))}
        if again:
            for request in asked.values():
                self.desk.take_over(request)
        batch = self._wait(json.loads(file.read_text())["id"])
        for output in (batch.output_file_id, batch.error_file_id):
            for line in self.client.files.content(output).iter_lines() if output else ():
                if line.strip() and (said := json.loads(line)).get("custom_id") in asked:
                    self._one(asked, said)
        for request in asked.values():  # expired, or never looked at: nothing was billed
            self.desk.refused(request, self.desk.budget.most(request), f"batch {batch.status}")
        file.unlink()
        if batch.status == "failed":
            faults = "; ".join(e.message for e in (batch.errors.data if batch.errors and batch.errors.data else [])[:3])
            raise UsageError(f"the endpoint refused the batch {batch.id}: {faults or 'no reason given'}", mend="see what it says")
        return [r for r in asked.values() if self._again(r, f"batch {batch.status}")] + self._failed

    def _wait(self, name: str) -> Any:
        pause = FIRST_WAIT
        self._failed: list[Request] = []
        while (batch := self.client.batches.retrieve(name)).status not in ENDED:
            if self.terms.detach:
                done = f"{batch.request_counts.completed} of {batch.request_counts.total}" if batch.request_counts else batch.status
                raise Busy(f"batch {name} is under way ({done})", mend="run the same command again to collect it")
            time.sleep(pause)
            pause = min(LONGEST_WAIT, pause * 1.5)
        return batch

    def _one(self, asked: dict[str, Request], said: dict) -> None:
        request = asked.pop(said["custom_id"])
        held, response = self.desk.budget.most(request), said.get("response") or {}
        if response.get("status_code") == 200:
            try:
                return self.desk.keep(request, answer(response["body"]), held)
            except Malformed as e:
                why = str(e)
        else:
            fault = (response.get("body") or {}).get("error") or said.get("error") or {}
            why = f"{response.get('status_code', 'error')}: {fault.get('message', '')}"[:200]
            if fault.get("code") in ROW_CODES:
                self.desk.refused(request, held, why)
                return self.desk.drop(request, why)
        self.desk.refused(request, held, why)
        if self._again(request, why):
            self._failed.append(request)

    def _again(self, request: Request, why: str) -> bool:
        self.trials[request.key] = self.trials.get(request.key, 0) + 1
        if self.trials[request.key] < self.terms.trials:
            return True
        self.desk.drop(request, f"no answer in {self.terms.trials} batches; the last: {why}")
        return False


def _requests(lines: Path) -> Iterator[Request]:
    for line in lines.open():
        value = json.loads(line)
        yield Request(value["body"], value["sample"])
