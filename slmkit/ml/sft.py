"""Supervised fine-tuning with TRL's trainer on rows that are tokenised here.

TRL gets token ids and labels and prepares nothing itself, so its own traps (all-zero masks, EOS cut off, messages trained
on user tokens) cannot be met. What remains its work: batches, packing, the optimizer, checkpoints. Seeds are set before
the adapters are made; adapter weights stay fp32; every checkpoint is sealed; a resumed run ends in the same bytes.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainerState, set_seed
from trl import SFTConfig, SFTTrainer
from trl.data_utils import pack_dataset

from slmkit.data.rows import Rows
from slmkit.errors import Problem, RecipeError, StepFailed, UsageError
from slmkit.ml import cards, chat, checkpoints, look, lora, models
from slmkit.steps._step import Context, Result

VALIDATIONS = 4
CLIP = 1.0  # gradient norm; the usual guard against a single bad batch


class _Trainer(SFTTrainer):
    """TRL's trainer without the card it writes beside every checkpoint, and without counting parameters at every step."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        pass

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # walks all modules for a number that nothing here reads: 8 % of the time of a small model


class _Watch(TrainerCallback):
    """Progress, log lines, validation, seals; stops on a loss that is no number."""

    def __init__(self, ctx: Context, total: int, validate):
        self.ctx, self.total, self.validate = ctx, total, validate
        self.marks = {math.ceil(total * (i + 1) / VALIDATIONS) for i in range(VALIDATIONS)}
        self.since = (time.perf_counter(), 0.0)

    def on_step_end(self, args, state, control, model=None, **_):
        if self.validate and state.global_step in self.marks:
            loss = self.validate(model)
            state.log_history.append({"validation_loss": loss, "step": state.global_step})
            self.ctx.log("validation", step=state.global_step, loss=loss)

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" not in (logs or {}):
            return
        loss, now, tokens = logs["loss"], time.perf_counter(), logs.get("num_tokens", 0.0)
        if not math.isfinite(loss):
            raise StepFailed(f"the loss became {loss} at step {state.global_step}", mend="lower `learning_rate`, or write `precision: fp32`")
        rate = (tokens - self.since[1]) / max(now - self.since[0], 1e-9)
        self.since = (now, tokens)
        self.ctx.log("step", step=state.global_step, loss=loss, learning_rate=logs.get("learning_rate"), grad_norm=logs.get("grad_norm"))
        self.ctx.progress(state.global_step, self.total, "training", loss=loss, tokens_per_second=rate)

    def on_save(self, args, state, control, **_):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        checkpoints.seal(folder)
        self.ctx.log("checkpoint", step=state.global_step)


def train(ctx: Context, config: Any, data: Rows, validation: Rows | None) -> Result:
    """The train step. `data` and `validation` were read and checked already."""
    given = ctx.inputs["model"]
    where = models.device(ctx.execution.device)
    if where.type == "cuda" and where.index:
        raise UsageError("training uses the first visible GPU", mend=f"set CUDA_VISIBLE_DEVICES={where.index} and `device: cuda`")
    micro = micro_batch(ctx.execution.micro_batch, config, where)
    models.read_config(Path(given.path))
    tokenizer, encoded, held_out = _encode(given, config, data, validation)
    look.check(ctx, data, encoded, config.max_length)
    _say(ctx, data, encoded)
    dtype = models.precision(config.precision, where)
    set_seed(config.seed)
    model = _model(ctx, config, given, where, dtype)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    started = time.perf_counter()
    trainer, total = _trainer(ctx, config, model, tokenizer, encoded, held_out, micro, where, dtype)
    _go(ctx, trainer, total)
    history = trainer.state.log_history
    _save(ctx, config, trainer.model, given, tokenizer, dtype)
    values = _values(history, data, encoded, trainer.state.global_step) | {
        "trainable_parameters": trainable,
        "precision": models.NAMES[dtype],
        "device": where.type,
    }
    cost = {
        "seconds": time.perf_counter() - started,
        "tokens": int(encoded.tokens * (trainer.state.epoch or 0)),
        "peak_memory_bytes": models.peak_memory(where),
    }
    del trainer, model
    models.free()
    card = cards.trained(given, ctx.inputs["data"], config, values, adapter=config.method != "full")
    return Result(values, card=card, cost=cost, seed=config.seed, determinism="exact" if where.type == "cpu" else "seeded")


def _encode(given, config, data: Rows, validation: Rows | None):
    tokenizer = models.tokenizer(given)
    chat.set_template(tokenizer, config.chat_template)
    kwargs = {"loss_on": config.loss_on, "max_length": config.max_length, "ends": models.end_ids(given, tokenizer)}
    held_out = chat.encode(validation, tokenizer, **kwargs) if validation else None
    return tokenizer, chat.encode(data, tokenizer, **kwargs), held_out


def _say(ctx: Context, data: Rows, encoded: chat.Encoded) -> None:
    ctx.log("data", rows=len(encoded.examples), tokens=encoded.tokens, trained_tokens=encoded.trained, form=data.form, **encoded.notes)
    if encoded.too_long:
        ctx.log("rows_left_out", why="longer than max_length", count=len(encoded.too_long), lines=encoded.too_long[:5], file=data.name)


def micro_batch(asked: int | str, config: Any, where: torch.device) -> int:
    """Rows per forward pass. Raises RecipeError when batch_size is no multiple of it."""
    if asked == "auto":
        # TRL flattens a micro batch of packs into one row, whose attention is quadratic: on a CPU one pack at a time is twice as fast.
        most = 1 if config.packing and where.type == "cpu" else 8
        return max(n for n in range(1, most + 1) if config.batch_size % n == 0)
    if config.batch_size % asked:
        fits = ", ".join(str(n) for n in range(1, config.batch_size + 1) if config.batch_size % n == 0)
        what = f"execution.micro_batch: {asked} does not divide batch_size: {config.batch_size}"
        raise RecipeError([Problem(what, mend=f"write one of {fits}")])
    return asked


def _model(ctx: Context, config: Any, given, where: torch.device, dtype: torch.dtype):
    """The model to train. Full training holds fp32 weights (autocast makes it bf16); adapters sit on a base in `dtype`."""
    held = torch.float32 if config.method == "full" else dtype
    model = models.load(given, where, dtype=held, nf4=config.method == "qlora", attention=ctx.execution.attention)
    if config.method == "full":
        return model
    if ctx.execution.gradient_checkpointing:
        model.enable_input_require_grads()
    return lora.attach(model, config.lora)


def _dataset(encoded: chat.Encoded, config: Any) -> Dataset:
    rows = [{"input_ids": e.input_ids, "labels": e.labels} for e in encoded.examples]
    dataset = Dataset.from_list(rows)
    if config.packing:
        # All rows fit max_length, so best-fit decreasing cuts none. TRL masks the first label of every row in a pack.
        dataset = pack_dataset(dataset, config.max_length, "bfd")
    return dataset


def _trainer(ctx: Context, config, model, tokenizer, encoded, held_out, micro: int, where, dtype):
    dataset = _dataset(encoded, config)
    per_epoch = math.ceil(len(dataset) / config.batch_size)
    total = config.max_steps or math.ceil(config.epochs * per_epoch)
    every = ctx.execution.checkpoint_every
    if every == "auto":
        every = max(1, min(500, math.ceil(total / 10)))
    args = _arguments(ctx, config, ctx.state / "checkpoints", micro, every, where, dtype)

    def validate(trained) -> float:
        return mean_loss(trained, held_out.examples, tokenizer, where, dtype)

    watch = _Watch(ctx, total, validate if held_out else None)
    # TRL rounds adapters on quantized bases to bf16; an AdamW step of 1e-5 is then lost in rounding. They stay fp32 here.
    full = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
    trainer = _Trainer(model=model, args=args, train_dataset=dataset, processing_class=tokenizer, callbacks=[watch])
    trainer.remove_callback(PrinterCallback)
    for name, parameter in model.named_parameters():
        if name in full:
            parameter.data = full[name]
    return trainer, total


def _go(ctx: Context, trainer: SFTTrainer, total: int) -> None:
    """Train from the last whole checkpoint, or from the start."""
    resumed, torn = checkpoints.latest(ctx.state / "checkpoints")
    if torn:
        ctx.log("torn_checkpoints_removed", names=torn)
    if resumed:
        ctx.log("resumed", step=checkpoints.step(resumed))
    if resumed and checkpoints.step(resumed) >= total:
        # The trainer, asked to resume at its last step, takes one more; there is nothing left to do but load.
        trainer._load_from_checkpoint(str(resumed))
        trainer.state = TrainerState.load_from_json(str(resumed / "trainer_state.json"))
        return
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    if trainer.state.global_step != total:
        raise StepFailed(f"the trainer took {trainer.state.global_step} steps instead of {total}")


def _arguments(ctx: Context, config, root: Path, micro: int, every: int, where, dtype) -> SFTConfig:
    schedule = {"constant": "constant_with_warmup"}.get(config.schedule, config.schedule)
    args = SFTConfig(
        output_dir=str(root), report_to="none", disable_tqdm=True, logging_steps=1, logging_nan_inf_filter=False,
        per_device_train_batch_size=micro, gradient_accumulation_steps=config.batch_size // micro,
        max_steps=config.max_steps or -1, num_train_epochs=config.epochs or 1.0,
        learning_rate=config.learning_rate, lr_scheduler_type=schedule, warmup_steps=config.warmup,
        weight_decay=config.weight_decay, max_grad_norm=CLIP, optim="adamw_torch",
        seed=config.seed, data_seed=config.seed, use_cpu=where.type == "cpu",
        bf16=dtype == torch.bfloat16, fp16=False, gradient_checkpointing=ctx.execution.gradient_checkpointing,
        packing=config.packing, packing_strategy="bfd", max_length=config.max_length, shuffle_dataset=False,
        dataset_kwargs={"skip_prepare_dataset": True}, dataloader_num_workers=ctx.execution.workers,
        save_strategy="steps", save_steps=every, save_total_limit=checkpoints.KEPT, push_to_hub=False,
    )  # fmt: skip
    args._n_gpu = min(args.n_gpu, 1)  # several visible GPUs would make the trainer wrap the model in DataParallel
    return args


@torch.no_grad()
def mean_loss(model, examples: list[chat.Example], tokenizer, where: torch.device, dtype: torch.dtype, batch: int = 8) -> float:
    """Mean negative log-likelihood per trained token, nats. Draws no random numbers, so measuring cannot steer the training."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    pad = tokenizer.pad_token_id or 0
    ordered = sorted(examples, key=lambda e: len(e.input_ids))
    with torch.autocast(where.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        for start in range(0, len(ordered), batch):
            part = ordered[start : start + batch]
            width = max(len(e.input_ids) for e in part)
            ids = torch.tensor([e.input_ids + [pad] * (width - len(e.input_ids)) for e in part], device=where)
            labels = torch.tensor([e.labels + [chat.IGNORED] * (width - len(e.labels)) for e in part], device=where)
            mask = torch.tensor([[1] * len(e.input_ids) + [0] * (width - len(e.input_ids)) for e in part], device=where)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
            wanted = labels[:, 1:]
            total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=chat.IGNORED, reduction="sum").item()
            count += int((wanted != chat.IGNORED).sum())
    model.train(was_training)
    return total / max(count, 1)


def _values(history: list[dict], data: Rows, encoded: chat.Encoded, steps: int) -> dict:
    losses = [entry["loss"] for entry in history if "loss" in entry]
    last = losses[-max(1, len(losses) // 10) :]
    values = {
        "first_loss": losses[0],
        "train_loss": sum(last) / len(last),  # mean of the last tenth of the steps
        "steps": steps,
        "rows": len(encoded.examples),
        "rows_left_out": len(encoded.too_long),
        "tokens": encoded.tokens,
        "trained_tokens": encoded.trained,
        "form": data.form,
    }
    measured = [entry["validation_loss"] for entry in history if "validation_loss" in entry]
    return values | ({"validation_loss": measured[-1]} if measured else {}) | encoded.notes


def _save(ctx: Context, config, model, given, tokenizer, dtype: torch.dtype) -> None:
    template = tokenizer.chat_template if config.chat_template else None
    if config.method == "full":
        lora.save_model(model.to(models.own_dtype(Path(given.path))), ctx.out, given, given, template)
        return
    lora.save(model, ctx.out, given)
    models.copy_tokenizer(given, ctx.out, template)
    quantization = "nf4" if config.method == "qlora" else None
    numerics = {"base_dtype": models.NAMES[dtype], "base_quantization": quantization, "method": config.method}
    models.write_json(ctx.out / models.TRAINING, numerics)
