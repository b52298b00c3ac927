"""NF4 and INT8 folders by bitsandbytes, saved from a fresh load (one that has run may have been repacked)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from slmkit.ml import models
from slmkit.steps import _shapes
from slmkit.steps._step import Context, Given


def quantize(ctx: Context, config: Any, given: Given, where: torch.device, _rows: None) -> dict:
    """Write the folder. Weights that stay unquantized are kept in 16 bits."""
    folder = Path(given.path)
    own = models.own_dtype(folder)
    dtype = torch.bfloat16 if own == torch.float32 else own
    quantization = models.nf4_config(dtype) if config.method == "nf4" else BitsAndBytesConfig(load_in_8bit=True)
    ctx.progress(0, 2, "quantizing")
    parameters = sum(map(math.prod, _shapes.headers(folder).values()))
    model = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=dtype,
        quantization_config=quantization, device_map={"": where},
    )  # fmt: skip
    models.mend_bitsandbytes(model)
    ctx.progress(1, 2, "saving")
    model.config._name_or_path = ""
    model.save_pretrained(ctx.out)
    layers = sum(type(m).__name__ in ("Linear4bit", "Linear8bitLt") for m in model.modules())
    ctx.progress(2, 2, "saving")
    return {"bits": 4 if config.method == "nf4" else 8, "layers": layers, "parameters": parameters}
