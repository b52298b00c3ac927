"""A teacher in this process: carries requests to a model, in batches, over the same desk as a paid one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

from slmkit.ml import completions, models, responses
from slmkit.ml.completions import BadRequest, Speaker
from slmkit.ml.writer import Ask, Writer
from slmkit.steps._step import Given
from slmkit.teach.budget import Held
from slmkit.teach.desk import Desk, over_budget
from slmkit.teach.request import Request, answer


def carry(desk: Desk, requests: Iterator[Request], given: Given, execution: Any) -> None:
    """Bring the model's answers to all requests into the ledger. The model is loaded only if there is something to ask."""
    waiting = (r for r in desk.unanswered(requests) if r is not None)
    first = next(waiting, None)
    if first is None:
        return
    writer, speaker = load(given, models.device(execution.device))
    waiting, queue = chain([first], waiting), []
    while True:
        queue += _asks(desk, fresh := list(islice(waiting, execution.concurrency - len(queue))), speaker)
        if not queue and not fresh:
            return
        if not queue:
            continue
        held = _held(desk, [request for request, _ in queue])
        if not held:
            raise over_budget(desk, desk.budget.most(queue[0][0]), chain((request for request, _ in queue[1:]), waiting))
        _batch(desk, queue[: len(held)], held, writer, speaker)
        queue = queue[len(held) :]


def load(given: Given, where, dtype=None) -> tuple[Writer, Speaker]:
    """A model, or an adapter on its base, ready to write. Raises StepFailed when its chat template is not the one it was trained with."""
    tokenizer = models.tokenizer(given)
    models.check_template(given, tokenizer)
    quick = models.precision("auto", where)
    if dtype is None and given.type == "model" and where.type == "cpu" and models.quantized(given.path) is None:
        dtype = quick if models.own_dtype(given.path) != models.DTYPES["fp32"] else None  # a CPU without bf16 is slow at it
    model = models.load(given, where, dtype=dtype)
    writer = Writer(model, tokenizer, where)
    return writer, Speaker(tokenizer, frozenset(models.end_ids(given, tokenizer)), writer.longest, (given.digest or given.revision or "")[:12])


def _asks(desk: Desk, requests: Iterable[Request], speaker: Speaker) -> list[tuple[Request, Ask]]:
    """Each with what the model is asked; those that do not fit into its context are dropped."""
    asked = []
    for request in requests:
        try:
            asked.append((request, completions.chat_asks(request.body, speaker)[0]))
        except BadRequest as e:
            if e.code != "context_length_exceeded":
                raise
            desk.drop(request, str(e))
    return asked


def _held(desk: Desk, requests: list[Request]) -> list[Held]:
    """Reservations for as many, from the first on, as the budget allows at once."""
    held: list[Held] = []
    for request in requests:
        one = desk.budget.most(request)
        if desk.budget.fits(one) != "yes":
            break
        desk.reserve(request, one)
        held.append(one)
    return held


def _batch(desk: Desk, asked: list[tuple[Request, Ask]], held: list[Held], writer: Writer, speaker: Speaker) -> None:
    wrote = writer.write([ask for _, ask in asked])
    for (request, ask), one, done in zip(asked, held, wrote, strict=True):
        desk.keep(request, answer(responses.chat_response(request.body["model"], [ask], [done], speaker)), one)
