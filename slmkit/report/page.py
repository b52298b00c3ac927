"""The page: one file that loads nothing, needs no script, and escapes every text, since answers of models may hold anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from slmkit.report import figures, picture, words
from slmkit.report.facts import Report, Step


def render(report: Report) -> str:
    """The page's text. The same report gives the same bytes."""
    from jinja2 import Environment, StrictUndefined

    source = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_seen)
    environment.filters |= {n: getattr(words, n) for n in ("share", "number", "count", "size", "seconds", "usd", "p", "small")}
    names = {step.id: step.name for step in report.steps}
    pictures = {
        "across": picture.across(list(report.steps)), "down": picture.down(list(report.steps)),
        "tradeoffs": figures.tradeoffs(list(report.models), list(report.scores)), "loss": {c.step: figures.loss(c) for c in report.curves},
        "throughput": figures.throughput(list(report.models)), "tokens": {x.step: figures.tokens(x) for x in report.xrays if x.counts},
    }
    return environment.from_string(source).render(
        r=report, name=lambda step: names.get(step, step), words=words, pictures=pictures, table=table(report), costs=costs, said=said(report),
        origins=origins(report.steps), same=same(report.steps),
    )  # fmt: skip


def _seen(value: Any) -> Any:
    """Of every text that goes into the page; None is a dash."""
    if isinstance(value, Markup):
        return value
    return words.UNKNOWN if value is None else words.visible(value) if isinstance(value, str) else value


def table(report: Report) -> tuple[list[tuple[str, str]], list[tuple]]:
    """The quality table: ((task, metric) of each column of scores, (model, its scores by column, its measures by key) of each row)."""
    ranked = sorted(report.scores, key=lambda s: not s.main)
    columns = sorted(dict.fromkeys((s.task, s.metric) for s in ranked), key=lambda c: [s.task for s in report.scores].index(c[0]))
    by_place = {(s.model, s.task, s.metric): s for s in report.scores}
    rows = [(m, [by_place.get((m.label, *c)) for c in columns], {x.key: x for x in m.measures if x.table == "quality"}) for m in report.models]
    return columns, rows


def costs(report: Report, name: str) -> tuple[dict[str, str], list[tuple]]:
    """A table of measures: (labels of its columns by key, (model, its measures by key) of each row that has one)."""
    rows = [(m, {x.key: x for x in m.measures if x.table == name}) for m in report.models]
    richest = sorted(rows, key=lambda row: -len(row[1]))  # columns as the model that has most tells them, then what others have beside
    return {x.key: x.label for _, own in richest for x in own.values()}, [row for row in rows if row[1]]


def said(report: Report) -> list[tuple[str, list[str]]]:
    """What costs are reckoned with, and what is not known: each sentence once, with the models that it is of (none: of all)."""
    every = [m for m in report.models if m.assumptions]
    out: dict[str, list[str]] = {}
    for model in every:
        for text in (*model.assumptions, *(f"not known, or none: {why}" for why in model.unknown)):
            out.setdefault(text, []).append(model.label)
    return [(text, [] if len(labels) == len(every) else labels) for text, labels in out.items()]


def origins(steps: tuple[Step, ...]) -> list[tuple]:
    """What came from outside: (uri, type, revision, digest, bytes, the steps that it went into), each once."""
    found: dict[tuple, list[str]] = {}
    for step in steps:
        for given in step.inputs:
            if given.step is None:
                users = found.setdefault((given.uri, given.type, given.revision, given.digest, given.bytes), [])
                users += [] if step.name in users else [step.name]
    return [(*key, tuple(users)) for key, users in found.items()]


def same(steps: tuple[Step, ...]) -> dict[str, list[tuple[str, list[str]]]]:
    """What steps ran on, each once with the steps that did: machine, slmkit, packages."""
    out: dict[str, list[tuple[str, list[str]]]] = {}
    here = [s for s in steps if not s.gone]
    told = {
        "machine": lambda s: s.machine, "slmkit": lambda s: s.slmkit and f"{s.slmkit}{f', commit {s.commit}' if s.commit else ''}",
        "packages": lambda s: ", ".join(f"{k} {v}" for k, v in s.packages.items()),
    }
    for key, of in told.items():
        by_text: dict[str, list[str]] = {}
        for step in here:
            if of(step):
                by_text.setdefault(of(step), []).append(step.name)
        out[key] = list(by_text.items())
    return out
