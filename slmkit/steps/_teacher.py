"""A teacher as recipes name one, shared by the kinds that ask one: who answers, what may be spent, at which prices."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from slmkit.steps._step import How, Part

TAKEN = {"model", "messages", "n", "stream", "temperature", "top_p", "seed", "max_tokens", "max_completion_tokens", "tools", "response_format"}
NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"


class Teacher(Part):
    """An OpenAI-compatible endpoint: OpenAI, Anthropic, Google, vLLM, Ollama, `slmkit serve`."""

    model: Annotated[str, Field(min_length=1)]
    """The model's name at the endpoint."""
    base_url: Annotated[str, Field(pattern=r"^https?://\S+$")] = "https://api.openai.com/v1"
    """Where the endpoint is, from http:// or https:// on; at most of them it ends in /v1."""
    api_key_env: Annotated[Annotated[str, Field(pattern=NAME)] | None, How()] = None
    """The *name* of the environment variable that holds the key. None: the endpoint wants none."""
    limit_key: Annotated[str, Field(pattern=r"^max_(completion_)?tokens$"), How()] = "max_tokens"
    """The parameter by which the endpoint limits an answer; OpenAI's reasoning models want max_completion_tokens."""
    extra: dict[str, Any] = {}
    """More parameters that are sent as they are: `{reasoning_effort: low}`."""

    @field_validator("extra")
    @classmethod
    def _free(cls, value: dict) -> dict:
        if found := sorted(TAKEN & set(value)):
            raise ValueError(f"`{found[0]}` is set by the step itself; give it as the step's own key, or leave it out")
        return value


class Budget(Part):
    """The most that this step may spend, all attempts together. It is held before a request is sent."""

    usd: Annotated[float, Field(gt=0)] | None = None
    """US dollars; needs `prices`."""
    tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens, input and output together."""
    requests: Annotated[int, Field(ge=1)] | None = None
    """Calls that were, or may have been, billed."""


class Prices(Part):
    """US dollars per million tokens."""

    input: Annotated[float, Field(ge=0)]
    """Of what is sent."""
    output: Annotated[float, Field(ge=0)]
    """Of what is answered."""
    cached: Annotated[float, Field(ge=0)] | None = None
    """Of input that the endpoint had in its cache; as `input` if left out."""
    batch: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of these prices that a batch API charges."""


class Paid(Part):
    """How an endpoint is asked by an eval, and what it may cost; none of it changes an answer."""

    concurrency: Annotated[int, Field(ge=1, le=4096), How()] = 16
    """The most requests at once."""
    budget: Annotated[Budget | None, How()] = None
    """The most that may be spent: `{usd: 5}`, `{requests: 10000}`."""
    prices: Annotated[Prices | None, How()] = None
    """What it charges, per million tokens: `{input: 0.25, output: 2.0}`. Without them tokens are counted, and no dollars."""

    @model_validator(mode="after")
    def _priced(self) -> Paid:
        if self.budget is not None and self.budget.usd is not None and self.prices is None:
            raise ValueError("`budget.usd` needs `prices`: US dollars per million tokens, such as `prices: {input: 0.25, output: 2.0}`")
        return self


class Api(Teacher, Paid):
    """An endpoint that is evaluated: the teacher that is to be replaced, say. Its answers go into the ledger, and none is paid twice."""

    temperature: Annotated[float, Field(ge=0, le=5)] | None = 0.0
    """Where a task does not ask for samples. None: not sent, for models that take no such parameter."""


class EvalJudge(Paid):
    """Who scores what the models write, for the metric `judge` of a task's short form."""

    teacher: Teacher
    """Who judges: `{model: gpt-5-mini, api_key_env: OPENAI_API_KEY}`, or what `slmkit serve` serves."""
    side_by_side: bool = False
    """Show all models' answers to a question at once, in two orders, and score them against each other. False: each answer alone."""
    temperature: Annotated[float, Field(ge=0, le=5)] | None = 0.0
    """Of the judge's sampling. None: not sent, for models that take no such parameter."""
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """The most tokens of a verdict."""


def _shape(value: Any) -> str:
    return "endpoint" if isinstance(value, dict | Teacher) else "reference"


TeacherRef = Annotated[
    Annotated[str, Field(min_length=1), Tag("reference")] | Annotated[Teacher, Tag("endpoint")], Discriminator(_shape)
]
"""An endpoint, `{model: …, base_url: …, api_key_env: …}`, or a model or adapter that is run here: `demo:teacher`, a folder, `$sft`."""
