"""What train's objectives beyond sft are told: the blocks `dpo`, `kto` and `grpo` of its config, and the rewards of grpo."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from slmkit.steps._step import Part

BLOCKS = ("dpo", "kto", "grpo")
NOT_READ = {"dpo": ("loss_on", "too_long"), "kto": ("loss_on", "too_long"), "grpo": ("loss_on", "too_long")}
"""Fields of train that an objective does not read: refused when they are set to something."""
Kind = Literal["content", "format"]


class Dpo(Part):
    """Direct preference optimisation, https://arxiv.org/abs/2305.18290."""

    beta: Annotated[float, Field(gt=0, le=10)] = 0.1
    """How strongly the model is held to where it began; for loss ipo, the paper's tau."""
    loss: Literal["sigmoid", "ipo", "hinge", "robust", "apo_zero", "apo_down"] = "sigmoid"
    """sigmoid is DPO as published; ipo for preferences that are near certain; hinge stops at a margin; robust expects wrong labels;
    apo_zero raises the chosen and lowers the rejected, apo_down lowers both."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs believed to be the wrong way round; for loss robust only."""

    @field_validator("label_smoothing")
    @classmethod
    def _smoothing(cls, value: float, info: Any) -> float:
        if value and info.data.get("loss") not in (None, "robust"):
            raise ValueError(f"`label_smoothing` is not read by loss {info.data['loss']}; write `loss: robust`, or leave it out")
        return value


class Kto(Part):
    """Kahneman-Tversky optimisation of single answers marked good or bad, https://arxiv.org/abs/2402.01306."""

    beta: Annotated[float, Field(gt=0, le=10)] = 0.1
    """How strongly the model is held to where it began."""
    desirable_weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Weight of good answers. Weight times count should be about the same on both sides."""
    undesirable_weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Weight of bad answers."""


class Scored(Part):
    """What all rewards share."""

    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """The reward is multiplied by it before the rewards of an answer are added up."""
    kind: Kind = "content"
    """Reported apart: is the answer right (content), or does it look right (format)?"""


class ExactMatch(Scored):
    strip: bool = True
    """Spaces around the answer and the reference are of no account."""
    lower: bool = False
    """Nor is upper and lower case."""


class Numeric(Scored):
    tolerance: Annotated[float, Field(ge=0)] = 1e-6
    """The last number of the answer may differ from the reference's by so much."""


class Regex(Scored):
    pattern: Annotated[str, Field(min_length=1)]
    """A Python regular expression; `.` matches line ends too."""
    match: Literal["full", "search"] = "full"
    """full: the whole answer, spaces around it aside. search: anywhere in it."""
    kind: Kind = "format"

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as e:
            raise ValueError(f"not a regular expression: {e}") from None
        return value


class JsonSchema(Scored):
    json_schema: dict[str, Any]
    """The JSON Schema that the answer, read as JSON, must satisfy."""
    kind: Kind = "format"


class Python(Scored):
    function: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")] = "score"
    """A function of `reward_code`: (prompt messages, answer, reference or None) → a number."""


class Length(Scored):
    min: Annotated[int, Field(ge=0)] = 0
    """Fewer than this costs, down to -1 for none at all."""
    max: Annotated[int, Field(ge=1)]
    """More than this costs, down to -1 at twice as many."""
    unit: Literal["tokens", "characters"] = "tokens"
    """What is counted."""
    kind: Kind = "format"

    @field_validator("max")
    @classmethod
    def _order(cls, value: int, info: Any) -> int:
        if value < info.data.get("min", 0):
            raise ValueError("`max` is less than `min`")
        return value


REWARDS = ("exact_match", "numeric", "regex", "json_schema", "python", "length")


class Reward(Part):
    """One reward: one key of these, with its settings."""

    exact_match: ExactMatch | None = None
    """1 where the answer is the reference: the row's last assistant message."""
    numeric: Numeric | None = None
    """1 where the last number of the answer is that of the reference (`1,234.5`, `$3`, `#### 42`)."""
    regex: Regex | None = None
    """1 where the answer matches a pattern."""
    json_schema: JsonSchema | None = None
    """1 where the answer is JSON that satisfies a schema."""
    python: Python | None = None
    """What a function of yours says."""
    length: Length | None = None
    """0 for answers of a wanted length, less the further they are from it."""

    @model_validator(mode="before")
    @classmethod
    def _empty_is_defaults(cls, value: Any) -> Any:
        return {k: {} if v is None else v for k, v in value.items()} if isinstance(value, dict) and len(value) == 1 else value

    @model_validator(mode="after")
    def _one(self) -> Reward:
        if sum(getattr(self, name) is not None for name in REWARDS) != 1:
            raise ValueError(f"each entry of `rewards` holds one of {', '.join(REWARDS)}")
        return self


class Grpo(Part):
    """Group relative policy optimisation, https://arxiv.org/abs/2402.03300: answers are sampled, rewarded, and compared within a prompt."""

    rewards: Annotated[list[Reward], Field(min_length=1)]
    """What an answer earns: `[{exact_match: {weight: 1.0}}, {regex: {pattern: "…"}}]`."""
    generations: Annotated[int, Field(ge=2, le=1024)] = 8
    """Answers per prompt, compared with one another. A step has batch_size × generations of them."""
    max_new_tokens: Annotated[int, Field(ge=1, le=65536)] = 256
    """Tokens of an answer; longer ones are cut."""
    temperature: Annotated[float, Field(gt=0, le=5)] = 1.0
    """Of the sampling. Lower explores less."""
    beta: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Weight of the divergence from where the model began. 0, as most recent recipes have it, saves the reference's forward pass."""
    loss: Literal["dapo", "grpo", "dr_grpo"] = "dapo"
    """How tokens are averaged: over all of the step (dapo), per answer (grpo), or per max_new_tokens (dr_grpo)."""
    epsilon: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Ratios to the sampling policy are clipped to 1 ± epsilon."""
