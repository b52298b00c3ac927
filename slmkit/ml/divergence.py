"""How far a student's distributions are from a teacher's, in nats, summed over places.

A teacher that is run here says all its log-probabilities. One behind an endpoint names its k likeliest tokens, and what it did not name is
one more outcome: the rest, with the probability that is left (1 minus the sum of the named). The student's distribution is put into the same
k + 1 outcomes, its rest being the exact sum over all tokens that were not named. Nothing is made up for the tail, and no mass is dropped:
what is measured is a lower bound of the full divergence (merging outcomes can only bring distributions nearer), zero iff both agree on the
named tokens; where in the rest the student puts its mass is left to it. Rounding in the reported numbers may make the rest of a sure teacher
zero or less: it is taken as FLOOR then, and the k + 1 are scaled to sum to 1. Of a token that a teacher rules out (-inf, or a probability too
small for a number) the logarithm is taken as NOTHING: 0 × -inf is no number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

NOTHING = -100.0  # the logarithm of no probability at all, on both sides
FLOOR = 1e-7  # of the rest: single-precision log-probabilities of 20 tokens sum to 1 within about 1e-7


@dataclass(frozen=True)
class Target:
    """What a teacher says at some places. logs: natural, [places, tokens], or [places, k] of those named in ids, the likeliest first.

    An id of -1 names nothing: that place has fewer names.
    """

    logs: torch.Tensor
    ids: torch.Tensor | None = None

    @property
    def best(self) -> torch.Tensor:
        """The likeliest token of each place."""
        return self.logs.argmax(1) if self.ids is None else self.ids[:, 0]


def together(parts: list[Target]) -> Target:
    """The places of several, one after another."""
    ids = None if parts[0].ids is None else torch.cat([p.ids for p in parts])
    return Target(torch.cat([p.logs for p in parts]), ids)


def summed(logits: torch.Tensor, target: Target, known: int, said: Any) -> torch.Tensor:
    """The divergence that `said` (the block gkd) names, of the student's logits [places, vocabulary] from the target, summed over places.

    known: tokens of the vocabulary that both have; rows beyond it, which pad an embedding, take no part.
    """
    student = torch.log_softmax(logits[:, :known].float(), -1)
    teacher = target.logs
    if target.ids is not None:
        student, teacher = _outcomes(student, target)
    if said.divergence == "forward_kl":
        return _kl(teacher, student)
    if said.divergence == "reverse_kl":
        return _kl(student, teacher)
    beta = torch.tensor(said.beta, device=logits.device)
    mixture = torch.logaddexp(teacher + beta.log(), student + torch.log1p(-beta))
    return said.beta * _kl(teacher, mixture) + (1 - said.beta) * _kl(student, mixture)


def _kl(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one.exp() * (one - other)).sum()


def _outcomes(student: torch.Tensor, target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as log-probabilities of the k named tokens and of the rest."""
    none = target.ids < 0
    ids = torch.where(none, target.ids[:, :1], target.ids)
    rest = student.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True)
    named = target.logs.clamp(min=NOTHING).masked_fill(none, -torch.inf)
    left = (1 - named.exp().sum(1, keepdim=True)).clamp(min=FLOOR)
    logs = torch.log_softmax(torch.cat([named, left.log()], 1), -1)
    missing = torch.nn.functional.pad(none, (0, 1))
    return torch.cat([student.gather(1, ids), rest], 1).masked_fill(missing, NOTHING), logs.masked_fill(missing, NOTHING)
