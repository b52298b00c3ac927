"""Score models on lm-eval tasks: your own YAML files with local data, or built-in names.

Every model is loaded once, in the numerics and the runtime that it is served in, and runs all tasks; an endpoint can be scored beside them (`apis`).
The scores are those of lm-eval's own command, to the last digit. `expect` turns them into verdicts: pass, fail, or inconclusive (too few
questions). One that is no pass makes the command exit 3, with the artifact kept. An eval that was killed goes on at the sample.

    slmkit eval recipe.yaml
    slmkit eval recipe.yaml score --json | jq .result.scores
    slmkit eval recipe.yaml score --set 'steps.score.limit=50'
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from slmkit.errors import Problem, UsageError
from slmkit.steps import _expect, _sight, _tasks
from slmkit.steps._fields import Device, Ref, Seed, TaskRef
from slmkit.steps._speed import Cost, Speed, unmet  # noqa: F401 (unmet is a hook of the kind)
from slmkit.steps._step import Born, Check, Context, Fault, How, Result, StepConfig, StepExecution, Takes
from slmkit.steps._task_form import Task
from slmkit.steps._teacher import Api, EvalJudge

VERSION = 1
TAKES = {
    "models": Takes("model", "adapter", "gguf", "onnx", many=True, named=True),
    "tasks": Takes("task", many=True, files=_tasks.task_files, bare=_tasks.bare, form=Task),
}
GIVES = "scores"
PINS = ("lm_eval",)


class Config(StepConfig):
    models: list[Ref]
    """What to score: models, adapters (on the base that they were trained on, in 4 bits if it was), exports to GGUF and ONNX (in llama.cpp and
    onnxruntime). `model: X` is the short form for one; `[]` where only `apis` are scored."""
    apis: Annotated[dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$")], Api], Born({})] = {}
    """Endpoints to score beside them, by name: `{gpt: {model: gpt-5-mini, api_key_env: OPENAI_API_KEY}}`. They are asked conversations
    (`chat: true`), and only tasks with written answers."""
    tasks: Annotated[list[TaskRef], Field(min_length=1)]
    """lm-eval YAML files with local data, names of tasks that come with lm-eval (those need the hub), or the short form of one's own:
    `{name: intents, data: test.csv, user: text, answer: category, metric: exact_match}`."""
    tasks_dir: Annotated[Ref | None, How()] = None
    """A folder of lm-eval YAML files, in which names in `tasks` are looked for before lm-eval's own (its --include_path)."""
    fewshot: Annotated[int, Field(ge=0, le=100)] | None = None
    """Examples shown before each question. None: what the task says."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many questions of each task; for trials. None: all."""
    chat: bool = False
    """Render prompts with the model's chat template (lm-eval's --apply_chat_template)."""
    seed: Seed = 1234
    """Seed of numpy, torch and the few-shot draw. 1234 is lm-eval's own default; Python's seed is 0, as there."""
    expect: dict[str, str] = {}
    """Bounds that must hold: `int4.notes.exact_match: ">= 0.9"`, `int4.notes.exact_match - sft.notes.exact_match: ">= -0.02"`. Judged on the
    one-sided 95 % interval that the questions leave open; `== 1`, or a bound that ends in `point`, on the value."""
    inconclusive: Annotated[Literal["fail", "pass"], Born("fail")] = "fail"
    """What becomes of a bound that the questions are too few to decide: fail (exit 3), or pass, with a warning."""
    judge: Annotated[EvalJudge | None, Born(None)] = None
    """Who judges for tasks with the metric `judge`: `{teacher: {model: gpt-5-mini, api_key_env: OPENAI_API_KEY}, side_by_side: true}`."""
    speed: Annotated[Speed | None, How()] = None
    """Measure latency, throughput and memory too: `{}`, or `{new_tokens: 64, batch_sizes: [1, 8, 32]}`. Changes no score; see docs/cost.md."""
    cost: Annotated[Cost | None, How()] = None
    """What `slmkit cost` reckons with, where it is not told otherwise: `{usd_per_hour: 1.2, idle: 0.3, api: {input: 0.25, output: 2.0}}`."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("models"), dict):
            name, ref = next(iter(data["models"].items()), ("big", "hf:ID"))
            raise ValueError(f"`models` is a list; a model gets a name at the top of the recipe: `{name}: {ref}` there, and `models: [${name}]` here")
        if not isinstance(data, dict) or "model" not in data:
            return data
        if "models" in data:
            raise ValueError("`model` is the short form of `models`; keep one")
        return {("models" if k == "model" else k): ([v] if k == "model" else v) for k, v in data.items()}

    @field_validator("expect")
    @classmethod
    def _parse(cls, value: dict[str, str]) -> dict[str, str]:
        for expression, bound in value.items():
            _expect.parse(expression, bound)
        return value

    @model_validator(mode="after")
    def _read(self) -> Config:
        if self.inconclusive != "fail" and not self.expect:
            raise ValueError("`inconclusive` is read where there is an `expect`; give one, or leave it out")
        if self.cost is not None and self.speed is None:
            raise ValueError("`cost` is reckoned from speed that was measured; give `speed: {}` too, or leave it out")
        if self.cost is not None and self.cost.batch is not None and self.cost.batch not in self.speed.batch_sizes:
            raise ValueError(f"`cost.batch` is {self.cost.batch}, and speed.batch_sizes are {', '.join(map(str, self.speed.batch_sizes))}")
        if not self.models and not self.apis:
            raise ValueError("`models` is empty: name what is to be scored, here or in `apis`")
        if self.apis and not self.chat:
            raise ValueError("`apis` are asked conversations: write `chat: true`, so that all are asked alike")
        self._tasks_fit()
        return self

    @property
    def judged(self) -> list[Task]:
        return [t for t in self.tasks if isinstance(t, Task) and "judge" in t.metric]

    def _tasks_fit(self) -> None:
        """What a task's short form needs of the rest."""
        if (self.judge is None) != (not self.judged):
            lacks = "no task has the metric `judge`; leave out `judge:`" if self.judge else f"task `{self.judged[0].name}` needs `judge:`: who judges"
            raise ValueError(lacks)
        for task in self.tasks:
            if isinstance(task, Task) and task.messages and (not self.chat or self.fewshot):
                why = "`fewshot` shows single questions" if self.chat else "write `chat: true`"
                raise ValueError(f"task `{task.name}` asks with conversations (`messages`): {why}")
            if isinstance(task, Task) and self.apis and not task.generated:
                raise ValueError(f"task `{task.name}` ranks choices, and an endpoint does not tell how likely it finds a given text; leave out one")


class Execution(StepExecution):
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Questions per forward pass; auto: what fits into the free memory, at most 64. A score may move in its last digit with it. Exports are asked one
    question after another, whatever it says."""
    device: Device = "auto"
    """auto, cpu, mps, cuda or cuda:N."""


def blocked(config: Config, execution: Execution) -> str | None:
    """A key that is not set is known before anything runs."""
    asked = {f"apis.{name}": api for name, api in config.apis.items()} | ({"judge.teacher": config.judge.teacher} if config.judge else {})
    for place, teacher in asked.items():
        if teacher.api_key_env and not os.environ.get(teacher.api_key_env):
            return f"`{place}.api_key_env`: ${teacher.api_key_env} is not set"
    return None


def expand(body: dict, folder: Path) -> tuple[dict, list[Fault]]:
    """Names of tasks that are files of `tasks_dir` become those files; a fault where it has none of them."""
    place = body.get("tasks_dir")
    listed = body.get("tasks")
    if not isinstance(place, str) or not isinstance(listed, list):
        return body, []
    root = (folder / Path(place).expanduser()).absolute()
    if not root.is_dir():
        return body, [Fault(("tasks_dir",), f"no such folder: {place}", "paths are relative to the recipe")]
    known = _tasks.index(root)
    found = [str(known[one]) if isinstance(one, str) and _tasks.bare(one) and one in known else one for one in listed]
    if found == listed:
        near = ", ".join(sorted(known)[:8]) or "none"
        mend = "name one of them in `tasks`, or leave out `tasks_dir`"
        return body, [Fault(("tasks_dir",), f"{place} defines none of the tasks (it has {near})", mend)]
    return body | {"tasks": found}, []


def refuse(config: Config, inputs: dict) -> list[Problem]:
    """Tasks of one name, and what the first row of their data already shows: a column that is not there, say."""
    from slmkit.data import asked

    forms = [(task, size.path) for task, size in zip(config.tasks, inputs.get("tasks", ()), strict=False) if isinstance(task, Task)]
    names = [task.name if isinstance(task, Task) else task for task in config.tasks]
    if twice := next((n for n in names if names.count(n) > 1), None):
        return [Problem(f"two tasks are called `{twice}`", mend="give each task its own name")]
    found = [asked.misfit(task, path) for task, path in forms if path is not None and path.is_file()]
    return [problem for problem in found if problem]


def estimate(config: Config, execution: Execution, inputs: dict) -> dict[str, int | list[str]]:
    """How little the tasks' questions can see of what `expect` asks."""
    return _sight.estimate(config, inputs.get("tasks", ()))


def run(ctx: Context, config: Config) -> Result:
    expected = [_expect.parse(e, b) for e, b in config.expect.items()]
    names = [*(m.name for m in ctx.inputs["models"]), *config.apis]
    if twice := next((n for n in config.apis if names.count(n) > 1), None):
        raise UsageError(f"a model and an endpoint are both called `{twice}`, and results are keyed by name", mend="rename it in `apis`")
    _expect.check_names(expected, names)
    from slmkit.ml import harness

    result = harness.evaluate(ctx, config, expected)
    if config.cost is not None:
        result = replace(result, values=result.values | {"cost": config.cost.model_dump(mode="json", exclude_none=True)})
    return replace(result, checks=_checks(ctx, config, expected)) if expected else result


def _checks(ctx: Context, config: Config, expected: list[_expect.Expectation]) -> tuple[Check, ...]:
    from slmkit.evidence import judge, samples

    evidence = samples.of_folder(ctx.out)
    verdicts = [judge.judge(e, evidence) for e in expected]
    for verdict in verdicts:
        if verdict.verdict == judge.INCONCLUSIVE and config.inconclusive == "pass":
            ctx.log("warning", what=verdict.detail)
    return tuple(Check(v.text, v.holds(config.inconclusive), v.detail, v.verdict, v.figures()) for v in verdicts)
