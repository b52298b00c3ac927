"""The distill step from its parts: prompts → requests → (ledger, budget, carrier) → answers → filters → dataset."""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from slmkit.data import leaks, questions
from slmkit.data.read import shown
from slmkit.steps._step import Context, Given, Result
from slmkit.teach import batches, calls, dataset, filters, hosted, judging, ledger, templates, toolcalls, verify
from slmkit.teach.budget import Budget, Limits, Prices
from slmkit.teach.calls import Manners
from slmkit.teach.card import card
from slmkit.teach.desk import Desk, first_unanswered
from slmkit.teach.endpoint import Route
from slmkit.teach.job import Job, Made
from slmkit.teach.prompts import Prompt, Prompts
from slmkit.teach.request import Request

ACCOUNT = "account"  # a file in the step's state
OWN_TEMPLATE = ("generate", "rationale", "rewrite", "judge")
"""Modes whose prompts need words around them; to the others messages go as they are."""


def run(ctx: Context, config: Any) -> Result:
    """See slmkit.steps.distill."""
    prompts = Prompts(ctx.inputs["prompts"], config.on_bad_row == "skip").check() if ctx.inputs.get("prompts") else None
    exams, check = _exams(ctx, config), verify.of(config, ctx.inputs.get("verify_code"))
    mode = importlib.import_module(f"slmkit.teach.modes.{config.mode}")
    desk, model, book = open_desk(ctx, config)
    try:
        job = job_of(config, ctx.inputs, model, prompts, desk, exams, check)
        started = time.monotonic()
        for number, stage in enumerate(mode.stages(job)):
            desk.after = _after(config, prompts, number)
            _carry(ctx, config, desk, stage, _most(config, prompts))
        book.sync()
        seconds = time.monotonic() - started
        written = dataset.write(ctx.out, chain(_broken(config, prompts), mode.made(job)), job.fresh(None), config.validation, config.seed or 0)
        _told(ctx, desk, written)
        if config.generate is not None and prompts is not None and prompts.dropped:
            ctx.log("warning", what=f"{sum(prompts.dropped.values())} of the examples are broken rows, and are left out")
        dataset.enough(written, config.min_kept, config.validation)
        values = _values(config, desk, written, prompts, seconds)
        cost = {k: values[k] for k in ("tokens", "usd") if k in values}
        return Result(values, card(ctx, config, model, (job.template, job.judge_template), mode.ROWS, values, written), cost, "none", config.seed)
    finally:
        book.close()


def _first(config: Any, prompts: Prompts | None) -> int:
    """How many requests the first stage has, at most."""
    return -(-config.generate.count // config.generate.per_request) if config.generate else prompts.count * config.n


def _broken(config: Any, prompts: Prompts | None) -> Iterator[Made]:
    """The rows of prompts that could not be read, and were skipped; mode generate asks about none, and is warned of them alone."""
    if prompts is not None and config.generate is None:
        yield from (Made(place, why=why, by="broken") for place, why in prompts.broken())


def _most(config: Any, prompts: Prompts | None) -> int:
    """About how many answers it takes, for the progress bar: further rounds and second trials are seen when they come."""
    first = _first(config, prompts)
    return first + verdicts(config, first)


def _after(config: Any, prompts: Prompts | None, number: int) -> str:
    """What follows the requests of a stage: a round is a stage of answers and, where they are judged, one of verdicts for each trial."""
    most = verdicts(config, _first(config, prompts))
    if not most or number % (1 + judging.TRIALS):
        return ""
    return f"up to {most} verdicts" if number == 0 else "verdicts"


def verdicts(config: Any, first: int) -> int:
    """The most verdicts that come after so many answers, each asked for once."""
    if config.preference is not None:
        return first // config.n * config.preference.orders
    if config.filters.min_score is None or config.mode == "judge":
        return 0
    if config.generate is not None:
        return first * config.generate.per_request
    return first // config.n if config.majority else first


def open_desk(ctx: Context, config: Any) -> tuple[Desk, str, ledger.Ledger]:
    """The desk of this step: its teacher's ledger, and the budget less what earlier attempts spent. Also the model's name for requests."""
    model, file = book_of(config, ctx.inputs.get("teacher"), ctx.ledgers)
    book = ledger.Ledger(file, ledger.account(ctx.state / ACCOUNT))
    return Desk(book, budget_of(config, ctx.execution, book.spent)), model, book


def book_of(config: Any, local: Given | None, ledgers: Path) -> tuple[str, Path]:
    """(the model's name for requests, the ledger's file) of a teacher."""
    model = name_of(local) if local else config.teacher.model
    who = f"local {model}" if local else ledger.identity(config.teacher.base_url, model)
    return model, ledger.file_of(ledgers, who)


def budget_of(config: Any, execution: Any, before: tuple[ledger.Paid, ledger.Paid] = (ledger.Paid(), ledger.Paid())) -> Budget:
    said, paid = config.budget, config.prices
    limits = Limits(said.usd, said.tokens, said.requests) if said else Limits()
    share = paid.batch if paid and execution.transport == "batch" else 1.0
    return Budget(limits, Prices(paid.input, paid.output, paid.cached, share) if paid else None, before)


def name_of(local: Given) -> str:
    """What requests call a local teacher: by its content, so that another model of that name has another ledger."""
    return f"{local.name}@{(local.digest or local.revision)[:12]}"


def _carry(ctx: Context, config: Any, desk: Desk, stage, total: int) -> None:
    started = time.monotonic()
    before = desk.kept

    def told(kept: int, tokens: int) -> None:
        speed = (kept - before) / max(1e-9, time.monotonic() - started)
        ctx.progress(desk.hits + kept, max(total, desk.hits + kept), "answers", per_second=speed)

    desk.told = told
    requests: Iterator[Request] = stage()
    local, e, said = ctx.inputs.get("teacher"), ctx.execution, config.teacher
    manners = Manners(e.concurrency, e.retries, e.patience, e.requests_per_minute, e.tokens_per_minute)
    if local:
        waiting, requests = first_unanswered(desk, requests)
        if waiting and e.transport == "serve":
            with hosted.server(local, name_of(local), e) as url:
                calls.carry(desk, requests, Route(url, None, None, e.timeout), manners)
        elif waiting:
            from slmkit.ml import teacher

            teacher.carry(desk, requests, local, e)
        return
    key = ctx.secret(said.api_key_env) if said.api_key_env else None
    route = Route(said.base_url, key, said.api_key_env, e.timeout)
    if e.transport == "batch":
        return batches.carry(desk, requests, route, batches.Terms(e.detach), ctx.log)
    batches.carry_beside(desk, requests, route, ctx.log, lambda rest: calls.carry(desk, rest, route, manners))


def job_of(
    config: Any, inputs: dict[str, Any], model: str, prompts: Prompts | None, desk: Desk, exams: list[leaks.Exam], check: Callable | None
) -> Job:  # fmt: skip
    """What the mode works with. exams, check: for the filters."""
    asked, judging = templates_of(config, inputs)
    tools = toolcalls.offered(inputs["tools"].path) if inputs.get("tools") else ()
    fresh = functools.partial(filters.build, config, exams, check)
    return Job(config, model, prompts, asked, desk, getattr(config.teacher, "limit_key", "max_tokens"), judging, tools, fresh)


def templates_of(config: Any, inputs: dict[str, Any]) -> tuple[templates.Template | None, templates.Template | None]:
    """(what the teacher is sent, what it is sent to judge answers with), None where there is nothing of the kind."""
    given, judge = inputs.get("template"), inputs.get("judge_template")
    own = config.mode in OWN_TEMPLATE and not (config.rationale and config.rationale.source == "reasoning")
    asked = templates.load(config.mode, given.path if given else None) if given or own else None
    name = "rank" if config.mode == "preference" else "judge" if config.filters.min_score is not None and config.mode != "judge" else None
    return asked, templates.load(name, judge.path if judge else None) if name else None


def _exams(ctx: Context, config: Any) -> list[leaks.Exam]:
    """The questions that must not become rows: of the recipe's tasks, and of validation data."""
    if not config.filters.leaks:
        return []
    found, unread = questions.exams(tuple(ctx.inputs.get("tasks") or ()))
    for name in unread:
        ctx.log("warning", what=f"the questions of task {name} are not here and were not looked for among the rows")
    for given in ctx.inputs.get("held_out") or ():
        asked = [_asked(p) for p in Prompts((given,), skip=True)]
        found.append(leaks.Exam(shown(given.path), asked))
    return found


def _asked(prompt: Prompt) -> leaks.Asked:
    from slmkit.data import sides

    return leaks.Asked(tuple(q for q in map(sides.normal, sides.asked(prompt.messages)) if q), sides.normal(prompt.reference or ""), prompt.place)


def _told(ctx: Context, desk: Desk, written: dataset.Written) -> None:
    if desk.uncounted:
        booked = "they are booked at the most that they can have had" if desk.budget.limits else "tokens and cost say less than was used"
        ctx.log("warning", what=f"the endpoint did not count the tokens of {desk.uncounted} answers: {booked}")
    ctx.log("asked", hits=desk.hits, answered=desk.kept, gave_up=len(desk.gave_up), failures=dict(desk.failures), spent=desk.budget.told())
    if written.thoughts:
        what = f"{written.thoughts} answers came with thinking before them, which is left out of the rows (mode rationale keeps it)"
        ctx.log("warning", what=what)
    if written.dropped:
        told = ", ".join(f"{name} {count}" for name, count in filters.ordered(written.dropped))
        ctx.log("warning", what=f"{sum(written.dropped.values())} of {written.made} rows were dropped ({told}); see {dataset.DROPPED}")


def _values(config: Any, desk: Desk, written: dataset.Written, prompts: Prompts | None, seconds: float) -> dict:
    spent = desk.budget.spent
    values = {
        "rows": written.rows, "validation_rows": written.held_out, "rows_beside": dict(written.also) or None,
        "dropped": dict(filters.ordered(written.dropped)),
        "requests": desk.hits + desk.kept + len(desk.gave_up), "from_ledger": desk.hits, "answered": desk.kept,
        "observed": dict(desk.observed.most_common(8)), "failures": dict(desk.failures.most_common(8)),
        "tokens": spent.tokens, "lost_requests": spent.lost_requests, "answers_per_second": round(desk.kept / seconds, 2) if desk.kept else None,
    }
    if prompts is not None:
        values |= {"prompts": prompts.count, "broken_prompts": dict(prompts.dropped)}
    if desk.budget.prices:
        values["usd"] = round(spent.usd, 6)
        values["usd_perhaps_billed"] = round(spent.lost_usd, 6)
        values["prices"] = config.prices.model_dump(mode="json", exclude_none=True)  # they are not hashed, so the config does not record them
    return {k: v for k, v in values.items() if v is not None}


