"""One training on several processes: the parent starts them (by torch's elastic launcher, or one beside each of the processes that
torchrun or Slurm started), listens, and alone publishes.

The workers run the same step with the same inputs; what they say comes back through a file of JSON lines, which the first of them
writes. A lost process ends the step with its own log; a lost parent ends the processes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slmkit.errors import CannotRun, DataError, Problem, RecipeError, SlmkitError, StepFailed, UsageError
from slmkit.steps import _registry, _world
from slmkit.steps._step import Card, Columns, Context, Given, Result
from slmkit.steps._task_form import Task

FOLDER = "launch"
FORESEEN = {c.__name__: c for c in (CannotRun, DataError, RecipeError, StepFailed, UsageError)}
GRACE = 3.0  # seconds in which another process may say that it was lost first


@dataclass(frozen=True)
class Place:
    """This process among all: rank of world, and its number on this machine."""

    rank: int = 0
    world: int = 1
    local: int = 0


def place() -> Place:
    """What the launcher's environment says."""
    env = os.environ
    if "SLMKIT_LAUNCH" not in env:
        return Place()
    return Place(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env["LOCAL_RANK"]))


def wanted(execution: Any) -> int:
    """How many processes train: those started together with this one, or those to start from here; 1 inside a worker. auto: one per GPU,
    one on a CPU."""
    if "SLMKIT_LAUNCH" in os.environ:
        return 1
    asked, device, told, leader = execution.processes, execution.device, execution.accelerate, _world.leader()
    if isinstance(told, str):
        raise UsageError(f"execution.accelerate: {told} was not read", mend="load the recipe by slmkit.recipe.load, which reads it")
    if leader and told and told.processes is not None:
        if told.processes != leader.me.size:
            what = f"{told.file} says num_processes: {told.processes}, and torchrun or srun started {leader.me.size}"
            raise UsageError(what, mend="start as many as it says, or change it", key="execution.accelerate")
        return leader.me.size
    if leader:
        if asked not in (1, "auto"):
            what = f"execution.processes: {asked} would start more processes in each of the {leader.me.size} that torchrun or srun started"
            raise UsageError(what, mend="remove it: those are the processes that train", key="execution.processes")
        return leader.me.size
    if asked != "auto":
        return asked
    import torch

    return max(1, torch.cuda.device_count()) if device in ("auto", "cuda") else 1


def run(ctx: Context, kind: str, config: Any, processes: int) -> Result:
    """Run the step `kind` on so many processes. Raises what a worker raised, or StepFailed with its log."""
    home = ctx.state / FOLDER
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    order = {
        "kind": kind, "config": config.model_dump(mode="json"), "execution": ctx.execution.model_dump(mode="json"), "out": str(ctx.out),
        "state": str(ctx.state), "step": ctx.step, "ledgers": str(ctx.ledgers),
        "inputs": {role: _packed(given) for role, given in ctx.inputs.items()},
    }  # fmt: skip
    (home / "order.json.partial").write_text(json.dumps(order), encoding="utf-8")
    os.replace(home / "order.json.partial", home / "order.json")
    leader, lost = _world.leader(), {}
    child = _joined(leader, home) if leader else _elastic(home, processes)
    try:
        code, lost = _listen(ctx, child, home / "said.jsonl", leader)
    finally:
        _world.end(child)
        if leader:
            leader.over()
    if code or lost or not (home / "result.json").is_file():
        raise _failure(home, code, lost)
    said = json.loads((home / "result.json").read_text(encoding="utf-8"))
    return Result(**said | {"card": Card(**said["card"]) if said["card"] else None, "checks": ()})


def _elastic(home: Path, processes: int) -> subprocess.Popen:
    """torch's elastic launcher, with so many processes on this machine."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes", "1", "--nproc-per-node", str(processes), "--max-restarts", "0",
        "--log-dir", str(home / "logs"), "--redirects", "3", "-m", "slmkit.ml.launch", str(home),
    ]  # fmt: skip
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // processes))
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"SLMKIT_LAUNCH": "1", "SLMKIT_PARENT": str(os.getpid()), "OMP_NUM_THREADS": threads, "PYTHONPATH": paths}
    env |= _world.sparing(home)
    with (home / "launcher.log").open("w") as log:
        return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def _joined(leader: _world.Leader, home: Path) -> subprocess.Popen:
    """This process's own worker, and word to the processes that were started with this one to start theirs."""
    port = _world.free_port()
    child = _world.worker(leader.me, home, port)
    leader.call(home, port)
    return child


def _listen(ctx: Context, child: subprocess.Popen, said: Path, leader: _world.Leader | None) -> tuple[int, dict[int, str]]:
    """Pass on what the first process says until it has ended, or another that was started with this one has failed: (exit code, who failed)."""
    at, rest = 0, b""
    while True:
        code, lost = child.poll(), leader.lost() if leader else {}
        if said.is_file():
            with said.open("rb") as file:
                file.seek(at)
                new = file.read()
            at += len(new)
            *lines, rest = (rest + new).split(b"\n")
            for line in lines:
                word = json.loads(line)
                if "progress" in word:
                    ctx.progress(*word["progress"], **word["numbers"])
                else:
                    ctx.log(word.pop("event"), **word)
        if lost and code is None:
            return 1, lost
        if code is not None:  # what broke here may be the loss of another, which says so in a moment
            return code, leader.lost(wait=GRACE) if leader and code else lost
        time.sleep(0.1)


def _failure(home: Path, code: int, others: dict[int, str]) -> SlmkitError:
    """What a process raised, if it could say so; else which one was lost, with the end of its log. others: what those started with this one say."""
    for file in sorted(home.glob("error-*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        kind = FORESEEN.get(record["error"])
        if kind in (DataError, RecipeError):
            return kind([Problem(**p) for p in record["problems"]], record["summary"])
        if kind:
            return kind(record["what"], where=record["where"], mend=record["mend"], key=record.get("key"))
        return StepFailed(f"process {record['rank']} failed: {record['what']}", mend=f"its log is {_log(home, record['rank'])}")
    began = {int(f.stem.partition("-")[2]) for f in home.glob("began-*")}
    ended = {int(f.stem.partition("-")[2]) for f in home.glob("ended-*")}
    lost = sorted(others) or _killed(home / "launcher.log") or sorted(began - ended) or [0]
    log = _log(home, lost[0])
    end = [line for line in log.read_text(errors="replace").splitlines()[-8:] if line.strip()] if log.is_file() else []
    what = f"process {lost[0]} was lost ({others.get(lost[0]) or f'the launcher ended with code {code}'})"
    return StepFailed("\n  | ".join([what, *end]), mend=f"its log is {log}; the same command goes on from the last checkpoint")


def _killed(log: Path) -> list[int]:
    """Ranks that the launcher says a signal ended."""
    import re

    text = log.read_text(errors="replace") if log.is_file() else ""
    return [int(n) for n in re.findall(r"failed \(exitcode: -?\d+\) local_rank: (\d+)", text)]


def _log(home: Path, rank: int) -> Path:
    return next(iter(sorted(home.glob(f"logs/*/*/{rank}/stderr.log"))), home / "launcher.log")


def _packed(given: Any) -> Any:
    if isinstance(given, tuple):
        return [_packed(one) for one in given]
    if given is None:
        return None
    columns = given.columns.model_dump() if given.columns else None
    plain = {f: getattr(given, f) for f in ("role", "name", "type", "uri", "digest", "revision", "manifest")}
    files = given.files and [str(f) for f in given.files]
    return plain | {"path": str(given.path) if given.path else None, "columns": columns, "base": _packed(given.base), "files": files}


def _unpacked(body: Any) -> Any:
    if isinstance(body, list):
        return tuple(_unpacked(one) for one in body)
    if body is None:
        return None
    path, columns = body["path"], body["columns"]
    there = {"path": Path(path) if path else None, "files": body["files"] and tuple(map(Path, body["files"])), "base": _unpacked(body["base"])}
    return Given(**body | there | {"columns": (Task if "name" in columns else Columns)(**columns) if columns else None})


# -- in the workers --


def main(home: Path) -> None:
    """One process: the step's own `run`, with a voice only if it is the first."""
    order = json.loads((home / "order.json").read_text(encoding="utf-8"))
    here = place()
    (home / f"began-{here.rank}").touch()
    threading.Thread(target=_leave_with, args=(int(os.environ["SLMKIT_PARENT"]),), daemon=True).start()
    module = _registry.load(order["kind"]).module
    said = (home / "said.jsonl").open("a", encoding="utf-8") if here.rank == 0 else None

    def tell(word: dict) -> None:
        if said:
            said.write(json.dumps(word, default=str) + "\n")
            said.flush()

    ctx = Context(
        Path(order["out"]), Path(order["state"]), {role: _unpacked(given) for role, given in order["inputs"].items()},
        module.Execution.model_validate(order["execution"]), lambda event, **fields: tell({"event": event} | fields),
        lambda done, total, what, **numbers: tell({"progress": [done, total, what], "numbers": numbers}),
        lambda name: os.environ[name], order["step"], Path(order["ledgers"]),
    )  # fmt: skip
    try:
        result = module.run(ctx, module.Config.model_validate(order["config"]))
    except SlmkitError as e:
        (home / f"error-{here.rank}.json").write_text(json.dumps(e.record() | {"rank": here.rank}, default=str))
        raise
    if here.rank == 0:
        body = {k: v for k, v in vars(result).items() if k != "checks"} | {"card": asdict(result.card) if result.card else None}
        (home / "result.json").write_text(json.dumps(body), encoding="utf-8")
    (home / f"ended-{here.rank}").touch()


def _leave_with(parent: int) -> None:
    """End this process when the one that publishes is gone: nobody would take what it makes."""
    while True:
        time.sleep(1)
        try:
            os.kill(parent, 0)
        except OSError:
            os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
