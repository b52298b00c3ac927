"""An accelerate config, as `accelerate config` writes it, or a DeepSpeed config, read as keys of `execution`: for those who have one.

Nothing is launched by accelerate: slmkit's own launcher starts the processes and slmkit's own FSDP2 shares the model. So every key of the
file is either turned into a key of `execution` that does the same, or says nothing of this training at the value that it has (and is listed
as such in the events and the manifest), or is refused with its place and the mend.
"""

from __future__ import annotations

import os
from typing import Any

from slmkit.steps import _deepspeed, _world
from slmkit.steps._step import Fault, Part


class Accelerated(Part):
    """What a file came to. processes: of all machines, None where it does not say. unread: its keys that say nothing of a training here."""

    file: str
    sha256: str
    machines: int
    processes: int | None
    meet: str
    unread: list[str]


KINDS = ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP", "DEEPSPEED")
PRECISION = {"no": "fp32", "bf16": "bf16"}  # mixed_precision → the step's precision
NONE = (None, {}, [], "")
OFF = (None, False, "no")
SAYS_NOTHING: dict[str, tuple] = {
    "compute_environment": ("LOCAL_MACHINE",), "debug": OFF, "enable_cpu_affinity": OFF, "fp16": OFF, "gpu_ids": (None, "all"), "downcast_bf16": OFF,
    "main_training_function": (None, "main"), "fp8_config": NONE, "megatron_lm_config": NONE, "parallelism_config": NONE, "mpirun_config": NONE,
    "deepspeed_config": NONE, "dynamo_config": (*NONE, {"dynamo_backend": "NO"}), "dynamo_backend": (None, "NO", "no"), "tpu_name": NONE,
    "tpu_zone": NONE, "tpu_use_cluster": OFF, "tpu_use_sudo": OFF, "command_file": NONE, "commands": NONE, "tpu_vm": NONE, "tpu_env": NONE,
}  # fmt: skip
"""Key → the values at which it asks for nothing. Any other asks for something that is not done here."""
MENDS = {
    "compute_environment": "start slmkit on the machine itself", "gpu_ids": "write `all`, and choose GPUs by CUDA_VISIBLE_DEVICES",
    "deepspeed_config": "write `distributed_type: DEEPSPEED`, or remove it",
    "fp16": "write `precision: bf16` or `fp32` in the step", "debug": "remove it: the processes' shares are checked against one another anyway",
}
MEETING = ("machine_rank", "main_process_ip", "main_process_port", "rdzv_backend", "same_network")
READ = ("distributed_type", "num_processes", "num_machines", "mixed_precision", "use_cpu", "fsdp_config", *MEETING)

FSDP: dict[str, tuple[tuple, str]] = {
    "fsdp_version": ((2,), "FSDP2 is what there is: `accelerate to-fsdp2 --config_file FILE --overwrite` rewrites the file for it"),
    "fsdp_auto_wrap_policy": (("TRANSFORMER_BASED_WRAP",), "the decoder is shared block by block: write TRANSFORMER_BASED_WRAP"),
    "fsdp_reshard_after_forward": ((True,), "a block's weights are given back after its forward pass: write true"),
    "fsdp_offload_params": ((False,), "weights stay on their device: write false"),
    "fsdp_cpu_ram_efficient_loading": ((False,), "every process loads the whole model before it is shared: write false"),
    "fsdp_state_dict_type": (("FULL_STATE_DICT",), "checkpoints hold whole tensors: write FULL_STATE_DICT"),
    "fsdp_activation_checkpointing": ((False, True), "write true or false"),
    "fsdp_activation_checkpointing_offload": ((False,), "recomputed activations are not moved: write false"),
    "fsdp_min_num_params": ((None, 0), "the decoder is shared block by block, whatever a block's size: remove it"),
    "fsdp_ignored_modules": ((None,), "every weight is shared: remove it"),
}
"""Key of fsdp_config → the values that are done here, and the mend for any other."""
BLOCKS_NAME = "fsdp_transformer_layer_cls_to_wrap"  # says nothing: the decoder's blocks are found in the model, whatever their class is called
FSDP1 = ("fsdp_sharding_strategy", "fsdp_backward_prefetch", "fsdp_forward_prefetch", "fsdp_sync_module_states", "fsdp_use_orig_params")


def read(said: Any, file: str, sha256: str, step: dict, execution: dict) -> tuple[dict, list[Fault]]:
    """What a file says → (keys of `execution`, faults). step, execution: what the recipe says beside it, not validated yet."""
    if not isinstance(said, dict):
        return {}, [Fault((), "an accelerate config is a mapping of keys", "`accelerate config --config_file FILE` writes one")]
    if _deepspeed.is_one(said):
        keys, faults, unread = _deepspeed.read(said, file, step, execution)
        told = Accelerated(file=file, sha256=sha256, machines=1, processes=None, meet="", unread=sorted(unread))
        return keys | {"accelerate": told}, faults + _beside(("sharding",), keys, execution, file)
    faults, unread = _keys(said)
    kind = said.get("distributed_type")
    if not isinstance(kind, str) or kind not in KINDS:
        there = "distributed_type" in said
        what = f"`distributed_type: {kind}` is not done here" if there else "it says no `distributed_type`"
        return {}, [Fault(("distributed_type",) if there else (), what, f"what is done here: {', '.join(KINDS)}"), *faults]
    count, machines, more = _world_of(said, kind)
    faults += more
    keys: dict = {"processes": count if machines == 1 else 1, "sharding": "fsdp" if kind == "FSDP" else "none"}
    keys |= _device(said, kind, faults)
    if kind == "FSDP":
        keys |= _shared(said.get("fsdp_config"), faults, unread)
    elif said.get("fsdp_config") not in NONE:
        what = f"`fsdp_config` is not read with `distributed_type: {kind}`"
        faults.append(Fault(("fsdp_config",), what, "write `distributed_type: FSDP`, or remove it"))
    elif "fsdp_config" in said:
        unread.append("fsdp_config")
    if kind == "DEEPSPEED":
        more, faulty, silent = _deepspeed.block(said.get("deepspeed_config"), step, count)
        keys, faults, unread = keys | more, faults + faulty, unread + silent
    faults += _beside(("processes", "sharding"), keys, execution, file) + _precision(said, step)
    if machines == 1:  # where the processes of one machine meet is chosen by the launcher
        unread += [k for k in MEETING if k in said]
    meet = f"--nnodes {machines} --node-rank {said.get('machine_rank') or 0} --nproc-per-node {max(1, count // max(1, machines))} " \
        f"--master-addr {said.get('main_process_ip') or 'HOST'} --master-port {said.get('main_process_port') or 'PORT'}"  # fmt: skip
    told = Accelerated(file=file, sha256=sha256, machines=machines, processes=count, meet=meet if machines > 1 else "", unread=sorted(unread))
    return keys | {"accelerate": told}, faults


def _keys(said: dict) -> tuple[list[Fault], list[str]]:
    """Faults of the keys that can only say nothing, and those that do."""
    faults, unread = [], []
    for key, value in said.items():
        if key in READ or (key == "deepspeed_config" and said.get("distributed_type") == "DEEPSPEED"):
            continue
        if key not in SAYS_NOTHING:
            faults.append(_deepspeed.unknown((key,), (*READ, *SAYS_NOTHING)))
        elif value in SAYS_NOTHING[key]:
            unread.append(key)
        else:
            faults.append(Fault((key,), f"`{key}` asks for something that is not done here", MENDS.get(key, "remove it")))
    return faults, unread


def _world_of(said: dict, kind: str) -> tuple[int, int, list[Fault]]:
    """(processes in all, machines, faults)."""
    count, machines = said.get("num_processes", 1 if kind == "NO" else None), said.get("num_machines", 1)
    odd = [(k, v) for k, v in (("num_processes", count), ("num_machines", machines)) if type(v) is not int or not 1 <= v <= 4096]
    faults = [Fault((k,) if k in said else (), f"`{k}` must be a number, 1 to 4096, not {v}", "say how many there are") for k, v in odd]
    if faults:
        return 1, 1, faults
    least = 2 if kind in ("MULTI_GPU", "FSDP") else 1
    if kind == "NO" and count > 1:
        mend = "write MULTI_CPU, MULTI_GPU or FSDP, or 1"
        faults.append(Fault(("num_processes",), f"`num_processes` is {count} with `distributed_type: NO`", mend))
    elif count < least:
        what = f"`distributed_type: {kind}` needs 2 processes at least"
        faults.append(Fault(("num_processes",), what, "or write `distributed_type: NO`"))
    if count % machines:
        what = f"{count} processes are no multiple of {machines} machines"
        faults.append(Fault(("num_processes",), what, "`num_processes` counts those of all machines"))
    rank = said.get("machine_rank") or 0
    if type(rank) is not int or not 0 <= rank < machines:
        faults.append(Fault(("machine_rank",), f"`machine_rank` is {rank}, and there are {machines} machines", "they count from 0"))
    return count, machines, faults


def _device(said: dict, kind: str, faults: list[Fault]) -> dict:
    """The device that a kind of training and `use_cpu` ask for."""
    cpu = said.get("use_cpu", False)
    if type(cpu) is not bool:
        faults.append(Fault(("use_cpu",), f"`use_cpu` is true or false, not {cpu}"))
        return {}
    if cpu and kind == "MULTI_GPU":
        what = "`use_cpu: true` with `distributed_type: MULTI_GPU`"
        faults.append(Fault(("use_cpu",), what, "write `distributed_type: MULTI_CPU`, or `use_cpu: false`"))
    if cpu or kind == "MULTI_CPU":
        return {"device": "cpu"}
    return {} if kind == "NO" else {"device": "cuda"}


def _shared(said: Any, faults: list[Fault], unread: list[str]) -> dict:
    """fsdp_config, key by key."""
    if not isinstance(said, dict) or "fsdp_version" not in said:
        faults.append(Fault(("fsdp_config",), "`distributed_type: FSDP` needs `fsdp_config: {fsdp_version: 2}`", FSDP["fsdp_version"][1]))
        return {}
    for key, value in said.items():
        where = ("fsdp_config", key)
        if key in FSDP:
            done, mend = FSDP[key]
            if not any(type(value) is type(one) and value == one for one in done):
                faults.append(Fault(where, f"`{key}: {_word(value)}` is not done here", mend))
        elif key == BLOCKS_NAME:
            unread.append(f"fsdp_config.{key}")
        elif key in FSDP1:
            faults.append(Fault(where, f"`{key}` is a key of FSDP1", FSDP["fsdp_version"][1]))
        else:
            faults.append(_deepspeed.unknown(where, (*FSDP, BLOCKS_NAME)))
    again = said.get("fsdp_activation_checkpointing")
    return {"gradient_checkpointing": again} if type(again) is bool else {}


def _beside(own: tuple, keys: dict, execution: dict, file: str) -> list[Fault]:
    """Where the file and the recipe both speak: of what the file alone is to say (own), or of the same thing differently."""
    faults = []
    for key in own:
        if key in execution:
            faults.append(Fault(("execution", key), f"`{key}` is set by {file}, too", f"remove it, or remove `accelerate: {file}`", here=True))
    for key in ("device", "gradient_checkpointing", "micro_batch"):
        given = execution.get(key, keys.get(key))
        if key in keys and given != keys[key] and not (given == "auto" and key in ("device", "micro_batch")):
            what = f"`{key}: {_word(given)}`, and {file} asks for {_word(keys[key])}"
            faults.append(Fault(("execution", key), what, "remove it here, or change the file", here=True))
    return faults


def _precision(said: dict, step: dict) -> list[Fault]:
    """mixed_precision, held against the step's."""
    faults = []
    mixed = said.get("mixed_precision") or "none"
    wanted = PRECISION.get(mixed) if isinstance(mixed, str) else None
    if wanted is None and mixed != "none":
        faults.append(Fault(("mixed_precision",), f"`mixed_precision: {_word(mixed)}` is not done here", "write bf16 or no"))
    elif wanted and step.get("precision", "auto") != wanted:
        what = f"`mixed_precision: {said['mixed_precision']}`, and the step's precision is {step.get('precision', 'auto')}"
        mend = f"write `precision: {wanted}` in the step: it changes what comes out, so it is the recipe's to say; or remove it here"
        faults.append(Fault(("mixed_precision",), what, mend))
    return faults


def _word(value: Any) -> str:
    return {True: "true", False: "false", None: "nothing"}.get(value, str(value)) if isinstance(value, bool | None) else str(value)


def apart(told: Accelerated) -> str | None:
    """Why a training of several machines cannot start from here: nobody has started slmkit on all of them."""
    if told.machines == 1 or "SLMKIT_LAUNCH" in os.environ or _world.member():
        return None
    return f"{told.file} is for {told.machines} machines: start it on each, by `torchrun {told.meet} -m slmkit …` or srun (docs/devices.md)"
