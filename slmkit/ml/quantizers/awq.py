"""AWQ (https://arxiv.org/abs/2306.00978) by the auto-round package, an extra: columns that see large inputs are scaled up before rounding.

The scales are folded into the layer before, and what is rounded is written in AutoGPTQ's format, so it loads where gptq and rtn load. AutoAWQ's
own package has had no release since 0.2.9 and llm-compressor does not resolve beside our transformers (docs/quantize.md).
"""

from __future__ import annotations

from typing import Any

import torch

from slmkit.ml.quantizers import autoround
from slmkit.steps._step import Context, Given


def quantize(ctx: Context, config: Any, given: Given, where: torch.device, rows: list[list[int]]) -> dict:
    """Write the folder. Raises CannotRun on a CPU, or when the package is missing."""
    autoround.needs(config.method, where)
    from auto_round.algorithms.transforms.awq.config import AWQConfig

    return autoround.written(ctx, config, given, where, rows, AWQConfig())
