"""Fine-tune a model on your data: full, LoRA, or QLoRA (4-bit base).

Reads rows of any usual format (docs/data.md) from JSON, JSONL, CSV, Parquet or Arrow, renders them with the model's own
chat template, trains on the assistant's tokens, and gives an adapter (a model with `method: full`). Broken rows stop it
before any model is loaded. A killed run goes on from its last checkpoint and ends, on a CPU, in the same bytes.

    slmkit train recipe.yaml
    slmkit train recipe.yaml sft --set steps.sft.lora.r=8
    slmkit train recipe.yaml sft --set steps.sft.execution.micro_batch=2
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic.json_schema import SkipJsonSchema

from slmkit.steps import _accelerate, _estimate, _forecast, _tasks
from slmkit.steps._fields import DataRefs, Device, HeldOut, Ref, Seed
from slmkit.steps._objectives import NOT_READ, Dpo, Gkd, Grpo, Kto
from slmkit.steps._step import Born, Context, Part, Result, Stands, StepConfig, StepExecution, Takes, Wrong
from slmkit.steps._teacher import Teacher, TeacherRef

VERSION = 3
TAKES = {
    "model": Takes("model"), "data": Takes("dataset", many=True, lone=True), "validation": Takes("dataset", optional=True),
    "reward_code": Takes("code", optional=True), "teacher": Takes("model", "adapter", optional=True),
}  # fmt: skip
TAKES["tasks"] = Takes("task", many=True, optional=True, witness=True, files=_tasks.task_files)  # is a question of theirs in the data?
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
    """Which linear layers of the decoder get an adapter: all (QLoRA's finding), those of attention, or a list of names such as `q_proj`
    and patterns such as `layers.*.mlp.*`."""
    variant: Literal["lora", "rslora", "dora", "pissa", "olora", "eva", "loftq"] = "lora"
    """How adapters are scaled or begin: rslora scales by alpha / sqrt(r); dora learns magnitudes apart; pissa and olora begin from the
    weights, eva from the data, loftq (for method qlora) from what the 4 bits lost."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=1024)]] = {}
    """Other ranks for some layers: `{layers.0.*: 32, "*.mlp.*": 8}`; a module name or a pattern."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0, le=4096)]] = {}
    """Other alphas for some layers, named as in rank_pattern."""
    modules_to_save: list[Annotated[str, Field(min_length=1)]] = []
    """Modules outside the adapters that are trained whole and saved with them: `embed_tokens`, `lm_head`."""

    @field_validator("target")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if value == []:
            raise ValueError("an empty list would train nothing; name at least one module, or write all-linear")
        return value


class EarlyStopping(Part):
    """Stop when the validation loss no longer falls. The best checkpoint is kept."""

    patience: Annotated[int, Field(ge=1, le=1000)] = 3
    """Measurements in a row without improvement after which training ends."""
    min_delta: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Nats by which the loss must fall to count as improvement."""


class Config(StepConfig):
    model: Ref
    """The model to start from."""
    data: DataRefs
    """Training rows: a reference, `{path: train.csv, user: COLUMN, assistant: COLUMN}`, or a list of these (a mixture, see `weight`)."""
    validation: HeldOut | None = None
    """Held-out rows: a reference, or a share of the data (0.1). Their loss is measured as the training goes; it steers nothing unless
    `early_stopping` or `keep: best` is given."""
    on_bad_row: Annotated[Literal["error", "skip"], Born("error")] = "error"
    """What a broken row does: error stops before any model is loaded, with all of them counted; skip leaves them out, counted by reason."""
    validate_every: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps between measurements of the validation loss. None: four in a run."""
    early_stopping: EarlyStopping | None = None
    """`{patience: 3, min_delta: 0.0}` ends the training when the validation loss no longer falls."""
    keep: Literal["last", "best"] | None = None
    """Which weights come out: the last, or those of the lowest validation loss. best if early_stopping is given, else last."""
    objective: Literal["sft", "dpo", "kto", "grpo", "gkd"] = "sft"
    """What is optimised: sft is next-token cross-entropy on the answers; dpo learns from pairs of a chosen and a rejected answer, kto from
    answers marked good or bad, grpo from rewards for answers that the model samples itself, gkd from a teacher's distributions."""
    method: Literal["full", "lora", "qlora"] = "qlora"
    """full trains every weight; lora trains adapters on the model as it is; qlora on a 4-bit copy of it (NF4, double quantization)."""
    lora: Lora | None = None
    """The adapters; for methods lora and qlora only. Left out, Lora's defaults hold."""
    dpo: Annotated[Dpo | None, Born(None)] = None
    """Settings of objective dpo."""
    kto: Annotated[Kto | None, Born(None)] = None
    """Settings of objective kto."""
    grpo: Annotated[Grpo | None, Born(None)] = None
    """Settings of objective grpo; its `rewards` must be given."""
    gkd: Annotated[Gkd | None, Born(None)] = None
    """Settings of objective gkd."""
    teacher: Annotated[TeacherRef | None, Born(None)] = None
    """Whose distributions gkd learns: a model or adapter that is run here, such as `demo:teacher`, or an endpoint that reports the prompt's
    logprobs, `{model: …, base_url: http://localhost:8000/v1}`: `slmkit serve`, vLLM."""
    reward_code: Ref | None = None
    """A Python file with the functions that grpo's `python` rewards name."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    """Peak learning rate of AdamW, per optimizer step. 2e-4 suits adapters; full training wants about a tenth."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warmup."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps in which the learning rate rises from 0, 0 to 1."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """AdamW's decoupled weight decay, per step."""
    max_grad_norm: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Gradients are scaled down to this norm, the usual guard against a single bad batch."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps, instead of epochs."""
    epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Passes over the data, instead of max_steps. 3 if neither is given."""
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 16
    """Rows per optimizer step: the global batch; for grpo, prompts. How it is cut up is `execution.micro_batch` and `execution.packing`."""
    max_length: Annotated[int, Field(ge=8, le=1048576)] = 2048
    """Tokens per row; for grpo, of the prompt. What becomes of longer rows is `too_long`; more than 5 % of them is an error."""
    too_long: Literal["drop", "cut_end", "cut_start"] = "drop"
    """Rows longer than max_length are left out and counted, or lose their end (the answer, then) or their start."""
    loss_on: Literal["assistant", "all"] = "assistant"
    """Which tokens are learned: the assistant's with the end of turn (completions, for prompt/completion), or all."""
    thinking: Literal["keep", "strip"] = "keep"
    """What an assistant thought before it answered: learned where the template renders it, or taken out of the rows."""
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
        if info.data.get("method") == "qlora" and isinstance(value, dict) and value.get("variant") in ("pissa", "olora"):
            what = f"`variant: {value['variant']}` takes part of the base into the adapter, which a 4-bit base cannot give exactly"
            raise ValueError(f"{what}; write `method: lora`")
        if info.data.get("method") == "lora" and isinstance(value, dict) and value.get("variant") == "loftq":
            raise ValueError("`variant: loftq` makes good what a 4-bit base lost, and this base is not quantized; write `method: qlora`")
        return {} if value is None and info.data.get("method") in ("lora", "qlora") else value

    @field_validator("dpo", "kto", "grpo", "gkd", mode="before")
    @classmethod
    def _block(cls, value: Any, info: Any) -> Any:
        objective = info.data.get("objective")
        if objective not in (None, info.field_name) and value is not None:
            raise ValueError(f"`{info.field_name}` is not read by objective {objective}; remove it, or write `objective: {info.field_name}`")
        if objective == info.field_name == "grpo" and value is None:
            raise ValueError("objective grpo needs `grpo: {rewards: […]}`, such as `[{exact_match: {}}]`")
        return {} if value is None and objective == info.field_name else value

    @field_validator("lora")
    @classmethod
    def _lora_beyond_sft(cls, value: Lora | None, info: Any) -> Lora | None:
        objective = info.data.get("objective")
        if value and objective == "grpo" and value.dropout:
            raise ValueError("`dropout` is not read by objective grpo: answers are sampled from the model that is trained; remove it")
        if value and objective == "grpo" and value.variant == "eva":
            raise ValueError("`variant: eva` begins from the rows that are trained, and grpo's are yet to be sampled; choose another")
        if value and objective not in ("sft", "gkd") and any(n.rpartition(".")[2] == "lm_head" for n in value.modules_to_save):
            raise ValueError(f"objective {objective} computes probabilities from lm_head's own weights; remove it from `modules_to_save`")
        return value

    @field_validator("teacher")
    @classmethod
    def _taught(cls, value: Any, info: Any) -> Any:
        objective, gkd = info.data.get("objective"), info.data.get("gkd")
        if value is not None and objective not in (None, "gkd"):
            raise ValueError(f"`teacher` is not read by objective {objective}; remove it, or write `objective: gkd`")
        if value is None and objective == "gkd":
            raise ValueError("objective gkd needs `teacher`: a model that is run here, such as `demo:teacher`, or an endpoint with logprobs")
        if gkd and gkd.top_k != Gkd().top_k and not isinstance(value, Teacher):
            raise ValueError("`gkd.top_k` is read for a teacher behind an endpoint only: one that is run here gives whole distributions; remove it")
        return value

    @field_validator("grpo")
    @classmethod
    def _judged(cls, value: Grpo | None, info: Any) -> Grpo | None:
        if value and info.data.get("validation") is not None and all(r.judge for r in value.rewards):
            what = "`validation` needs a reward besides `judge`, which compares answers with one another; add one, or remove it"
            raise Wrong(what, key="validation")
        return value

    @field_validator("reward_code")
    @classmethod
    def _code(cls, value: Any, info: Any) -> Any:
        grpo = info.data.get("grpo")
        wanted = grpo is not None and any(r.python for r in grpo.rewards)
        if value is not None and not wanted and "grpo" in info.data:
            raise ValueError("`reward_code` is read by `python` rewards of objective grpo only; add one, or remove it")
        if value is None and wanted:
            raise ValueError("a `python` reward needs `reward_code`: the file with its function")
        return value

    @field_validator("loss_on", "too_long")
    @classmethod
    def _read(cls, value: Any, info: Any) -> Any:
        objective = info.data.get("objective")
        if info.field_name in NOT_READ.get(objective, ()) and value != cls.model_fields[info.field_name].default:
            raise ValueError(f"`{info.field_name}` is not read by objective {objective}; remove it")
        return value

    @field_validator("epochs", mode="before")
    @classmethod
    def _length(cls, value: Any, info: Any) -> Any:
        steps = info.data.get("max_steps")
        if value is not None and steps is not None:
            raise ValueError("`epochs` and `max_steps` both set the length; keep one")
        return 3.0 if value is None and steps is None and "max_steps" in info.data else value

    @field_validator("early_stopping", "validate_every")
    @classmethod
    def _measured(cls, value: Any, info: Any) -> Any:
        if value is not None and info.data.get("validation") is None and "validation" in info.data:
            raise ValueError(f"`{info.field_name}` needs `validation`: held-out rows to measure")
        return value

    @field_validator("keep", mode="before")
    @classmethod
    def _keep(cls, value: Any, info: Any) -> Any:
        if value == "best" and info.data.get("validation") is None:
            raise ValueError("`keep: best` needs `validation`: the best is the one with the lowest loss on it")
        if value is None:
            return "best" if info.data.get("early_stopping") else "last"
        return value

    @field_validator("chat_template")
    @classmethod
    def _template(cls, value: str | None) -> str | None:
        if value is not None and value not in CHAT_TEMPLATES and "{{" not in value and "{%" not in value:
            raise ValueError(f"write one of {', '.join(CHAT_TEMPLATES)}, or the Jinja text itself (it holds {{{{ or {{%)")
        return value


class Execution(StepExecution):
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Rows per forward pass; must divide batch_size. auto: the most that fit into memory, up to 8; on a CPU fewer where that is faster."""
    packing: Literal["auto", "on", "off"] = "auto"
    """Lay the rows of a micro batch end to end, each seeing only itself, instead of padding them. The step is the same.
    auto: on a GPU, and on a CPU where the lengths of the rows make it faster."""
    device: Device = "auto"
    """auto, cpu, mps, cuda or cuda:N."""
    processes: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = 1
    """Processes that share every global batch. auto: one per GPU of this machine. Started by torchrun or srun: leave it out."""
    sharding: Literal["none", "fsdp"] = "none"
    """none: every process holds the whole model (DDP). fsdp: each holds a part of it (FSDP2), for models larger than one card; for
    objective sft with methods full and lora."""
    accelerate: Annotated[SkipJsonSchema[_accelerate.Accelerated] | Annotated[str, Field(min_length=1)] | None, Stands(_accelerate.read)] = None
    """An accelerate config, the file that `accelerate config` writes: it sets `processes` and `sharding`. Or a DeepSpeed config: it sets `sharding`,
    and `processes` stands beside it. Each key of either is done here, or says nothing of a training here, or is refused (docs/devices.md)."""
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Processes that prepare batches. 0: rows are tokenised before training, so there is little to prepare."""
    checkpoint_every: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Optimizer steps between checkpoints. auto: a tenth of the run, at most 500."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third slower, much less memory."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flex_attention"] = "auto"
    """Attention kernel. auto is sdpa, which keeps packed rows apart on every device."""
    trackers: list[Literal["tensorboard", "trackio", "wandb", "mlflow"]] = []
    """Where the course of the training is reported to as well; each needs its package (`pip install 'slmkit[tensorboard]'`)."""
    allow: list[Literal["leaks", "untrained", "truncation", "empty", "duplicates", "personal", "languages"]] = []
    """Findings in the data that neither stop the training (the first four) nor are warned of. `slmkit data` shows what was found."""


def blocked(config: Config, execution: Execution) -> str | None:
    """A key that is not set, a tracker that is not installed, a training of several machines started on one, are known before anything runs."""
    import importlib.util

    if absent := [t for t in execution.trackers if importlib.util.find_spec(t) is None]:
        return f"the tracker {absent[0]} is not installed: pip install 'slmkit[{absent[0]}]'"
    if execution.attention == "flash_attention_2" and not any(map(importlib.util.find_spec, ("flash_attn", "kernels"))):
        return "flash_attention_2 is not installed: pip install flash-attn (or kernels), or leave `attention` out"
    if isinstance(execution.accelerate, _accelerate.Accelerated) and (why := _accelerate.apart(execution.accelerate)):
        return why
    asked = [r.judge.teacher for r in (config.grpo.rewards if config.grpo else ()) if r.judge]
    for teacher in [*asked, *([config.teacher] if isinstance(config.teacher, Teacher) else [])]:
        if teacher.api_key_env and not os.environ.get(teacher.api_key_env):
            return f"the environment variable {teacher.api_key_env} is not set (the key of {teacher.model})"
    return None


def estimate(config: Config, execution: Execution, sizes: dict) -> dict[str, int | str]:
    """Steps, tokens, memory at the peak, disk, time, what judges will be asked; what cannot be known is left out."""
    teacher = sum(size.bytes or 0 for size in sizes.get("teacher") or ())
    about = _lengths(config, sizes)
    said = _forecast.training(config, execution, sizes["model"][0], about, teacher)
    steps = said.get("steps") or config.max_steps
    if steps is None or config.grpo is None or not any(r.judge for r in config.grpo.rewards):
        return said
    from slmkit.teach import verdicts

    return said | verdicts.asked(config.grpo, steps * config.batch_size, about.mean if about else config.max_length)


def _lengths(config: Config, sizes: dict) -> _estimate.Lengths | None:
    """Of the rows that will be trained, by the first of each source; None while one is not there."""
    from slmkit.data import glance

    seen = []
    for one in sizes["data"]:
        found = glance.at(one.path, one.files, one.columns) if one.path else None
        if found is None:
            return None
        seen.append((found.rows * (one.columns.weight if one.columns else 1.0), found.texts, found.answers, found.turns))
    about = _estimate.lengths(seen, sizes["model"][0], glance.MARKUP)
    held_out = config.validation if isinstance(config.validation, float) else 0.0
    return replace(about, rows=max(1, round(about.rows * (1 - held_out))))


def run(ctx: Context, config: Config) -> Result:
    from slmkit.data import read, xray

    data, validation = read.train_and_held_out(ctx.inputs["data"], ctx.inputs.get("validation"), config)
    if "SLMKIT_LAUNCH" not in os.environ:  # one of several processes: the one that started them has looked
        xray.check_rows(ctx, data, validation)
    from slmkit.ml import training

    return training.train(ctx, config, data, validation)


def examine(inputs: dict, config: Config, execution: Execution) -> dict:
    """What `slmkit data` shows of this step: its data, measured and rendered as for training. Loads a tokenizer and no weights."""
    from dataclasses import asdict

    from slmkit.data import read, xray

    data, validation = read.train_and_held_out(inputs["data"], inputs.get("validation"), config)
    facts = xray.measure(data, validation, inputs.get("tasks") or ())
    from slmkit.ml import look

    facts = look.examine(facts, inputs["model"], config, data, validation)
    return facts | {"findings": [asdict(f) for f in xray.findings(facts, tuple(execution.allow))]}
