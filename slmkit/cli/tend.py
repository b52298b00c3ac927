"""The verbs that tend: lock, pin, gc, init, doctor, quickstart."""

from __future__ import annotations

import json as js
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from slmkit.cli import out
from slmkit.cli.verbs import STORE, JsonOpt, QuietOpt, RecipeArg, SetOpt, StoreOpt
from slmkit.errors import UsageError


def lock(
    recipe: RecipeArg, set_: SetOpt = None, store: StoreOpt = STORE,
    refresh: Annotated[bool, typer.Option("--refresh", help="Resolve every name anew.")] = False,
) -> None:
    """Resolve the recipe's hub names to commits and write RECIPE.lock.json beside it.

    \b
      slmkit lock recipe.yaml
      slmkit lock recipe.yaml --refresh        take today's commits
    """
    from slmkit import plan
    from slmkit.artifact.store import Store
    from slmkit.recipe.load import load
    from slmkit.recipe.lock import Lock

    loaded = load(Path(recipe), set_ or [])
    held = Lock(loaded.lock_path, frozen=False, refresh=refresh)
    plan.make(loaded, Store(store), held)  # planning asks for every name, those below plain adapters too
    held.save(always=True)
    out.show("\n".join([str(held.path), *(f"  {name}  {commit}" for name, commit in sorted(held.known.items()))]))


def pin(
    ref: Annotated[str, typer.Argument(metavar="REF", show_default=False, help="What is kept: a path, recipe/step, or the start of a fingerprint.")],
    name: Annotated[str | None, typer.Argument(metavar="GROUP/NAME", show_default=False, help="The name it gets in the store's refs.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the name REF away instead; the artifact stays until `slmkit gc`.")] = False,
    store: StoreOpt = STORE,
) -> None:
    """Keep an artifact under a name of its own, as a baseline say: gc leaves it, and no run moves the name.

    \b
      slmkit pin banking/score banking/prod
      slmkit gate banking/score --against banking/prod
      slmkit pin --remove banking/prod
    """
    from slmkit.artifact.store import Store

    home = Store(store)
    if remove:
        if name is not None:
            raise UsageError("--remove takes one name", mend="slmkit pin --remove GROUP/NAME")
        home.unpin(ref.removeprefix("refs/"))
        return print(f"{ref} is no name any more", file=sys.stderr)
    if name is None:
        raise UsageError("under which name?", mend="slmkit pin REF GROUP/NAME, for example banking/prod")
    out.show(str(home.pin(name.removeprefix("refs/"), home.resolve(ref))))


def gc(
    store: StoreOpt = STORE, json: JsonOpt = False,
    delete: Annotated[bool, typer.Option("--delete", help="Remove them. Without it they are only listed.")] = False,
    days: Annotated[float, typer.Option("--days", min=0, help="Keep unfinished work touched within this many days.")] = 7.0,
) -> None:
    """List, or with --delete remove, artifacts that no name reaches and work that nobody goes on with.

    \b
      slmkit gc
      slmkit gc --delete
    """
    from slmkit.artifact import gc as collector
    from slmkit.artifact.store import Store

    home = Store(store)
    garbage = collector.find(home, days, out.warn)
    if delete:
        collector.remove(home, garbage)
    if json:
        rows = [{"path": str(g.path), "why": g.why, "bytes": g.bytes} for g in garbage]
        return out.show(js.dumps({"deleted": delete, "bytes": sum(g.bytes for g in garbage), "garbage": rows}))
    lines = [f"{g.path}  {g.bytes:,} bytes  ({g.why})" for g in garbage]
    done = "removed" if delete else "could go; --delete removes them"
    out.show("\n".join([*lines, f"{len(garbage)} folders, {sum(g.bytes for g in garbage):,} bytes {done}"]))


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")] = Path("my-task"),
    ci: Annotated[str | None, typer.Option("--ci", metavar="github", help="Also write a workflow that runs the recipe and gates it.")] = None,
    quiet: QuietOpt = False,
) -> None:
    """Write a recipe with its data and task to start from: a whole project that runs as it stands.

    \b
      slmkit init my-task && slmkit run my-task/recipe.yaml
      slmkit init my-task --ci github
      slmkit init . --ci github                a workflow for the recipe.yaml that is there
    """
    from slmkit.demo import project

    if ci not in (None, "github"):
        raise UsageError(f"--ci {ci}: a workflow is known for github alone", mend="--ci github; another server runs the same commands")
    if ci and (folder / "recipe.yaml").is_file():
        from slmkit.cli import ci as workflows

        return out.show(str(workflows.write(folder)))
    path = project.write(folder)
    if ci:
        from slmkit.cli import ci as workflows

        made = workflows.write(folder)
        if not quiet:
            print(f"wrote {made}; it runs when {folder} is the root of a repository", file=sys.stderr)
    if not quiet:
        print(f"edit {path}, then: slmkit plan {path}", file=sys.stderr)
    out.show(str(path))


def doctor(
    store: StoreOpt = STORE, json: JsonOpt = False, online: Annotated[bool, typer.Option("--online", help="Also try to reach the hub.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Also train the embedded model a little: does what must hold, hold here?")] = False,
) -> None:
    """Say what this machine can do, a line each with the mend. Exit 4 when the core chain cannot run here.

    \b
      slmkit doctor
      slmkit doctor --deep                     a minute more: packing, accumulation, seeds, resume, two processes
      slmkit doctor --json | jq '.rows[] | select(.ok | not)'
    """
    from slmkit.cli import doctor as checks

    raise typer.Exit(checks.run(store, online, json, deep))


def quickstart(
    out_: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the project is written and run.")] = Path("quickstart"),
    json: JsonOpt = False, quiet: QuietOpt = False,
) -> None:
    """Run the whole chain on the embedded default, offline, on a CPU: distill, train, merge, quantize, evaluate, and show the figures.

    \b
      slmkit quickstart
      slmkit quickstart --out /tmp/demo
    """
    from slmkit.cli import table, verbs
    from slmkit.demo import project

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ[name] = "1"
    recipe = project.write(out_, keep=True)
    if not recipe.is_file():
        raise UsageError("the quickstart's recipe could not be written", where=recipe)
    table.build_and_show(verbs, recipe, out_ / "artifacts", json, quiet)


COMMANDS = {"lock": lock, "pin": pin, "gc": gc, "init": init, "doctor": doctor, "quickstart": quickstart}
