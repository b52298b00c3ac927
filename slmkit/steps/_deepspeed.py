"""What a DeepSpeed config asks for, as keys of `execution`: for those who have one. DeepSpeed itself is not run here.

Its ZeRO stages say who holds what of a model, and FSDP2 does that. What changes the result (batch, clipping, precision, optimizer, schedule)
is the recipe's to say: "auto" leaves it there, another value must be the recipe's. Knobs of DeepSpeed's own speed, memory and logging say
nothing here and are listed as such. Everything else is refused at its place. What a file does not say is the recipe's, too.
"""

from __future__ import annotations

import difflib
from typing import Any

from slmkit.steps import _deepspeed_keys as names
from slmkit.steps import _world
from slmkit.steps._step import Fault


def is_one(said: dict) -> bool:
    """Is this a DeepSpeed config, and no accelerate config?"""
    return "distributed_type" not in said and bool({*names.READ, "steps_per_print"} - {"fp16"} & said.keys())


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
        return self.step.get(field, names.DEFAULTS[field])

    def held(self, where: tuple, value: Any, field: str) -> None:
        """A number that must be the recipe's own."""
        if value == names.AUTO:
            return self.quiet(where)
        ours = self.recipe(field)
        if type(value) not in (int, float):
            self.fault(where, f'`{where[-1]}` must be a number or "auto", not {value}')
        elif type(ours) in (int, float) and value != ours:
            mend = f'write `{field}: {value}` in the step: {names.SAYS_IT}; or "auto" here'
            self.fault(where, f"`{where[-1]}: {value}`, and the step's {field} is {ours}", mend)

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
        on = block.get("enabled", names.AUTO)
        if on == names.AUTO or (name == "fp16" and on is False):
            self.unread += [f"{name}.enabled"] if "enabled" in block else []
        elif type(on) is not bool:
            self.fault((*where, "enabled"), f'`enabled` is true, false or "auto", not {on}')
        elif name == "fp16":
            self.fault((*where, "enabled"), "fp16 is not done here", "write false here, and `precision: bf16` or `fp32` in the step")
        elif (ours := self.recipe("precision")) != (wanted := "bf16" if on else "fp32"):
            mend = f'write `precision: {wanted}` in the step: {names.SAYS_IT}; or "auto" here'
            self.fault((*where, "enabled"), f"`bf16` is {'on' if on else 'off'}, and the step's precision is {ours}", mend)

    def chosen(self, where: tuple, value: Any) -> None:
        """An `optimizer` or `scheduler` block."""
        (types, ours, done), block, name = names.CHOSEN[where[-1]], self.block(where, value), where[-1]
        kind = block.get("type")
        if not isinstance(kind, str) or kind not in types:
            mend = f"write {' or '.join(types)}, or remove `{name}`: the recipe says it"
            self.fault((*where, "type"), f"the {name} `{kind}` is not done here", mend)
        elif types[kind] not in (None, self.recipe("schedule")):
            mend = f"write `schedule: {types[kind]}` in the step: {names.SAYS_IT}; or remove `scheduler` here"
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
        for key in names.BATCH:
            value = said.get(key, names.AUTO)
            if value == names.AUTO:
                self.unread += [".".join((*at, key))] if key in said else []
            elif type(value) is not int or value < 1:
                self.fault((*at, key), f'`{key}` is a number of 1 at least, or "auto", not {value}')
            else:
                found[key] = value
        whole, (total, micro, times) = self.recipe("batch_size"), (found.get(key) for key in names.BATCH)
        if self.recipe("objective") == "grpo" and found:
            self.fault((*at, next(iter(found))), "objective grpo counts prompts, and DeepSpeed answers", 'write "auto": `batch_size` says it')
            return {}
        if total:
            self.held((*at, names.BATCH[0]), total, "batch_size")
        if not (micro or times) or type(whole) is not int or whole < 1:
            return {}
        if self.processes is None:
            if times:
                mend = 'write how many there are, or "auto" here'
                self.fault((*at, names.BATCH[2]), f"`{names.BATCH[2]}: {times}` cannot be held against `processes: auto`", mend)
            return {"micro_batch": micro} if micro and not times else {}
        each = (micro or 1) * (times or 1) * self.processes
        if whole != each if micro and times else whole % each:
            factors = [f"`{key}: {found[key]}`" for key in names.BATCH[1:] if key in found]
            count = f"{self.processes} process{'es' if self.processes > 1 else ''}"
            what = f"{' × '.join(factors)} × {count} is {each}, and the step's batch_size is {whole}"
            mend = 'write "auto", or what makes up batch_size: it is the recipe\'s to say'
            self.fault((*at, names.BATCH[1] if micro else names.BATCH[2]), what, mend)
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
            to.precision((key,), value, names.FP16 if key == "fp16" else names.BF16)
        elif key in names.CHOSEN:
            to.chosen((key,), value)
        elif key in names.QUIET:
            to.quiet((key,))
        elif key in names.ENABLED:
            off = value is None or (isinstance(value, dict) and value.get("enabled", False) in names.OFF)
            to.asks((key,), None if off else value, names.OFF, names.MENDS.get(key, "remove it"))
        elif key == "activation_checkpointing":
            off = value is None or (isinstance(value, dict) and not any(value.values()))
            to.asks((key,), None if off else value, names.OFF, names.MENDS[key])
        elif key in names.ASKS:
            to.asks((key,), value, names.ASKS[key], names.MENDS.get(key, "remove it"))
        elif key not in names.READ:
            to.faults.append(unknown((key,), (*names.READ, *names.QUIET, *names.ENABLED, *names.ASKS, "activation_checkpointing")))
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
    keys = {"sharding": to.stage((*at, "zero_stage"), said.get("zero_stage"))} | to.batch({k: v for k, v in said.items() if k == names.BATCH[2]}, at)
    for key, value in said.items():
        if key == "gradient_clipping":
            to.held((*at, key), value, "max_grad_norm")
        elif key in names.ACCELERATE_QUIET:
            to.quiet((*at, key))
        elif key in names.ACCELERATE_ASKS:
            to.asks((*at, key), value, names.ACCELERATE_ASKS[key], names.STAYS if key.startswith("offload") else "remove it")
        elif key not in ("zero_stage", "deepspeed_config_file", names.BATCH[2]):
            known = ("zero_stage", "gradient_clipping", names.BATCH[2], *names.ACCELERATE_QUIET, *names.ACCELERATE_ASKS)
            to.faults.append(unknown((*at, key), known))
    if processes == 1 and keys["sharding"] == "fsdp":
        to.fault(("num_processes",), "one process shares nothing", "write 2 or more, or `distributed_type: NO`")
    return keys, to.faults, to.unread


def _zero(to: _Reading, said: Any) -> str:
    """zero_optimization, key by key → the sharding."""
    at = ("zero_optimization",)
    said = to.block(at, said)
    for key, value in said.items():
        where = (*at, key)
        if key in names.ZERO_QUIET:
            to.quiet(where)
        elif key in names.OFFLOAD:
            device = None if value is None else to.block(where, value).get("device", "none")
            to.asks(where, device, (*names.NONE, "none"), names.STAYS)
        elif key in names.ZERO_ASKS:
            to.asks(where, value, names.ZERO_ASKS[key], names.STAYS if key.startswith("cpu_offload") else "remove it")
        elif key != "stage":
            to.faults.append(unknown(where, ("stage", *names.ZERO_QUIET, *names.OFFLOAD, *names.ZERO_ASKS)))
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
