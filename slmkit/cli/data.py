"""The verb `data`: an x-ray of the data that a recipe's steps train on, on the screen, as JSON, or as a page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from slmkit.cli import out
from slmkit.cli.given import load_and_plan
from slmkit.cli.verbs import STORE, FromOpt, JsonOpt, LockedOpt, RecipeArg, SetOpt, StepOpt, StoreOpt, one_step, quiet_libraries
from slmkit.errors import CannotRun, CheckFailed, StoreError, UsageError

HtmlOpt = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page that needs nothing else, and print its path.")]


def data(
    recipe: RecipeArg, step: Annotated[str | None, typer.Argument(metavar="STEP", help="Only this step's data.")] = None,
    step_: StepOpt = None, set_: SetOpt = None, from_: FromOpt = None, store: StoreOpt = STORE, json: JsonOpt = False, html: HtmlOpt = None,
    locked: LockedOpt = None,
) -> None:
    """Look at training data before anything is trained: tokens, copies, leaks, personal data, and what is learned of a row.

    \b
      slmkit data recipe.yaml
      slmkit data recipe.yaml sft --html data.html     (or --step sft)
      slmkit data recipe.yaml --json | jq '.steps.sft.findings'

    Loads the tokenizer and no weights. Exit 3 when something is found that would stop the training.
    """
    stdout = out.Stdout()  # a library that prints must not spoil the report
    quiet_libraries()
    step = one_step(step, step_)
    made, home, lock = load_and_plan(recipe, None, step, set_, from_, store, locked)
    lock.save()
    steps = {row.name: _examined(row, made, home) for row in _rows(made, step)}
    if html:
        _write(html, made.recipe.name, steps)
    if json:
        stdout.object({"recipe": made.recipe.name, "steps": steps})
    elif html:
        stdout.line(str(html))
    else:
        _print(stdout, steps)
    failed = [(name, f) for name, facts in steps.items() for f in facts["findings"] if f["level"] == "error"]
    if failed:
        from slmkit.data.xray import MENDS

        what, mends = "; ".join(f"{name}: {f['what']}" for name, f in failed), dict.fromkeys(MENDS[f["kind"]] for _, f in failed)
        raise CheckFailed(what, where=recipe, mend=f"{'; '.join(mends)}; or allow it (`execution.allow`)")


def _rows(made, step: str | None) -> list:
    """The plan's rows whose kind can examine its data."""
    rows = [r for r in made.rows if r.kind.hook("examine") and step in (None, r.name)]
    if not rows:
        have = [r.name for r in made.rows if r.kind.hook("examine")]
        what = f"`{step}` trains on no data" if step else "no step of this recipe trains on data"
        raise UsageError(what, where=made.recipe.path.name, mend=f"name one of: {', '.join(have)}" if have else "add a step of kind train")
    return rows


def _examined(row, made, home) -> dict:
    from slmkit import inputs

    done = {r.name: a for r in made.rows if (a := home.find(r.kind.name, r.fingerprint))}
    for planned in row.inputs:
        if planned.step and planned.step not in done:
            mend = f"build it first: slmkit run {_shown(made.recipe.path)} {planned.step}"
            raise CannotRun(f"{row.name}: its `{planned.role}` is made by the step `{planned.step}`, which has not run", mend=mend)
    ready = [inputs.given(planned, home, done, weights=False) for planned in row.inputs]
    return row.kind.hook("examine")(inputs.by_role(row.kind, ready), row.config, row.execution)


def _shown(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _write(path: Path, recipe: str, steps: dict) -> None:
    from slmkit.data import report

    try:
        path.write_text(report.html(recipe, steps), encoding="utf-8")
    except OSError as e:
        raise StoreError(f"cannot write the page: {e.strerror}", where=path) from None


def _print(stdout: out.Stdout, steps: dict) -> None:
    """Colours on a terminal that has them; else plain text, with trained tokens in brackets."""
    from slmkit.data import report

    plain = not os.isatty(stdout.fd) or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if plain and not os.environ.get("FORCE_COLOR"):
        for name, facts in steps.items():
            stdout.line(report.plain(report.lines(name, facts, brackets=True)))
        return
    from rich.console import Console
    from rich.text import Text

    with os.fdopen(os.dup(stdout.fd), "w", encoding="utf-8", errors="replace") as stream:
        console = Console(file=stream, force_terminal=True)
        for name, facts in steps.items():
            for line in report.lines(name, facts, brackets=False):
                parts = [(text, report.STYLES.get(style, "")) for text, style in line]
                console.print(Text.assemble(*parts), soft_wrap=True)


COMMANDS = {"data": data}
