"""The verb `compare`: models on the same questions, difference by difference."""

from __future__ import annotations

import json as js
from typing import Annotated

import typer

from slmkit.cli import out
from slmkit.cli.verbs import STORE, JsonOpt, StoreOpt
from slmkit.errors import UsageError

RefsArg = Annotated[
    list[str], typer.Argument(metavar="REF[:MODEL]…", show_default=False, help="Evals, or models in evals. The others are held against the first.")
]


def compare(
    refs: RefsArg,
    task: Annotated[str | None, typer.Option("--task", metavar="TASK", help="Only this task.")] = None,
    metric: Annotated[str | None, typer.Option("--metric", metavar="METRIC", help="Only this metric.")] = None,
    show: Annotated[int, typer.Option("--show", min=0, metavar="N", help="How many answers that turned are shown, each way.")] = 3,
    store: StoreOpt = STORE, json: JsonOpt = False,
) -> None:  # fmt: skip
    """Compare models on the same questions: the differences, how sure they are, and the answers that turned.

    \b
      slmkit compare banking/score                                  all its models against its first
      slmkit compare score:tuned score:int4 --metric exact_match
      slmkit compare refs/banking/prod banking/score                each model against the one of the same name
      slmkit compare score --json | jq '.rows[] | select(.corrected < 0.05)'

    Paired by question; other questions are an error that says which. p is of no difference, and (Holm) corrected for all the rows that are shown.
    """  # fmt: skip
    from slmkit.cli import evals
    from slmkit.evidence import paired, report

    found = [evals.find(store, text) for text in refs]
    evidence, pairs, notes = _pairs(found)
    rows = paired.compare(evidence, pairs, task, metric, show)
    notes += paired.differing_settings(evidence, pairs)
    if json:
        return out.show(js.dumps({"rows": [r.figures() for r in rows], "notes": notes}, ensure_ascii=False))
    out.show("\n".join([*(f"note: {n}" for n in notes), *report.comparison(rows)]))


def _pairs(found: list) -> tuple:
    """The evidence of all evals in one, the pairs of models, and what else differed."""
    from slmkit.cli import evals
    from slmkit.evidence import samples

    several = len({n.artifact.path for n in found}) > 1
    read = {}
    for named in found:
        read.setdefault(named.artifact.path, (f"{named.text}:" if several else "", evals.evidence(named)))
    evidence = samples.together([own for _, own in read.values()], [prefix for prefix, _ in read.values()])
    sides = [[(prefix + m, m) for m in own.scores if named.model in (m, None)] for named in found for prefix, own in [read[named.artifact.path]]]
    notes = [note for named in found[1:] if named.artifact.path != found[0].artifact.path for note in evals.other_ground(found[0], named)]
    first, *rest = sides
    if not rest:
        if len(first) < 2:
            raise UsageError(f"{found[0].text} has one model, and there is nothing to compare it with", mend="name another: slmkit compare REF REF")
        first, rest = first[:1], [first[1:]]
    return evidence, [pair for side in rest for pair in _across(first, side)], list(dict.fromkeys(notes))


def _across(first: list, side: list) -> list[tuple[str, str]]:
    """One model against all of a side; several against those of the same name."""
    if len(first) == 1:
        pairs = [(first[0][0], label) for label, _ in side if label != first[0][0]]
    else:
        names = {own: label for label, own in first}
        pairs = [(names[own], label) for label, own in side if own in names and names[own] != label]
    if not pairs:
        here, there = (", ".join(own for _, own in s) for s in (first, side))
        raise UsageError(f"no two models to compare: {here}, and {there}", mend="say which: slmkit compare REF:MODEL REF:MODEL")
    return pairs


COMMANDS = {"compare": compare}
