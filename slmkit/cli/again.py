"""The verbs that make evidence run again: `verify --rebuild`, and `reproduce`."""

from __future__ import annotations

import json as js
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from slmkit.cli.look import RefArg
from slmkit.cli.verbs import STORE, JsonOpt, StoreOpt
from slmkit.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from slmkit.artifact.manifest import Artifact
    from slmkit.artifact.store import Store
    from slmkit.rebuild.drift import Step


class How(NamedTuple):
    """What the command line says of a rebuild."""

    deep: bool
    keep: Path | None
    json: bool
    quiet: bool


def verify(artifact: Artifact, home: Store, faults: list[str], how: How) -> None:
    """Build an artifact again and say how it came out. Raises CheckFailed (different), CannotRun (not possible here)."""
    from slmkit.cli.out import Stdout, Terminal
    from slmkit.cli.verbs import quiet_libraries
    from slmkit.rebuild import chain, drift

    stdout, screen, started = Stdout(), Terminal(how.quiet), time.monotonic()
    quiet_libraries()
    links = chain.chain(artifact, home, how.deep)
    steps = []
    with chain.scratch(how.keep, links) as place:
        screen.say(f"building {len(links)} of {len(links)} steps again in {place.root}" if how.deep else f"building it again in {place.root}")
        for step in chain.rebuild(links, home, place, screen):
            steps.append(step)
            screen.say("\n".join(step.story()))
    verdict = _all(steps)
    first = next((said for s in steps if (said := s.first_drift())), None)
    ok = verdict != drift.DIFFERENT and not faults
    if how.json:
        stdout.object({
            "path": str(artifact.path), "ok": ok, "faults": faults, "verdict": verdict, "first_drift": first,
            "steps": [s.record() for s in steps], "seconds": round(time.monotonic() - started, 3), "kept": str(how.keep) if how.keep else None,
        })  # fmt: skip
    if not ok:
        what = "; ".join([*faults, *([f"rebuilt, and {verdict}; it first drifted at {first}"] if verdict == drift.DIFFERENT else [])])
        raise CheckFailed(what, where=artifact.path, mend=None if how.keep else "`--keep DIR` leaves what was built there, to look at")
    if not how.json:
        many = f"all {len(steps)} steps of its chain rebuilt" if how.deep else "rebuilt"
        stdout.line(f"{artifact.path}: {many}, {verdict}")


def _all(steps: list[Step]) -> str:
    """The verdict on a chain: that of its worst step, else of its last. What a teacher answered is not judged."""
    from slmkit.rebuild.drift import DIFFERENT, WITHIN

    return next((v for v in (DIFFERENT, WITHIN) if v in {s.verdict for s in steps}), steps[-1].verdict)


def reproduce(
    ref: RefArg, store: StoreOpt = STORE,
    env: Annotated[bool, typer.Option("--env", help="Write a folder with all that recreates the environment and builds it there.")] = False,
    out_: Annotated[Path | None, typer.Option("-o", "--out", metavar="DIR", help="With --env: the folder. [default: reproduce-NAME]")] = None,
    json: JsonOpt = False,
) -> None:
    """Say what it takes to make an artifact again elsewhere; with --env, write it: packages, recipe, hashes of inputs, and a script that compares.

    \b
      slmkit reproduce banking/int4                    the commands
      slmkit reproduce banking/int4 --env -o again     a folder: requirements.txt, recipe.yaml, environment.json, …
      again/reproduce                                  a fresh environment, the whole chain, and the recorded digests
    """
    from slmkit.artifact.store import Store
    from slmkit.cli import out
    from slmkit.rebuild import bundle, chain

    if out_ is not None and not env:
        raise UsageError("--out says where --env writes", mend="slmkit reproduce REF --env -o DIR")
    home = Store(store)
    artifact = home.resolve(ref)
    made = bundle.of(chain.upstream(artifact, home), home)
    if not env:
        return out.show(js.dumps(made.facts, ensure_ascii=False) if json else made.commands())
    folder = made.write(out_ or Path(f"reproduce-{artifact.name}"))
    for line in made.told:
        print(line, file=sys.stderr)
    out.show(js.dumps(made.facts | {"path": str(folder)}, ensure_ascii=False) if json else str(folder))


COMMANDS = {"reproduce": reproduce}
