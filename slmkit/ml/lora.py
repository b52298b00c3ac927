"""Adapters merged into their base, and whole models written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from slmkit.errors import StepFailed
from slmkit.ml import cards, models
from slmkit.steps._step import Context, Given, Result


def decoder(model: torch.nn.Module) -> tuple[str, torch.nn.ModuleList]:
    """The name and list of a model's decoder blocks: the ModuleList as long as the config says. Raises StepFailed."""
    config = model.config.get_text_config(decoder=True)
    count = getattr(config, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return name, module
    raise StepFailed(f"the decoder blocks of {type(model).__name__} were not found")


def merge(ctx: Context, config: Any) -> Result:
    """The merge step: base and adapter in fp32, added, rounded once to the wanted format."""
    given: Given = ctx.inputs["model"]
    where = models.device(ctx.execution.device)
    if given.base is None:
        raise StepFailed("this adapter's base is not known", where=given.path)
    folder = Path(given.base.path)
    if models.quantized(folder):
        raise StepFailed("the adapter's base is quantized: merging into it would lose what was trained", where=folder)
    dtype = models.own_dtype(folder) if config.dtype == "auto" else models.DTYPES[config.dtype]
    ctx.progress(0, 3, "loading")
    base = models.load(given.base, where, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, given.path, is_trainable=False)
    ctx.progress(1, 3, "merging")
    merged = model.merge_and_unload(safe_merge=True).to(dtype)
    ctx.progress(2, 3, "saving")
    save_model(merged, ctx.out, given.base, given)
    values = {
        "dtype": models.NAMES.get(dtype, str(dtype)),
        "parameters": sum(p.numel() for p in merged.parameters()),
        "bytes": sum(f.stat().st_size for f in ctx.out.glob("*.safetensors")),
    }
    del base, model, merged
    models.free()
    ctx.progress(3, 3, "saving")
    return Result(values, card=cards.merged(given, values), cost={"peak_memory_bytes": models.peak_memory(where)})


def save_model(model: PreTrainedModel, out: Path, base: Given, tokenizer_from: Given, template: str | None = None) -> None:
    """Write a whole model beside the tokenizer it was trained with, without any local path."""
    model.config._name_or_path = ""
    model.save_pretrained(out)
    models.copy_generation_config(Path(base.path), out)
    models.copy_tokenizer(tokenizer_from, out, template)
