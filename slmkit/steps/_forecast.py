"""What a training will take, as `plan` says it: steps, tokens, peak memory, disk, time, and what to change where it does not fit."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from slmkit.steps import _estimate, _memory, _world
from slmkit.steps._step import NAME

CORE = 20e9  # floating-point operations a second of one CPU core in fp32, as measured on small matrices
START = 6.0  # seconds until the first step: the libraries, the model
OVERHEAD = 4e-3  # seconds a layer takes in a forward and backward pass, whatever its size


def training(config: Any, execution: Any, model: _estimate.Size, about: _estimate.Lengths | None, teacher: int = 0) -> dict[str, int | str]:
    """Everything that the sizes tell. teacher: bytes of the weights of one that is run here."""
    shape = _memory.shape(model.path) if model.path else None
    out: dict[str, int | str] = {}
    if about:
        count, mean, seen = about.rows, about.mean, about.seen
        steps = config.max_steps or math.ceil(config.epochs * math.ceil(count / config.batch_size))
        out |= {"rows": count, "steps": steps, "tokens": steps * min(config.batch_size, count) * min(mean, config.max_length)}
    if shape is None:
        return out
    rank = config.lora.r if config.lora else 0
    out["disk_bytes"] = shape.bytes if config.method == "full" else rank * shape.sides * 4
    if about:
        out |= _memory_of(config, execution, shape, rank, seen, teacher)
    if about and config.objective == "sft":
        out["seconds"] = _seconds(config, shape, out["tokens"], out["steps"], out.get("micro_batch", 1))
    return out


def _memory_of(config: Any, execution: Any, shape: _memory.Shape, rank: int, seen: list[int], teacher: int) -> dict[str, int | str]:
    gpu = execution.device.startswith("cuda")
    world, here = _processes(execution)
    share = config.batch_size // world
    seen = [min(n, config.max_length) for n in seen]
    longest, lengths = max(seen), len(set(seen[: config.batch_size * config.max_steps] if config.max_steps else seen))
    if config.objective == "grpo":
        share, longest = config.batch_size * config.grpo.generations // world, longest + config.grpo.max_new_tokens
    choices = [n for n in range(1, 9) if share % n == 0] or [1]
    if config.objective == "gkd" and config.gkd.on_policy:
        longest += config.gkd.max_new_tokens
    more = _memory.objective(config, world, teacher)
    shares = world if execution.sharding == "fsdp" else 1
    numbers, again = width(config.precision), execution.gradient_checkpointing
    load = _memory.Load(config.method, rank, numbers, 1, longest, longest, again, gpu, processes=here, shares=shares, lengths=lengths, **more)
    free = _memory.free_memory()
    micro = execution.micro_batch if execution.micro_batch != "auto" else _memory.largest(shape, load, choices, free) or 1
    if share % micro:
        return {"refused": f"micro_batch {micro} does not divide the {share} rows that a process takes in a step: it will be refused"}
    load = _with(load, micro)
    found = _memory.parts(shape, load)
    out: dict[str, int | str] = {"memory_bytes": _memory.needed(shape, load), "micro_batch": micro, "memory_parts": _memory.shown(found)}
    if here > 1:
        out["memory_each"] = _memory.told(found) if not gpu else f"in each of {here} processes, on a GPU of its own"
    if not gpu and _memory.needed(shape, load) > free:
        out["does_not_fit"] = f"{free / 1e9:.2g} GB are free; try {_memory.advice(shape, load, choices, free, NAME)}"
    return out


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


def _with(load: _memory.Load, micro: int) -> _memory.Load:
    from dataclasses import replace

    return replace(load, micro=micro)


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
