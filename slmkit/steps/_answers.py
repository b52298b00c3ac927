"""What distill asks of an answer before it becomes a row: its block `filters`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from slmkit.steps._step import Part

NOTHING_TO_COMPARE = {
    "generate": dict.fromkeys(("exact", "numeric"), "in mode generate new rows have no other answer"),
    "judge": dict.fromkeys(("exact", "numeric"), "in mode judge the answer that is judged is the row's own"),
    "rewrite answer": {"exact": "in mode rewrite only an answer that is as it was passes"},
    "rewrite prompt": dict.fromkeys(("exact", "numeric"), "`rewrite: {what: prompt}` writes prompts"),
}  # fmt: skip
"""Why a check against the row's own answer can say nothing, by mode; of mode rewrite, by what it writes."""


class Filters(Part):
    """What an answer must be. What is dropped is kept in dropped.jsonl with the reason."""

    regex: str | None = None
    """A Python regular expression that the whole answer must match."""
    verify: Literal["exact", "numeric", "python"] | None = None
    """exact, numeric: against the row's own answer. python: the function `verify` of `verify_code`."""
    min_score: float | None = None
    """The least score from the judge that a row may have. In modes that judge nothing themselves, the teacher then judges the answers that
    the filters before let through, by `judge.rubric`; in mode preference it is the score of the chosen one."""
    duplicates: bool = True
    """Drop rows that are there already, to the letter."""
    near_duplicates: Annotated[float, Field(gt=0.3, lt=1)] | None = None
    """Drop rows whose likeness (Jaccard of 5-grams, by MinHash) to an earlier one is at least this; 0.85 is a good start."""
    leaks: bool = True
    """Drop questions of the recipe's evaluation tasks and validation data."""
    personal: bool = False
    """Drop rows with likely personal data: addresses, numbers of phones, cards and accounts, keys."""
    refusals: bool = True
    """Drop answers such as `I'm sorry, but I can't`."""

    @field_validator("regex")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as e:
            raise ValueError(f"not a regular expression: {e}") from None
        return value


def check_compared(mode: str | None, filters: Filters) -> Filters:
    """A check that can say nothing under this mode is refused. Raises ValueError."""
    if what := NOTHING_TO_COMPARE.get(mode, {}).get(filters.verify):
        raise ValueError(f"`verify: {filters.verify}` compares with the row's own answer, and {what}; use `python`, or remove it")
    return filters
