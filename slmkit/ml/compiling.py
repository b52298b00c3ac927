"""Keeps the compiler of torch out of the start of every training: bitsandbytes has four functions compiled when it is imported (by peft, wherever it
is installed), which loads the compiler, 2.5 of 16 CPU-seconds. They are compiled when they are first called instead; all else is torch's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def at_first_call() -> None:
    """From here on, functions of bitsandbytes that are to be compiled are compiled at their first call."""
    if getattr(torch.compile, "slmkit", False):
        return
    compiled = torch.compile

    @functools.wraps(compiled)
    def compile_(model: Any = None, **kwargs: Any) -> Any:
        if model is None or not getattr(model, "__module__", "").startswith("bitsandbytes."):
            return compiled(model, **kwargs)
        return _later(model, functools.partial(compiled, model, **kwargs))

    compile_.slmkit = True
    torch.compile = compile_


def _later(function: Callable, make: Callable[[], Callable]) -> Callable:
    made: list[Callable] = []

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        if not made:
            made.append(make())
        return made[0](*args, **kwargs)

    return called
