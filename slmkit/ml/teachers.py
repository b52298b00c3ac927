"""A teacher's distributions at the trained tokens of some rows: of a model that is run here, or of one behind an endpoint.

Rows go to the teacher padded, whatever way the student sees them, so that how a batch is cut up changes nothing of what is learned.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

import torch

from slmkit.errors import Problem, RecipeError, StepFailed
from slmkit.ml import batches, divergence, loss, models, teacher, vocabulary
from slmkit.ml.divergence import Target, together
from slmkit.ml.examples import Example
from slmkit.steps._step import Given
from slmkit.teach import logprobs
from slmkit.teach.endpoint import Route

if TYPE_CHECKING:
    from slmkit.ml.training import Run

ROWS = 16  # at once
TIMEOUT = 300.0  # seconds that a request for logprobs may take


class Teacher(Protocol):
    def __call__(self, rows: list[Example], keep: bool = False) -> Target:
        """What it says at the trained tokens, row after row. keep: these rows will be asked about again."""
        ...


def check(run: Run, rows: list[Example]) -> None:
    """Raise RecipeError when the teacher numbers its tokens otherwise than the student. Loads no weights."""
    given = run.ctx.inputs.get("teacher")
    if given is None:
        if run.rank == 0:
            used = [i for i, _ in Counter(i for e in rows for i in e.ids).most_common()]
            vocabulary.probe(run.tokenizer, route(run), run.config.teacher.model, used)
        return
    theirs = models.tokenizer(given)
    vocabulary.compare(run.tokenizer, theirs)
    if run.rank == 0 and theirs.chat_template and theirs.chat_template != run.tokenizer.chat_template:
        what = f"{given.name} has another chat template than {run.given.name}: it will see chats in the student's format, which it may not know"
        run.ctx.log("warning", what=what)


def load(run: Run) -> Teacher:
    """The teacher that the config names, loaded."""
    given, count = run.ctx.inputs.get("teacher"), vocabulary.known(run.tokenizer)
    if given is None:
        return Remote(route(run), run.config.teacher.model, min(run.config.gkd.top_k, count - 1), run.where, count)
    return Local(given, run.where, count)


def route(run: Run) -> Route:
    said = run.config.teacher
    key = run.ctx.secret(said.api_key_env) if said.api_key_env else None
    return Route(said.base_url, key, said.api_key_env, TIMEOUT)


class Local:
    """A model, or an adapter on its base, in its own number format. Says all of its distribution."""

    def __init__(self, given: Given, where: torch.device, known: int):
        self.model, self.where, self.known = teacher.load(given, where)[0].model.requires_grad_(False), where, known
        self.some = loss.keeps_logits(self.model)
        rows = self.model.get_output_embeddings().weight.shape[0]
        if rows < known:
            raise RecipeError([Problem(f"teacher: {given.name} has {rows} rows in its output layer for {known} tokens", mend=vocabulary.MEND)])

    @torch.no_grad()
    def __call__(self, rows: list[Example], keep: bool = False) -> Target:
        found = []
        with torch.autocast(self.where.type, enabled=False):
            for start in range(0, len(rows), ROWS):
                part = rows[start : start + ROWS]
                batch = {k: v.to(self.where) for k, v in batches.pad(part).items()}
                logits, _ = loss.logits_of(self.model, batch, self.some)
                logs = torch.log_softmax(logits[:, : self.known].float(), -1)
                _numbers(logs[:, 0], part)
                found.append(Target(logs.clamp_(min=divergence.NOTHING)))
        return together(found)


def _numbers(some: torch.Tensor, rows: list[Example]) -> None:
    """some: one logarithm of each place. One that is no number makes all of its place such."""
    broken = some.isnan().nonzero()
    if len(broken):
        first, ends = int(broken[0]), list(accumulate(e.trained for e in rows))
        row = next(e for e, end in zip(rows, ends, strict=True) if first < end)
        what = f"the teacher's probabilities are no numbers at {len(broken)} places of {len(rows)} rows, first in {_name(row)}"
        raise StepFailed(what, mend="its weights or its number format are broken: see what it writes by `slmkit serve`", key="teacher")


def _name(row: Example) -> str:
    return row.place("") if row.file else f"line {row.line}"


class Remote:
    """A model behind an endpoint. Says its k likeliest tokens; rows that come again are asked about once.

    What it names beyond the `known` tokens are rows that pad its embedding: they count among the rest.
    """

    def __init__(self, route: Route, model: str, k: int, where: torch.device, known: int):
        self.route, self.model, self.k, self.where, self.known = route, model, k, where, known
        self.said: dict[bytes, Target] = {}

    def __call__(self, rows: list[Example], keep: bool = False) -> Target:
        keys = [e.ids.tobytes() + repr(e.spans).encode() for e in rows]
        new = {key: e for key, e in zip(keys, rows, strict=True) if key not in self.said}
        names = [_name(e) for e in new.values()]
        asked = logprobs.of(self.route, self.model, [e.ids.tolist() for e in new.values()], self.k, names) if new else []
        found = {key: self._target(places, e) for (key, e), places in zip(new.items(), asked, strict=True)}
        if keep:
            self.said |= found
        part = together([found[key] if key in found else self.said[key] for key in keys])
        return Target(part.logs.to(self.where), part.ids.to(self.where))

    def _target(self, places: list[list[tuple[int, float]]], example: Example) -> Target:
        """places: one for each token after the first."""
        some = [places[i - 1] for start, end in example.spans for i in range(max(start, 1), end)]
        ids = torch.full((len(some), self.k), -1)
        logs = torch.full((len(some), self.k), divergence.NOTHING)
        for row, one in enumerate(some):
            held = [(i, p) for i, p in one if i < self.known] or [(0, math.log(divergence.FLOOR))]
            ids[row, : len(held)], logs[row, : len(held)] = torch.tensor([i for i, _ in held]), torch.tensor([p for _, p in held])
        return Target(logs, ids)
