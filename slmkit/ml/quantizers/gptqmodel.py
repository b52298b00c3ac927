"""GPTQ and RTN by the gptqmodel package, an extra: more architectures and its own kernels, the same folder format."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from slmkit.errors import CannotRun
from slmkit.ml import models
from slmkit.steps._step import Context, Given

LEAKS = ("meta", "offload_to_disk", "offload_to_disk_path")  # they hold a random temporary path


def quantize(ctx: Context, config: Any, given: Given, where: torch.device, rows: list[list[int]] | None) -> dict:
    """Write the folder. Raises CannotRun when the package is missing."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # without it 7.6 refuses to quantize on two cores
    try:
        from gptqmodel import GPTQModel, QuantizeConfig
    except ImportError as e:
        raise CannotRun(f"backend gptqmodel cannot be imported: {e}", mend="pip install 'slmkit[gptqmodel]', or `backend: slmkit`") from None
    common = {"bits": config.bits, "group_size": config.group_size, "sym": config.symmetric, "device": str(where)}
    if config.method == "rtn":
        from gptqmodel.quantization import RTNConfig

        settings, data = RTNConfig(**common), None
    else:
        settings = QuantizeConfig(**common, desc_act=config.act_order, damp_percent=config.damping, format="gptq")
        data = [{"input_ids": r, "attention_mask": [1] * len(r)} for r in rows]
    ctx.progress(0, 2, "quantizing")
    model = GPTQModel.load(str(given.path), settings)
    model.quantize(data, batch_size=1)
    ctx.progress(1, 2, "saving")
    model.save(str(ctx.out))
    parameters = sum(p.numel() for p in models.load(given, torch.device("cpu")).parameters())
    _strip(ctx.out)
    return {"bits": config.bits, "parameters": parameters, "samples": len(rows or ())}


def _strip(out: Path) -> None:
    for name in ("config.json", "quantize_config.json"):
        document = json.loads((out / name).read_text(encoding="utf-8"))
        for part in (document, document.get("quantization_config") or {}):
            for key in LEAKS:
                part.pop(key, None)
        models.write_json(out / name, document)
    for stray in ("README.md", "quant_log.csv"):
        (out / stray).unlink(missing_ok=True)
