"""The train step: what all objectives share. Rows are encoded and refused before a model is loaded; seeds are set before adapters
are made; every checkpoint is sealed; a killed run goes on and ends, on a CPU, in the same bytes.

An objective (`slmkit.ml.objectives.*`) turns rows into tokens and makes TRL's trainer for them; the rest is here.
"""

from __future__ import annotations

import importlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import PrinterCallback, Trainer, TrainerState, TrainingArguments, set_seed

from slmkit.data.rows import Rows
from slmkit.errors import StepFailed, UsageError
from slmkit.ml import adapters, cards, chat, checkpoints, curves, launch, lora, models, packing, shards, trackers, watch
from slmkit.steps._step import Context, Given, Result


@dataclass(frozen=True)
class Run:
    """One training: its context and config, the base, the device and number format, and this process among all."""

    ctx: Context
    config: Any
    given: Given
    tokenizer: Any
    where: torch.device
    dtype: torch.dtype
    rank: int = 0
    world: int = 1

    @property
    def checkpoints(self) -> Path:
        return self.ctx.state / "checkpoints"


@dataclass(frozen=True)
class Prepared:
    """What an objective made of the rows. values: for the result. measure: trained model → validation loss (lower is better).

    inputs: some batches as the model takes them, for adapters that begin from the data. course: what was logged → more values.
    micro: rows per forward pass. finish: the model that comes out → more values. repeats: would the same run give the same again, as far as
    what it asks others is concerned?
    """

    examples: Any
    steps: int
    values: dict = field(default_factory=dict)
    measure: Callable[[torch.nn.Module], float] | None = None
    inputs: Callable[[torch.device], list[dict]] | None = None
    course: Callable[[list[dict]], dict] = lambda history: {}
    micro: int = 1
    finish: Callable[[torch.nn.Module], dict] = lambda model: {}
    repeats: bool = True


def train(ctx: Context, config: Any, data: Rows, validation: Rows | None) -> Result:
    """Train in this process, or on several. `data` and `validation` were read and checked already."""
    processes, told = launch.wanted(ctx.execution), ctx.execution.accelerate
    if told and "SLMKIT_LAUNCH" not in os.environ:
        came_to = {k: getattr(ctx.execution, k) for k in ("sharding", "device", "gradient_checkpointing", "micro_batch")}
        ctx.log("accelerate", file=told.file, processes=processes, **came_to, says_nothing=told.unread)
    shards.check(config, ctx.execution, max(processes, launch.place().world), ctx.execution.device)
    if processes > 1:
        if config.objective != "grpo":  # which cuts up answers, not rows, and checks that itself
            packing.micro_batch(ctx.execution.micro_batch, config.batch_size, processes)
        return launch.run(ctx, "train", config, processes)
    given, here = ctx.inputs["model"], launch.place()
    where = _device(ctx.execution.device, here)
    if ctx.execution.attention == "flex_attention" and where.type == "cpu":
        raise UsageError("flex_attention has no backward pass on a CPU", mend="leave `execution.attention` out: sdpa keeps packed rows apart too")
    models.read_config(Path(given.path))
    tokenizer = models.tokenizer(given)
    chat.set_template(tokenizer, config.chat_template)
    run = Run(ctx, config, given, tokenizer, where, models.precision(config.precision, where), here.rank, here.world)
    objective = importlib.import_module(f"slmkit.ml.objectives.{config.objective}")
    prepared = objective.prepare(run, data, validation)
    set_seed(config.seed)
    model = _model(run, prepared)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    started = time.perf_counter()
    trainer = _trainer(run, objective, model, prepared)
    stopped = _go(run, trainer, prepared.steps)
    values = _values(trainer, prepared) | {"trainable_parameters": trainable, "precision": models.NAMES[run.dtype], "device": where.type}
    values["chat_template_sha256"] = chat.template_hash(tokenizer)
    if stopped:
        values["stopped_early"] = stopped
    if values["steps"] == 1 and config.warmup > 0:
        ctx.log("warning", what="the only step was one of warm-up, at learning rate 0: nothing was learned; `warmup: 0` makes it learn")
    if config.keep == "best":
        best = watch.load_best(trainer.model, ctx.state)
        values |= {"best_step": best["step"], "validation_loss": best["loss"]}
    values |= prepared.finish(trainer.model)
    kept = shards.whole(trainer.model) if shards.is_sharded(trainer.model) else None
    if run.rank == 0:
        curves.draw(trainer.state.log_history, ctx.out / "loss.png")
        _save(run, trainer.model if kept is None else _unshared(run, prepared, kept))
    seconds = time.perf_counter() - started
    cost = {"seconds": seconds, "tokens": int(_of_all(run, trainer.content)), "peak_memory_bytes": models.peak_memory(where)}
    del trainer, model
    models.free()
    card = cards.trained(given, ctx.inputs["data"], config, values, adapter=config.method != "full")
    again = "none" if not prepared.repeats else "exact" if where.type == "cpu" and run.world == 1 else "seeded"
    return Result(values, card=card, cost=cost, seed=config.seed, determinism=again)


def _device(name: str, here: launch.Place) -> torch.device:
    """This process's device: of several on GPUs, each has its own."""
    if here.world > 1 and (name.startswith("cuda") or (name == "auto" and torch.cuda.is_available())):
        torch.cuda.set_device(here.local)
        return models.device(f"cuda:{here.local}")
    where = models.device(name)
    if where.type == "cuda" and where.index:
        raise UsageError("training uses the first visible GPU", mend=f"set CUDA_VISIBLE_DEVICES={where.index} and `device: cuda`")
    return where


def _model(run: Run, prepared: Prepared):
    """The model to train, on its device, or shared among the processes block by block."""
    if run.ctx.execution.sharding == "none":
        return _plain(run, prepared, run.where)
    return shards.shard(_plain(run, prepared, torch.device("cpu")), run.where)


def _plain(run: Run, prepared: Prepared, where: torch.device):
    """The model before training. Full training holds fp32 weights (autocast makes it bf16); adapters sit on a base in `dtype`."""
    config = run.config
    held = torch.float32 if config.method == "full" else run.dtype
    model = models.load(run.given, where, dtype=held, nf4=config.method == "qlora", attention=run.ctx.execution.attention)
    if config.method == "full":
        return model
    if run.ctx.execution.gradient_checkpointing:
        model.enable_input_require_grads()
    return adapters.attach(model, config.lora, run.ctx.state, prepared.inputs(where) if prepared.inputs else (), Path(run.given.path))


def _unshared(run: Run, prepared: Prepared, weights: dict[str, torch.Tensor]):
    """What was trained, as a model of one process: made again as it began, with the trained weights in it."""
    set_seed(run.config.seed)
    model = _plain(run, prepared, torch.device("cpu"))
    shards.put(model, weights)
    return model


def _trainer(run: Run, objective, model, prepared: Prepared) -> Trainer:
    # TRL rounds adapters on quantized bases to bf16; an AdamW step of 1e-5 is then lost in rounding. They stay fp32 here.
    full = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
    trainer = objective.trainer(run, model, prepared)
    trainer.remove_callback(PrinterCallback)
    if shards.is_sharded(model):
        trainer.accelerator.prepare_model(model, evaluation_mode=True)  # autocast, and no copies (DDP): train() finds it prepared
    else:
        for name, parameter in model.named_parameters():
            if name in full:
                parameter.data = full[name]
    content = lambda: trainer.content * run.world  # noqa: E731
    trainer.add_callback(watch.Watch(run.ctx, run.config, prepared.steps, prepared.measure, run.where, run.rank == 0, content))
    if trainer.args.world_size != run.world:
        raise StepFailed(f"{run.world} processes were asked for, and the trainer sees {trainer.args.world_size}")
    return trainer


def _of_all(run: Run, count: float) -> float:
    """The sum of a count over the processes."""
    if run.world == 1:
        return count
    total = torch.tensor(count, dtype=torch.float64, device=run.where)
    dist.all_reduce(total)
    return total.item()


def _go(run: Run, trainer: Trainer, total: int) -> str | None:
    """Train from the last whole checkpoint, or from the start. Returns why it stopped before its last step, if it did."""
    ctx = run.ctx
    with trainer.args.main_process_first(desc="torn checkpoints are removed by the first process"):
        resumed, torn = checkpoints.latest(run.checkpoints)
    if torn:
        ctx.log("torn_checkpoints_removed", names=torn)
    if resumed:
        ctx.log("resumed", step=checkpoints.step(resumed))
    stopped = watch.stopped_at(resumed) if resumed else None
    if resumed and (stopped or checkpoints.step(resumed) >= total):
        # The trainer, asked to resume at its last step, takes one more; there is nothing left to do but load.
        trainer._load_from_checkpoint(str(resumed))
        trainer.state = TrainerState.load_from_json(str(resumed / "trainer_state.json"))
        return stopped
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    wrapper = type(trainer.model_wrapped).__name__
    if run.ctx.execution.sharding == "fsdp":
        shards.prove(trainer.model_wrapped, run.world)
    elif run.world > 1 and wrapper != "DistributedDataParallel":  # each process would have trained alone
        raise StepFailed(f"the model was not shared among the {run.world} processes (it is wrapped as {wrapper})")
    seen = next(c for c in trainer.callback_handler.callbacks if isinstance(c, watch.Watch))
    if trainer.state.global_step != total and not seen.stopped:
        raise StepFailed(f"the trainer took {trainer.state.global_step} steps instead of {total}")
    return seen.stopped


def arguments(run: Run, kind: type[TrainingArguments], total: int, micro: int, *, rows: int | None = None, **more: Any) -> TrainingArguments:
    """The settings that every trainer shares; `more` are those of one. rows: per optimizer step, where it is not batch_size."""
    config, execution = run.config, run.ctx.execution
    every = execution.checkpoint_every
    if every == "auto":
        every = max(1, min(500, math.ceil(total / 10)))
    schedule = {"constant": "constant_with_warmup"}.get(config.schedule, config.schedule)
    paged = run.where.type == "cuda" and config.method == "qlora"  # the same arithmetic; its state may leave the GPU
    args = kind(
        output_dir=str(run.checkpoints), report_to=list(execution.trackers) or "none", disable_tqdm=True, logging_steps=1,
        logging_nan_inf_filter=False, per_device_train_batch_size=micro,
        gradient_accumulation_steps=(rows or config.batch_size) // (micro * run.world),
        max_steps=total, learning_rate=config.learning_rate, lr_scheduler_type=schedule, warmup_steps=config.warmup,
        weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm, optim="paged_adamw_32bit" if paged else "adamw_torch",
        seed=config.seed, data_seed=config.seed, use_cpu=run.where.type == "cpu", bf16=run.dtype == torch.bfloat16, fp16=False,
        gradient_checkpointing=execution.gradient_checkpointing, dataloader_num_workers=execution.workers,
        save_strategy="steps", save_steps=every, save_total_limit=checkpoints.KEPT, push_to_hub=False,
        **trackers.told(run.ctx), **more,
    )  # fmt: skip
    args._n_gpu = min(args.n_gpu, 1)  # several visible GPUs would make the trainer wrap the model in DataParallel
    return args


def steps(config: Any, rows: int) -> int:
    """Optimizer steps of a run over `rows` rows."""
    return config.max_steps or math.ceil(config.epochs * math.ceil(rows / config.batch_size))


def _values(trainer: Trainer, prepared: Prepared) -> dict:
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    last = losses[-max(1, len(losses) // 10) :]
    values = {
        "first_loss": losses[0],
        "train_loss": sum(last) / len(last),  # mean of the last tenth of the steps
        "steps": trainer.state.global_step,
    }
    measured = [entry["validation_loss"] for entry in history if "validation_loss" in entry]
    return values | ({"validation_loss": measured[-1]} if measured else {}) | prepared.values | prepared.course(history)


def _save(run: Run, model) -> None:
    config, given, out = run.config, run.given, run.ctx.out
    template = run.tokenizer.chat_template if config.chat_template else None
    said = {"method": config.method, "chat_template_sha256": chat.template_hash(run.tokenizer)}
    if config.method == "full":
        lora.save_model(model.to(models.own_dtype(Path(given.path))), out, given, given, template)
        models.write_json(out / models.TRAINING, said)
        return
    adapters.save(model, out, given, run.ctx.state)
    models.copy_tokenizer(given, out, template)
    quantization = "nf4" if config.method == "qlora" else None
    models.write_json(out / models.TRAINING, said | {"base_dtype": models.NAMES[run.dtype], "base_quantization": quantization})
