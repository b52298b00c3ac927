"""What distill will ask for, said by `plan`: the requests of the first stage are built, and looked up in the ledger and in batches under way.

Nothing is asked and nothing is written. What earlier attempts of the step spent is taken off its budget, as the step itself will do. What the
first answers of this teacher cost in tokens and time is taken from the ledger; where it holds none, answers count as their most, and no time is said.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from slmkit.errors import DataError, RecipeError, SlmkitError
from slmkit.teach import distill, underway
from slmkit.teach.budget import Budget, bytes_of
from slmkit.teach.desk import Desk
from slmkit.teach.ledger import Ledger, account_in
from slmkit.teach.prompts import Prompts
from slmkit.teach.request import Request

SAMPLE = 2000  # requests whose length is measured; of more, the rest is taken to be as long
BYTES_PER_TOKEN = 4
RECENT = 200  # answers of the ledger that are looked at for their length and rate


def calls(config: Any, execution: Any, inputs: dict[str, Any], ledgers: Path, state: Path) -> dict[str, int | str]:
    """Calls, answers known already, requests in batches under way, what was spent, tokens, dollars, seconds of the first stage, and how many
    verdicts may come after it; {} where its inputs are not there yet. state: the step's, which tells its account."""
    prompts, teacher = inputs.get("prompts") or (), inputs.get("teacher")
    if teacher is not None and teacher.path is None:
        return {}
    if config.prompts is not None and (not prompts or any(p.path is None for p in prompts)):
        return {}
    try:
        return _calls(config, execution, inputs, ledgers, state, Prompts(tuple(prompts), skip=True) if prompts else None)
    except (DataError, RecipeError):  # of rows, templates, functions: the step says what is wrong, and where, before it asks anything
        return {}
    except SlmkitError as e:  # an altered ledger, say
        return {"refused": f"{f'{e.where}: ' if e.where else ''}{e.what}: it will be refused{f' ({e.mend})' if e.mend else ''}"}
    except (OSError, ValueError) as e:
        return {"refused": f"what it will ask for cannot be made out, and it will fail: {e}"}


@dataclass
class _Seen:
    """The distinct requests of a stage: answered, in a batch under way, or to be asked. sample: the first of the latter."""

    known: int = 0
    batched: int = 0
    new: int = 0
    sample: list[Request] = field(default_factory=list)

    @property
    def all(self) -> int:
        return self.known + self.batched + self.new


def _calls(
    config: Any, execution: Any, inputs: dict[str, Any], ledgers: Path, state: Path, prompts: Prompts | None
) -> dict[str, int | str]:  # fmt: skip
    model, file = distill.book_of(config, inputs.get("teacher"), ledgers)
    book = Ledger(file, account_in(state / distill.ACCOUNT) or "", read_only=True) if file.is_file() else None
    try:
        desk = Desk(book, distill.budget_of(config, execution, book.spent) if book is not None else distill.budget_of(config, execution))
        batched = _under_way(book, desk.budget) if book is not None else set()
        job = distill.job_of(config, inputs, model, prompts, desk, [], None)
        stages = iter(importlib.import_module(f"slmkit.teach.modes.{config.mode}").stages(job))
        seen = _seen(next(stages)(), book, batched)
        later = distill.verdicts(config, seen.all)
        if sure := bool(later) and seen.known == seen.all:  # all answers are here: the questions about them can be made out
            later = min(later, _seen(next(stages)(), book, batched).new)
        return _told(seen, later, sure, book, desk.budget, config)
    finally:
        if book is not None:
            book.close()


def _under_way(book: Ledger, budget: Budget) -> set[str]:
    """Keys of the requests in batches that were handed in. Those of this step's own are held in the budget, as its next run will do."""
    keys: set[str] = set()
    for batch in underway.found(underway.folder_of(book.path)):
        if batch.sent:
            keys.update(batch.keys())
        if batch.torn or not book.account or batch.account != book.account:
            continue
        with contextlib.suppress(FileNotFoundError):  # collected while we look
            for request in (r for r, _ in batch.requests() if r not in book):
                held = budget.most(request)
                budget.take_over(book.reopen(request.key), held)
                if not batch.sent:
                    budget.release(held)
    return keys


def _seen(requests: Iterable[Request], book: Ledger | None, batched: set[str]) -> _Seen:
    seen, marks = _Seen(), set()
    for request in requests:
        if (mark := int(request.key[:15], 16)) in marks:
            continue
        marks.add(mark)
        if book is not None and request in book:
            seen.known += 1
        elif request.key in batched:
            seen.batched += 1
        else:
            seen.new += 1
            if len(seen.sample) < SAMPLE:
                seen.sample.append(request)
    return seen


def _told(seen: _Seen, later: int, sure: bool, book: Ledger | None, budget: Budget, config: Any) -> dict[str, int | str]:
    """later: the most verdicts that come after; sure: they will all be asked for."""
    if not seen.all:
        return {}
    told: dict[str, int | str] = {"calls": seen.new}
    if seen.known:
        told["answers_known"] = seen.known
    if seen.batched:
        told["in_batches_under_way"] = seen.batched
    if later:
        told["verdicts_at_most"] = later
    if budget.spent.requests + budget.spent.lost_requests:
        told["spent"] = f"spent by earlier attempts: {budget.told()}"
    tokens, usd = 0, 0.0
    if seen.new:
        recent = list(islice(_recent(book), RECENT)) if book is not None else []
        output = sum(r["usage"]["output"] for r in recent) / len(recent) if recent else config.max_tokens
        input = sum(map(_input_bytes, seen.sample)) / len(seen.sample) / BYTES_PER_TOKEN
        tokens = told["tokens" if recent else "tokens_at_most"] = round(seen.new * (input + output))
        if budget.prices:
            usd = seen.new * budget.prices.of({"input": input, "output": output})
            told["cost"] = f"~{usd:.2g} USD" if recent else f"at most ~{usd:.2g} USD"
        if rate := _rate(recent):
            told["seconds"] = round(seen.new / rate)
    if beyond := _beyond(budget, seen.new + later * sure, later * (not sure), tokens, usd):
        told["beyond"] = ", and ".join(beyond)
    return told


def _beyond(budget: Budget, calls: int, later: int, tokens: int, usd: float) -> list[str]:
    """Of which parts of the budget more is wanted than is left. What is in batches of this step's is as good as spent."""
    s, most, held, out = budget.spent, budget.limits, budget.held, []
    parts = [
        ("requests", most.requests, s.requests + s.lost_requests + budget.flying, calls, later),
        ("USD", most.usd, s.usd + s.lost_usd + held.usd, usd, 0), ("tokens", most.tokens, s.tokens + s.lost_tokens + held.tokens, tokens, 0),
    ]  # fmt: skip
    for unit, limit, used, wanted, more in parts:
        if limit is None or used + wanted + more <= limit:
            continue
        perhaps = "perhaps, with the verdicts, " if used + wanted <= limit else ""
        left = f"the {_number(max(0, limit - used))} left of " if used else ""
        out.append(f"{perhaps}more than {left}the budget of {_number(limit)} {unit}")
    return out


def _number(value: float) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


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

