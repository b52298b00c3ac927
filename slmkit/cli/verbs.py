"""The verbs that build: `run`, `plan`, and one per step kind. Each is load → plan → run.

Options are the same everywhere: --set edits the recipe, --from gives an input, --store says where, --json asks for one object.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from slmkit.cli import flags
from slmkit.cli.given import load_and_plan
from slmkit.errors import CheckFailed, Stopped, UsageError
from slmkit.steps import _registry

RecipeArg = Annotated[str, typer.Argument(metavar="RECIPE", show_default=False, help="The recipe's YAML file.")]
KindArg = Annotated[str, typer.Argument(metavar="RECIPE|INPUT", show_default=False, help="The recipe's YAML file, or what the step begins with.")]
StepArg = Annotated[str | None, typer.Argument(metavar="STEP", help="Which step, where the recipe has several.")]
StepOpt = Annotated[str | None, typer.Option("--step", metavar="STEP", help="The same as STEP.")]
SetOpt = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Change a key: --set steps.sft.lora.r=8. May be repeated.")]
FromOpt = Annotated[
    list[str] | None, typer.Option("--from", metavar="ROLE=REF", help="Give an input: a path, recipe/step, artifact:…, hf:…, or - for stdin.")
]
FieldOpt = Annotated[list[str] | None, typer.Option("--field", hidden=True)]  # what flags.fold makes of the kind's own flags
StoreOpt = Annotated[Path, typer.Option("--store", envvar="SLMKIT_STORE", metavar="DIR", help="Where artifacts lie.")]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a line.")]
QuietOpt = Annotated[bool, typer.Option("-q", "--quiet", help="Errors only.")]
VerboseOpt = Annotated[bool, typer.Option("-v", "--verbose", help="Show what is logged, too.")]
LockedOpt = Annotated[
    bool | None, typer.Option("--locked/--no-locked", help="Refuse hub names that are not in the lock file. [default: on under CI]")
]
NoWaitOpt = Annotated[bool, typer.Option("--no-wait", help="Exit 75 instead of waiting when another process builds the same.")]
STORE = Path("artifacts")


class Loud(NamedTuple):
    """How much is told: -q and -v."""

    quiet: bool
    verbose: bool


def one_step(step: str | None, option: str | None) -> str | None:
    """The step that was asked for, after the recipe or with --step."""
    if None not in (step, option) and step != option:
        raise UsageError(f"`{step}` names one step and --step {option} another", mend="leave one of them out")
    return option if step is None else step


def kind_help(name: str) -> str:
    """Help of a kind's verb: examples first, then the kind's own docstring."""
    first, _, rest = _registry.doc(name).partition("\n")
    blocks = [b for b in rest.strip("\n").split("\n\n") if b.strip()]
    examples = [f"\b\n{b}" for b in blocks if b.startswith("  ")] or [f"\b\n  slmkit {name} recipe.yaml"]
    return "\n\n".join([first, *examples, *(b for b in blocks if not b.startswith("  ")), flags.listed(name)])


def kind_verb(kind: str):
    """The command function of a step kind."""

    def verb(
        recipe: KindArg, step: StepArg = None, step_: StepOpt = None, set_: SetOpt = None, from_: FromOpt = None, field: FieldOpt = None,
        store: StoreOpt = STORE, json: JsonOpt = False, quiet: QuietOpt = False, verbose: VerboseOpt = False, locked: LockedOpt = None,
        no_wait: NoWaitOpt = False,
    ) -> None:  # fmt: skip
        _build(recipe, kind, one_step(step, step_), set_, from_, store, json, Loud(quiet, verbose), locked, no_wait, field or [])

    verb.__name__ = kind
    return verb


def run(
    recipe: RecipeArg, step: Annotated[str | None, typer.Argument(metavar="STEP", help="Run only what this step needs.")] = None,
    step_: StepOpt = None, set_: SetOpt = None, from_: FromOpt = None, store: StoreOpt = STORE, json: JsonOpt = False, quiet: QuietOpt = False,
    verbose: VerboseOpt = False, locked: LockedOpt = None, no_wait: NoWaitOpt = False,
) -> None:
    """Run a recipe: all its steps, or what one step needs; finished ones are not done again.

    \b
      slmkit run recipe.yaml
      slmkit run recipe.yaml --set steps.sft.learning_rate=1e-4
      slmkit run recipe.yaml int4 --json | jq .result
    """
    _build(recipe, None, one_step(step, step_), set_, from_, store, json, Loud(quiet, verbose), locked, no_wait)


def plan(
    recipe: RecipeArg, step: Annotated[str | None, typer.Argument(metavar="STEP", help="Plan only what this step needs.")] = None,
    step_: StepOpt = None, set_: SetOpt = None, from_: FromOpt = None, store: StoreOpt = STORE, json: JsonOpt = False, locked: LockedOpt = None,
) -> None:
    """Say for every step what would happen and why: cached, build, resume, stale or blocked. Changes nothing.

    \b
      slmkit plan recipe.yaml
      slmkit plan recipe.yaml --set steps.sft.lora.r=8 --json | jq '.steps[] | {name, action, why}'
    """
    from slmkit.cli import out

    made, _store, _lock = load_and_plan(recipe, None, one_step(step, step_), set_, from_, store, locked)
    if json:
        import json as js

        return out.show(js.dumps({"recipe": made.recipe.name, "steps": [_row(r) for r in made.rows]}, ensure_ascii=False))
    out.show(_table(made))


def _row(row) -> dict:
    given = [{"role": i.role, "name": i.name, "type": i.type, "uri": i.uri, "step": i.step, "chosen": i.filled}
             | ({"witness": True} if i.witness else {}) | ({"format": i.format} if i.format else {}) for i in row.inputs]
    return {
        "name": row.name, "kind": row.kind.name, "action": row.action, "why": list(row.why), "fingerprint": row.fingerprint,
        "gives": row.gives, "inputs": given, "config": row.payload["config"], "estimate": row.estimate,
    }


def _table(made) -> str:
    from slmkit.steps._estimate import shown

    lines = [f"{made.recipe.name}: {sum(r.action == 'cached' for r in made.rows)} of {len(made.rows)} steps are done"]
    wide = max(len(r.name) for r in made.rows)
    kinds = max(len(r.kind.name) for r in made.rows)
    for row in made.rows:
        given = ", ".join(f"{i.role}={i.name if i.step or i.form else i.uri}{_noted(i)}" for i in row.inputs if not i.witness)
        needs = f"  ({shown(row.estimate)})" if row.estimate and row.action != "cached" else ""
        why = f"  {'; '.join(row.why)}" if row.why else ""
        lines.append(f"  {row.name:<{wide}}  {row.kind.name:<{kinds}}  {row.action:<7} {row.fingerprint[:12]}{why}")
        lines.append(f"  {'':<{wide}}    {given}{needs}")
        if row.action != "cached":
            lines += [f"  {'':<{wide}}    {said}" for sentences in row.estimate.values() if isinstance(sentences, list) for said in sentences]
    return "\n".join(lines)


def _noted(given) -> str:
    said = [*([given.uri] if given.form and not given.step else []), *([given.format] if given.format else []), *(["chosen"] if given.filled else [])]
    return f" ({', '.join(said)})" if said else ""


def _build(*asked) -> None:
    """Build, unless this is one of several processes that were started together: then the first builds, and the others help it."""
    from slmkit.steps import _world

    me = _world.member()
    if me and me.rank:
        raise typer.Exit(_world.follow(me))
    with _world.leading(me):
        _work(*asked)


def _work(recipe, kind, step, set_, from_, store, json, loud: Loud, locked, no_wait, fields=()) -> None:
    from slmkit.cli.out import Stdout, Terminal

    stdout = Stdout()
    quiet_libraries()
    made, home, lock = load_and_plan(recipe, kind, step, set_, from_, store, locked, fields)
    screen = Terminal(loud.quiet, loud.verbose)
    if lock.save():
        screen.say(f"wrote {lock.path}")
    from slmkit.engine import Engine

    started = time.monotonic()
    engine = Engine(made, home, screen, wait=not no_wait, argv=tuple(sys.argv))
    try:
        engine.run()
    except CheckFailed:  # the scores are there and whole: --json tells them, the exit code says no
        if json:
            stdout.object(summary(engine.outcomes[-1], engine.outcomes, time.monotonic() - started))
        raise
    except Stopped:
        screen.say("interrupted; the same command goes on from here")
        raise
    last = next(o for o in engine.outcomes if o.row.name == made.target)
    if json:
        stdout.object(summary(last, engine.outcomes, time.monotonic() - started))
    else:
        stdout.line(str(last.artifact.path))


QUIET_LIBRARIES = {
    "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}


def quiet_libraries() -> None:
    """Settings that libraries read at import: no telemetry, no bars, no advice on the screen."""
    for name, value in QUIET_LIBRARIES.items():
        os.environ.setdefault(name, value)


def summary(last, outcomes, seconds: float) -> dict:
    def one(o) -> dict:
        return {"path": str(o.artifact.path), "fingerprint": o.artifact.fingerprint, "digest": o.artifact.digest, "cached": o.cached,
                "result": o.artifact.manifest["result"], "seconds": round(o.seconds, 3)}

    return one(last) | {"seconds": round(seconds, 3), "steps": [{"name": o.row.name, "kind": o.row.kind.name, **one(o)} for o in outcomes]}


COMMANDS = {"run": run, "plan": plan}
