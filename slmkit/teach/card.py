"""The dataset's card: what it holds, who wrote it, at what cost, under which terms; and where `load_dataset` finds its splits."""

from __future__ import annotations

import hashlib
from typing import Any

from slmkit.steps._step import Card, Context
from slmkit.steps._teacher import Teacher
from slmkit.teach.dataset import DROPPED, TRAIN, VALIDATION, Written
from slmkit.teach.templates import Template


def card(
    ctx: Context, config: Any, model: str, told: tuple[Template | None, ...], what: str, values: dict, written: Written
) -> Card:  # fmt: skip
    """told: the templates that were used. what: the rows, in words."""
    files = [{"split": "train", "path": TRAIN}, *([{"split": "validation", "path": VALIDATION}] if written.held_out else [])]
    apart = {split: count for split, count in written.also.items() if split not in ("train", "validation")}
    files += [{"split": split, "path": f"{split}.jsonl"} for split in apart]
    metadata = {
        "configs": [{"config_name": "default", "data_files": files}], "tags": ["slmkit", "distilled", "synthetic"],
        "task_categories": ["text-generation"],
    }  # fmt: skip
    endpoint = isinstance(config.teacher, Teacher)
    where = f"`{model}` at {config.teacher.base_url}" if endpoint else f"`{ctx.inputs['teacher'].uri if ':' in ctx.inputs['teacher'].uri else model}`"
    observed = ", ".join(f"`{name}` ({count})" for name, count in values["observed"].items())
    lines = [
        f"# {written.rows + written.held_out} rows written by {model}\n",
        f"Mode `{config.mode}`: {where} was asked {values['requests']} times; rows are {what}.\n",
        "| | |", "|---|---|", f"| {TRAIN} | {written.rows + written.also['train']} rows |",
    ]  # fmt: skip
    lines += [f"| {VALIDATION} | {written.held_out + written.also['validation']} rows |"] if written.held_out else []
    lines += [f"| {split}.jsonl | {count} rows |" for split, count in apart.items()]
    lines += [f"| dropped: {name} | {count} |" for name, count in values["dropped"].items()]
    lines += ["", f"What was dropped is in `{DROPPED}`, with the reason.", ""]
    cost = f"{values['tokens']} tokens" + (f", {values['usd']} USD at the prices in the recipe" if "usd" in values else "; no prices were given")
    lines += [f"Cost of the answers that this step asked for ({values['answered']}; {values['from_ledger']} were known already): {cost}."]
    lines += [f"The endpoint called itself {observed}." if observed else "", f"Instructions: sha256 {_hash(config, told)}.", ""]
    lines += [
        "**Determinism: none.** A teacher may answer the same request otherwise tomorrow. The answers themselves are kept in the store's ledger, "
        "and from it this dataset is built again, byte for byte.",
        "",
        f"Terms of the teacher, as stated in the recipe: {config.terms}" if config.terms else
        "The recipe states nothing of the teacher's terms of use (`terms:`); whether models may be trained on its answers is for you to check.",
        "", "## Use\n", "```python", "from datasets import load_dataset", 'rows = load_dataset("PATH/TO/THIS/FOLDER")', "```",
    ]  # fmt: skip
    return Card(metadata, "\n".join(lines))


def _hash(config: Any, told: tuple[Template | None, ...]) -> str:
    """Of the instructions that the teacher got beside the prompts."""
    text = "\0".join([config.system or "", *(t.text if t else "" for t in told)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
