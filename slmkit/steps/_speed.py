"""What an eval is asked of speed and of cost, beside its scores: the blocks `speed:` and `cost:`, and whether an artifact has what is asked.

Neither changes a score, so neither is hashed. An eval that was made without `speed:`, or with other settings of it, is no hit and is made anew:
its scores come out the same. Prices change nothing that was measured: `slmkit cost` reckons by those that it is given, or that the block names.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from slmkit.steps._step import Part

FEWEST = 6
"""Rounds below which the median's interval cannot reach 95 %: its ends are two of the measurements."""


class Speed(Part):
    """How speed is measured: on the tasks' own prompts, each model while it is loaded for its scores."""

    new_tokens: Annotated[int, Field(ge=2, le=100_000)] = 64
    """Tokens that are written for each request."""
    own_ends: bool = False
    """Let a model end its answers where it would, after new_tokens at the latest, as in use. False: none ends early, so that models compare."""
    batch_sizes: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=1, max_length=16)] = [1, 2, 4, 8]
    """Requests at once. 1 must be among them: latencies are those of a request alone."""
    repeats: Annotated[int, Field(ge=3, le=1000)] = 9
    """Rounds, each with a batch of every size. The interval of a median reaches 95 % from 6 rounds on."""
    requests: Annotated[int, Field(ge=1, le=100_000)] = 72
    """Requests alone, at least, spread over the rounds, for p50 and p95 of the latencies. 72 are the fewest that bound a p95 from above."""
    over: Literal["process", "http"] = "process"
    """process: the model as it was loaded for its scores. http: in a `slmkit serve` of its own, as clients meet it; memory is not measured then."""
    seconds: Annotated[float, Field(gt=0)] = 600.0
    """Time for each model after which no further round begins; 3 are made in any case."""

    @model_validator(mode="after")
    def _sizes(self) -> Speed:
        if 1 not in self.batch_sizes:
            raise ValueError("`batch_sizes` lacks 1: latencies are those of a request alone")
        if sorted(set(self.batch_sizes)) != self.batch_sizes:
            raise ValueError("`batch_sizes` should go up, each size once, such as [1, 2, 4, 8]")
        return self


class Charges(Part):
    """What the API that a model is to replace charges, in US dollars per million tokens."""

    input: Annotated[float, Field(ge=0)]
    """Of what is sent."""
    output: Annotated[float, Field(ge=0)]
    """Of what is answered."""
    cached: Annotated[float, Field(ge=0)] | None = None
    """Of input that the API has in its cache; needs cached_share."""
    cached_share: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the input that is in its cache; needs cached."""
    input_tokens: Annotated[float, Field(ge=0)] | None = None
    """Tokens that a request sends there: more than here, if its prompt carries instructions that the model knows by heart. None: as many as here."""
    output_tokens: Annotated[float, Field(ge=0)] | None = None
    """Tokens of an answer there. None: as many as here."""

    @model_validator(mode="after")
    def _cache(self) -> Charges:
        if (self.cached is None) != (self.cached_share is None):
            raise ValueError("`cached` and `cached_share` belong together: a price, and the share of the input that has it")
        return self


class Cost(Part):
    """Prices and volumes to reckon with. What is left out is not known, and so is what depends on it."""

    usd_per_hour: Annotated[float, Field(gt=0)] | None = None
    """What the machine that serves costs an hour."""
    idle: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the paid hours in which it has nothing to do."""
    batch: Annotated[int, Field(ge=1)] | None = None
    """How many requests are served at once: a size that was measured. None: the one with the cheapest answers."""
    input_tokens: Annotated[float, Field(gt=0)] | None = None
    """Tokens of a request's prompt. None: the mean over the tasks' questions."""
    output_tokens: Annotated[float, Field(ge=1)] | None = None
    """Tokens of an answer. None: the mean over the model's answers to the tasks."""
    training_usd_per_hour: Annotated[float, Field(gt=0)] | None = None
    """What the machine cost an hour on which the model was made. None: as usd_per_hour."""
    one_off_usd: Annotated[float, Field(ge=0)] | None = None
    """What making the model cost. None: the hours of the steps that made it, and what its teachers were paid."""
    requests: Annotated[float, Field(gt=0)] | None = None
    """Requests in all over which that is spread. None: it is told apart."""
    requests_per_day: Annotated[float, Field(gt=0)] | None = None
    """Requests a day, for the days until it has paid."""
    api: Charges | None = None
    """The API's prices. None: those that the recipe's distill step names, if it does."""


def asked(speed: Speed) -> dict[str, Any]:
    """The settings as they are recorded."""
    return speed.model_dump(mode="json")


def unmet(config: Any, result: dict[str, Any]) -> list[str]:
    """What is asked of speed and an artifact made earlier does not have."""
    if config.speed is None:
        return []
    wanted, out = asked(config.speed), []
    for name, speed in result.get("speed", {}).items():
        if name in config.apis:  # how fast an endpoint is, is its own affair
            continue
        has = speed.get("measured", {}).get("asked")
        if has is None:
            out.append(f"the speed of {name} was not measured")
        else:
            out += [f"speed.{key} {has.get(key)} → {value}" for key, value in wanted.items() if has.get(key) != value]
    return list(dict.fromkeys(out))
