"""Fresh adapters: where they go, how they begin, and how they are written so that the same training gives the same bytes.

Variants that move part of the base into the adapter (pissa, olora) are written as plain LoRA of twice the rank that adds the same
to the base as it was, so that whoever loads the folder needs nothing but its base.
"""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model, initialize_lora_eva_weights
from transformers import PreTrainedModel

from slmkit.errors import Problem, RecipeError
from slmkit.ml import models
from slmkit.ml.lora import decoder
from slmkit.steps._step import Given

VARIANTS = {
    "lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}, "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"}, "eva": {"init_lora_weights": "eva"},
    "loftq": {},  # by slmkit.ml.loftq: peft's own needs CUDA, and puts another base below
}  # fmt: skip
CONVERTED = ("pissa", "olora")
INITIAL = "initial_adapter"


def attach(model: PreTrainedModel, lora: Any, state: Path, inputs: Iterable[dict] = (), base: Path | None = None) -> PeftModel:
    """Put fresh adapters on a model; the caller has seeded the generator. Weights are fp32 whatever the base is.

    state: the step's state folder, where what a variant began with is kept. inputs: padded batches of the data, for eva. base: the folder of the
    base, for loftq.
    """
    extra = dict(VARIANTS[lora.variant])
    if lora.variant == "eva":
        extra["eva_config"] = EvaConfig(adjust_scaling_factors=True)
    whole = _whole(model, lora.modules_to_save)
    if tied(model) and set(whole) & _ends(model):  # peft would train a copy for the input alone, and leave the output as it was
        extra["ensure_weight_tying"] = True
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets(model, lora.target), bias="none",
        task_type="CAUSAL_LM", rank_pattern=_pattern(model, lora, "rank_pattern"), alpha_pattern=_pattern(model, lora, "alpha_pattern"),
        modules_to_save=whole or None, **extra,
    )  # fmt: skip
    fresh = get_peft_model(model, config, autocast_adapter_dtype=True)
    if lora.variant == "eva":
        initialize_lora_eva_weights(fresh, list(inputs), show_progress_bar=False)
    if lora.variant in CONVERTED:
        _keep_initial(fresh, state / INITIAL)
    for parameter in fresh.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if lora.variant == "loftq":
        from slmkit.ml import loftq

        loftq.begin(fresh, base)
    return fresh


def tied(model: PreTrainedModel) -> bool:
    """Are the input embeddings and the output layer one matrix?"""
    output = model.get_output_embeddings()
    return output is not None and getattr(output, "weight", None) is model.get_input_embeddings().weight


def _ends(model: PreTrainedModel) -> set[str]:
    """Full names of the input embeddings and the output layer."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return {n for n, m in model.named_modules() if any(m is end for end in ends)}


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Full names of the linear layers in the decoder blocks."""
    prefix, _ = decoder(model)
    return [n for n, m in model.named_modules() if n.startswith(prefix + ".") and isinstance(m, torch.nn.Linear)]


def targets(model: PreTrainedModel, choice: str | list[str]) -> list[str]:
    """Sorted names of the layers that get an adapter: last names where those say it all, full names for patterns.

    Raises RecipeError for a name or pattern that matches none.
    """
    layers = linear_layers(model)
    names = sorted({name.rpartition(".")[2] for name in layers})
    if choice == "all-linear":
        return names
    if choice == "attention":
        found = sorted({n.rpartition(".")[2] for n in layers if "attn" in n or "attention" in n})
        if not found:
            raise RecipeError([Problem("lora.target: this model has no module named like attention", mend=f"name some of {', '.join(names)}")])
        return found
    out: set[str] = set()
    for one in choice:
        out |= {one} if one in names else set(matching(layers, one, "target", names))
    return sorted(out)


def matching(layers: list[str], pattern: str, key: str, names: list[str]) -> list[str]:
    """Full names that a last name or a pattern stands for. A pattern may leave out what comes before `layers.`."""
    found = [n for n in layers if n.rpartition(".")[2] == pattern or fnmatch.fnmatchcase(n, pattern) or fnmatch.fnmatchcase(n, f"*.{pattern}")]
    if not found:
        what = f"lora.{key}: this model has no linear layer `{pattern}`"
        raise RecipeError([Problem(what, mend=f"it has {', '.join(names)}; a pattern may be layers.0.* or *.mlp.*")])
    return found


def _pattern(model: PreTrainedModel, lora: Any, key: str) -> dict:
    """rank_pattern and alpha_pattern by full name, as peft takes them; a later entry wins over an earlier one."""
    layers = linear_layers(model)
    names = sorted({name.rpartition(".")[2] for name in layers})
    return {full: value for pattern, value in getattr(lora, key).items() for full in matching(layers, pattern, key, names)}


def _whole(model: PreTrainedModel, wanted: list[str]) -> list[str]:
    """Full names of modules that are trained whole (peft would take `norm` for every name that ends so). Raises RecipeError."""
    own = [n for n, m in model.named_modules() if n and next(m.parameters(recurse=False), None) is not None]
    found: list[str] = []
    for name in wanted:
        of_name = [n for n in own if n == name or n.rpartition(".")[2] == name]
        if not of_name:
            mend = f"it has {', '.join(sorted({n.rpartition('.')[2] for n in own}))}"
            raise RecipeError([Problem(f"lora.modules_to_save: this model has no module `{name}` with weights of its own", mend=mend)])
        found += of_name
    return sorted(set(found))


def _keep_initial(model: PeftModel, folder: Path) -> None:
    """What the adapter was before training, without which what it adds to the original base cannot be told."""
    shutil.rmtree(folder, ignore_errors=True)
    config = model.peft_config["default"]
    said, config.init_lora_weights = config.init_lora_weights, True
    model.save_pretrained(folder, save_embedding_layers=False, selected_adapters=["default"])
    config.init_lora_weights = said


def save(model: PeftModel, out: Path, base: Given, state: Path) -> None:
    """Write the adapter: no local path, no sets in arbitrary order, nothing that a reader would have to know of its variant."""
    initial = state / INITIAL
    more = {"path_initial_model_for_weight_conversion": str(initial)} if initial.is_dir() else {}
    model.save_pretrained(out, safe_serialization=True, save_embedding_layers=False, selected_adapters=["default"], **more)
    (out / "README.md").unlink(missing_ok=True)
    file = out / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["base_model_name_or_path"], config["revision"] = base.hub or (None, None)
    if config.get("init_lora_weights") == "eva":  # the ranks it chose are in rank_pattern; the search is over
        config["init_lora_weights"], config["eva_config"] = True, None
    for key, value in config.items():
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            config[key] = sorted(value)
    models.write_json(file, config)
