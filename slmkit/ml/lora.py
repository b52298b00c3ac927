"""Where a model's decoder blocks are, and whole models written."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from slmkit.errors import StepFailed
from slmkit.ml import models
from slmkit.steps._step import Given


def decoder(model: torch.nn.Module) -> tuple[str, torch.nn.ModuleList]:
    """The name and list of a model's decoder blocks: the ModuleList as long as the config says. Raises StepFailed."""
    config = model.config.get_text_config(decoder=True)
    count = getattr(config, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return name, module
    raise StepFailed(f"the decoder blocks of {type(model).__name__} were not found")


def save_model(model: PreTrainedModel, out: Path, base: Given, tokenizer_from: Given, template: str | None = None) -> None:
    """Write a whole model beside the tokenizer it was trained with, without any local path."""
    model.config._name_or_path = ""
    model.save_pretrained(out)
    models.copy_generation_config(Path(base.path), out)
    models.copy_tokenizer(tokenizer_from, out, template)
