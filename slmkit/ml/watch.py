"""What goes on while a trainer runs: progress, log lines, validation, the best weights, seals on checkpoints, and the reasons to stop."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from slmkit.errors import StepFailed
from slmkit.ml import checkpoints, models, shards
from slmkit.steps._step import Context

STOPPED = "slmkit-stopped.json"  # in a checkpoint behind which there is no step: why not
VALIDATIONS = 4  # times in a run, where nothing else is asked
KEPT = ("learning_rate", "grad_norm", "entropy", "kl", "reward", "reward_std", "reward_content", "reward_format")  # of what trainers log


class Watch(TrainerCallback):
    """One run. measure: model → a number that is better when lower, or None.

    Only the first process speaks and writes; all of them measure, so that none waits for another.
    """

    def __init__(self, ctx: Context, config: Any, total: int, measure: Callable | None, where: torch.device, first: bool, content: Callable):
        self.ctx, self.config, self.total, self.measure, self.where, self.first, self.content = ctx, config, total, measure, where, first, content
        every = config.validate_every or math.ceil(total / VALIDATIONS)
        self.marks = set(range(every, total, every)) | {total} if measure else set()
        self.since = (time.perf_counter(), 0.0)
        self.stopped: str | None = None

    def on_step_end(self, args, state, control, model=None, **_):
        if state.global_step not in self.marks:
            return
        value = _agreed(self.measure(model))
        state.log_history.append({"validation_loss": value, "step": state.global_step})
        if self.first:
            self.ctx.log("validation", step=state.global_step, loss=value)
        if self.config.keep == "best":
            weights = shards.whole(model) if self.first or shards.is_sharded(model) else {}  # of a shared model all must ask
            if self.first:
                self._best(weights, value, state.global_step)
        if self.config.early_stopping and self._tired(state.log_history):
            self.stopped = f"validation loss has not improved for {self.config.early_stopping.patience} measurements"
            control.should_training_stop = True

    def _tired(self, history: list[dict]) -> bool:
        """Has the loss failed to improve by min_delta for `patience` measurements in a row?"""
        best, since = math.inf, 0
        for value in (h["validation_loss"] for h in history if "validation_loss" in h):
            better = value < best - self.config.early_stopping.min_delta
            best, since = (value, 0) if better else (best, since + 1)
        return since >= self.config.early_stopping.patience

    def _best(self, weights: dict[str, torch.Tensor], value: float, step: int) -> None:
        folder = self.ctx.state / "best"
        known = read_best(self.ctx.state)
        if known and not value < known["loss"]:
            return
        folder.mkdir(exist_ok=True)
        name = f"step-{step}.safetensors"
        save_file(weights, folder / name)
        models.write_json(folder / "best.json.partial", {"loss": value, "step": step, "file": name})
        os.replace(folder / "best.json.partial", folder / "best.json")
        for old in folder.glob("step-*.safetensors"):
            if old.name != name:
                old.unlink()

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" not in (logs or {}) or not self.first:
            return
        loss, now, tokens = logs["loss"], time.perf_counter(), self.content()
        if not math.isfinite(loss):
            raise StepFailed(f"the loss became {loss} at step {state.global_step}", mend="lower `learning_rate`, or write `precision: fp32`")
        rate = (tokens - self.since[1]) / max(now - self.since[0], 1e-9)
        self.since = (now, tokens)
        said = {k.replace("/", "_"): v for k, v in logs.items() if k in KEPT or k.startswith(("rewards", "completions"))}
        self.ctx.log("step", step=state.global_step, loss=loss, tokens_per_second=round(rate, 1), **said)
        numbers = {"loss": loss, "tokens_per_second": rate, "memory_gb": models.memory_now(self.where) / 1e9}
        if "reward" in said:
            numbers["reward"] = said["reward"]
        self.ctx.progress(state.global_step, self.total, "training", **numbers)

    def on_save(self, args, state, control, **_):
        if dist.is_initialized():
            dist.barrier()  # every process has written its random state
        if not self.first:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.stopped:
            models.write_json(folder / STOPPED, self.stopped)
        checkpoints.seal(folder)
        self.ctx.log("checkpoint", step=state.global_step)


def _agreed(value: float) -> float:
    """The first process's number: all decide by it when to stop, and none may come to another answer."""
    said = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(said)
    return said[0]


def stopped_at(checkpoint: Path) -> str | None:
    """Why the training ended at this checkpoint, if it did before its last step: it must not go on from there."""
    file = checkpoint / STOPPED
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def read_best(state: Path) -> dict | None:
    """{loss, step, file} of the best weights kept so far."""
    file = state / "best" / "best.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def load_best(model: torch.nn.Module, state: Path) -> dict:
    """Put the best weights into the model; returns what is known of them."""
    best = read_best(state)
    shards.put(model, load_file(state / "best" / best["file"]))
    return best
