"""What distill will ask for, said by `plan`: the requests themselves are built from the first prompts, and looked up in the ledger.

Nothing is asked and nothing is written. What the first answers of this teacher cost in tokens and time is taken from the ledger; where
it holds none, answers count as their most, and no time is said.
"""

from __future__ import annotations

import datetime
import importlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from slmkit.errors import SlmkitError
from slmkit.teach import distill
from slmkit.teach.budget import Budget, bytes_of
from slmkit.teach.desk import Desk
from slmkit.teach.ledger import Ledger
from slmkit.teach.prompts import Prompts
from slmkit.teach.request import Request

SAMPLE = 2000  # requests that are built; of more, the rest is taken to be alike
BYTES_PER_TOKEN = 4
RECENT = 200  # answers of the ledger that are looked at for their length and rate


def calls(config: Any, execution: Any, inputs: dict[str, Any], ledgers: Path) -> dict[str, int | str]:
    """Calls, answers known already, tokens, dollars, seconds of the first stage, and how many verdicts may come after it; {} where its inputs
    are not there yet."""
    prompts = inputs.get("prompts") or ()
    if config.prompts is not None and (not prompts or any(p.path is None for p in prompts)):
        return {}
    try:
        return _calls(config, execution, inputs, ledgers, Prompts(tuple(prompts), skip=True) if prompts else None)
    except (SlmkitError, OSError, ValueError):  # the step says what is wrong, and where
        return {}


def _calls(config: Any, execution: Any, inputs: dict[str, Any], ledgers: Path, prompts: Prompts | None) -> dict[str, int | str]:
    model, file = distill.book_of(config, inputs.get("teacher"), ledgers)
    book = Ledger(file, read_only=True) if file.is_file() else None
    try:
        desk = Desk(book, distill.budget_of(config, execution))
        job = distill.job_of(config, inputs, model, prompts, desk, [], None)
        mode = importlib.import_module(f"slmkit.teach.modes.{config.mode}")
        requests = next(iter(mode.stages(job)))()
        sample = list({r.key: r for r in islice(requests, SAMPLE)}.values())
        rest = sum(1 for _ in requests) if len(sample) >= SAMPLE else 0
        return _told(sample, rest, book, desk.budget, config)
    finally:
        if book:
            book.close()


def _told(sample: list[Request], rest: int, book: Ledger | None, budget: Budget, config: Any) -> dict[str, int | str]:
    if not sample:
        return {}
    new = [r for r in sample if book is None or r not in book]
    scale = (len(sample) + rest) / len(sample)
    count = round(len(new) * scale)
    told: dict[str, int | str] = {"calls": count}
    if known := round((len(sample) - len(new)) * scale):
        told["answers_known"] = known
    if later := distill.verdicts(config, len(sample) + rest):
        told["verdicts_at_most"] = later
    if not count:
        return told
    if budget.limits.requests is not None and count > budget.limits.requests:
        told["beyond"] = f"more than the budget of {budget.limits.requests} requests"
    recent = list(islice(_recent(book), RECENT)) if book else []
    output = sum(r["usage"]["output"] for r in recent) / len(recent) if recent else config.max_tokens
    input = sum(_input_bytes(r) for r in new) / len(new) / BYTES_PER_TOKEN
    tokens = round(count * (input + output))
    told["tokens" if recent else "tokens_at_most"] = tokens
    if budget.prices:
        usd = count * budget.prices.of({"input": input, "output": output})
        told["cost"] = f"~{usd:.2g} USD" if recent else f"at most ~{usd:.2g} USD"
        if budget.limits.usd is not None and usd > budget.limits.usd:
            told["beyond"] = f"more than the budget of {budget.limits.usd:g} USD"
    if budget.limits.tokens is not None and tokens > budget.limits.tokens:
        told["beyond"] = f"more than the budget of {budget.limits.tokens} tokens"
    if rate := _rate(recent):
        told["seconds"] = round(count / rate)
    return told


def _input_bytes(request: Request) -> int:
    return sum(bytes_of(m.get("content") or "") + 4 * BYTES_PER_TOKEN for m in request.body["messages"])


def _recent(book: Ledger) -> Iterator[dict]:
    """The answers that were kept last, newest first."""
    for key in reversed(book.places):
        if record := book.record_of(key.hex()):
            yield record


def _rate(recent: list[dict]) -> float | None:
    """Answers a second, from when the recent ones came, leaving out pauses of more than a minute."""
    times = sorted(datetime.datetime.fromisoformat(r["at"]).timestamp() for r in recent)
    gaps = [b - a for a, b in zip(times, times[1:], strict=False) if b - a < 60]
    return len(gaps) / sum(gaps) if len(gaps) >= 20 and sum(gaps) > 0 else None

