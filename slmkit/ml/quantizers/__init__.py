"""The methods of the quantize step, a file each: `quantize(ctx, config, given, where, rows) -> values` fills ctx.out with weights and configs.

rows: token ids of the calibration rows where the method reads any, else None. values: what the result says of it; `bits` and `parameters` at least.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


def of(config: Any) -> ModuleType:
    """The module that does what a config asks for."""
    if config.backend != "slmkit":
        name = config.backend
    else:
        name = {"nf4": "bitsandbytes", "int8": "bitsandbytes"}.get(config.method, config.method)
    return importlib.import_module(f"{__name__}.{name}")
