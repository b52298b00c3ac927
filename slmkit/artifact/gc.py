"""What the store no longer needs: artifacts that no name reaches, directly or through inputs, and work that nobody goes on with."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slmkit.artifact import digest
from slmkit.artifact.store import Store
from slmkit.errors import StoreError


@dataclass(frozen=True)
class Garbage:
    """One folder that can go, with why and its size in bytes."""

    path: Path
    why: str
    bytes: int


def find(store: Store, keep_days: float = 7.0, broken: Callable[[StoreError], None] = lambda _: None) -> list[Garbage]:
    """Unreachable artifacts, and unlocked work folders untouched for `keep_days`."""
    artifacts = store.artifacts(broken)
    by_fingerprint = {a.fingerprint: a for a in artifacts}
    by_path = {a.path.resolve(): a.fingerprint for a in artifacts}
    waiting = [by_path[place] for _, place in store.names() if place in by_path] + _running(store)
    reached: set[str] = set()
    while waiting:
        one = waiting.pop()
        if one in reached or one not in by_fingerprint:
            continue
        reached.add(one)
        waiting += [i["fingerprint"] for i in by_fingerprint[one].manifest["inputs"] if i.get("fingerprint")]
    out = [Garbage(a.path, "no name reaches it", _size(a.path)) for f, a in by_fingerprint.items() if f not in reached]
    for work in sorted(store.works.glob("*")):
        if work.is_dir() and work.name.startswith("trash-"):
            out.append(Garbage(work, "left over from a removal", _size(work)))
        elif work.is_dir() and not _locked(work / "lock") and time.time() - _touched(work) > keep_days * 86400:
            out.append(Garbage(work, f"unfinished, untouched for {keep_days:g} days", _size(work)))
    return out


def remove(store: Store, garbage: list[Garbage]) -> None:
    for one in garbage:
        store.discard(one.path)


def _running(store: Store) -> list[str]:
    """Fingerprints that live runs have announced; announcements of dead ones are removed."""
    wanted = []
    for file in store.works.glob("run-*"):
        if _locked(file):
            wanted += file.read_text().split()
        else:
            file.unlink(missing_ok=True)
    return wanted


def _locked(file: Path) -> bool:
    try:
        handle = os.open(file, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(handle)


def _touched(work: Path) -> float:
    return max((p.stat().st_mtime for p in [work, *work.rglob("*")]), default=0.0)


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in digest.files_of(folder).values())
