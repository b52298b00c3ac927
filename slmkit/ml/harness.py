"""Scores by lm-eval, as its own command computes them: the same seeds, few-shot draw, templates and bootstrap.

Models are loaded here (so that 4-bit folders, GPTQ folders and adapters on their base all work), once each, for all
tasks. Task files are loaded alone: lm-eval's index of 14,683 built-in ones costs 14 CPU-seconds and is read only when a
built-in name is asked for. No answer cache is used: lm-eval's keys leave the model out.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from slmkit.errors import CannotRun, UsageError
from slmkit.ml import cards, models
from slmkit.ml import speed as measuring
from slmkit.steps import _expect, _tasks
from slmkit.steps._step import Context, Given, Result

PYTHON_SEED = 0  # lm-eval's default for Python's own generator; numpy, torch and few-shot share the config's


class _Measured(HFLM):
    """lm-eval's Hugging Face model, with a clock around the model's own work and progress after each batch."""

    def __init__(self, *args: Any, report, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.report, self.seconds, self.tokens = report, 0.0, 0

    def _timed(self, call, count) -> torch.Tensor:
        started = time.perf_counter()
        out = call()
        if out.is_cuda:
            torch.cuda.synchronize(out.device)
        self.seconds += time.perf_counter() - started
        self.tokens += count(out)
        self.report(self.tokens, self.tokens / max(self.seconds, 1e-9))
        return out

    def _model_call(self, inps, *args: Any, **kwargs: Any) -> torch.Tensor:
        parent = super()._model_call
        return self._timed(lambda: parent(inps, *args, **kwargs), lambda _: inps.numel())

    def _model_generate(self, context, *args: Any, **kwargs: Any) -> torch.Tensor:
        parent = super()._model_generate
        written = lambda out: out.shape[0] * (out.shape[1] - context.shape[1])  # noqa: E731
        return self._timed(lambda: parent(context, *args, **kwargs), written)


def evaluate(ctx: Context, config: Any, expected: list[_expect.Expectation]) -> Result:
    """The eval step."""
    where = models.device(ctx.execution.device)
    given: tuple[Given, ...] = ctx.inputs["models"]
    specs, names = _specs(ctx)
    if all(isinstance(s, dict) for s in specs):
        _expect.check_names(expected, [m.name for m in given], names)
    if config.chat:
        _check_templates(given)
    templates = {m.name: models.check_template(m, models.tokenizer(m)) for m in given}
    scores, speed, sizes = {}, {}, {}
    for i, model in enumerate(given):
        ctx.log("model", name=model.name)

        def report(tokens: float, rate: float, name=model.name, i=i) -> None:
            ctx.progress(i, len(given), f"scoring {name}", tokens=tokens, tokens_per_second=rate)

        scores[model.name], speed[model.name] = _score(ctx, config, model, where, specs, report)
        sizes[model.name] = models.weight_bytes(model)
        ctx.log("scores", name=model.name, scores=scores[model.name])
        models.free()
    ctx.progress(len(given), len(given), "scoring")
    models.write_json(ctx.out / "results.json", {"scores": scores, "size_bytes": sizes, "config": _settings(config)})
    tasks = sorted({t for by_task in scores.values() for t in by_task})
    before = [s["measured"]["peak_memory_before_bytes"] for s in speed.values() if "measured" in s]  # measuring begins the mark anew
    return Result(
        {"scores": scores, "speed": speed, "size_bytes": sizes, "chat_template_sha256": templates},
        card=cards.scored(given, scores, tasks),
        cost={"peak_memory_bytes": max([models.peak_memory(where), *before])},
        seed=config.seed,
        determinism="exact" if where.type == "cpu" else "seeded",
    )


def _settings(config: Any) -> dict:
    return {"fewshot": config.fewshot, "limit": config.limit, "chat": config.chat, "seed": config.seed}


def _check_templates(given: tuple[Given, ...]) -> None:
    for model in given:
        if not models.tokenizer(model).chat_template:
            raise UsageError(f"`chat: true`, but {model.name} has no chat template", mend="write `chat: false`, or train with `chat_template: plain`")


def _specs(ctx: Context) -> tuple[list, list[str]]:
    """What lm-eval is given: configs for files, names for built-ins; and the names of all."""
    specs, names = [], []
    cache = str(ctx.state / "datasets")
    for task in ctx.inputs["tasks"]:
        if task.path is None:
            specs.append(task.name)
            names.append(task.name)
            continue
        document = load_yaml(task.path)
        _localise(document, Path(task.path).parent, cache)
        specs.append(document)
        names.append(str(document.get("task") or document.get("group")))
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise UsageError(f"two tasks are called `{twice}`", mend="give each task YAML its own `task:` name")
    return specs, names


def _localise(document: dict, folder: Path, cache: str) -> None:
    """Make data files absolute (lm-eval takes them from the current folder) and keep the data cache out of the home."""
    if document.get("dataset_path") in _tasks.LOCAL:
        kwargs = dict(document.get("dataset_kwargs") or {})
        kwargs["data_files"] = _absolute(kwargs.get("data_files"), folder)
        document["dataset_kwargs"] = kwargs | {"cache_dir": cache}
    for inner in document["task"] if isinstance(document.get("task"), list) else ():
        if isinstance(inner, dict):
            _localise(inner, folder, cache)


def _absolute(value: Any, folder: Path) -> Any:
    if isinstance(value, str):
        return str((folder / value).absolute())
    if isinstance(value, dict):
        return {k: _absolute(v, folder) for k, v in value.items()}
    return [_absolute(v, folder) for v in value or ()]


def _score(ctx: Context, config: Any, given: Given, where: torch.device, specs: list, report) -> tuple[dict, dict]:
    started = time.perf_counter()
    model = models.load(given, where)
    lm = _Measured(pretrained=model, tokenizer=models.tokenizer(given), batch_size=ctx.execution.batch_size, report=report)
    with _offline_is_said(specs), _quiet():
        # lm-eval takes the configs apart: each model gets its own copy of them.
        tasks = [dict(s) | {"dataset_kwargs": dict(s.get("dataset_kwargs") or {})} if isinstance(s, dict) else s for s in specs]
        results = simple_evaluate(
            lm, tasks=tasks, task_manager=TaskManager(include_defaults=any(isinstance(s, str) for s in specs)),
            num_fewshot=config.fewshot, limit=config.limit, apply_chat_template=config.chat, batch_size=ctx.execution.batch_size,
            random_seed=PYTHON_SEED, numpy_random_seed=config.seed, torch_random_seed=config.seed, fewshot_random_seed=config.seed,
        )  # fmt: skip
    _samples(ctx.out / "samples" / given.name, results["samples"])
    speed = {"tokens_per_second": lm.tokens / max(lm.seconds, 1e-9), "seconds": time.perf_counter() - started}
    if config.speed is not None:
        speed["measured"] = measuring.in_eval(ctx, config.speed, model, given, where)
    scores = {task: _metrics(values) for task, values in results["results"].items()}
    return scores, speed


def _metrics(values: dict) -> dict[str, float]:
    """`exact_match,none` → exact_match, `exact_match_stderr,strict` → exact_match_strict_stderr; "N/A" is left out."""
    found = {}
    for key, value in values.items():
        metric, comma, filter_name = key.partition(",")
        if not comma or isinstance(value, bool | str):
            continue
        error = metric.endswith("_stderr")
        metric = metric.removesuffix("_stderr") + ("" if filter_name == "none" else f"_{filter_name}")
        found[metric + ("_stderr" if error else "")] = float(value)
    return dict(sorted(found.items()))


KEPT = ("doc_id", "doc", "target", "resps", "filtered_resps", "filter")


def _samples(folder: Path, samples: dict[str, list[dict]]) -> None:
    """One JSONL per task: question, what the model was given, what it answered, how that scored."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, rows in samples.items():
        with (folder / f"{task.replace('/', '_')}.jsonl").open("w", encoding="utf-8") as file:
            for row in rows:
                kept = {k: row[k] for k in KEPT if k in row} | {m: row[m] for m in row.get("metrics", ()) if m in row}
                kept["prompt"] = _prompt(row.get("arguments"))
                file.write(json.dumps(kept, ensure_ascii=False, sort_keys=True, default=str) + "\n")


def _prompt(arguments: Any) -> str:
    """The text before the answer, of the first request."""
    while isinstance(arguments, list | tuple | dict) and arguments:
        arguments = next(iter(arguments.values())) if isinstance(arguments, dict) else arguments[0]
    return str(arguments)


@contextmanager
def _offline_is_said(specs: list) -> Iterator[None]:
    """A task whose data is on the hub fails far inside `datasets`; here it becomes one line."""
    from datasets.exceptions import DatasetNotFoundError

    try:
        yield
    except (ConnectionError, DatasetNotFoundError) as e:
        built_in = ", ".join(s for s in specs if isinstance(s, str)) or "a task"
        raise CannotRun(
            f"the data of {built_in} cannot be fetched: {str(e).splitlines()[0]}", mend="check the network, or use a task YAML with local data"
        ) from None
    except KeyError as e:
        if not any(isinstance(s, str) and s in str(e) for s in specs):
            raise
        raise UsageError(str(e.args[0]), mend="`lm_eval ls tasks` lists the built-in ones; a file ends in .yaml") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval tells a line per task and request; its warnings stay."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
