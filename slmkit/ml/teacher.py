"""A teacher in this process: carries requests to a model, in batches, over the same desk as a paid one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from slmkit.ml import completions, models
from slmkit.ml.completions import BadRequest, Speaker
from slmkit.ml.writer import Writer
from slmkit.steps._step import Given
from slmkit.teach.desk import Desk
from slmkit.teach.request import Request, answer


def carry(desk: Desk, requests: Iterator[Request], given: Given, execution: Any) -> None:
    """Bring the model's answers to all requests into the ledger. The model is loaded only if there is something to ask."""
    waiting = (r for r in desk.unanswered(requests) if r is not None)
    first = next(waiting, None)
    if first is None:
        return
    writer, speaker = load(given, models.device(execution.device))
    batch = [first]
    while batch:
        _batch(desk, batch, writer, speaker)
        batch = list(islice(waiting, execution.concurrency))


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


def _batch(desk: Desk, batch: list[Request], writer: Writer, speaker: Speaker) -> None:
    asked = []
    for request in batch:
        try:
            asked.append((request, completions.chat_asks(request.body, speaker)[0]))
        except BadRequest as e:
            if e.code != "context_length_exceeded":
                raise
            desk.drop(request, str(e))
    held = [desk.budget.most(request) for request, _ in asked]
    for (request, _), one in zip(asked, held, strict=True):
        desk.reserve(request, one)
    wrote = writer.write([ask for _, ask in asked]) if asked else []
    for (request, ask), one, done in zip(asked, held, wrote, strict=True):
        desk.keep(request, answer(completions.chat_response(request.body["model"], [ask], [done], speaker)), one)
