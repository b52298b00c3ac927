"""`method: auto`: every candidate is made by its own method, measured on rows that none was calibrated on, and the best is kept.

The rows held out are those that GPTQ's own comparison with rounding holds out, so no Hessian has seen them. A candidate loses what its answers
diverge from the model's (mean KL) plus what their perplexity rises (in nats too; that it falls is chance, and counts nothing); the least loss
is kept. Rounding to nearest is tried on every grid, so nothing that is worse than rounding at the same size can win. For llama.cpp the
candidates are its own types (`choosing_types.py`).

Each candidate lies in the step's state under its own name, its figures written last: a killed run builds no finished one again. Of the folders
only the best so far stays.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

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


class Makes(Protocol):
    """How candidates come to be. names: in the order in which they are tried. build: fills home/out, and home/values.json last, where that is not
    there yet. before, after: runtimes that are let go after each reading."""

    names: list[str]

    def build(self, name: str, home: Path) -> None: ...
    def before(self) -> fidelity.Runtime: ...
    def after(self, home: Path) -> fidelity.Runtime: ...


@dataclass(frozen=True)
class Choice:
    """config: the step's, of the method that was kept. folder: its weights and configs. values: its own, and the table of all candidates."""

    config: Any
    folder: Path
    values: dict[str, Any]


def choose(ctx: Context, config: Any, data: Rows, examples: list[Example], given: Given, where: torch.device) -> Choice:
    """Build and measure what is not in the state yet. examples: `data` in tokens. Raises StepFailed where too few can be held out."""
    tried = {c.name: c for c in _candidates.of(config, Path(given.path))}
    makes = _Folders(list(tried), tried, ctx, config, [e.input_ids for e in examples], given, where)
    best, values = race(ctx, config, makes, data, examples, given)
    return Choice(_config(config, tried[best]), ctx.state / "candidates" / best / "out", values)


def race(ctx: Context, config: Any, makes: Makes, data: Rows, examples: list[Example], given: Given) -> tuple[str, dict[str, Any]]:
    """(the best one's name, what it said of itself with the table of all). Raises StepFailed where too few rows are held out, or nothing fits."""
    if not gptq.held(examples):
        raise StepFailed(f"{len(examples)} calibration rows are too few to choose by: some must be held out of the calibration",
                         mend=f"give {gptq.FEWEST} rows or more (`calibration`, `samples`)")
    asked = _asked(data, examples, given)
    if not asked.probes:
        raise StepFailed("no answer of the calibration rows held out fits into the model's context", mend="give shorter calibration rows")
    before: list[fidelity.Reading] = []  # read once, and only where something is to be measured
    figures: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(makes.names):
        ctx.progress(number, len(makes.names), name)
        home = ctx.state / "candidates" / name
        file = home / "figures.json"
        if not file.is_file():
            makes.build(name, home)
            size = _size(home)
            if size["bits_per_weight"] <= config.max_bits_per_weight:
                before = before or [_read(makes.before(), asked)]
                size |= _lost(before[0], _read(makes.after(home), asked), asked)
            write(file, size)
        figures[name] = json.loads(file.read_text(encoding="utf-8"))
        ctx.log("candidate", name=name, **figures[name])
        best = _best(figures)
        for other in figures.keys() - {best}:
            shutil.rmtree(ctx.state / "candidates" / other / "out", ignore_errors=True)
    ctx.progress(len(makes.names), len(makes.names), "candidates")
    if "nats_lost" not in figures[best]:
        raise StepFailed(f"nothing that {config.target} loads fits into max_bits_per_weight: {config.max_bits_per_weight:g} of this model",
                         mend=f"the smallest, {best}, takes {figures[best]['bits_per_weight']:.2f} bits per weight")
    values = json.loads((ctx.state / "candidates" / best / "values.json").read_text(encoding="utf-8"))
    measured = {"rows": len(asked.probes), "tokens": sum(p.end - p.start for p in asked.probes)}
    return best, values | {"chosen": best, "target": config.target, "candidates": figures, "chosen_on": measured}


@dataclass(frozen=True)
class _Folders:
    """Candidates that are folders of one of this step's methods. rows: what they are calibrated on, in tokens."""

    names: list[str]
    tried: dict[str, Candidate]
    ctx: Context
    config: Any
    rows: list[list[int]]
    given: Given
    where: torch.device

    def build(self, name: str, home: Path) -> None:
        _build(self.ctx, home, _config(self.config, self.tried[name]), self.rows, self.given, self.where)

    def before(self) -> fidelity.Runtime:
        return fidelity.Transformers(self.given, self.where)

    def after(self, home: Path) -> fidelity.Runtime:
        models.copy_tokenizer(self.given, home / "out")
        return fidelity.Transformers(Given("model", self.given.name, "model", self.given.uri, home / "out"), self.where)


def _asked(data: Rows, examples: list[Example], given: Given) -> probes.Probes:
    """The answers of the rows of which nothing is calibrated on."""
    held = gptq.held(examples)
    calibrated = {e.line for e in examples[len(held) :]}
    spared = [row for row in list(data)[: len(held)] if row.line not in calibrated]
    return probes.of(data_rows.of(data.name, data.form, spared, data.format), data.name, models.tokenizer(given), given)


def _best(figures: dict[str, dict[str, Any]]) -> str:
    """The name of what loses least; the smaller of equals, then the first. Where none fits, the smallest."""
    fit = {n: f for n, f in figures.items() if "nats_lost" in f}
    if not fit:
        return min(figures, key=lambda n: figures[n]["bytes"])
    sound = {n: f for n, f in fit.items() if f["nats_lost"] is not None}
    if not sound:
        return next(iter(fit))  # the certificate will say what is wrong with it
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
    write(home / "values.json", values)
    shutil.rmtree(work)


def write(file: Path, value: dict[str, Any]) -> None:
    """Whole or not at all."""
    part = file.with_suffix(".part")
    models.write_json(part, value)
    part.rename(file)


def _size(home: Path) -> dict[str, Any]:
    size = sum(f.stat().st_size for pattern in ("*.safetensors", "*.gguf") for f in (home / "out").glob(pattern))
    parameters = json.loads((home / "values.json").read_text(encoding="utf-8"))["parameters"]
    return {"bytes": size, "bits_per_weight": size * 8 / parameters}


def _lost(before: fidelity.Reading, after: fidelity.Reading, asked: probes.Probes) -> dict[str, Any]:
    certificate = fidelity.compare(before, after, asked)
    kl, old, new = (certificate[k] for k in ("mean_kl", "perplexity_before", "perplexity_after"))
    sound = certificate["finite"] and None not in (kl, old, new)
    lost = kl + max(0.0, math.log(new / old)) if sound else None
    return {"mean_kl": kl, "perplexity": new, "perplexity_before": old, "nats_lost": lost}


def _read(runtime: fidelity.Runtime, asked: probes.Probes) -> fidelity.Reading:
    """Logits alone: the certificate asks for answers and hidden states once the choice is made."""
    logits = fidelity.logits(runtime, asked)
    del runtime
    models.free()
    return fidelity.Reading(logits, [], [])
