"""What a step that changes a model's form may do to it: bounds, sane by default for each method, settable, and who is outside them.

The figures are made by `ml/fidelity.py`. Bounds say nothing of what comes out, only whether it may: they are not hashed, and a step that
failed on one goes on from its kept work when it is loosened.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from slmkit.steps._step import Part


class Fidelity(Part):
    """Bounds between the model before and after; what is left out is the method's own (docs/fidelity.md)."""

    mean_kl: Annotated[float, Field(ge=0)] | None = None
    """Most KL divergence from before to after, in nats, mean over the measured places."""
    p99_kl: Annotated[float, Field(ge=0)] | None = None
    """Most KL divergence at the 99th percentile of the places; unbounded if left out."""
    top1: Annotated[float, Field(ge=0, le=1)] | None = None
    """Least share of places with the same likeliest token."""
    perplexity: Annotated[float, Field(gt=0)] | None = None
    """Most perplexity after, as a multiple of that before."""
    identical: Annotated[float, Field(ge=0, le=1)] | None = None
    """Least share of greedy answers that are the same to the last token; unbounded if left out."""
    ended: Annotated[float, Field(ge=0, le=1)] | None = None
    """Most share of the greedy answers that ended by themselves before and do so no more."""


MERGE = {"mean_kl": 0.02, "perplexity": 1.03, "ended": 0.125}
BY_BITS = {
    16: {"mean_kl": 0.001, "perplexity": 1.01, "ended": 0.125},
    8: {"mean_kl": 0.02, "perplexity": 1.05, "ended": 0.125},
    4: {"mean_kl": 0.3, "perplexity": 1.35, "ended": 0.25},
    3: {"mean_kl": 1.0, "perplexity": 3.0, "ended": 0.5},
    2: {"mean_kl": 4.0, "perplexity": 50.0},
}
"""By the bits of a weight. Wide of what a sound step does, far below what a broken one does: they are for faults, and a recipe's own are for
quality. Agreement is bounded where a recipe says so: where a model is sure of nothing, the likeliest token is a matter of rounding."""


def bounds(said: Fidelity | None, usual: dict[str, float]) -> dict[str, float]:
    """The method's bounds with those of the recipe put over them."""
    return usual | (said.model_dump(exclude_none=True) if said else {})


SIGNS = {"mean_kl": "≤", "p99_kl": "≤", "perplexity": "≤", "ended": "≤", "top1": "≥", "identical": "≥"}
NAMES = {
    "mean_kl": "mean KL {value:.3g} nats", "p99_kl": "99th percentile of KL {value:.3g} nats", "top1": "top-1 agreement {value:.1%}",
    "perplexity": "perplexity × {value:.3g}", "identical": "identical answers {value:.1%}", "ended": "answers that end no more {value:.1%}",
}  # fmt: skip


def figures(certificate: dict[str, Any]) -> dict[str, float]:
    """What the bounds are held against."""
    answers, before = certificate["answers"], certificate["answers_ended_before"]
    return {
        "mean_kl": certificate["mean_kl"], "p99_kl": certificate["p99_kl"], "top1": certificate["top1"],
        "perplexity": certificate["perplexity_after"] / certificate["perplexity_before"],
        "identical": certificate["answers_identical"] / answers, "ended": max(0, before - certificate["answers_ended_after"]) / answers,
    }  # fmt: skip


def outside(certificate: dict[str, Any], limits: dict[str, float]) -> list[str]:
    """What is wrong, a clause each; nothing where all is well."""
    if not certificate["finite"]:
        return ["weights or logits are not finite"]
    wrong = [] if certificate["template_same"] else ["the chat template renders otherwise than before"]
    values = figures(certificate)
    for name, limit in limits.items():
        value = values[name]
        if not (value <= limit if SIGNS[name] == "≤" else value >= limit):
            wrong.append(f"{NAMES[name].format(value=value)} (`fidelity.{name}` {SIGNS[name]} {limit:g})")
    return wrong


def unmet(config: Any, result: dict[str, Any]) -> list[str]:
    """The bounds of a recipe that an artifact made under other bounds is outside of."""
    certificate = result.get("fidelity")
    return outside(certificate, config.fidelity.model_dump(exclude_none=True)) if certificate and config.fidelity else []


def line(certificate: dict[str, Any]) -> str:
    """The certificate in one line."""
    c = certificate
    return (
        f"mean KL {c['mean_kl']:.2g} nats, p99 {c['p99_kl']:.2g}, top-1 {c['top1']:.1%}, perplexity {c['perplexity_before']:.4g} → "
        f"{c['perplexity_after']:.4g}, {c['answers_identical']} of {c['answers']} answers identical, on {c['probes']} probes of {c['source']} "
        f"in {c['runtime']}"
    )
