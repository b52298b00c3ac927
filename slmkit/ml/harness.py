"""Scores by lm-eval, as its own command computes them: the same seeds, few-shot draw, templates and bootstrap.

Models are loaded here (so that 4-bit folders, GPTQ folders, adapters on their base, exports in their own runtime and endpoints all work), once each,
for all tasks. Task files are loaded alone: lm-eval's index of 14,683 built-in ones costs 14 CPU-seconds and is read only when a
built-in name is asked for. lm-eval's own answer cache is not used: its keys leave the model out.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from slmkit.errors import CannotRun, UsageError
from slmkit.evidence import timing
from slmkit.ml import cards, models, results, task_specs
from slmkit.ml import speed as measuring
from slmkit.ml.subjects.kept import Kept, Resumed
from slmkit.steps import _expect
from slmkit.steps._step import Context, Given, Result

PYTHON_SEED = 0  # lm-eval's default for Python's own generator; numpy, torch and few-shot share the config's
ALONE = "DISABLE_MULTIPROC"  # lm-eval's variable
EXPORTS = ("gguf", "onnx")


def evaluate(ctx: Context, config: Any, expected: list[_expect.Expectation]) -> Result:
    """The eval step."""
    where = models.device(ctx.execution.device)
    given: tuple[Given, ...] = ctx.inputs["models"]
    names = [*(m.name for m in given), *config.apis]
    specs, tasks = task_specs.specs(ctx)
    if all(isinstance(s, dict) for s in specs):
        _expect.check_names(expected, names, tasks)
    if config.chat:
        _check_templates(given)
    said: dict[str, dict] = {key: {} for key in ("scores", "speed", "size_bytes", "chat_template_sha256", "hashes", "cut_questions", "asked")}
    for i, name in enumerate([*config.apis, *(m.name for m in given)]):  # endpoints first: one that is down is told before models are run
        ctx.log("model", name=name)

        def report(tokens: float, rate: float, name=name, i=i) -> None:
            ctx.progress(i, len(names), f"scoring {name}", tokens=tokens, tokens_per_second=rate)

        model = next((m for m in given if m.name == name), None)
        found = _of_model(ctx, config, model, where, specs, report) if model else _of_api(ctx, config, name, specs, report)
        for key, value in found.items():
            said[key][name] = value
        ctx.log("scores", name=name, scores=said["scores"][name])
        models.free()
    said = {key: {name: value[name] for name in names if name in value} for key, value in said.items()}
    ctx.progress(len(names), len(names), "scoring")
    verdicts = _judged(ctx, config, names, said["scores"]) if config.judge else {}
    settings = {"fewshot": config.fewshot, "limit": config.limit, "chat": config.chat, "seed": config.seed}
    kept = {key: said[key] for key in ("scores", "size_bytes", "hashes")}
    models.write_json(ctx.out / "results.json", kept | {"config": settings})
    before = [s["measured"]["peak_memory_before_bytes"] for s in said["speed"].values() if "measured" in s]  # measuring begins the mark anew
    scored = sorted({t for by_task in said["scores"].values() for t in by_task})
    return Result(
        {k: v for k, v in said.items() if v} | verdicts,
        card=cards.scored(given, said["scores"], scored),
        cost={"peak_memory_bytes": max([models.peak_memory(where), *before])},
        seed=config.seed,
        determinism="none" if config.apis or config.judge else "exact" if where.type == "cpu" else "seeded",
    )


def _judged(ctx: Context, config: Any, names: list[str], scores: dict) -> dict[str, Any]:
    """Has the judge score the answers of the tasks that want it; what it cost."""
    from slmkit.ml import judged

    found, told = judged.judge(ctx, config.judge, config.judged, names, config.seed)
    for name, by_task in found.items():
        for task, values in by_task.items():
            scores[name][task] = dict(sorted((scores[name][task] | values).items()))
    return {"judge": told}


def _check_templates(given: tuple[Given, ...]) -> None:
    for model in given:
        if model.type not in EXPORTS and not models.tokenizer(model).chat_template:
            raise UsageError(f"`chat: true`, but {model.name} has no chat template", mend="write `chat: false`, or train with `chat_template: plain`")


def _of_model(ctx: Context, config: Any, given: Given, where: torch.device, specs: list, report: Callable) -> dict[str, Any]:
    started = time.perf_counter()
    if given.type in EXPORTS:
        from slmkit.ml.subjects import runtime

        engine = runtime.engine_of(Path(given.path), given.type, None)
        template = models.sha256(engine.template)
        if config.chat and template is None:
            raise UsageError(f"`chat: true`, but {given.name} has no chat template", mend="write `chat: false`")
        lm, fit = runtime.Runtime(engine, report), None
    else:
        from slmkit.ml.subjects.hf import Transformers

        tokenizer = models.tokenizer(given)
        template = models.check_template(given, tokenizer)
        batch = ctx.execution.batch_size
        lm = Transformers(pretrained=models.load(given, where), tokenizer=tokenizer, batch_size=1 if batch == "auto" else batch, report=report)
        fit = lm.fit if batch == "auto" else None
    if config.speed is not None:
        measuring.check(config.speed, lm, given)
    kept = Kept(ctx.state / "answers" / f"{given.name}.jsonl")
    subject = Resumed(lm, kept, fit)
    scored = _score(ctx, config, given.name, subject, specs)
    subject.kept.close()
    speed = {"tokens_per_second": lm.tokens / max(lm.seconds, 1e-9), "seconds": time.perf_counter() - started}
    if config.speed is not None:
        speed["measured"] = measuring.in_eval(ctx, config.speed, lm, given, where)
    more = {"cut_questions": subject.cut} if subject.cut else {}
    return scored | {"speed": speed, "size_bytes": models.weight_bytes(given), "chat_template_sha256": template} | more


def _of_api(ctx: Context, config: Any, name: str, specs: list, report: Callable) -> dict[str, Any]:
    from slmkit.ml.subjects.api import Endpoint

    started = time.perf_counter()
    lm = Endpoint(ctx, name, config.apis[name], report)
    try:
        scored = _score(ctx, config, name, lm, specs)
    finally:
        lm.close()
    speed: dict[str, Any] = {"seconds": time.perf_counter() - started}
    if timed := lm.speed():
        speed["answers"] = timed
        ctx.log("speed", name=name, said=timing.answers_line(timed))
    return scored | {"speed": speed, "asked": lm.told()}


def _score(ctx: Context, config: Any, name: str, lm: Any, specs: list) -> dict[str, Any]:
    with _offline_is_said(specs), _quiet(), _in_this_process(ctx.inputs["models"]):
        found = simple_evaluate(
            lm, tasks=task_specs.fresh(specs), task_manager=TaskManager(include_defaults=any(isinstance(s, str) for s in specs)),
            num_fewshot=config.fewshot, limit=config.limit, apply_chat_template=config.chat, batch_size=lm.batch_size,
            random_seed=PYTHON_SEED, numpy_random_seed=config.seed, torch_random_seed=config.seed, fewshot_random_seed=config.seed,
        )  # fmt: skip
    results.write_samples(ctx.out / "samples" / name, found["samples"])
    scores = {task: results.metrics(values) for task, values in found["results"].items()}
    return {"scores": scores, "hashes": results.hashes(found["samples"])}


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
def _in_this_process(given: tuple[Given, ...]) -> Iterator[None]:
    """lm-eval's bootstrap forks, and the threads of llama.cpp and onnxruntime do not survive that: it hung. The figures are the same without."""
    before = os.environ.get(ALONE)
    if any(model.type in EXPORTS for model in given):
        os.environ[ALONE] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(ALONE, None)
        else:
            os.environ[ALONE] = before


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
