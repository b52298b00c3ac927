"""Adapters: where they go, how they are written so that the same training gives the same bytes, and how they are merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from slmkit.errors import Problem, RecipeError, StepFailed
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


def targets(model: PreTrainedModel, choice: str | list[str]) -> list[str]:
    """Sorted last names of the linear layers that get an adapter. Raises RecipeError for a name that matches none."""
    _, blocks = decoder(model)
    linear = [name for name, module in blocks[0].named_modules() if isinstance(module, torch.nn.Linear)]
    linear += [n for b in list(blocks)[1:] for n, m in b.named_modules() if isinstance(m, torch.nn.Linear) and n not in linear]
    names = sorted({name.rpartition(".")[2] for name in linear})
    if choice == "all-linear":
        return names
    if choice == "attention":
        found = sorted({n.rpartition(".")[2] for n in linear if "attn" in n or "attention" in n})
        if not found:
            raise RecipeError([Problem("lora.target: this model has no module named like attention", mend=f"name some of {', '.join(names)}")])
        return found
    unknown = [n for n in choice if n not in names]
    if unknown:
        raise RecipeError([Problem(f"lora.target: this model has no linear layer `{unknown[0]}`", mend=f"it has {', '.join(names)}")])
    return sorted(set(choice))


def attach(model: PreTrainedModel, lora: Any) -> PeftModel:
    """Put fresh adapters on a model; the caller has seeded the generator. Weights are fp32 whatever the base is."""
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets(model, lora.target),
        bias="none", task_type="CAUSAL_LM",
    )  # fmt: skip
    return get_peft_model(model, config, autocast_adapter_dtype=True)


def save(model: PeftModel, out: Path, base: Given) -> None:
    """Write the adapter so that equal training gives equal bytes: no local path, no sets in arbitrary order."""
    model.save_pretrained(out, safe_serialization=True, save_embedding_layers=False)
    (out / "README.md").unlink(missing_ok=True)
    file = out / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    repo, commit = base.hub or (None, None)
    config["base_model_name_or_path"], config["revision"] = repo, commit
    for key, value in config.items():
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            config[key] = sorted(value)
    models.write_json(file, config)


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
