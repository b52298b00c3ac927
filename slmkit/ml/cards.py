"""Model cards: Hub metadata and a page that says what a folder is, from what, and how to load it. No times, no local paths."""

from __future__ import annotations

from pathlib import Path

import yaml

from slmkit.steps._step import Card, Given

PIPELINE = {"library_name": "transformers", "pipeline_tag": "text-generation"}


def origin(given: Given) -> str:
    """A name for people without a local path."""
    return given.uri if ":" in given.uri and not given.uri.startswith(("/", ".")) else f"`{given.name}`"


def base_metadata(given: Given, relation: str) -> dict:
    """`base_model`: the Hub's id at the root of the chain, which the cards hand on; else the name of what it was made from."""
    root = given
    while root.base is not None:
        root = root.base
    known = root.hub[0] if root.hub else _said_by_its_card(root) or (root.uri if root.uri.startswith("demo:") else root.name)
    return {"base_model": known, "base_model_relation": relation}


def _said_by_its_card(given: Given) -> str | None:
    """base_model in the front matter of an artifact's own card."""
    card = Path(given.path) / "README.md"
    parts = card.read_text(encoding="utf-8").split("---\n", 2) if given.manifest and card.is_file() else []
    return yaml.safe_load(parts[1]).get("base_model") if len(parts) == 3 else None


def _datasets(*given: Given | None) -> dict:
    named = [g.hub[0] for g in given if g is not None and g.hub]
    return {"datasets": list(dict.fromkeys(named))} if named else {}


def trained(base: Given, data: tuple[Given, ...], config, values: dict, adapter: bool) -> Card:
    metadata = PIPELINE | {"tags": ["slmkit", config.objective, *(["lora"] if adapter else [])]}
    metadata |= base_metadata(base, "adapter" if adapter else "finetune") | _datasets(*data)
    if adapter:
        metadata["library_name"] = "peft"
    kind = {"full": "All weights", "lora": "LoRA adapters", "qlora": "QLoRA adapters (NF4 base, double quantization)"}[config.method]
    size = f" ({values['trained_tokens']} trained tokens a pass)" if "trained_tokens" in values else ""
    how = "" if config.objective == "sft" else f" by {config.objective.upper()}"
    sources = ", ".join(map(origin, data))
    lines = [
        f"# {base.name} fine-tuned on {', '.join(d.name for d in data)}\n",
        f"{kind} trained{how} on {values['rows']} rows{size} of {sources}, from {origin(base)}.\n",
        f"| steps | first loss | train loss |{' validation loss |' if 'validation_loss' in values else ''}",
        f"|---|---|---|{'---|' if 'validation_loss' in values else ''}",
        f"| {values['steps']} | {values['first_loss']:.4f} | {values['train_loss']:.4f} |"
        + (f" {values['validation_loss']:.4f} |" if "validation_loss" in values else ""),
        "\n## Use\n",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
    ]
    if adapter:
        base_text = repr(base.hub[0]) if base.hub else "BASE_FOLDER"
        lines += [
            "from peft import PeftModel\n",
            f"model = AutoModelForCausalLM.from_pretrained({base_text})",
            "model = PeftModel.from_pretrained(model, FOLDER)",
        ]
    else:
        lines += ["", "model = AutoModelForCausalLM.from_pretrained(FOLDER)"]
    return Card(metadata, "\n".join([*lines, "tokenizer = AutoTokenizer.from_pretrained(FOLDER)", "```\n"]))


_LOAD = """
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
```
"""


def merged(adapter: Given, values: dict) -> Card:
    metadata = PIPELINE | {"tags": ["slmkit", "merged"]} | base_metadata(adapter, "finetune")
    text = f"# {adapter.base.name} with {adapter.name} merged\n\n"
    below = "" if values["into"] == "full" else ", rounded to 4 bits as in training and unpacked,"
    text += f"{origin(adapter)} added to {origin(adapter.base)}{below} in fp32, stored as {values['dtype']}.\n"
    return Card(metadata, text + _LOAD)


def quantized(source: Given, config, values: dict, data: Given | None) -> Card:
    what = {
        "gptq": f"GPTQ, {config.bits} bits, groups of {config.group_size}",
        "rtn": f"rounded to nearest, {config.bits} bits, groups of {config.group_size}",
        "awq": f"AWQ, {config.bits} bits, groups of {config.group_size}",
        "autoround": f"AutoRound, {config.bits} bits, groups of {config.group_size}",
        "nf4": "bitsandbytes NF4 with double quantization",
        "int8": "bitsandbytes INT8",
    }[config.method]
    metadata = PIPELINE | {"tags": ["slmkit", config.method, f"{values['bits']}-bit"]} | base_metadata(source, "quantized") | _datasets(data)
    text = f"# {source.name}, quantized\n\n{origin(source)}: {what}; "
    text += f"{values['bytes']} bytes of weights, {values['bits_per_weight']:.2f} bits per weight.\n"
    if data is not None and "samples" in values:
        text += f"Calibrated on {values['samples']} rows of {origin(data)}.\n"
    if config.method not in ("nf4", "int8"):
        text += "\nAutoGPTQ's checkpoint format (version 1): transformers reads it with `gptqmodel` or `optimum` installed, vLLM as it is.\n"
    return Card(metadata, text + (tried(values) if "candidates" in values else "") + _LOAD)


def tried(values: dict) -> str:
    """The table of what `method: auto` measured."""
    on = values["chosen_on"]
    lines = [f"\n## Chosen\n\n`{values['chosen']}` lost least on {on['tokens']} tokens of {on['rows']} calibration rows held out (target "
             f"{values['target']}).\n", "| | bits per weight | mean KL, nats | perplexity | lost, nats |", "|---|---|---|---|---|"]
    for name, f in values["candidates"].items():
        unread = "too large | | " if "nats_lost" not in f else "not finite | | " if f["nats_lost"] is None else None
        lost = unread or f"{f['mean_kl']:.3g} | {f['perplexity']:.4g} | {f['nats_lost']:.3g}"
        lines.append(f"| {'**' + name + '**' if name == values['chosen'] else name} | {f['bits_per_weight']:.2f} | {lost} |")
    before = values["candidates"][values["chosen"]]["perplexity_before"]
    return "\n".join([*lines, f"\nPerplexity of the model as it was: {before:.4g}.\n"])


def scored(models: tuple[Given, ...], scores: dict, tasks: list[str]) -> Card:
    metrics = sorted({m for by_task in scores.values() for t in by_task.values() for m in t if not m.endswith("_stderr")})
    lines = [f"# Scores of {', '.join(m.name for m in models)}\n", "| model | task | metric | value | stderr |", "|---|---|---|---|---|"]
    for model, by_task in scores.items():
        for task, values in by_task.items():
            for metric in (m for m in values if not m.endswith("_stderr")):
                error = values.get(f"{metric}_stderr")
                shown = f"{error:.4f}" if isinstance(error, float) else ""
                lines.append(f"| {model} | {task} | {metric} | {values[metric]:.4f} | {shown} |")
    lines += ["", *(f"- {m.name}: {origin(m)}" for m in models), ""]
    return Card({"tags": ["slmkit", "lm-eval"], "metrics": metrics}, "\n".join(lines))
