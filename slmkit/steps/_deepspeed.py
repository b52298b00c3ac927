"""What a DeepSpeed config asks for, as keys of `execution`: for those who have one. DeepSpeed itself is not run here.

Its ZeRO stages say who holds what of a model, and FSDP2 does that. What changes the result (batch, clipping, precision, optimizer, schedule)
is the recipe's to say: "auto" leaves it there, another value must be the recipe's. Knobs of DeepSpeed's own speed, memory and logging say
nothing here and are listed as such. Everything else is refused at its place. What a file does not say is the recipe's, too.
"""

from __future__ import annotations

import difflib
from typing import Any

from slmkit.steps import _world
from slmkit.steps._step import Fault

AUTO = "auto"
NONE = (None, {}, [], "", AUTO)
OFF = (None, False, AUTO)
DEFAULTS = {
    "batch_size": 16, "max_grad_norm": 1.0, "precision": "auto", "learning_rate": 2e-4, "weight_decay": 0.0, "schedule": "cosine", "method": "qlora",
    "objective": "sft",
}  # fmt: skip
"""What a step says that leaves a key out (the recipe is not validated yet when its file is read)."""
SAYS_IT = "it changes what comes out, so it is the recipe's to say"

BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
READ = (*BATCH, "zero_optimization", "gradient_clipping", "bf16", "fp16", "optimizer", "scheduler")
QUIET = (
    "steps_per_print", "wall_clock_breakdown", "dump_state", "memory_breakdown", "prescale_gradients", "gradient_predivide_factor",
    "fp32_allreduce", "disable_allgather", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "aio", "checkpoint",
)  # fmt: skip
"""Logging, and how DeepSpeed communicates, loads and saves: nothing of the training, whatever the value."""
ENABLED = (
    "amp", "torch_autocast", "flops_profiler", "comms_logger", "tensorboard", "wandb", "comet", "csv_monitor", "elasticity", "autotuning",
    "curriculum_learning", "data_efficiency", "hybrid_engine", "progressive_layer_drop", "eigenvalue", "quantize_training", "nebula",
)  # fmt: skip
"""Blocks that ask for nothing while they are not `enabled`."""
ASKS: dict[str, tuple] = {
    "sparse_gradients": OFF, "sparse_attention": NONE, "compression_training": NONE, "communication_data_type": (None, AUTO, "fp32"),
    "dataloader_drop_last": OFF, "data_types": (*NONE, *({"grad_accum_dtype": w} for w in (None, AUTO, "fp32"))),
    "tensor_parallel": (*NONE, {"autotp_size": 0}, {"autotp_size": 1}),
}  # fmt: skip
"""Key → the values at which it asks for nothing."""
MENDS = {
    "activation_checkpointing": "write `gradient_checkpointing: true` in execution", "torch_autocast": "write `precision: bf16` in the step",
    "amp": "write `precision: bf16` in the step", "sparse_gradients": "gradients are whole: remove it",
} | dict.fromkeys(("tensorboard", "wandb"), "write `trackers` in execution")  # fmt: skip

ZERO_QUIET = (
    "contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "use_multi_rank_bucket_allreduce", "allgather_partitions",
    "allgather_bucket_size", "overlap_comm", "load_from_fp32_weights", "sub_group_size", "ignore_unused_parameters", "round_robin_gradients",
    "memory_efficient_linear", "override_module_apply", "pipeline_loading_checkpoint", "elastic_checkpoint", "legacy_stage1",
    "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "stage3_model_persistence_threshold", "stage3_max_live_parameters",
    "stage3_max_reuse_distance", "stage3_gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save",
    "stage3_module_granularity_threshold", "stage3_use_all_reduce_for_fetch_params", "cpu_offload_use_pin_memory",
)  # fmt: skip
ZERO_ASKS = {
    "zero_hpz_partition_size": (1, AUTO), "zero_quantized_weights": OFF, "zero_quantized_nontrainable_weights": OFF, "zero_quantized_gradients": OFF,
    "zeropp_loco_param": NONE, "mics_shard_size": (-1, AUTO), "mics_hierarchical_params_gather": OFF, "cpu_offload": OFF, "cpu_offload_param": OFF,
}  # fmt: skip
OFFLOAD = ("offload_optimizer", "offload_param")
STAYS = "weights and moments stay on their device: write none"
FP16 = ("auto_cast", "loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis", "consecutive_hysteresis", "min_loss_scale",
        "fp16_master_weights_and_grads")  # fmt: skip
BF16 = ("immediate_grad_update", "check_grad_overflow")

ADAM = {"betas": (AUTO, [0.9, 0.999]), "eps": (AUTO, 1e-8), "adam_w_mode": (True,), "torch_adam": (True, False)}
WARMUP = {"warmup_min_lr": (AUTO, 0), "warmup_num_steps": (AUTO,), "total_num_steps": (AUTO,), "warmup_type": (AUTO, "linear")}
CHOSEN: dict[str, tuple[dict, dict, dict]] = {
    "optimizer": ({"Adam": None, "AdamW": None}, {"lr": "learning_rate", "weight_decay": "weight_decay"}, ADAM),
    "scheduler": ({"WarmupLR": "constant", "WarmupDecayLR": "linear"}, {"warmup_max_lr": "learning_rate"}, WARMUP),
}
"""Block → (its types and the schedule that each is, its params that the recipe says, its other params and what is done of them)."""

ACCELERATE_QUIET = ("zero3_init_flag", "zero3_save_16bit_model", "deepspeed_multinode_launcher", "deepspeed_moe_layer_cls_names")
ACCELERATE_ASKS = {k: (*NONE, "none") for k in (
    "offload_optimizer_device", "offload_param_device", "offload_optimizer_nvme_path", "offload_param_nvme_path", "deepspeed_hostfile",
    "deepspeed_exclusion_filter", "deepspeed_inclusion_filter")}  # fmt: skip


def is_one(said: dict) -> bool:
    """Is this a DeepSpeed config, and no accelerate config?"""
    return "distributed_type" not in said and bool({*READ, "steps_per_print"} - {"fp16"} & said.keys())


class _Reading:
    """What was found on the way through a file. processes: how many will train, None where that is known on the machine only."""

    def __init__(self, step: dict, processes: int | None) -> None:
        self.step, self.processes = step, processes
        self.faults: list[Fault] = []
        self.unread: list[str] = []

    def fault(self, where: tuple, what: str, mend: str | None = None) -> None:
        self.faults.append(Fault(where, what, mend))

    def quiet(self, where: tuple) -> None:
        self.unread.append(".".join(where))

    def asks(self, where: tuple, value: Any, nothing: tuple, mend: str = "remove it") -> None:
        if any(type(value) is type(one) and value == one for one in nothing):
            self.quiet(where)
        else:
            self.fault(where, f"`{where[-1]}` asks for something that is not done here", mend)

    def block(self, where: tuple, value: Any) -> dict:
        if not isinstance(value, dict):
            self.fault(where, f"`{where[-1]}` is a mapping of keys")
        return value if isinstance(value, dict) else {}

    def recipe(self, field: str) -> Any:
        return self.step.get(field, DEFAULTS[field])

    def held(self, where: tuple, value: Any, field: str) -> None:
        """A number that must be the recipe's own."""
        if value == AUTO:
            return self.quiet(where)
        ours = self.recipe(field)
        if type(value) not in (int, float):
            self.fault(where, f'`{where[-1]}` must be a number or "auto", not {value}')
        elif type(ours) in (int, float) and value != ours:
            mend = f'write `{field}: {value:g}` in the step: {SAYS_IT}; or "auto" here'
            self.fault(where, f"`{where[-1]}: {value:g}`, and the step's {field} is {ours:g}", mend)

    def stage(self, where: tuple, value: Any) -> str:
        """The sharding that a ZeRO stage is."""
        if type(value) is not int or not 0 <= value <= 3:
            self.fault(where, f"`{where[-1]}` is 0, 1, 2 or 3, not {value}")
            return "none"
        if value == 0:
            return "none"
        if self.recipe("objective") != "sft" or self.recipe("method") not in ("full", "lora"):
            got = f"objective {self.recipe('objective')} with method {self.recipe('method')}"
            mend = "write `method: lora` or `method: full` (and `objective: sft`) in the step, or 0 here"
            self.fault(where, f"`{where[-1]}: {value}` shares the model (sharding: fsdp), which is not done for {got}", mend)
        return "fsdp"

    def precision(self, where: tuple, value: Any, quiet: tuple) -> None:
        """A `bf16` or `fp16` block."""
        block, name = self.block(where, value), where[-1]
        for key in block:
            if key in quiet:
                self.quiet((*where, key))
            elif key != "enabled":
                self.faults.append(unknown((*where, key), ("enabled", *quiet)))
        on = block.get("enabled", False)
        if on == AUTO or (name == "fp16" and on is False):
            self.quiet((*where, "enabled"))
        elif type(on) is not bool:
            self.fault((*where, "enabled"), f'`enabled` is true, false or "auto", not {on}')
        elif name == "fp16":
            self.fault((*where, "enabled"), "fp16 is not done here", "write false here, and `precision: bf16` or `fp32` in the step")
        elif (ours := self.recipe("precision")) != (wanted := "bf16" if on else "fp32"):
            mend = f'write `precision: {wanted}` in the step: {SAYS_IT}; or "auto" here'
            self.fault((*where, "enabled"), f"`bf16` is {'on' if on else 'off'}, and the step's precision is {ours}", mend)

    def chosen(self, where: tuple, value: Any) -> None:
        """An `optimizer` or `scheduler` block."""
        (types, ours, done), block, name = CHOSEN[where[-1]], self.block(where, value), where[-1]
        kind = block.get("type")
        if not isinstance(kind, str) or kind not in types:
            mend = f"write {' or '.join(types)}, or remove `{name}`: the recipe says it"
            self.fault((*where, "type"), f"the {name} `{kind}` is not done here", mend)
        elif types[kind] not in (None, self.recipe("schedule")):
            mend = f"write `schedule: {types[kind]}` in the step: {SAYS_IT}; or remove `scheduler` here"
            self.fault((*where, "type"), f"`{kind}` is schedule {types[kind]}, and the step's schedule is {self.recipe('schedule')}", mend)
        params = self.block((*where, "params"), block.get("params", {}))
        for key, value in params.items():
            place = (*where, "params", key)
            if key in ours:
                self.held(place, value, ours[key])
            elif key in done:
                self.asks(place, value, done[key], f'write "auto", or remove `{name}`: the recipe says it')
            else:
                self.faults.append(unknown(place, (*ours, *done)))
        self.faults += [unknown((*where, key), ("type", "params")) for key in block if key not in ("type", "params")]

    def batch(self, said: dict, at: tuple = ()) -> dict:
        """How a global batch is cut up, which must be the recipe's."""
        found = {}
        for key in BATCH:
            value = said.get(key, AUTO)
            if value == AUTO:
                self.unread += [".".join((*at, key))] if key in said else []
            elif type(value) is not int or value < 1:
                self.fault((*at, key), f'`{key}` is a number of 1 at least, or "auto", not {value}')
            else:
                found[key] = value
        whole, (total, micro, times) = self.recipe("batch_size"), (found.get(key) for key in BATCH)
        if self.recipe("objective") == "grpo" and found:
            self.fault((*at, next(iter(found))), "objective grpo counts prompts, and DeepSpeed answers", 'write "auto": `batch_size` says it')
            return {}
        if total:
            self.held((*at, BATCH[0]), total, "batch_size")
        if not (micro or times) or type(whole) is not int or whole < 1:
            return {}
        if self.processes is None:
            if times:
                mend = 'write how many there are, or "auto" here'
                self.fault((*at, BATCH[2]), f"`{BATCH[2]}: {times}` cannot be held against `processes: auto`", mend)
            return {"micro_batch": micro} if micro and not times else {}
        each = (micro or 1) * (times or 1) * self.processes
        if whole != each if micro and times else whole % each:
            factors = [f"`{key}: {found[key]}`" for key in BATCH[1:] if key in found]
            count = f"{self.processes} process{'es' if self.processes > 1 else ''}"
            what = f"{' × '.join(factors)} × {count} is {each}, and the step's batch_size is {whole}"
            self.fault((*at, BATCH[1] if micro else BATCH[2]), what, 'write "auto", or what makes up batch_size: it is the recipe\'s to say')
            return {}
        return {"micro_batch": micro or whole // each}


def read(said: dict, file: str, step: dict, execution: dict) -> tuple[dict, list[Fault], list[str]]:
    """A DeepSpeed JSON → (keys of `execution`, faults, what says nothing)."""
    processes = _processes(execution)
    to = _Reading(step, processes)
    keys = {"sharding": _zero(to, said.get("zero_optimization", {}))} | to.batch(said)
    for key, value in said.items():
        if key == "gradient_clipping":
            to.held((key,), value, "max_grad_norm")
        elif key in ("bf16", "fp16"):
            to.precision((key,), value, FP16 if key == "fp16" else BF16)
        elif key in CHOSEN:
            to.chosen((key,), value)
        elif key in QUIET:
            to.quiet((key,))
        elif key in ENABLED:
            off = value is None or (isinstance(value, dict) and value.get("enabled", False) in OFF)
            to.asks((key,), None if off else value, OFF, MENDS.get(key, "remove it"))
        elif key == "activation_checkpointing":
            off = value is None or (isinstance(value, dict) and not any(value.values()))
            to.asks((key,), None if off else value, OFF, MENDS[key])
        elif key in ASKS:
            to.asks((key,), value, ASKS[key], MENDS.get(key, "remove it"))
        elif key not in READ:
            to.faults.append(unknown((key,), (*READ, *QUIET, *ENABLED, *ASKS, "activation_checkpointing")))
    if processes == 1 and keys["sharding"] == "fsdp":
        what = f"{file} shares the model among processes, and one process shares nothing"
        mend = "write `processes: 2` or more (auto: one per GPU), or start it by torchrun"
        to.faults.append(Fault(("execution", "processes"), what, mend, here=True))
    return keys, to.faults, to.unread


def block(said: Any, step: dict, processes: int) -> tuple[dict, list[Fault], list[str]]:
    """The `deepspeed_config` of an accelerate config → (keys of `execution`, faults, what says nothing)."""
    to, at = _Reading(step, processes), ("deepspeed_config",)
    if not isinstance(said, dict) or not said.keys() & {"zero_stage", "deepspeed_config_file"}:
        return {}, [Fault(at, "`distributed_type: DEEPSPEED` needs `deepspeed_config: {zero_stage: …}`", "`accelerate config` writes it")], []
    if file := said.get("deepspeed_config_file"):
        mend = f"name that file itself: `accelerate: {file}`, with `processes: {processes}` beside it"
        return {}, [Fault((*at, "deepspeed_config_file"), f"{file} is not read by way of this file", mend)], []
    keys = {"sharding": to.stage((*at, "zero_stage"), said.get("zero_stage"))} | to.batch({k: v for k, v in said.items() if k == BATCH[2]}, at)
    for key, value in said.items():
        if key == "gradient_clipping":
            to.held((*at, key), value, "max_grad_norm")
        elif key in ACCELERATE_QUIET:
            to.quiet((*at, key))
        elif key in ACCELERATE_ASKS:
            to.asks((*at, key), value, ACCELERATE_ASKS[key], STAYS if key.startswith("offload") else "remove it")
        elif key not in ("zero_stage", "deepspeed_config_file", BATCH[2]):
            to.faults.append(unknown((*at, key), ("zero_stage", "gradient_clipping", BATCH[2], *ACCELERATE_QUIET, *ACCELERATE_ASKS)))
    if processes == 1 and keys["sharding"] == "fsdp":
        to.fault(("num_processes",), "one process shares nothing", "write 2 or more, or `distributed_type: NO`")
    return keys, to.faults, to.unread


def _zero(to: _Reading, said: Any) -> str:
    """zero_optimization, key by key → the sharding."""
    at = ("zero_optimization",)
    said = to.block(at, said)
    for key, value in said.items():
        where = (*at, key)
        if key in ZERO_QUIET:
            to.quiet(where)
        elif key in OFFLOAD:
            device = None if value is None else to.block(where, value).get("device", "none")
            to.asks(where, device, (*NONE, "none"), STAYS)
        elif key in ZERO_ASKS:
            to.asks(where, value, ZERO_ASKS[key], STAYS if key.startswith("cpu_offload") else "remove it")
        elif key != "stage":
            to.faults.append(unknown(where, ("stage", *ZERO_QUIET, *OFFLOAD, *ZERO_ASKS)))
    return to.stage((*at, "stage"), said.get("stage", 0))


def _processes(execution: dict) -> int | None:
    """How many processes will train: what the recipe says beside the file, or those started together with this one."""
    said = execution.get("processes")
    if said is None:
        me = _world.member()
        return me.size if me else 1
    return said if type(said) is int and said >= 1 else None


def unknown(where: tuple, known: tuple) -> Fault:
    near = difflib.get_close_matches(where[-1], known, 1) if isinstance(where[-1], str) else []
    return Fault(where, f"unknown key `{where[-1]}`", f"did you mean `{near[0]}`?" if near else "remove it: nothing reads it")
