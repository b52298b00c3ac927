"""Builds an artifact, or its whole chain, again from its manifests in a scratch store, by the engine that built it, and compares step by step.

The user's store is only read. Teachers' answers come from a copy of its ledgers, and nobody is asked: an answer that is not there ends the rebuild.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slmkit import inputs
from slmkit.artifact.manifest import FOLDER, Artifact
from slmkit.artifact.store import Store
from slmkit.engine import Engine, Screen
from slmkit.errors import CannotRun, CheckFailed, InputChanged, SlmkitError, StoreError, UsageError
from slmkit.plan import Plan, Row
from slmkit.rebuild import drift, recorded
from slmkit.rebuild.drift import Step
from slmkit.rebuild.recorded import Problem
from slmkit.recipe.model import Recipe
from slmkit.steps._step import NAME

ROOM = 2.5  # times the bytes of what is built: an artifact, its checkpoints, and what is half written


@dataclass(frozen=True)
class Link:
    """One artifact of the chain, and the row that asks for it again."""

    artifact: Artifact
    row: Row


def chain(target: Artifact, store: Store, deep: bool) -> list[Link]:
    """The artifacts to build again, the root first: the target alone, or with all that was made for it. Raises CannotRun that names every
    input that is gone or changed."""
    links: list[Link] = []
    problems: list[Problem] = []
    for name, artifact in upstream(target, store).items() if deep else [(target.name, target)]:
        row, wrong = recorded.row(artifact, name, store, {link.artifact.fingerprint: link.row for link in links})
        problems += wrong
        if row is None and not any(p.input for p in wrong):
            break  # what follows would only miss this one
        if row is not None:
            links.append(Link(artifact, row))
    if problems:
        raise CannotRun("; ".join(f"{p.step} cannot be built again here: {p.what}" for p in problems), where=target.path,
                        mend="put back what is gone or changed, as it was; `slmkit reproduce REF` lists all that is needed")  # fmt: skip
    return links


def upstream(target: Artifact, store: Store) -> dict[str, Artifact]:
    """The target and every artifact it was made of, by a name of its own, each once and after its inputs. Raises CannotRun where one is gone."""
    out: dict[str, Artifact] = {}

    def add(artifact: Artifact) -> None:
        if artifact.fingerprint in out:
            return
        for said in artifact.manifest["inputs"]:
            known = said.get("fingerprint")
            below = recorded.lookup(store, artifact, known) if known else None
            if known and below is None and not said.get("witness"):
                what = f"its input `{said['role']}` ({said['uri']}) is not in the store any more"
                raise CannotRun(f"{artifact.name} cannot be built again here: {what}", where=artifact.path, mend="bring that artifact back")
            if below is not None:
                add(below)
        out[artifact.fingerprint] = artifact

    add(target)
    named: dict[str, Artifact] = {}
    for artifact in out.values():
        named[artifact.name if artifact.name not in named else artifact.path.name] = artifact
    return named


@contextlib.contextmanager
def scratch(keep: Path | None, links: list[Link]) -> Iterator[Store]:
    """A store to build in, removed afterwards unless it is kept. It lies in TMPDIR, never in the user's store. Raises CannotRun without room."""
    if keep is not None and keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise UsageError(f"--keep {keep}: something is there already", mend="name a folder that is new or empty")
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    home = Path(keep) if keep is not None else Path(tempfile.mkdtemp(prefix="slmkit-rebuild-"))
    try:
        wanted = int(ROOM * sum(link.artifact.manifest["outputs"]["bytes"] for link in links))
        free = shutil.disk_usage(home).free
        if free < wanted:
            what = f"building {len(links)} artifacts again takes about {wanted / 1e9:.2f} GB, and {home} has {free / 1e9:.2f} GB free"
            raise CannotRun(what, mend="TMPDIR=DIR or --keep DIR, on a disk with more room")
        yield Store(home / "store")
    finally:
        if keep is None:
            shutil.rmtree(home, ignore_errors=True)


def rebuild(links: list[Link], home: Store, place: Store, screen: Screen) -> Iterator[Step]:
    """Build every link in `place` and say how it came out, one after another. Raises SlmkitError where it cannot be built here."""
    _threads(links)
    kept = ledgers(home, links[-1].artifact)
    if kept and any(link.row.kind.hook("forecast") or recorded.asks(link.row.config) for link in links):
        shutil.copytree(kept, place.ledgers)
    made: dict[str, Artifact] = {}
    done: dict[str, Step] = {}
    for link in links:
        _possible(link)
        _not_asking(link, place)
        artifact = _built(link, place, made, screen)
        step = done[link.artifact.fingerprint] = drift.compare(link.artifact, artifact, link.row, done)
        yield step


def ledgers(home: Store, target: Artifact) -> Path | None:
    """The teachers' answers: of the store, or of the one that the artifact itself lies in."""
    return next((p for p in (home.ledgers, Store(target.path.resolve().parent).ledgers) if p.is_dir()), None)


def _threads(links: list[Link]) -> None:
    """The thread count is part of what the bits depend on: as it was recorded, unless this process was told otherwise."""
    said = next((t for link in links if (t := link.artifact.manifest["environment"].get("threads"))), None)
    if said and "torch" not in sys.modules:
        os.environ.setdefault("OMP_NUM_THREADS", str(said))


def _possible(link: Link) -> None:
    """Raises CannotRun for what this machine lacks."""
    row, then = link.row, link.artifact.manifest
    blocked = row.kind.hook("blocked")
    if blocked and (reason := blocked(row.config, row.execution)):
        raise CannotRun(f"{row.name} cannot be built again here: {reason.replace(NAME, row.name)}", where=link.artifact.path)
    if then["determinism"]["claimed"] == "seeded" and then["environment"].get("gpus"):  # on a CPU the kinds of slmkit claim exact
        import torch

        if not torch.cuda.is_available():
            what = f"{row.name} was made on {then['environment']['gpus'][0]}, and there is no CUDA GPU here"
            raise CannotRun(what, where=link.artifact.path, mend="rebuild it on a machine with one (`slmkit doctor` says what this one has)")


def _not_asking(link: Link, place: Store) -> None:
    """Raises CannotRun where a teacher behind an endpoint would have to be asked: a rebuild pays nobody."""
    forecast, row = link.row.kind.hook("forecast"), link.row
    if forecast is None or not recorded.asks(row.config):
        return
    state = place.work(row.kind.name, row.fingerprint) / "state"
    said = forecast(row.config, row.execution, inputs.by_role(row.kind, [inputs.seen(i) for i in row.inputs]), place.ledgers, state)
    if missing := said.get("calls", 0) + said.get("in_batches_under_way", 0):
        raise _unanswered(link, f"{missing} of {missing + said.get('answers_known', 0)} answers")


def _unanswered(link: Link, which: str) -> CannotRun:
    what = f"{link.row.name} cannot be built again here: {which} of its teacher are not in the store's ledger, and a rebuild asks (and pays) nobody"
    return CannotRun(what, where=link.artifact.path, mend="bring back the store's ledgers/; to ask anew, remove the artifact and run its recipe")


def _built(link: Link, place: Store, made: dict[str, Artifact], screen: Screen) -> Artifact:
    manifest, row = link.artifact.manifest, link.row
    kept = link.artifact.path / FOLDER / "recipe.yaml"
    raw = kept.read_bytes() if kept.is_file() else b""
    recipe = Recipe(manifest["recipe"], kept.absolute(), raw, {}, tuple(manifest.get("overrides", ())))
    engine = Engine(Plan(recipe, (row,), row.name), place, screen, argv=tuple(sys.argv), made=made)
    try:
        engine.run()
    except CheckFailed:  # it failed its own check before, too, or the comparison will say that it did not
        if row.name not in made:
            raise
    except (InputChanged, StoreError) as e:
        raise CannotRun(f"{row.name} cannot be built again here: {e.what}", where=e.where, mend=e.mend) from None
    except SlmkitError as e:
        if isinstance(e, CannotRun) and recorded.asks(row.config):
            raise _unanswered(link, "some answers") from e
        raise
    return made[row.name]
