"""What distill's modes are told: one block for each that has settings, and which of the step's fields a mode does not read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from slmkit.steps._step import Part

MODES = ("answer", "generate", "rationale", "rewrite", "judge", "preference", "tools")
Mode = Literal["answer", "generate", "rationale", "rewrite", "judge", "preference", "tools"]
BLOCKS = ("generate", "rationale", "rewrite", "preference")
"""Blocks that only the mode of their name reads. `judge` is read wherever something is judged."""
NOT_READ = {
    "generate": ("n", "majority"), "rewrite": ("majority",), "judge": ("majority", "json_schema", "judge_template"),
    "preference": ("majority",), "tools": ("majority", "json_schema"),
}  # fmt: skip
"""Fields of distill that a mode does not read: refused when they are set to something."""
Words = Annotated[str, Field(min_length=1)]


class Generate(Part):
    """New prompts and answers out of a description and a few examples (self-instruct, https://arxiv.org/abs/2212.10560)."""

    description: Words
    """What the rows are: `questions of a bank's customers about their cards, with a short friendly answer`."""
    count: Annotated[int, Field(ge=1, le=10_000_000)]
    """Rows wanted, after all filters."""
    topics: list[Words] = []
    """One is drawn for each request."""
    difficulties: list[Words] = []
    """One is drawn for each request: `[easy, with a typing error, two questions at once]`."""
    examples: Annotated[int, Field(ge=0, le=64)] = 4
    """Rows of `prompts` that each request shows, drawn anew for each."""
    per_request: Annotated[int, Field(ge=1, le=100)] = 5
    """Rows asked for in one request."""
    novelty: Annotated[float, Field(gt=0.3, le=1)] = 0.7
    """A prompt whose likeness (Jaccard of 5-grams, by MinHash) to a seed or an earlier one is at least this is not new; 1: only the same."""
    rounds: Annotated[int, Field(ge=1, le=100)] = 5
    """When too few rows were kept, it is asked for the missing ones again, up to so many times in all."""


class Rationale(Part):
    """Answers with the reasoning kept as a second target (Distilling Step-by-Step, https://arxiv.org/abs/2305.02301)."""

    source: Literal["reply", "reasoning"] = "reply"
    """reply: the teacher is asked to reason and then to write `marker` and the answer. reasoning: what a reasoning model thought."""
    marker: Words = "Answer:"
    """What stands before the answer in the reply; read at the beginning of a line, the last one counts."""
    rows: Literal["together", "apart", "thinking"] = "together"
    """together: a row for the answer and one for the reasoning, both in train.jsonl. apart: the latter in a split `rationale` of its own, so
    that train's mixture can weigh it. thinking: one row, the reasoning as the answer's `reasoning_content`."""
    prefix: str = "[rationale] "
    """Before the user's message of reasoning rows, so that the student can tell the two tasks apart."""
    answer_prefix: str = ""
    """Before the user's message of answer rows. Empty: the student is asked as it will be in use."""

    @model_validator(mode="after")
    def _all_read(self) -> Rationale:
        if self.source == "reasoning" and self.marker != "Answer:":
            raise ValueError("`marker` is read with `source: reply` only: what a reasoning model thought stands apart from its answer; remove it")
        if self.rows == "thinking" and (self.prefix, self.answer_prefix) != ("[rationale] ", ""):
            raise ValueError("`prefix` and `answer_prefix` tell rows of two tasks apart, and `rows: thinking` makes one; remove them")
        return self


class Rewrite(Part):
    """Rows made better, or said in other words."""

    what: Literal["answer", "prompt"] = "answer"
    """answer: the row's own answer is improved. prompt: the question is put in other words, and keeps its answer."""
    instruction: Words | None = None
    """What to change: `shorter, and without jargon`."""
    keep: bool = False
    """Keep what was rewritten in the row, as `original`."""


class Judge(Part):
    """How the teacher judges answers."""

    rubric: Words
    """What a good answer is, in words."""
    scale: Annotated[list[int], Field(min_length=2, max_length=2)] = [1, 10]
    """Least and most points."""
    temperature: Annotated[float, Field(ge=0, le=5)] | None = None
    """Of the judge's sampling. None: the step's."""
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """The most tokens of a verdict. None: the step's."""

    @field_validator("scale")
    @classmethod
    def _rises(cls, value: list[int]) -> list[int]:
        if value[0] >= value[1]:
            raise ValueError("`scale` is the least and the most points, such as [1, 10]")
        return value


class Preference(Part):
    """n answers to each prompt, compared by the judge; the best and the worst become a pair."""

    margin: Annotated[float, Field(ge=0)] = 1
    """Points by which the best must lead the worst. Fewer is a tie, and no row; 0: any lead will do."""
    orders: Annotated[int, Field(ge=1, le=16)] = 1
    """Times that each group is judged, in another order each time; scores are averaged. 2 takes out most of a judge's liking for a place."""


def check_block(mode: str | None, name: str, value: Any) -> Any:
    """A mode's block: refused under another mode, filled in under its own. Raises ValueError."""
    if mode not in (None, name) and value is not None:
        raise ValueError(f"`{name}` is not read by mode {mode}; remove it, or write `mode: {name}`")
    if mode == name and value is None:
        if name == "generate":
            raise ValueError("mode generate needs `generate: {description: …, count: …}`")
        return {}
    return value


def check_read(mode: str | None, name: str, value: Any, default: Any) -> Any:
    """A field that not every mode reads. Raises ValueError."""
    if name in NOT_READ.get(mode, ()) and value != default:
        raise ValueError(f"`{name}` is not read by mode {mode}; remove it")
    return value
