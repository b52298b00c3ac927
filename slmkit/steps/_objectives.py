"""What train's objectives beyond sft are told: the blocks `dpo`, `kto`, `grpo` and `gkd` of its config, and the rewards of grpo."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from slmkit.steps._step import Born, How, Part
from slmkit.steps._teacher import Budget, Prices, Teacher

BLOCKS = ("dpo", "kto", "grpo", "gkd")
NOT_READ = {"dpo": ("loss_on", "too_long"), "kto": ("loss_on", "too_long"), "grpo": ("loss_on", "too_long"), "gkd": ("loss_on",)}
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


class Gkd(Part):
    """Distillation on a teacher's distributions, https://arxiv.org/abs/2306.13649: at every trained token the student is drawn to what the
    teacher would have said, with all its alternatives."""

    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """forward_kl covers all that the teacher may say; reverse_kl keeps to what it says most; jsd lies between the two."""
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Of jsd: the teacher's share of the mixture. Towards 0 it behaves as forward_kl, towards 1 as reverse_kl."""
    on_policy: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the steps whose answers the student writes itself (lambda in the paper); the others learn on the rows' own answers."""
    temperature: Annotated[float, Field(gt=0, le=5)] = 1.0
    """Of the student's sampling, where it writes itself."""
    max_new_tokens: Annotated[int, Field(ge=1, le=65536)] = 256
    """Tokens of an answer that the student writes; longer ones are cut."""
    top_k: Annotated[int, Field(ge=1, le=1024)] = 20
    """Of a teacher behind an endpoint: how many tokens a place it names. The rest of them counts as one. Most servers give 20 at most."""

    @field_validator("beta", "temperature", "max_new_tokens")
    @classmethod
    def _used(cls, value: Any, info: Any) -> Any:
        if value == cls.model_fields[info.field_name].default:
            return value
        if info.field_name == "beta" and info.data.get("divergence", "jsd") != "jsd":
            raise ValueError(f"`beta` is not read by divergence {info.data['divergence']}; write `divergence: jsd`, or leave it out")
        if info.field_name != "beta" and info.data.get("on_policy") == 0:
            raise ValueError(f"`{info.field_name}` is not read with `on_policy: 0`: the student writes nothing; remove it")
        return value


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


class Judge(Scored):
    rubric: Annotated[str, Field(min_length=1)]
    """What makes an answer good, in your words. The judge sees all answers to a prompt at once and scores them against each other."""
    teacher: Teacher
    """Who judges: `{model: gpt-5-mini, api_key_env: OPENAI_API_KEY}`, or what `slmkit serve` serves."""
    max_tokens: Annotated[int, Field(ge=16, le=1_000_000)] = 1024
    """The most tokens of a verdict. One that is cut is asked for again, once."""
    temperature: Annotated[float, Field(ge=0, le=5)] | None = None
    """Of the judge's sampling. None: the endpoint's default."""
    consistency: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the groups that are judged a second time, in another order: how far both agree is reported, and their mean counts."""
    budget: Annotated[Budget | None, How()] = None
    """The most that may be spent on it: `{usd: 5, tokens: 2000000, requests: 10000}`."""
    prices: Annotated[Prices | None, How()] = None
    """What it charges, per million tokens: `{input: 0.25, output: 2.0}`."""

    @field_validator("budget")
    @classmethod
    def _some(cls, value: Budget | None) -> Budget | None:
        if value is not None and (value.usd, value.tokens, value.requests) == (None, None, None):
            raise ValueError("`budget` names none of usd, tokens, requests")
        return value

    @field_validator("prices")
    @classmethod
    def _priced(cls, value: Prices | None, info: Any) -> Prices | None:
        budget = info.data.get("budget")
        if budget is not None and budget.usd is not None and value is None:
            raise ValueError("`budget.usd` needs `prices`: US dollars per million tokens, such as `prices: {input: 0.25, output: 2.0}`")
        return value


REWARDS = ("exact_match", "numeric", "regex", "json_schema", "python", "length", "judge")


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
    judge: Annotated[Judge | None, Born(None)] = None
    """What a model says of it by a rubric, beside the other answers to the same prompt: from 0 to 1."""

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
