"""A DeepSpeed config (JSON), read as keys of `execution`: for those who have one.

DeepSpeed is not run. What its file asks for is done by slmkit's launcher and FSDP2, and what changes the result of a training is the recipe's to
say: such keys are held against it. Every other key says nothing here at the value that it has (and is listed as such), or is refused with its
place and the mend.
"""

from __future__ import annotations

import difflib
import os
from typing import Any

from slmkit.steps import _accelerate, _world
from slmkit.steps._accelerate import Accelerated, Fault

OWN = {"zero_optimization", "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"}
"""Keys by any of which a file is told from an accelerate config."""
AUTO = "auto"  # taken from the command in DeepSpeed's integrations, so from the recipe here
SIZES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
HELD = (*SIZES, "gradient_clipping", "bf16", "fp16", "optimizer", "scheduler")
SPOKEN = ("steps_per_print", "wall_clock_breakdown", "dump_state", "memory_breakdown")  # what it prints
BLOCKS = (
    "tensorboard", "wandb", "csv_monitor", "comet", "comms_logger", "flops_profiler", "autotuning", "amp", "elasticity", "compression_training",
    "data_efficiency", "curriculum_learning", "eigenvalue", "progressive_layer_drop", "activation_checkpointing", "aio", "checkpoint",
)  # fmt: skip
"""Blocks that ask for nothing while everything in them is off."""
FIXED: dict[str, tuple] = {
    "prescale_gradients": (False,), "gradient_predivide_factor": (1, 1.0), "sparse_gradients": (False,),
    "zero_allow_untested_optimizer": (False, True), "zero_force_ds_cpu_optimizer": (False,), "disable_allgather": (False,),
    "communication_data_type": (None,), "fp32_allreduce": (False,),
}  # fmt: skip
"""Key → the values at which it changes nothing."""
TUNING = (
    "allgather_partitions", "allgather_bucket_size", "reduce_scatter", "reduce_bucket_size", "overlap_comm", "contiguous_gradients",
    "round_robin_gradients", "sub_group_size", "ignore_unused_parameters", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold",
    "stage3_model_persistence_threshold", "stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_gather_16bit_weights_on_model_save",
    "stage3_gather_fp16_weights_on_model_save", "use_multi_rank_bucket_allreduce", "load_from_fp32_weights", "elastic_checkpoint",
    "memory_efficient_linear",
)  # fmt: skip
"""Of zero_optimization: how fast, and in which pieces."""
OPTIMIZERS, SCHEDULES = ("Adam", "AdamW"), ("WarmupLR", "WarmupDecayLR", "WarmupCosineLR")


def read(said: Any, file: str, sha256: str, step: dict, execution: dict) -> tuple[dict, list[Fault]]:
    """What a file says, of DeepSpeed's or of accelerate's → (keys of `execution`, faults). step, execution: the recipe's, not validated yet."""
    if not isinstance(said, dict) or "distributed_type" in said or not OWN & said.keys():
        return _accelerate.read(said, file, sha256, step, execution)
    faults, unread = _others(said)
    keys: dict[str, Any] = {"sharding": _sharding(said.get("zero_optimization"), execution, faults, unread)}
    keys |= _batches(said, step, execution, faults, unread)
    _held(said, step, faults, unread)
    if "sharding" in execution:
        faults.append(Fault(("execution", "sharding"), f"`sharding` is set by {file}, too", f"remove it, or remove `accelerate: {file}`", here=True))
    told = Accelerated(file=file, sha256=sha256, machines=1, processes=0, meet="", unread=sorted(unread))
    return keys | {"accelerate": told}, faults


def _others(said: dict) -> tuple[list[Fault], list[str]]:
    """Faults of the keys that can only say nothing, and those that do."""
    faults, unread = [], []
    for key, value in said.items():
        if key in (*HELD, "zero_optimization"):
            continue
        if key in SPOKEN or value in FIXED.get(key, ()) or (key in BLOCKS and _off(value)):
            unread.append(key)
        elif key in FIXED or key in BLOCKS:
            faults.append(Fault((key,), f"`{key}` asks for something that is not done here", "remove it"))
        else:
            faults.append(_unknown((key,), key, (*HELD, "zero_optimization", *SPOKEN, *FIXED, *BLOCKS)))
    return faults, unread


def _unknown(where: tuple, key: str, known: tuple[str, ...]) -> Fault:
    near = difflib.get_close_matches(key, known, 1)
    return Fault(where, f"unknown key `{key}`", f"did you mean `{near[0]}`?" if near else "remove it: nothing reads it")


def _off(value: Any) -> bool:
    """Does a block ask for nothing?"""
    return not value or (isinstance(value, dict) and (value.get("enabled") is False or not any(value.values())))


def _sharding(zero: Any, execution: dict, faults: list[Fault], unread: list[str]) -> str:
    """zero_optimization: its stage is done by FSDP2, which shares weights, gradients and moments, as stage 3 does."""
    if zero is None:
        return "none"
    where = ("zero_optimization",)
    if not isinstance(zero, dict) or zero.get("stage", 0) not in (0, 1, 2, 3) or isinstance(zero.get("stage"), bool):
        faults.append(Fault(where, "`zero_optimization` says no `stage` from 0 to 3", "write `{stage: 3}`"))
        return "none"
    for key, value in zero.items():
        stays = value is None or (isinstance(value, dict) and value.get("device") == "none")
        if key in TUNING or (key in ("offload_optimizer", "offload_param") and stays):
            unread.append(f"zero_optimization.{key}")
        elif key in ("offload_optimizer", "offload_param", "cpu_offload"):
            if value:
                faults.append(Fault((*where, key), f"`{key}`: weights and moments stay on their device", "remove it, or write `{device: none}`"))
        elif key != "stage":
            faults.append(_unknown((*where, key), key, ("stage", "offload_optimizer", "offload_param", *TUNING)))
    if zero.get("stage", 0) == 0:
        return "none"
    if execution.get("processes", 1) == 1 and "SLMKIT_LAUNCH" not in os.environ and not _world.member():
        what = "ZeRO shares a model among processes, and a DeepSpeed config does not say how many"
        faults.append(Fault((*where, "stage"), what, "write `processes: 2`, or auto, beside `accelerate:` in the recipe"))
    return "fsdp"


def _batches(said: dict, step: dict, execution: dict, faults: list[Fault], unread: list[str]) -> dict[str, int]:
    """The three sizes of a batch: a number must be what the recipe says, or what follows from it."""
    whole, micro, passes = (said.get(k, AUTO) for k in SIZES)
    unread += [k for k in SIZES if said.get(k) == AUTO]
    odd = [k for k, v in zip(SIZES, (whole, micro, passes), strict=True) if v != AUTO and (type(v) is not int or v < 1)]
    if odd:
        faults += [Fault((k,), f"`{k}` is a number of rows, or auto, not {said[k]}") for k in odd]
        return {}
    rows, count = step.get("batch_size"), execution.get("processes", 1)
    if whole != AUTO and whole != rows:
        what = f"`train_batch_size: {whole}`, and the step's batch_size is {'left out' if rows is None else rows}"
        faults.append(Fault(("train_batch_size",), what, f"write `batch_size: {whole}` in the step (it changes what comes out), or auto here"))
    if passes != AUTO:
        if type(rows) is not int or type(count) is not int or rows % (passes * count):
            what = f"`gradient_accumulation_steps: {passes}` does not follow from the recipe: batch_size / (micro batch × processes)"
            faults.append(Fault((SIZES[2],), what, "give `batch_size` and `processes` in the recipe that divide so, or write auto here"))
            return {}
        follows = rows // (passes * count)
        if micro not in (AUTO, follows):
            what = f"{passes} passes of {micro} rows on {count} processes are no batch of {rows}"
            faults.append(Fault((SIZES[1],), what, "write auto for one of the two"))
        micro = follows
    if micro == AUTO:
        return {}
    if execution.get("micro_batch", micro) not in (micro, AUTO):
        what = f"`micro_batch: {execution['micro_batch']}`, and the file asks for {micro}"
        faults.append(Fault(("execution", "micro_batch"), what, "remove it here, or change the file", here=True))
    return {"micro_batch": micro}


def _held(said: dict, step: dict, faults: list[Fault], unread: list[str]) -> None:
    """Clipping, number formats, optimizer and schedule: at auto, or as the recipe has them."""
    clipping = said.get("gradient_clipping", AUTO)
    if clipping == AUTO or clipping == step.get("max_grad_norm"):
        unread += ["gradient_clipping"] if "gradient_clipping" in said else []
    else:
        what = f"`gradient_clipping: {clipping}`, and the step's max_grad_norm is {step.get('max_grad_norm', 'left out')}"
        faults.append(Fault(("gradient_clipping",), what, f"write `max_grad_norm: {clipping}` in the step (it changes what comes out), or auto here"))
    for key in ("bf16", "fp16"):
        block = said.get(key)
        on = block.get("enabled", False) if isinstance(block, dict) else block
        if on is True and (key == "fp16" or step.get("precision", AUTO) != "bf16"):
            mend = "write `precision: bf16` in the step (it changes what comes out), or auto here" if key == "bf16" else "write bf16"
            faults.append(Fault((key,), f"`{key}` is on, and the step's precision is {step.get('precision', AUTO)}", mend))
        elif key in said:
            unread.append(key)
    for key, known, says in (("optimizer", OPTIMIZERS, "learning_rate and weight_decay"), ("scheduler", SCHEDULES, "schedule and warmup")):
        block = said.get(key)
        params = block.get("params") or {} if isinstance(block, dict) else {}
        if block and not (isinstance(block, dict) and block.get("type") in known and all(v == AUTO for v in params.values())):
            mend = f"remove it, or write auto, and say {says} in the step"
            faults.append(Fault((key,), f"`{key}` is the recipe's to say: it changes what comes out", mend))
        elif key in said:
            unread.append(key)
