"""An adapter as vLLM and LoRAX load it: a peft folder that says no more than they read.

vLLM scales all layers by one alpha and rank, and looks at nothing else: it would load an adapter with patterns of ranks or alphas, and
scale it wrongly without a word. Such an adapter is written anew with one rank and one alpha, adding the same to the base: lower ranks
are filled up with zeros, and a layer's own scale goes into its B. What it does not load, or loads otherwise, is refused with the reason.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from slmkit.errors import Problem, RecipeError
from slmkit.ml import cards, models
from slmkit.ml.algebra import scale
from slmkit.steps._step import Card, Context, Given, Result

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank may be; 16 where it is not said."""
ODD = {
    "use_dora": "DoRA, whose magnitudes vLLM does not read", "modules_to_save": "whole modules beside the adapters (modules_to_save)",
    "trainable_token_indices": "trained rows of the embedding", "layer_replication": "replicated layers",
    "alora_invocation_tokens": "an activated LoRA", "use_qalora": "QA-LoRA, whose A sees pooled inputs", "use_bdlora": "block-diagonal LoRA",
    "target_parameters": "adapters of parameters that are no layers",
    "lora_bias": "biases in the adapters", "arrow_config": "Arrow routing",
}  # fmt: skip
"""What of peft's config vLLM does not load, or loads as if it were not there."""
WEIGHT = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
MEND = "export the merged model instead (a `merge` step, then vLLM as it is), or train with `variant: lora` and no `modules_to_save`"


def export(ctx: Context, config: Any) -> Result:
    """Entry of the format. Raises RecipeError for what vLLM would not load as it is."""
    given: Given = ctx.inputs["model"]
    folder = Path(given.path)
    said, weights = read(folder)
    layers = check(said, weights)
    ctx.progress(0, 1, "writing")
    patterned = bool(said.get("rank_pattern") or said.get("alpha_pattern")) or len({a.shape[0] for a, _ in layers.values()}) > 1
    written, stored = (uniform(said, layers) if patterned else (dict(said), weights))
    if given.base is not None:
        written["base_model_name_or_path"], written["revision"] = given.base.hub or (None, None)
    save_file({k: v.contiguous() for k, v in sorted(stored.items())}, ctx.out / "adapter_model.safetensors", metadata={"format": "pt"})
    models.write_json(ctx.out / "adapter_config.json", written)
    models.copy_tokenizer(given, ctx.out)
    rank = written["r"]
    values = {
        "format": "adapter", "rank": rank, "max_lora_rank": next(m for m in RANKS if m >= rank), "alpha": float(written["lora_alpha"]),
        "layers": len(layers), "target_modules": sorted({n.rpartition(".")[2] for n in layers}), "rewritten": patterned,
        "base": given.base.uri if given.base is not None else None, "base_quantization": models.training(folder).get("base_quantization"),
        "bytes": (ctx.out / "adapter_model.safetensors").stat().st_size,
        "largest_difference": difference(layers, said, *read(ctx.out)),
    }  # fmt: skip
    if values["largest_difference"] > 1e-5:
        raise RecipeError([Problem(f"model: written anew, the adapter adds something else (off by {values['largest_difference']:.1e})", mend=MEND)])
    ctx.progress(1, 1, "writing")
    return Result(values, card=_card(given, values))


def read(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """adapter_config.json and the weights. Raises RecipeError for weights that are no safetensors."""
    said = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise RecipeError([Problem("model: the adapter's weights are no safetensors", mend="save it with peft's save_pretrained")])
    return said, load_file(file)


def check(said: dict, weights: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Layer → (A [rank, in], B [out, rank]). Raises RecipeError for what vLLM does not load, or loads otherwise."""
    why = [text for key, text in ODD.items() if said.get(key)]
    if said.get("peft_type") != "LORA":
        why.insert(0, f"it is of type {said.get('peft_type')}, not LoRA")
    if said.get("bias", "none") != "none":
        why.append(f"trained biases (bias: {said['bias']})")
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in weights.items():
        name = WEIGHT.fullmatch(key)
        if not name:
            why.append(f"the weight {key}")
        elif not re.search(r"\.\d+\.", name[1]):
            why.append(f"an adapter outside the decoder blocks ({name[1]}), which vLLM takes for some models and releases only")
        else:
            found.setdefault(name[1], {})[name[2]] = value
    why += [f"{n} with one of A and B only" for n, parts in found.items() if len(parts) != 2]
    if not why and max(parts["A"].shape[0] for parts in found.values()) > RANKS[-1]:
        why.append(f"a rank above {RANKS[-1]}")
    if why:
        more = f", and {len(why) - 3} more" if len(why) > 3 else ""
        raise RecipeError([Problem(f"model: vLLM does not load this adapter as it is: {'; '.join(why[:3])}{more}", mend=MEND)])
    return {name: (parts["A"], parts["B"]) for name, parts in sorted(found.items())}


def uniform(said: dict, layers: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> tuple[dict, dict[str, torch.Tensor]]:
    """The same adapter with one rank and one alpha, equal to it: the scale is 1."""
    rank = max(a.shape[0] for a, _ in layers.values())
    stored = {}
    for name, (a, b) in layers.items():
        more = rank - a.shape[0]
        stored[f"base_model.model.{name}.lora_A.weight"] = torch.nn.functional.pad(a, (0, 0, 0, more))
        stored[f"base_model.model.{name}.lora_B.weight"] = torch.nn.functional.pad(b * scale(said, name, a.shape[0]), (0, more))
    return said | {"r": rank, "lora_alpha": rank, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}, stored


def difference(layers: dict[str, tuple[torch.Tensor, torch.Tensor]], said: dict, written: dict, weights: dict[str, torch.Tensor]) -> float:
    """The largest relative difference, over the layers, between what peft adds to the base by the first and what vLLM adds by the second."""
    worst = 0.0
    one = written["lora_alpha"] / (math.sqrt(written["r"]) if written["use_rslora"] else written["r"])
    for name, (a, b) in layers.items():
        before = b.double() @ a.double() * scale(said, name, a.shape[0])
        after = weights[f"base_model.model.{name}.lora_B.weight"].double() @ weights[f"base_model.model.{name}.lora_A.weight"].double() * one
        worst = max(worst, float((before - after).norm() / before.norm().clamp(min=1e-30)))
    return worst


def _card(given: Given, values: dict) -> Card:
    metadata = {"library_name": "peft", "pipeline_tag": "text-generation", "tags": ["slmkit", "lora", "vllm"]} | cards.base_metadata(given, "adapter")
    base = given.base.hub[0] if given.base is not None and given.base.hub else "BASE_FOLDER"
    how = "written anew with one rank and one alpha, adding the same to the base" if values["rewritten"] else "as it was trained"
    lines = [
        f"# {given.name}, an adapter for vLLM and LoRAX\n",
        f"{cards.origin(given)}, {how}: rank {values['rank']}, alpha {values['alpha']:g}, {values['layers']} layers "
        f"({', '.join(values['target_modules'])}). Its base is {values['base'] or 'named in its adapter_config.json'}.\n",
    ]
    if values["base_quantization"]:
        lines.append(f"It was trained on the base in {values['base_quantization']}; on the full one it is near that, and not the same.\n")
    lines += [
        "## Use\n", "```sh", f"vllm serve {base} --enable-lora --max-lora-rank {values['max_lora_rank']} --lora-modules NAME=FOLDER", "```\n",
        "The chat template beside it is the one it was trained with: give it to vLLM by `--chat-template FOLDER/chat_template.jinja` where "
        "the base has another. This folder was not run in vLLM or LoRAX.\n",
    ]  # fmt: skip
    return Card(metadata, "\n".join(lines))
