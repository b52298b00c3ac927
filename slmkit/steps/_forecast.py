"""What a training will take, as `plan` says it: steps, tokens, peak memory, disk, time, and what to change where it does not fit."""

from __future__ import annotations

import math
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from slmkit.steps import _cuts, _estimate, _memory, _world
from slmkit.steps._step import NAME

CORE = 20e9  # floating-point operations a second of one CPU core in fp32, as measured on small matrices
START = 6.0  # seconds until the first step: the libraries, the model
OVERHEAD = 4e-3  # seconds a layer takes in a forward and backward pass, whatever its size


def training(config: Any, execution: Any, model: _estimate.Size, about: _estimate.Lengths | None, teacher: int = 0) -> dict[str, int | str]:
    """Everything that the sizes tell. teacher: bytes of the weights of one that is run here."""
    shape = _memory.shape(model.path) if model.path else None
    out: dict[str, int | str] = {}
    if about:
        count, mean = about.rows, about.mean
        steps = config.max_steps or math.ceil(config.epochs * math.ceil(count / config.batch_size))
        out |= {"rows": count, "steps": steps, "tokens": steps * min(config.batch_size, count) * min(mean, config.max_length)}
    if shape is None:
        return out
    rank = config.lora.r if config.lora else 0
    out["disk_bytes"] = shape.bytes if config.method == "full" else rank * shape.sides * 4
    if about:
        out |= _memory_of(config, execution, shape, rank, about, teacher)
    if about and config.objective == "sft":
        out["seconds"] = _seconds(config, shape, out["tokens"], out["steps"], out.get("micro_batch", 1))
    return out


def _memory_of(config: Any, execution: Any, shape: _memory.Shape, rank: int, about: _estimate.Lengths, teacher: int) -> dict[str, int | str]:
    gpu = execution.device.startswith("cuda")
    world, here = _processes(execution)
    share = config.batch_size // world
    seen = [min(n, config.max_length) for n in about.seen]
    longest, answers = max(seen), max(about.answers)
    if config.objective == "grpo":
        share, longest = config.batch_size * config.grpo.generations // world, longest + config.grpo.max_new_tokens
    if config.objective == "gkd" and config.gkd.on_policy:
        longest += config.gkd.max_new_tokens
    choices = [n for n in range(1, 9) if share % n == 0] or [1]
    more = _memory.objective(config, world, teacher) | {"processes": here, "shares": world if execution.sharding == "fsdp" else 1}
    learned = min(longest, answers) if config.objective == "sft" and config.loss_on == "assistant" else longest
    load = _memory.Load(config.method, rank, width(config.precision), 1, longest, learned, execution.gradient_checkpointing, gpu, **more)
    free = _memory.free_memory()
    if execution.micro_batch != "auto" and share % execution.micro_batch:
        what = f"micro_batch {execution.micro_batch} does not divide the {share} rows that a process takes in a step"
        return {"refused": f"{what}: it will be refused"}
    loads = {n: replace(load, micro=n, **_largest(config, execution, shape, about, seen, world, n)) for n in choices}
    fit = [n for n, one in loads.items() if _memory.needed(shape, one) <= free]
    micro = execution.micro_batch if execution.micro_batch != "auto" else max(fit, default=1)
    load = loads.get(micro) or replace(load, micro=micro, **_largest(config, execution, shape, about, seen, world, micro))
    found = _memory.parts(shape, load)
    out: dict[str, int | str] = {"memory_bytes": _memory.needed(shape, load), "micro_batch": micro, "memory_parts": _memory.shown(found)}
    if here > 1:
        out["memory_each"] = _memory.told(found) if not gpu else f"in each of {here} processes, on a GPU of its own"
    if not gpu and _memory.needed(shape, load) > free:
        out["does_not_fit"] = f"{free / 1e9:.2g} GB are free; try {_memory.advice(shape, load, choices, free, NAME)}"
    return out


def _largest(config: Any, execution: Any, shape: _memory.Shape, about: _estimate.Lengths, seen: list[int], world: int, most: int) -> dict[str, int]:
    """Of sft: the largest micro batch of at most so many rows, as the rows that were looked at would be cut up."""
    if config.objective != "sft":
        return {}
    cpu, order = not execution.device.startswith("cuda"), list(range(len(seen)))
    random.Random(config.seed).shuffle(order)
    free = cpu and execution.micro_batch == "auto"
    ways = _cuts.ways(config.batch_size // world, most, _cuts.PACKINGS[execution.packing], free, 0, world)
    cost = _cuts.of_shape(shape.linear, shape.hidden, shape.layers)
    way = _cuts.cheapest(seen, order, ways, cost, execution.attention in ("auto", "sdpa")) if cpu else ways[-1]
    trained = about.answers if config.loss_on == "assistant" else seen
    return _cuts.largest(seen, trained, order[: (config.max_steps or len(order)) * config.batch_size], way)


def _processes(execution: Any) -> tuple[int, int]:
    """(processes that will train, those of this machine): started together with this one, or asked for. auto: as many as the driver has GPUs."""
    told = execution.accelerate
    me = None if "SLMKIT_LAUNCH" in os.environ else _world.member()
    if me or (told and told.machines > 1):
        size, machines = (me.size, 1) if me else (told.processes, told.machines)
        return size, int(os.environ.get("LOCAL_WORLD_SIZE") or size) if me else size // machines
    if execution.processes != "auto":
        return execution.processes, execution.processes
    cards = Path("/proc/driver/nvidia/gpus")
    count = len(list(cards.iterdir())) if cards.is_dir() and execution.device in ("auto", "cuda") else 1
    return max(1, count), max(1, count)


def width(precision: str) -> int:
    """Bytes of the forward pass's numbers on this machine: what `precision: auto` will choose is read off the CPU's flags."""
    if precision != "auto":
        return 4 if precision == "fp32" else 2
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return 4
    return 2 if "avx512_bf16" in flags or "amx_bf16" in flags else 4


def _seconds(config: Any, shape: _memory.Shape, tokens: int, steps: int, micro: int) -> int:
    """Rough: 6 operations a weight and token (4 with frozen weights), and what each pass costs whatever its size."""
    each = 6 if config.method == "full" else 4
    cores = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    passes = steps * max(1, config.batch_size // micro)
    return math.ceil(START + shape.parameters * each * tokens / (CORE * cores) + passes * shape.layers * OVERHEAD)
