"""The dataset's card: what it holds, who wrote it, asked what, at what cost, under which terms; and where `load_dataset` finds its splits."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from slmkit.steps._step import Card, Context, Given
from slmkit.steps._teacher import Teacher
from slmkit.teach.dataset import DROPPED, TRAIN, VALIDATION, Written
from slmkit.teach.templates import Template


def card(
    ctx: Context, config: Any, model: str, told: tuple[Template | None, ...], what: str, values: dict, written: Written
) -> Card:  # fmt: skip
    """told: the templates that were used: for what is asked, for judging. what: the rows, in words."""
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
    unanswered = values["requests"] - values["answered"] - values["from_ledger"]
    none = f", {unanswered} got no answer" if unanswered else ""
    lines += [
        f"{values['answered']} of the requests were answered for this dataset, {values['from_ledger']} were answered before{none}. "
        f"What the step paid, by all its attempts: {cost}.",
    ]  # fmt: skip
    lines += [f"The endpoint called itself {observed}." if observed else "", "", *_asked(ctx, config, told), ""]
    lines += [
        "**Determinism: none.** A teacher may answer the same request otherwise tomorrow. The answers themselves are kept in the store's ledger, "
        "and from it this dataset is built again, byte for byte.",
        "",
        f"Terms of the teacher, as stated in the recipe: {config.terms}" if config.terms else
        "The recipe states nothing of the teacher's terms of use (`terms:`); whether models may be trained on its answers is for you to check.",
        "", "## Use\n", "```python", "from datasets import load_dataset", 'rows = load_dataset("PATH/TO/THIS/FOLDER")', "```",
    ]  # fmt: skip
    return Card(metadata, "\n".join(lines))


def _asked(ctx: Context, config: Any, told: tuple[Template | None, ...]) -> list[str]:
    """What the teacher was asked with, each with its hash: the files of prompts, and what was said beside them."""
    given, (asked, judging) = ctx.inputs, told
    rows = [(f"prompts `{_name(one)}`", _digest(one)) for one in given.get("prompts") or ()]
    rows += [("system message", _sha256(config.system))] if config.system is not None else []
    for what, template, own in (("template", asked, given.get("template")), ("judge's template", judging, given.get("judge_template"))):
        rows += [(f"{what} `{template.name}`{'' if own else ' of slmkit'}", _digest(own) if own else _sha256(template.text))] if template else []
    rows += [(f"functions `{_name(one)}`", _digest(one))] if (one := given.get("tools")) else []
    plain = asked is None and config.system is None
    lines = ["Prompts went to the teacher as they are, with no system message and no template of the recipe's.", ""] if plain else []
    return lines + ["| asked with | sha256 |", "|---|---|", *(f"| {what} | {digest} |" for what, digest in rows)]


def _name(given: Given) -> str:
    """Without the folder, which says nothing elsewhere."""
    return Path(given.uri).name if given.uri.startswith("/") else given.uri


def _digest(given: Given) -> str:
    """Of a file what `sha256sum` says, of several what slmkit has for all of them together; a hub's data are told by their commit."""
    if not given.digest:
        return f"commit `{given.revision}`"
    return f"`{given.digest}`{'' if Path(given.path).is_file() and not given.files else ' (of all its files)'}"


def _sha256(text: str) -> str:
    return f"`{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}`"
