"""Will it fit? Asked once the rows' lengths are known and before a model is loaded; and what to say when it did not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from slmkit.errors import CannotRun, StepFailed
from slmkit.ml import models
from slmkit.ml.chat import Example
from slmkit.steps import _memory

if TYPE_CHECKING:
    from slmkit.ml.training import Run

MARGIN = 0.92  # of the free memory; the estimate is within 8 % on the shapes it was fitted to


def free(where: torch.device) -> int:
    """Bytes that this process may still take there."""
    return torch.cuda.mem_get_info(where)[0] if where.type == "cuda" else _memory.free_memory()


def load_of(run: Run, longest: int, trained: int, micro: int, **known: int) -> _memory.Load:
    """What one forward pass of the longest rows takes: their tokens, and those learned. known: Load's tokens, learned, lengths."""
    config = run.config
    rank = config.lora.r if config.lora else 0
    width = 4 if run.dtype == torch.float32 else 2
    recompute = run.ctx.execution.gradient_checkpointing
    local = run.ctx.inputs.get("teacher")
    more = _memory.objective(config, run.world, models.weight_bytes(local) if local else 0)
    here = min(run.world, int(os.environ.get("LOCAL_WORLD_SIZE") or run.world))
    shares = run.world if run.ctx.execution.sharding == "fsdp" else 1
    gpu, more = run.where.type == "cuda", more | {"processes": here, "shares": shares}
    return _memory.Load(config.method, rank, width, micro, longest, trained, recompute, gpu, **more | known)


def settle(run: Run, longest: int, trained: int, choices: list[int], asked: int | None, known: Callable[[int], dict] = lambda micro: {}) -> int:
    """The micro batch: the one asked for, or the largest that fits. Logs what it will take. Raises CannotRun when nothing fits.

    known: a micro batch → what is known of it, see load_of.
    """
    shape = _memory.shape(Path(run.given.path))
    if shape is None:
        return asked or max(choices)
    room = int(free(run.where) * MARGIN)
    loads = {n: load_of(run, longest, trained, n, **known(n)) for n in ([asked] if asked else choices)}
    fit = [n for n, load in loads.items() if _memory.needed(shape, load) <= room]
    micro = max(fit, default=min(loads))
    load = loads[micro]
    found = _memory.parts(shape, load)
    run.ctx.log("memory", free=room, micro_batch=micro, **found)
    if _memory.needed(shape, load) > room:
        what = f"this training needs about {_memory.told(found)} ({_memory.shown(found)}), and {room / 1e9:.2g} GB are free"
        raise CannotRun(what, mend=f"what fits: {_memory.advice(shape, load, choices, room, run.ctx.step)}")
    return micro


def longest(examples: list[Example]) -> tuple[int, int]:
    """Tokens of the longest row, and the most that are learned in one."""
    return max(len(e.ids) for e in examples), max(e.trained for e in examples)


@contextmanager
def told(run: Run, examples: list[Example], choices: list[int], micro: int) -> Iterator[None]:
    """Turns running out of memory into an error that says what would fit; checkpoints stay."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as e:
        plain = type(e) is RuntimeError and "allocate memory" in str(e)  # as the CPU's allocator says it
        if not (plain or isinstance(e, torch.OutOfMemoryError | MemoryError)):
            raise
        shape = _memory.shape(Path(run.given.path))
        load = load_of(run, *longest(examples), micro)
        smaller = int(_memory.needed(shape, load) * 0.7) if shape else 0
        fits = _memory.advice(shape, load, choices, smaller, run.ctx.step) if shape else "a smaller micro_batch"
        mend = f"the same command goes on from the last checkpoint; try {fits}"
        raise StepFailed(f"out of memory with micro_batch {micro}: {str(e).splitlines()[0][:200]}", mend=mend) from e
