"""Runs a Plan: locks, attempts, signals, events, publish. It names no kind and knows no torch.

For each row: hold its lock, look again whether it is done, make a fresh out/, hand the step its verified inputs, check that
nothing changed meanwhile, hash, write the manifest last, rename. Only this process publishes.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import slmkit
from slmkit import capture, inputs
from slmkit.artifact import card, digest, manifest, provenance
from slmkit.artifact.manifest import Artifact
from slmkit.artifact.store import Store, explain_os_error
from slmkit.errors import CannotRun, CheckFailed, Problem, RecipeError, SlmkitError, StepFailed, Stopped
from slmkit.events import Events, now
from slmkit.plan import Plan, Row, no_hit
from slmkit.recipe import located
from slmkit.recipe.located import Mark
from slmkit.steps._estimate import shown
from slmkit.steps._step import Context, Given, Result


class Screen(Protocol):
    """Where the story goes: stderr for people, nowhere in tests."""

    def say(self, text: str) -> None: ...
    def progress(self, step: str) -> Callable[..., None]: ...
    def done(self, step: str) -> None: ...
    def event(self, step: str, event: str, fields: dict) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What became of one row."""

    row: Row
    artifact: Artifact
    cached: bool
    seconds: float
    failed_checks: tuple[str, ...] = ()


@dataclass
class Engine:
    """One run of one plan in one store. `outcomes` grows row by row and stays readable after a failure."""

    plan: Plan
    store: Store
    screen: Screen
    wait: bool = True
    argv: tuple[str, ...] = ()
    outcomes: list[Outcome] = field(default_factory=list)
    made: dict[str, Artifact] = field(default_factory=dict)

    def run(self) -> list[Outcome]:
        """Run every row. Raises SlmkitError; KeyboardInterrupt passes through after the attempt is closed."""
        if all(self._hit(row) for row in self.plan.rows):
            return self._rows()
        try:
            with self.store.using([row.fingerprint for row in self.plan.rows]):
                return self._rows()
        except OSError as e:
            raise explain_os_error(e, self.store.root) or e from e

    def _rows(self) -> list[Outcome]:
        for row in self.plan.rows:
            started = time.monotonic()
            try:
                artifact, cached = self._row(row)
                self.store.name(self.plan.recipe.name, row.name, artifact)
            except OSError as e:
                raise explain_os_error(e, self.store.root) or e from e
            self.made[row.name] = artifact
            failed = tuple(c["detail"] for c in artifact.manifest["result"].get("checks", []) if not c["ok"])
            self.outcomes.append(Outcome(row, artifact, cached, time.monotonic() - started, failed))
            self.screen.say(f"{row.name}: {'already done' if cached else 'done'} in {artifact.path.name}" + _took(cached, started))
            if failed:  # what follows would build on what the recipe itself calls not good enough
                raise CheckFailed(f"{row.name}: " + "; ".join(failed), where=artifact.path)
        return self.outcomes

    def _row(self, row: Row) -> tuple[Artifact, bool]:
        hit = self._hit(row)
        if hit:
            return hit, True
        if row.action == "blocked":
            raise CannotRun(f"{row.name}: {row.why[0]}")
        self.store.root.mkdir(parents=True, exist_ok=True)
        with self.store.hold(row.kind.name, row.fingerprint, self.wait, self.screen.say) as work:
            hit = self._hit(row)  # another process may have built it while we waited
            if hit:
                shutil.rmtree(work, ignore_errors=True)
                return hit, True
            artifact = self._attempt(row, work)
            shutil.rmtree(work, ignore_errors=True)
            return artifact, False

    def _hit(self, row: Row) -> Artifact | None:
        found = self.store.find(row.kind.name, row.fingerprint)
        digests = {name: a.digest for name, a in self.made.items()}
        return found if found and not no_hit(found, row, digests) else None

    def _attempt(self, row: Row, work: Path) -> Artifact:
        number = 1 + max((int(p.name[8:]) for p in work.glob("attempt-*") if p.name[8:].isdigit()), default=0)
        attempt, state, out = work / f"attempt-{number}", work / "state", work / "out"
        resumed = state.is_dir() and any(state.iterdir())
        shutil.rmtree(out, ignore_errors=True)
        for folder in (attempt, state, out):
            folder.mkdir(exist_ok=True)
        events = Events(attempt / "events.jsonl")
        try:
            started, clock = now(), time.monotonic()
            given = self._given(row)
            resumed = resumed and not self._other_inputs(row, given, work, state)
            _remember(row, given, work)
            goes_on = f", going on from attempt {number - 1}" if resumed else ""
            self.screen.say(f"{row.name}: {row.kind.name} into {work.name}{goes_on}")
            if row.kind.hook("estimate") and not row.kind.hook("forecast"):  # which reads all prompts and a ledger
                self.screen.say(f"{row.name}: {shown(row.estimate)}")
            events("start", step=row.name, kind=row.kind.name, fingerprint=row.fingerprint, attempt=number, resumed=resumed)
            run = {"argv": list(self.argv), "started": started, "attempts": number, "resumed_from": number - 1 if resumed else None}
            with capture.to_log(attempt / "stderr.log"):
                result = self._call(row, given, out, state, events)
            for planned in row.inputs:
                if not planned.witness:  # it was only looked at, before the work began
                    planned.check_unchanged()
            run |= {"finished": now(), "seconds": round(time.monotonic() - clock, 3), "host": socket.gethostname()}
            events("finish", seconds=run["seconds"])
            self._seal(row, given, out, result, run, work)
            return self.store.publish(work, row.kind.name, row.fingerprint)
        except BaseException as e:
            failure = self._failure(row, attempt, e, events)
            if failure is e:
                raise
            raise failure from e
        finally:
            self.screen.done(row.name)
            events.close()

    def _other_inputs(self, row: Row, given: list[Given], work: Path, state: Path) -> bool:
        """Was the state of the attempt before made of other bytes (an input that was built anew and came out different)? Then it is no start."""
        before = work / CONSUMED
        if not before.is_file() or json.loads(before.read_text(encoding="utf-8")) == _consumed(row, given):
            return False
        self.screen.say(f"{row.name}: an input is not what the attempt before had: it starts anew")
        shutil.rmtree(state)
        state.mkdir()
        return True

    def _given(self, row: Row) -> list[Given]:
        return [inputs.given(planned, self.store, self.made) for planned in row.inputs]

    def _call(self, row: Row, given: list[Given], out: Path, state: Path, events: Events) -> Result:
        by_role = inputs.by_role(row.kind, given)

        def log(event: str, **fields: Any) -> None:
            events(event, **fields)
            self.screen.event(row.name, event, fields)

        context = Context(out, state, by_role, row.execution, log, self.screen.progress(row.name), _secret, row.name, self.store.ledgers)
        return row.kind.module.run(context, row.config)

    def _seal(self, row: Row, given: list[Given], out: Path, result: Result, run: dict, work: Path) -> None:
        """Card, copies of the recipe and logs, manifest last."""
        if result.card:
            card.write(out, result.card.metadata, result.card.text, row.fingerprint, slmkit.__version__)
        home = out / manifest.FOLDER
        home.mkdir(exist_ok=True)
        (home / "recipe.yaml").write_bytes(self.plan.recipe.raw)
        (home / "requirements.txt").write_text(provenance.requirements())
        for attempt in work.glob("attempt-*"):
            shutil.copytree(attempt, home / attempt.name, dirs_exist_ok=True)
        files = digest.listing(out)
        for name in digest.files_of(out).values():
            _sync(name)
        manifest.write(out, _manifest(self.plan, row, given, result, run, files))

    def _failure(self, row: Row, attempt: Path, error: BaseException, events: Events) -> BaseException:
        """Write failure.json and say the error in slmkit's terms. The attempt and its state stay for the next run."""
        stopped = isinstance(error, (KeyboardInterrupt, Stopped))  # another SystemExit is a library's way out, and a failure
        if isinstance(error, RecipeError):
            error.problems = [p if p.file or row.mark is None else _placed(row.mark, p) for p in error.problems]
        elif isinstance(error, SlmkitError) and error.key and row.mark is not None:
            error.where = error.where or row.mark.at(located.path(error.key)).place(f"--{error.key}")
        foreseen = error if isinstance(error, SlmkitError) or stopped else explain_os_error(error, self.store.root)
        log = attempt / "stderr.log"
        if foreseen is None:
            line = (str(error).strip().splitlines() or [""])[0][:300]
            foreseen = StepFailed(f"{row.name} failed: {type(error).__name__}: {line}", mend=f"the traceback is in {log}")
        try:
            record = foreseen.record() if isinstance(foreseen, SlmkitError) else {"error": type(error).__name__, "what": "interrupted"}
            events("interrupted" if stopped else "failed", **record)
            if not stopped:
                with open(log, "a") as f:
                    traceback.print_exception(error, file=f)
            (attempt / "failure.json").write_text(json.dumps(record, indent=2, default=str) + "\n")
        except OSError as e:  # the disk is full, say: the error itself must still reach the screen
            print(f"(the failure could not be logged: {e})", file=sys.stderr)
        return foreseen


CONSUMED = "consumed.json"
KEYS = re.compile(r"([a-z_]+(?:\.[a-z_]+)*): ")  # with which a problem begins that belongs to a key: `lora.target: …`


def _placed(mark: Mark, problem: Problem) -> Problem:
    """A problem of a step, with the place of its key in the recipe."""
    named = KEYS.match(problem.what)
    return (mark.at(located.path(named[1])) if named else mark).problem(problem.what, problem.mend)


def _consumed(row: Row, given: list[Given]) -> list:
    return [[g.role, g.name, g.digest] for planned, g in zip(row.inputs, given, strict=True) if not planned.witness]


def _remember(row: Row, given: list[Given], work: Path) -> None:
    """What the state in this work folder is made of; by rename, so that a torn file is none."""
    part = work / f"{CONSUMED}.part"
    part.write_text(json.dumps(_consumed(row, given)), encoding="utf-8")
    part.replace(work / CONSUMED)


def _secret(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise CannotRun(f"the environment variable {name} is not set", mend=f"export {name}=… before running")
    if (value := value.strip()) and value.isascii() and value.isprintable():  # a file's last line break is none of it
        return value
    raise CannotRun(f"the environment variable {name} holds no key: line breaks, or characters that no key has", mend=f"export {name}=… again")


def _manifest(plan: Plan, row: Row, given: list[Given], result: Result, run: dict, files: list[dict]) -> dict:
    values = dict(result.values)
    if result.checks:
        values["checks"] = [vars(c) for c in result.checks]
    execution = row.execution.model_dump(mode="json")
    cost = {"seconds": run["seconds"], "peak_memory_bytes": _peak_memory()} | dict(result.cost)
    return {
        "schema": manifest.SCHEMA, "kind": row.kind.name, "kind_version": row.kind.version, "type": row.gives,
        "fingerprint": row.fingerprint, "fingerprint_payload": row.payload, "config": row.payload["config"], "pins": row.payload["pins"],
        "name": row.name, "recipe": plan.recipe.name, "overrides": list(plan.recipe.overrides), "execution": execution, "run": run,
        "tool": provenance.tool(), "environment": provenance.environment(),
        "determinism": {"seed": result.seed, "claimed": result.determinism},
        "inputs": [_recorded(p, g) for p, g in zip(row.inputs, given, strict=True)],
        "outputs": {"digest": digest.of_listing(files), "bytes": sum(f["bytes"] for f in files), "files": files},
        "result": values, "cost": cost,
    }


def _recorded(planned: inputs.Planned, handle: Given) -> dict:
    made = handle.manifest
    size = made["outputs"]["bytes"] if made else _bytes(planned, handle.path)
    return {
        "role": planned.role, "name": planned.name, "type": planned.type, "uri": handle.uri, "revision": handle.revision,
        "digest": handle.digest, "fingerprint": made["fingerprint"] if made else None, "bytes": size, "columns": planned.columns,
    } | ({"witness": True} if planned.witness else {})


def _bytes(planned: inputs.Planned, path: Path | None) -> int | None:
    if path is None:
        return None
    files = planned.files or (digest.files_of(path).values() if path.is_dir() else [path])
    return sum(f.stat().st_size for f in files)


def _peak_memory() -> int:
    """Highest resident memory of this process so far, in bytes (a chain in one process counts its earlier steps too)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _took(cached: bool, started: float) -> str:
    return "" if cached else f" ({time.monotonic() - started:.1f} s)"


