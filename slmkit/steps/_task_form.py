"""The short form of a task: `{name: intents, data: test.csv, user: text, answer: category, metric: [exact_match, f1_macro]}`.

It stands for an lm-eval task, which the eval writes beside its scores: YAML, data and metrics, so that lm-eval's own command gives them again.
Torch-free; what the metrics compute is in `data/metrics.py`, how rows are read in `data/asked.py`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from slmkit.steps._step import Part

GENERATED = (
    "exact_match", "f1_macro", "f1_weighted", "regex", "rouge1", "rouge2", "rougeL", "bleu", "chrf", "numeric",
    "json_valid", "schema_valid", "json_exact", "json_f1", "tool_name", "tool_call", "judge",
)  # fmt: skip
CHOSEN = ("acc", "acc_norm", "f1_macro", "f1_weighted")
READS = {"tolerance": ("numeric",), "pattern": ("regex",), "json_schema": ("schema_valid",), "rubric": ("judge",)}
"""Which metrics read a key that only some read."""
PARSED = {"numeric": "a number", "json_exact": "JSON", "json_f1": "a JSON object", "tool_name": "a call", "tool_call": "a call"}
"""What the right answers of a metric must be."""


class Task(Part):
    """A task of one's own: rows of any file, a question and the right answer in each."""

    KEY: ClassVar[str] = "data"

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,59}$")]
    """What the task is called in scores and in `expect`."""
    data: Annotated[str, Field(min_length=1)]
    """The questions: a file of rows (JSONL, JSON, CSV, TSV, Parquet, Arrow, packed or not), a glob, a dataset step, `hf:ID:SPLIT`."""
    split: str | None = None
    """Which part of a folder or dataset: `validation`."""
    user: Annotated[str, Field(min_length=1)] | None = None
    """The question: a column, or a Jinja template of columns: `"{{title}}: {{body}}"`."""
    messages: Annotated[str, Field(min_length=1)] | None = None
    """Instead of `user`: the column of a conversation, whose last answer is the right one. Needs `chat: true`."""
    answer: Annotated[str, Field(min_length=1)] | None = None
    """The right answer: a column, or a template. What is no text is written as JSON."""
    system: str | None = None
    """Put before each question; with `chat: true` as the system message."""
    output_type: Literal["generate_until", "multiple_choice"] | None = None
    """generate_until: the model writes its answer. multiple_choice: the likeliest of `choices` is its answer. None: what the metrics need."""
    choices: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=2)] | None = None
    """The answers to choose from: `labels` (all right answers of the data), a list, or a column that holds one."""
    metric: list[str]
    """generate_until: exact_match, f1_macro, f1_weighted, regex, rouge1, rouge2, rougeL, bleu, chrf, numeric, json_valid, schema_valid, json_exact,
    json_f1, tool_name, tool_call, judge. multiple_choice: acc, acc_norm, f1_macro, f1_weighted."""
    extract: str | None = None
    """A regular expression that finds the answer in what the model wrote (its first group): `"#### ([0-9.]+)"`. None: all of it, stripped."""
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] = 256
    """Most tokens of an answer."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """Texts that end an answer, beside the model's own end of turn: `["\\n"]`."""
    tolerance: Annotated[float, Field(ge=0)] | None = None
    """numeric: how far from the right number still counts. None: not at all."""
    pattern: str | None = None
    """regex: what the whole answer must match."""
    json_schema: dict[str, Any] | None = None
    """schema_valid: the JSON Schema that the answer must satisfy."""

    rubric: Annotated[str, Field(min_length=1)] | None = None
    """judge: what a good answer is, in your words; who judges says the eval's `judge`."""

    @model_validator(mode="before")
    @classmethod
    def _one_metric(cls, data: Any) -> Any:
        return data | {"metric": [data["metric"]]} if isinstance(data, dict) and isinstance(data.get("metric"), str) else data

    @field_validator("extract", "pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as e:
            raise ValueError(f"this is no regular expression: {e}") from None
        return value

    @field_validator("user", "answer")
    @classmethod
    def _is_template(cls, value: str | None) -> str | None:
        if value and ("{{" in value or "{%" in value):
            from jinja2 import Environment, TemplateSyntaxError

            try:
                Environment().parse(value)
            except TemplateSyntaxError as e:
                raise ValueError(f"this is no template: {e.message}") from None
        return value

    @field_validator("json_schema")
    @classmethod
    def _is_schema(cls, value: dict | None) -> dict | None:
        if value is None:
            return None
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import SchemaError

        try:
            Draft202012Validator.check_schema(value)
        except SchemaError as e:
            raise ValueError(f"this is no JSON Schema: {e.message[:120]}") from None
        return value

    @property
    def generated(self) -> bool:
        """Does the model write its answer (or is the likeliest of the choices taken)?"""
        return self.output_type != "multiple_choice" if self.output_type else not set(self.metric) & (set(CHOSEN) - set(GENERATED))

    @model_validator(mode="after")
    def _fits(self) -> Task:
        if (self.user is None) == (self.messages is None):
            raise ValueError("a task asks with `user` (a column or a template) or with `messages` (a column of conversations): give one of them")
        if self.answer is None and self.messages is None:
            raise ValueError("`answer` is missing: the column of the right answer")
        if self.messages and self.system is not None:
            raise ValueError("`system` stands before `user`; a conversation of `messages` brings its own")
        self._metrics_fit()
        for key, metrics in READS.items():
            wanted = set(metrics) & set(self.metric)
            if getattr(self, key) is not None and not wanted:
                raise ValueError(f"`{key}` is read by the metric {' and '.join(metrics)}, which is not asked for")
            if getattr(self, key) is None and wanted and key != "tolerance":
                raise ValueError(f"the metric {metrics[0]} needs `{key}`")
        return self

    def _metrics_fit(self) -> None:
        known = GENERATED if self.generated else CHOSEN
        if not self.metric:
            raise ValueError(f"`metric` names none; choose of {', '.join(known)}")
        twice = next((m for m in self.metric if self.metric.count(m) > 1), None)
        if twice:
            raise ValueError(f"`metric` names {twice} twice")
        for metric in self.metric:
            if metric not in known:
                other = CHOSEN if self.generated else GENERATED
                how = "the model writes its answer" if self.generated else "the likeliest of `choices` is the answer"
                why = f"metric `{metric}` is not for a task where {how}" if metric in other else f"unknown metric `{metric}`"
                raise ValueError(f"{why}; such a task has {', '.join(known)}")
        if self.generated:
            if self.choices is not None and not {"f1_macro", "f1_weighted"} & set(self.metric):
                raise ValueError("`choices` is read by f1_macro, f1_weighted and by output_type multiple_choice")
            if isinstance(self.choices, str) and self.choices != "labels":
                raise ValueError("where the model writes its answer, `choices` is `labels` or a list")
        elif self.choices is None:
            raise ValueError("`choices` is missing: `labels` (all right answers of the data), a list, or a column that holds one")
        elif not isinstance(self.choices, list) and self.choices != "labels" and {"f1_macro", "f1_weighted"} & set(self.metric):
            raise ValueError("F1 needs the same choices in every row: `labels` or a list")
        unread = [k for k in ("extract", "stop") if getattr(self, k)] + (["max_tokens"] if "max_tokens" in self.model_fields_set else [])
        if not self.generated and unread:
            raise ValueError(f"`{unread[0]}` is of written answers; with multiple_choice nothing is written")
