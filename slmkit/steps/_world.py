"""The processes that were started together with this one, by torchrun or by Slurm's srun, on one machine or several.

The same command runs in each. The first leads: it alone plans, locks, prints and publishes. The others wait for its word: to take part
in a training (their worker is started beside the leader's, on the same shared store), or to end with its exit code. The word goes
through a key-value store of torch's, torchrun's own where there is one, so no process has to guess from files what another does.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmkit.errors import CannotRun, SlmkitError, StepFailed

EVERY = 0.1  # seconds between looks at the store
PATIENCE = 10.0  # seconds that the leader waits for the others to hear of the end, and they for its folder to appear
ENV = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Member:
    """This process among `size`; `local` is its number on this machine; address and port are where all meet."""

    rank: int
    size: int
    local: int
    address: str
    port: int


def member() -> Member | None:
    """What the environment says, or None for a process that was started alone. Raises CannotRun when it says only half."""
    env = os.environ
    if "SLMKIT_LAUNCH" in env:
        return None  # a worker of a training: its parent has spoken to the others
    if int(env.get("WORLD_SIZE") or 1) > 1 and "RANK" in env:
        missing = [name for name in ENV if not env.get(name)]
        if missing:
            raise CannotRun(f"WORLD_SIZE is {env['WORLD_SIZE']}, and {' and '.join(missing)} not set", mend="start it by torchrun or srun")
        return Member(*(int(env[n]) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK")), env["MASTER_ADDR"], int(env["MASTER_PORT"]))
    if int(env.get("SLURM_STEP_NUM_TASKS") or 1) > 1:  # set by srun alone: a batch script, which runs once, has only SLURM_NTASKS
        address = env.get("MASTER_ADDR") or first_node(env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or "localhost")
        port = int(env.get("MASTER_PORT") or 15000 + int(env.get("SLURM_JOB_ID") or 0) % 20000)
        return Member(int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env.get("SLURM_LOCALID") or 0), address, port)
    return None


def first_node(names: str) -> str:
    """The first host of Slurm's short form: `gpu[03-05,9],login` → gpu03."""
    found = re.match(r"([^,\[]+)(?:\[([^\],-]+))?", names)
    return (found[1] + (found[2] or "")) if found else names


@dataclass
class Leader:
    """The first process's side. `called` counts the trainings that the others were called to."""

    me: Member
    store: Any
    called: int = 0

    def call(self, home: Path, port: int) -> None:
        """Tell the others to take part in the training whose order lies in `home`; their workers meet at `port`."""
        self.called += 1
        self.store.set(f"call/{self.called}", json.dumps({"home": str(home), "port": port}))

    def lost(self, wait: float = 0.0) -> dict[int, str]:
        """Rank → what became of its worker, for those that failed; waits so long for the first."""
        until = time.monotonic() + wait
        while True:
            keys = {rank: f"lost/{self.called}/{rank}" for rank in range(1, self.me.size)}
            found = {rank: self.store.get(key).decode() for rank, key in keys.items() if self.store.check([key])}
            if found or time.monotonic() >= until:
                return found
            time.sleep(EVERY)

    def over(self) -> None:
        """The training has ended here: workers that still run are to be ended."""
        self.store.set(f"over/{self.called}", "")

    def end(self, code: int) -> None:
        """Tell the others the exit code, and wait until they have heard it: the launcher ends them when this process has gone."""
        with contextlib.suppress(RuntimeError):  # the store is gone with the others
            self.store.set("end", str(code))
            until = time.monotonic() + PATIENCE
            while not self.store.check([f"heard/{rank}" for rank in range(1, self.me.size)]) and time.monotonic() < until:
                time.sleep(EVERY)


@dataclass
class _Here:
    """Which leader this process is, while it is one."""

    leader: Leader | None = field(default=None)


_here = _Here()


def leader() -> Leader | None:
    """Set while this process leads others."""
    return _here.leader


@contextlib.contextmanager
def leading(me: Member | None) -> Iterator[None]:
    """Lead the others, if there are any, and tell them in the end how it ended."""
    if me is None:
        yield
        return
    _here.leader = Leader(me, _store(me))
    code = 1
    try:
        yield
        code = 0
    except SlmkitError as e:
        code = e.code
        raise
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
        raise
    finally:
        _here.leader.end(code)
        _here.leader = None


def follow(me: Member) -> int:
    """Take part in what the first process calls for; returns its exit code. Raises StepFailed when it is gone."""
    store, number = _store(me), 1
    try:
        while True:
            if store.check(["end"]):
                store.set(f"heard/{me.rank}", "")
                return int(store.get("end"))
            if store.check([f"call/{number}"]):
                _take_part(me, store, number)
                number += 1
            time.sleep(EVERY)
    except RuntimeError as e:  # torch's errors of a closed connection are of this class
        raise StepFailed(f"process {me.rank} of {me.size}: the first process is gone ({str(e).splitlines()[0][:120]})") from e


def _take_part(me: Member, store: Any, number: int) -> None:
    """Run this process's worker until it, or the training, ends."""
    call = json.loads(store.get(f"call/{number}"))
    home = Path(call["home"])
    until = time.monotonic() + PATIENCE
    while not (home / "order.json").is_file():
        if time.monotonic() > until:
            store.set(f"lost/{number}/{me.rank}", f"{home} is not there on {socket.gethostname()}: the store must be shared by all machines")
            return
        time.sleep(EVERY)
    child = worker(me, home, call["port"])
    try:
        while child.poll() is None and not store.check([f"over/{number}"]):
            time.sleep(EVERY)
        if child.poll():
            store.set(f"lost/{number}/{me.rank}", f"it ended with code {child.returncode} on {socket.gethostname()}")
    finally:
        end(child)


def worker(me: Member, home: Path, port: int) -> subprocess.Popen:
    """Start this process's part of the training in `home`."""
    log = home / "logs" / "world" / "0" / str(me.rank) / "stderr.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    said = {"RANK": me.rank, "WORLD_SIZE": me.size, "LOCAL_RANK": me.local, "MASTER_ADDR": me.address, "MASTER_PORT": port}
    # the agent's store is torchrun's and knows one process group; each training makes its own
    said |= {"SLMKIT_LAUNCH": 1, "SLMKIT_PARENT": os.getpid(), "TORCHELASTIC_USE_AGENT_STORE": False}
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {k: str(v) for k, v in said.items()} | {"PYTHONPATH": paths} | sparing(home)
    command = [sys.executable, "-m", "slmkit.ml.launch", str(home)]
    with log.open("w") as out:
        return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)


def sparing(home: Path) -> dict[str, str]:
    """Environment of the processes of the training in `home`. Weights that fsdp gathers and gives back a block at a time leave holes that glibc
    neither fills nor returns, unless what is larger than this is mapped by itself: without it, sharing a model saves no memory on a CPU."""
    shared = json.loads((home / "order.json").read_text(encoding="utf-8"))["execution"].get("sharding") == "fsdp"
    return {k: os.environ.get(k, "1048576") for k in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")} if shared else {}


def end(child: subprocess.Popen) -> None:
    """Ask a child and its own to end; insist after ten seconds."""
    if child.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def free_port() -> int:
    """A port that nothing uses on this machine."""
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


def _store(me: Member) -> Any:
    """The key-value store of this start, with keys of its own. The launcher's, or one that the first process holds."""
    from datetime import timedelta

    from torch.distributed import PrefixStore, TCPStore

    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        found = TCPStore(me.address, me.port, None, is_master=not agent and me.rank == 0, timeout=timedelta(seconds=300), wait_for_workers=False)
    except RuntimeError as e:
        what = f"process {me.rank} of {me.size} cannot meet the others at {me.address}:{me.port}: {str(e).splitlines()[0][:160]}"
        raise CannotRun(what, mend="set MASTER_ADDR and MASTER_PORT to a host and port that all machines reach") from e
    start = f"{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    return PrefixStore(f"slmkit/{start}", found)
