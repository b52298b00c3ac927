"""Let a teacher write training data: it answers your prompts, and the answers become a dataset.

The teacher is any OpenAI-compatible endpoint, or a model that is run here. Every answer is kept in a ledger the moment it
arrives: a killed run goes on, one more prompt costs one more call, and nothing is paid for twice. `budget` is never passed.

    slmkit distill recipe.yaml
    slmkit distill recipe.yaml teach --set steps.teach.budget.usd=10
    slmkit distill recipe.yaml teach --set steps.teach.execution.concurrency=64
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from slmkit.steps import _modes, _tasks
from slmkit.steps._answers import Filters, check_compared
from slmkit.steps._fields import DataRefs, Device, Ref, Seed
from slmkit.steps._modes import Generate, Judge, Mode, Preference, Rationale, Rewrite
from slmkit.steps._step import Born, Columns, Context, How, Result, StepConfig, StepExecution, Takes, Wrong
from slmkit.steps._teacher import Budget, Prices, Teacher, TeacherRef

VERSION = 1
TAKES = {
    "prompts": Takes("dataset", many=True, lone=True, optional=True), "teacher": Takes("model", "adapter", optional=True),
    "template": Takes("template", optional=True), "verify_code": Takes("code", optional=True),
    "judge_template": Takes("template", optional=True), "tools": Takes("tools", optional=True),
    "tasks": Takes("task", many=True, optional=True, witness=True, files=_tasks.task_files),  # is a question of theirs among the rows?
    "held_out": Takes("dataset", many=True, optional=True, witness=True, of="validation"),
}  # fmt: skip
GIVES = "dataset"


PROMPTS_UNREAD = ("format", "weight", "chosen", "rejected", "label")
"""Keys of a mapping that a reading of prompts has no use for."""


class Config(StepConfig):
    mode: Mode = "answer"
    """answer: the teacher answers each prompt. generate: it writes new prompts and answers. rationale: it answers with its reasoning.
    rewrite: it improves answers, or rephrases prompts. judge: it scores rows by a rubric. preference: it compares its own answers, into
    pairs for dpo. tools: it answers with calls of functions."""
    teacher: TeacherRef
    """Who answers: `{model: gpt-5-mini, api_key_env: OPENAI_API_KEY}`, or a model that is run here, such as `demo:teacher`."""
    prompts: DataRefs | None = None
    """What is asked: rows with `prompt`, `messages`, `instruction` or `text`, in any usual file; a mapping can name the column. Modes rewrite
    and judge want rows with an answer of their own. For mode generate: examples to begin from, which may be left out."""
    generate: Annotated[Generate | None, Born(None)] = None
    """Settings of mode generate; description and count must be given."""
    rationale: Annotated[Rationale | None, Born(None)] = None
    """Settings of mode rationale."""
    rewrite: Annotated[Rewrite | None, Born(None)] = None
    """Settings of mode rewrite."""
    preference: Annotated[Preference | None, Born(None)] = None
    """Settings of mode preference."""
    template: Ref | None = None
    """A Jinja file that says what the teacher is sent for a prompt (see docs/distill.md), in place of the mode's own. The student still sees
    the bare prompt."""
    judge_template: Ref | None = None
    """A Jinja file that says what the teacher is sent to judge, where answers are judged after they were made. In mode judge it is `template`."""
    tools: Ref | None = None
    """A JSON file with the functions on offer, as OpenAI writes them, for mode tools; a row's own `tools` go before it."""
    tool_choice: Annotated[Literal["auto", "required"], Born("auto")] = "auto"
    """Mode tools: auto keeps answers in words too; required asks the endpoint for calls, and drops other answers."""
    system: str | None = None
    """System message for the teacher: the instructions that the student is to learn by heart."""
    student_system: str | None = None
    """System message that the rows get, in place of any of their own."""
    n: Annotated[int, Field(ge=1, le=256)] = 1
    """Answers for each prompt."""
    majority: Annotated[float, Field(gt=0, le=1)] | None = None
    """Keep one of the n answers: the one that most agree on, if at least this share of them does (self-consistency)."""
    temperature: Annotated[float, Field(ge=0, le=5)] | None = None
    """Of the teacher's sampling. None: the endpoint's default."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Nucleus sampling. None: the endpoint's default."""
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """The most tokens of an answer. Longer ones are cut, and dropped."""
    seed: Seed | None = None
    """Sent with each request (sample k gets seed + k); endpoints follow it more or less. Also of what is drawn here."""
    json_schema: dict[str, Any] | None = None
    """The JSON Schema that each answer must satisfy."""
    structured: bool = True
    """Have the endpoint enforce `json_schema` too (response_format), where the reply is the answer and nothing else. Models run here cannot."""
    filters: Filters = Filters()
    """Which answers become rows."""
    judge: Annotated[Judge | None, Born(None)] = None
    """`{rubric: …}`, for modes judge and preference, and for `filters.min_score`."""
    verify_code: Ref | None = None
    """A Python file with `verify(messages, answer, reference) -> bool`, for `filters: {verify: python}`."""
    min_kept: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] = 1
    """Fewer rows than this are an error: a number, or a share of the rows made (0.9)."""
    validation: Annotated[float, Field(gt=0, le=0.5)] | None = None
    """Share of the questions that goes into validation.jsonl."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What a broken row among the prompts does."""
    terms: str | None = None
    """What the teacher's terms say of such data, in your words, for the card: a licence, `not for competing models`, …"""
    budget: Annotated[Budget | None, How()] = None
    """The most that may be spent: `{usd: 5, tokens: 2000000, requests: 10000}`."""
    prices: Annotated[Prices | None, How()] = None
    """What the teacher charges, per million tokens: `{input: 0.25, output: 2.0}`. Without them tokens are counted, and no dollars."""

    @field_validator("min_kept", mode="before")
    @classmethod
    def _rows_or_share(cls, value: Any) -> Any:
        rows = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not rows and not (isinstance(value, float) and 0 < value <= 1):
            raise Wrong("`min_kept` is neither a number of rows nor a share of them", mend="write a whole number (500), or a share up to 1 (0.9)")
        return value

    @field_validator("prompts")
    @classmethod
    def _prompts(cls, value: Any, info: Any) -> Any:
        if value is None and info.data.get("mode") not in ("generate", None):
            raise ValueError("`prompts` is missing: the file of what is asked")
        for one in value if isinstance(value, list) else [value]:
            if unread := [k for k in PROMPTS_UNREAD if isinstance(one, Columns) and getattr(one, k) != Columns.model_fields[k].default]:
                raise ValueError(f"`{unread[0]}` says nothing of prompts (each is asked about once, or `n` times); remove it")
        return value

    @field_validator(*_modes.BLOCKS, mode="before")
    @classmethod
    def _block(cls, value: Any, info: Any) -> Any:
        return _modes.check_block(info.data.get("mode"), info.field_name, value)

    @field_validator("n", "majority", "json_schema", "judge_template")
    @classmethod
    def _read(cls, value: Any, info: Any) -> Any:
        return _modes.check_read(info.data.get("mode"), info.field_name, value, cls.model_fields[info.field_name].default)

    @field_validator("n")
    @classmethod
    def _enough(cls, value: int, info: Any) -> int:
        if info.data.get("mode") == "preference" and value < 2:
            raise ValueError("mode preference needs several answers to compare: set `n`, such as `n: 4`")
        return value

    @field_validator("tools", "tool_choice")
    @classmethod
    def _calls(cls, value: Any, info: Any) -> Any:
        if info.data.get("mode") not in ("tools", None) and value not in (None, "auto"):
            raise ValueError(f"`{info.field_name}` is read by mode tools only; remove it, or write `mode: tools`")
        return value

    @field_validator("filters")
    @classmethod
    def _compared(cls, value: Filters, info: Any) -> Filters:
        rewrite = info.data.get("rewrite")
        return check_compared(f"rewrite {rewrite.what}" if rewrite else info.data.get("mode"), value)

    @field_validator("judge")
    @classmethod
    def _judged(cls, value: Judge | None, info: Any) -> Judge | None:
        mode, filters = info.data.get("mode"), info.data.get("filters")
        if mode is None or filters is None:
            return value
        wanted = mode in ("judge", "preference") or filters.min_score is not None
        if value is None and wanted:
            raise ValueError(f"{f'mode {mode}' if mode in ('judge', 'preference') else '`filters.min_score`'} needs `judge: {{rubric: …}}`")
        if value is not None and not wanted:
            raise ValueError(f"`judge` is not read by mode {mode}; set `filters.min_score`, or remove it")
        if value is None and info.data.get("judge_template") is not None:
            raise ValueError("`judge_template` is read where answers are judged: set `filters.min_score`, or remove it")
        low, high = value.scale if value else (0, 0)
        margin = info.data["preference"].margin if info.data.get("preference") else 0
        if value and margin > high - low:
            raise ValueError(f"`preference.margin` is {margin:g}, and on the judge's scale from {low} to {high} no answer leads by that")
        if value and filters.min_score is not None and not low <= filters.min_score <= high:
            raise ValueError(f"`filters.min_score` is {filters.min_score:g}, and the judge's scale goes from {low} to {high}")
        return value

    @field_validator("majority")
    @classmethod
    def _several(cls, value: float | None, info: Any) -> float | None:
        if value is not None and info.data.get("n", 1) < 2:
            raise ValueError("`majority` needs several answers to choose from: set `n`, such as `n: 5`")
        return value

    @field_validator("structured")
    @classmethod
    def _of_a_schema(cls, value: bool, info: Any) -> bool:
        if not value and info.data.get("json_schema", 0) is None:
            raise ValueError("`structured` says how `json_schema` is held, and there is none; remove it")
        return value

    @field_validator("json_schema")
    @classmethod
    def _schema(cls, value: dict | None, info: Any) -> dict | None:
        if value is not None and (rewrite := info.data.get("rewrite")) and rewrite.what == "prompt":
            raise ValueError("`json_schema` is of answers, and `rewrite: {what: prompt}` writes prompts; remove it")
        if value is not None:
            from jsonschema import Draft202012Validator
            from jsonschema.exceptions import SchemaError

            try:
                Draft202012Validator.check_schema(value)
            except SchemaError as e:
                raise ValueError(f"no JSON Schema: {e.message}") from None
        return value

    @field_validator("verify_code")
    @classmethod
    def _code(cls, value: Any, info: Any) -> Any:
        wanted = (filters := info.data.get("filters")) is not None and filters.verify == "python"
        if value is None and wanted:
            raise ValueError("`filters.verify: python` needs `verify_code`: the file with `verify(messages, answer, reference)`")
        if value is not None and not wanted and filters is not None:
            raise ValueError("`verify_code` is read with `filters: {verify: python}` only; add it, or remove the file")
        return value

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


class Execution(StepExecution):
    concurrency: Annotated[int, Field(ge=1, le=4096)] = 32
    """The most requests at once; fewer where the endpoint says it is too much. For a local teacher: rows per batch."""
    timeout: Annotated[float, Field(gt=0, le=3600)] = 120.0
    """Seconds for one request."""
    retries: Annotated[int, Field(ge=0, le=100)] = 8
    """Trials of a request after the first, with growing pauses. 429s count for none."""
    patience: Annotated[float, Field(gt=0)] = 300.0
    """Seconds without a single answer after which the run ends (all answers are kept)."""
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Keep below the account's limit of requests, rather than run into it."""
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Keep below the account's limit of tokens."""
    transport: Literal["auto", "serve", "batch"] = "auto"
    """auto: an endpoint is called, a local teacher runs in this process. serve: a local teacher runs in a `slmkit serve` of its own, which
    is started and stopped here, and is asked over HTTP. batch: the endpoint's batch API, for half the price and within a day. The answers
    count as the same ones."""
    detach: bool = False
    """Of transport batch: submit and end with exit code 75; the same command, later, collects the answers."""
    device: Device = "auto"
    """Of a local teacher: auto, cpu, mps, cuda or cuda:N."""


def blocked(config: Config, execution: Execution) -> str | None:
    """A key that is not set is known before anything runs."""
    import os

    endpoint = isinstance(config.teacher, Teacher)
    if endpoint and execution.transport == "serve":
        return "`execution.transport: serve` is for a local teacher, and this one is an endpoint"
    if not endpoint and execution.transport == "batch":
        return "`execution.transport: batch` is for an endpoint, and this teacher is a model that runs here"
    if execution.detach and execution.transport != "batch":
        return "`execution.detach` is read by `execution.transport: batch` only"
    name = config.teacher.api_key_env if endpoint else None
    if name and not os.environ.get(name):
        return f"the environment variable {name} is not set (the teacher's key)"
    return None


def forecast(config: Config, execution: Execution, inputs: dict, ledgers: Path, state: Path) -> dict[str, int | str]:
    """Calls, tokens and money that are still to be spent, for `plan`."""
    from slmkit.teach import forecast

    return forecast.calls(config, execution, inputs, ledgers, state)


def run(ctx: Context, config: Config) -> Result:
    from slmkit.teach import distill

    return distill.run(ctx, config)
