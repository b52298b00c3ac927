"""The verb `gate`: verdicts over an eval that is there already, for a terminal, a build server, a pull request."""

from __future__ import annotations

import json as js
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from slmkit.cli import out
from slmkit.cli.verbs import STORE, JsonOpt, StoreOpt
from slmkit.errors import StoreError, UsageError

MARGIN = 0.02
RefArg = Annotated[
    str, typer.Argument(metavar="REF[:MODEL]", show_default=False, help="The eval: recipe/step, a step's name, a path, a fingerprint.")
]
AgainstOpt = Annotated[str | None, typer.Option("--against", metavar="REF[:MODEL]", help="An eval to hold it against; its models are against:MODEL.")]
ExpectOpt = Annotated[list[str] | None, typer.Option("--expect", metavar="'EXPR: BOUND'", help="A bound; beside those of the recipe. Repeatable.")]
MarginOpt = Annotated[
    float | None,
    typer.Option("--margin", min=0, help=f"With --against: what any score may lose. [default: {MARGIN} where no --expect names against:]"),
]
InconclusiveOpt = Annotated[
    str | None,
    typer.Option("--inconclusive", metavar="pass|fail", help="What becomes of a bound left undecided. [default: the recipe's, which is fail]"),
]


def gate(
    ref: RefArg, against: AgainstOpt = None, expect: ExpectOpt = None, margin: MarginOpt = None, inconclusive: InconclusiveOpt = None,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit's XML.")] = None,
    summary: Annotated[Path | None, typer.Option("--summary", metavar="FILE.md", help="Write a table in Markdown.")] = None,
    github: Annotated[bool, typer.Option("--github", help="Annotate the run on stderr, and add to the job's summary.")] = False,
    store: StoreOpt = STORE, json: JsonOpt = False,
) -> None:  # fmt: skip
    """Judge an eval: pass, fail, or inconclusive, each bound on what the questions can show. Exit 3 unless all hold.

    \b
      slmkit gate banking/score                                        the recipe's `expect`, judged anew
      slmkit gate banking/score --expect 'int4.banking.acc: >= 0.85'
      slmkit gate banking/score --against refs/banking/prod            no score may lose more than 2 points
      slmkit gate banking/score --against banking/prod --expect 'int4.banking.acc - against:int4.banking.acc: > 0'
      slmkit gate banking/score --github --summary gate.md --junit gate.xml

    Nothing is scored again. `slmkit pin banking/score banking/prod` keeps an eval as a baseline.
    """  # fmt: skip
    from slmkit.cli import evals
    from slmkit.evidence import judge, report

    if inconclusive not in (None, "pass", "fail"):
        raise UsageError(f"--inconclusive {inconclusive}: it is pass or fail", mend="leave it out for the recipe's own")
    if margin is not None and against is None:
        raise UsageError("--margin says what may be lost against another eval", mend="name it: --against REF")
    named = evals.find(store, ref)
    baseline = evals.find(store, against) if against else None
    config = named.artifact.manifest["config"]
    told = inconclusive or config.get("inconclusive", "fail")
    evidence, notes = _evidence(named, baseline)
    expected = _expected(config.get("expect", {}), expect or [], named, baseline, margin, evidence)
    judge.unknown_names([e for e in expected if e.text not in config.get("expect", {})], evidence)
    verdicts = [judge.judge(e, evidence) for e in expected]
    ok = all(v.holds(told) for v in verdicts)
    if junit:
        _write(junit, report.junit(named.text, verdicts, told))
    page = report.markdown(named.text, verdicts, told, against)
    if summary:
        _write(summary, page)
    if github:
        _annotate(report.github(verdicts, told), page)
    if json:
        rows = [{"expect": v.text, "verdict": v.verdict, "ok": v.holds(told), "detail": v.detail, **v.figures()} for v in verdicts]
        body = {"path": str(named.artifact.path), "against": str(baseline.artifact.path) if baseline else None, "ok": ok, "inconclusive": told}
        out.show(js.dumps(body | {"notes": notes, "verdicts": rows}, ensure_ascii=False))
    else:
        out.show("\n".join([*(f"note: {n}" for n in notes), *report.lines(verdicts), f"{named.text}: {report.told(verdicts)}"]))
    if not ok:
        raise typer.Exit(3)


def _evidence(named, baseline) -> tuple[Any, list[str]]:
    from slmkit.cli import evals
    from slmkit.evidence import samples
    from slmkit.steps._expect import AGAINST

    own = evals.evidence(named)
    if baseline is None:
        return own, []
    return samples.together([own, evals.evidence(baseline)], ["", AGAINST]), evals.other_ground(named, baseline)


def _expected(recipe: dict[str, str], given: list[str], named, baseline, margin: float | None, evidence) -> list:
    """The recipe's bounds with those given laid over them, and what may be lost against the baseline."""
    from slmkit.steps import _expect

    bounds = dict(recipe)
    for text in given:
        expression, colon, bound = text.rpartition(":")
        if not colon:
            raise UsageError(f"--expect {text}: not of the form 'EXPR: BOUND'", mend="for example --expect 'int4.notes.exact_match: >= 0.9'")
        bounds[expression.strip()] = bound.strip()
    names_it = any(_expect.AGAINST in text for text in bounds)
    if baseline is not None and (margin is not None or not names_it):
        bounds |= _no_worse(named, baseline, MARGIN if margin is None else margin, evidence)
    if named.model is not None:
        bounds = {text: bound for text, bound in bounds.items() if any(word.startswith(f"{named.model}.") for word in text.split())}
    if not bounds:
        raise UsageError(f"nothing is expected of {named.text}", mend="give `expect:` in the recipe, --expect 'EXPR: BOUND', or --against REF")
    if baseline is None and names_it:
        raise UsageError("a bound names `against:`, and there is nothing to hold it against", mend="name it: --against REF")
    try:
        return [_expect.parse(text, bound) for text, bound in bounds.items()]
    except ValueError as e:
        raise UsageError(str(e)) from None


def _no_worse(named, baseline, margin: float, evidence) -> dict[str, str]:
    """For each score that both have: it may not be lower by more than the margin. Metrics that are no shares are left to --expect."""
    from slmkit.evidence.paired import better_when_lower
    from slmkit.steps._expect import AGAINST

    own = [m for m in evidence.scores if not m.startswith(AGAINST) and named.model in (m, None)]
    theirs = [m for m in evidence.scores if m.startswith(AGAINST) and baseline.model in (m.removeprefix(AGAINST), None)]
    pairs = [(m, AGAINST + m) for m in own if AGAINST + m in theirs]
    if len(theirs) == 1 and (len(own) == 1 or not pairs):
        pairs = [(m, theirs[0]) for m in own]
    out = {}
    for model, other in pairs:
        for task, scores in evidence.scores[model].items():
            shares = [k for k, v in scores.items() if isinstance(v, int | float) and not k.endswith("_stderr") and not better_when_lower(k)]
            for metric in (k for k in shares if k in evidence.scores[other].get(task, {})):
                out[f"{model}.{task}.{metric} - {other}.{task}.{metric}"] = f">= {-margin:g}"
    if not out:
        mend = "name a model on each side (REF:MODEL), or the bounds: --expect 'M.TASK.METRIC - against:M.TASK.METRIC: >= -0.02'"
        raise UsageError(f"{named.text} and {baseline.text} have no score in common that could be lost", mend=mend)
    return out


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as e:
        raise StoreError(f"cannot write: {e.strerror}", where=path, mend="name another file") from None


def _annotate(lines: list[str], page: str) -> None:
    for line in lines:
        print(line, file=sys.stderr)
    place = os.environ.get("GITHUB_STEP_SUMMARY")
    if place:
        try:
            with open(place, "a", encoding="utf-8") as file:
                file.write(page + "\n")
        except OSError as e:
            raise StoreError(f"cannot add to the job's summary: {e.strerror}", where=place) from None


COMMANDS = {"gate": gate}
