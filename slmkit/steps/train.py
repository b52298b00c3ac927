"""Fine-tune a model on your data: full, LoRA, or QLoRA (4-bit base).

Reads rows of any usual format (docs/data.md) from JSON, JSONL, CSV, Parquet or Arrow, renders them with the model's own
chat template, trains on the assistant's tokens, and gives an adapter (a model with `method: full`). Broken rows stop it
before any model is loaded. A killed run goes on from its last checkpoint and ends, on a CPU, in the same bytes.

    slmkit train recipe.yaml
    slmkit train recipe.yaml sft --set steps.sft.lora.r=8
    slmkit train recipe.yaml sft --set steps.sft.execution.micro_batch=2
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from slmkit.steps import _estimate
from slmkit.steps._fields import DataRefs, Device, HeldOut, Ref, Seed
from slmkit.steps._step import Born, Context, Part, Result, StepConfig, StepExecution, Takes

VERSION = 1
TAKES = {"model": Takes("model"), "data": Takes("dataset", many=True, lone=True), "validation": Takes("dataset", optional=True)}
CHAT_TEMPLATES = ("plain", "chatml")


def GIVES(config: Config) -> str:
    return "model" if config.method == "full" else "adapter"


class Lora(Part):
    """Low-rank adapters, https://arxiv.org/abs/2106.09685."""

    r: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank, 1 to 1024. 16 is enough for one narrow task; the adapter's size grows with it."""
    alpha: Annotated[float, Field(gt=0, le=4096)] = 32
    """The update is scaled by alpha / r. Twice the rank, as most published recipes have it."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the adapter, 0 to 1. 0: small data is better served by fewer epochs."""
    target: Literal["all-linear", "attention"] | list[Annotated[str, Field(min_length=1)]] = "all-linear"
    """Which linear layers of the decoder get an adapter: all (QLoRA's finding), those of attention, or a list of module names such as `q_proj`."""

    @field_validator("target")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if value == []:
            raise ValueError("an empty list would train nothing; name at least one module, or write all-linear")
        return value


class Config(StepConfig):
    model: Ref
    """The model to start from."""
    data: DataRefs
    """Training rows: a reference, `{path: train.csv, user: COLUMN, assistant: COLUMN}`, or a list of these (a mixture, see `weight`)."""
    validation: HeldOut | None = None
    """Held-out rows: a reference, or a share of the data (0.1). Their loss is measured four times; it never stops or steers the training."""
    on_bad_row: Annotated[Literal["error", "skip"], Born("error")] = "error"
    """What a broken row does: error stops before any model is loaded, with all of them counted; skip leaves them out, counted by reason."""
    objective: Literal["sft"] = "sft"
    """What is optimised: sft is next-token cross-entropy on the answers."""
    method: Literal["full", "lora", "qlora"] = "qlora"
    """full trains every weight; lora trains adapters on the model as it is; qlora on a 4-bit copy of it (NF4, double quantization)."""
    lora: Lora | None = None
    """The adapters; for methods lora and qlora only. Left out, Lora's defaults hold."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    """Peak learning rate of AdamW, per optimizer step. 2e-4 suits adapters; full training wants about a tenth."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warmup."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps in which the learning rate rises from 0, 0 to 1."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """AdamW's decoupled weight decay, per step."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps, instead of epochs."""
    epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Passes over the data, instead of max_steps. 3 if neither is given."""
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 16
    """Rows (packs of rows, with packing) per optimizer step: the global batch. How it is cut up is `execution.micro_batch`."""
    max_length: Annotated[int, Field(ge=8, le=1048576)] = 2048
    """Tokens per row, and per pack. Longer rows are left out and counted, never cut; more than 5 % of them is an error."""
    packing: bool = True
    """Put several rows into one sequence, each seeing only itself (best-fit decreasing). The loss per row is the same, the waste is less."""
    loss_on: Literal["assistant", "all"] = "assistant"
    """Which tokens are learned: the assistant's with the end of turn (completions, for prompt/completion), or all."""
    chat_template: str | None = None
    """A template for models without one: `plain`, `chatml`, or Jinja text. It is saved beside the result. None: the model's own."""
    seed: Seed = 0
    """Seed of adapter weights, order of rows and dropout."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward pass; trained weights are always fp32. auto is bf16 where the hardware is fast at it, else fp32."""

    @field_validator("lora", mode="before")
    @classmethod
    def _lora(cls, value: Any, info: Any) -> Any:
        if info.data.get("method") == "full" and value is not None:
            raise ValueError("`lora` is read by methods lora and qlora only; remove it, or choose one of them")
        return {} if value is None and info.data.get("method") in ("lora", "qlora") else value

    @field_validator("epochs", mode="before")
    @classmethod
    def _length(cls, value: Any, info: Any) -> Any:
        steps = info.data.get("max_steps")
        if value is not None and steps is not None:
            raise ValueError("`epochs` and `max_steps` both set the length; keep one")
        return 3.0 if value is None and steps is None and "max_steps" in info.data else value

    @field_validator("chat_template")
    @classmethod
    def _template(cls, value: str | None) -> str | None:
        if value is not None and value not in CHAT_TEMPLATES and "{{" not in value and "{%" not in value:
            raise ValueError(f"write one of {', '.join(CHAT_TEMPLATES)}, or the Jinja text itself (it holds {{{{ or {{%)")
        return value


class Execution(StepExecution):
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Rows per forward pass; must divide batch_size. auto: 1 for packs on a CPU (the fastest there), else up to 8."""
    device: Device = "auto"
    """auto, cpu, mps, cuda or cuda:N."""
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Processes that prepare batches. 0: rows are tokenised before training, so there is little to prepare."""
    checkpoint_every: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Optimizer steps between checkpoints. auto: a tenth of the run, at most 500."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third slower, much less memory."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention kernel. auto is sdpa, which keeps packed rows apart on every device."""


def estimate(config: Config, execution: Execution, sizes: dict) -> dict[str, int]:
    """Tokens, memory for weights and optimizer, disk."""
    model, data = sizes["model"][0], _estimate.together(sizes["data"])
    epochs = config.epochs if config.max_steps is None else None
    return _estimate.training(config.method, config.lora.r if config.lora else None, model, data, epochs)


def run(ctx: Context, config: Config) -> Result:
    from slmkit.data import read

    data, validation = read.train_and_held_out(ctx.inputs["data"], ctx.inputs.get("validation"), config)
    from slmkit.ml import sft

    return sft.train(ctx, config, data, validation)
