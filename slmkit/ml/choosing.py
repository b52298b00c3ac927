"""`method: auto`: every candidate is made by its own method, measured on rows that none was calibrated on, and the best is kept.

The rows held out are those that GPTQ's own comparison with rounding holds out, so no Hessian has seen them. A candidate loses what its answers
diverge from the model's (mean KL) plus what their perplexity rises (in nats too; that it falls is chance, and counts nothing); the least loss
is kept. Rounding to nearest is tried on every grid, so nothing that is worse than rounding at the same size can win.

Each candidate lies in the step's state under its own name, its figures written last: a killed run builds no finished one again. Of the folders
only the best so far stays.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from slmkit.data import rows as data_rows
from slmkit.data.rows import Rows
from slmkit.errors import StepFailed
from slmkit.ml import fidelity, models, probes, quantizers
from slmkit.ml.chat import Example
from slmkit.ml.quantizers import gptq
from slmkit.steps import _candidates
from slmkit.steps._candidates import Candidate
from slmkit.steps._step import Context, Given

UNREAD = {"bits": None, "group_size": None, "symmetric": None, "act_order": None, "damping": None}
DAMPING = 0.01


@dataclass(frozen=True)
class Choice:
    """config: the step's, of the method that was kept. folder: its weights and configs. values: its own, and the table of all candidates."""

    config: Any
    folder: Path
    values: dict[str, Any]


def choose(ctx: Context, config: Any, data: Rows, examples: list[Example], given: Given, where: torch.device) -> Choice:
    """Build and measure what is not in the state yet. examples: `data` in tokens. Raises StepFailed where too few can be held out."""
    rows = [e.input_ids for e in examples]
    if not gptq.held(rows):
        raise StepFailed(f"{len(rows)} calibration rows are too few to choose by: some must be held out of the calibration",
                         mend=f"give {gptq.FEWEST} rows or more (`calibration`, `samples`)")
    asked = _asked(data, examples, given)
    if not asked.probes:
        raise StepFailed("no answer of the calibration rows held out fits into the model's context", mend="give shorter calibration rows")
    tried = _candidates.of(config, Path(given.path))
    before: list[fidelity.Reading] = []  # read once, and only where something is to be measured
    figures: dict[str, dict[str, Any]] = {}
    for number, candidate in enumerate(tried):
        ctx.progress(number, len(tried), candidate.name)
        home = ctx.state / "candidates" / candidate.name
        file = home / "figures.json"
        if not file.is_file():
            _build(ctx, home, _config(config, candidate), rows, given, where)
            if not before:
                before.append(_read(given, where, asked))
            _write(file, _measured(home, before[0], given, where, asked))
        figures[candidate.name] = json.loads(file.read_text(encoding="utf-8"))
        ctx.log("candidate", name=candidate.name, **figures[candidate.name])
        best = _best(figures)
        for other in figures.keys() - {best}:
            shutil.rmtree(ctx.state / "candidates" / other / "out", ignore_errors=True)
    ctx.progress(len(tried), len(tried), "candidates")
    home = ctx.state / "candidates" / best
    values = json.loads((home / "values.json").read_text(encoding="utf-8"))
    measured = {"rows": len(asked.probes), "tokens": sum(p.end - p.start for p in asked.probes)}
    values |= {"chosen": best, "target": config.target, "candidates": figures, "chosen_on": measured}
    return Choice(_config(config, next(c for c in tried if c.name == best)), home / "out", values)


def _asked(data: Rows, examples: list[Example], given: Given) -> probes.Probes:
    """The answers of the rows of which nothing is calibrated on."""
    held = gptq.held(examples)
    calibrated = {e.line for e in examples[len(held) :]}
    spared = [row for row in list(data)[: len(held)] if row.line not in calibrated]
    return probes.of(data_rows.of(data.name, data.form, spared, data.format), data.name, models.tokenizer(given), given)


def _best(figures: dict[str, dict[str, Any]]) -> str:
    """The name of what loses least; the smaller of equals, then the first."""
    sound = {n: f for n, f in figures.items() if f["nats_lost"] is not None}
    if not sound:
        return next(iter(figures))  # the certificate will say what is wrong with it
    return min(sound, key=lambda n: (sound[n]["nats_lost"], sound[n]["bytes"]))


def _config(config: Any, candidate: Candidate) -> Any:
    """The step's config as if the candidate's settings had been written."""
    said = UNREAD | {"method": candidate.method, "target": None, "max_bits_per_weight": None}
    if candidate.bits is not None:
        said |= {"bits": candidate.bits, "group_size": candidate.group_size, "symmetric": True}
    if candidate.method == "gptq":
        said |= {"act_order": candidate.act_order, "damping": DAMPING}
    return config.model_copy(update=said)


def _build(ctx: Context, home: Path, config: Any, rows: list[list[int]], given: Given, where: torch.device) -> None:
    """Fill home/out by the candidate's method, and home/values.json last; GPTQ's own blocks lie in home/work until then."""
    if (home / "values.json").is_file():
        return
    out, work = home / "out", home / "work"
    shutil.rmtree(out, ignore_errors=True)
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    inner = replace(ctx, out=out, state=work, progress=lambda done, total, what, **numbers: None)
    values = quantizers.of(config).quantize(inner, config, given, where, rows if config.method == "gptq" else None)
    models.free()
    _write(home / "values.json", values)
    shutil.rmtree(work)


def _write(file: Path, value: dict[str, Any]) -> None:
    part = file.with_suffix(".part")
    models.write_json(part, value)
    part.rename(file)


def _measured(home: Path, before: fidelity.Reading, given: Given, where: torch.device, asked: probes.Probes) -> dict[str, Any]:
    out = home / "out"
    models.copy_tokenizer(given, out)
    certificate = fidelity.compare(before, _read(Given("model", given.name, "model", given.uri, out), where, asked), asked)
    kl, old, new = (certificate[k] for k in ("mean_kl", "perplexity_before", "perplexity_after"))
    sound = certificate["finite"] and None not in (kl, old, new)
    size = sum(f.stat().st_size for f in out.glob("*.safetensors"))
    parameters = json.loads((home / "values.json").read_text(encoding="utf-8"))["parameters"]
    return {"bytes": size, "bits_per_weight": size * 8 / parameters, "mean_kl": kl, "perplexity": new, "perplexity_before": old,
            "nats_lost": kl + max(0.0, math.log(new / old)) if sound else None}  # fmt: skip


def _read(given: Given, where: torch.device, asked: probes.Probes) -> fidelity.Reading:
    """Logits alone: the certificate asks for answers and hidden states once the choice is made."""
    runtime = fidelity.Transformers(given, where)
    logits = fidelity.logits(runtime, asked)
    del runtime
    models.free()
    return fidelity.Reading(logits, [], [])
