"""Batches that are under way, in files beside their teacher's ledger: of each its requests, and a note of what the endpoint calls it.

They are the teacher's, not a step's: another step that has the same questions waits for the answers and does not pay for them again. The name
of a file says which account pays; whoever works on a batch holds a lock on it, which the kernel takes back from a process that was killed.
A note is written before the batch is created, with a token that goes along in the batch's metadata: after a kill -9 between the two the
endpoint's own list tells whether there is such a batch. Requests without a note were never sent.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from slmkit.teach.request import Request

KEY = re.compile(rb'^{"custom_id": "([0-9a-f]{64})"')


@dataclass(frozen=True)
class Batch:
    """lines: the file of its requests. account: who pays. upload, id: what the endpoint calls that file, and the batch.

    torn: the note cannot be read. lock: on the file, while this process works on the batch.
    """

    lines: Path
    account: str
    token: str
    upload: str | None = None
    id: str | None = None
    torn: bool = False
    lock: BinaryIO | None = None

    @property
    def note(self) -> Path:
        return self.lines.with_suffix(".json")

    def noted(self, **known: str) -> Batch:
        """The same with what is known now. It is on the disk, whole, when this returns."""
        after = replace(self, **known)
        partial = self.lines.with_suffix(".partial")
        with partial.open("w") as f:
            f.write(json.dumps({"upload": after.upload, "id": after.id}))
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, self.note)
        return after

    @property
    def sent(self) -> bool:
        """Was it handed in, as far as is known here? What was uploaded may have been: the endpoint's list tells."""
        return bool(self.id or self.upload)

    def requests(self) -> Iterator[tuple[Request, int]]:
        """Each with the number of batches that it was in before. A torn last line was never sent."""
        for line in self.lines.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                value = json.loads(line)
                yield Request(value["body"], value["sample"]), value.get("trials", 0)

    def keys(self) -> Iterator[str]:
        """Of its requests; none where it has been collected meanwhile."""
        with contextlib.suppress(FileNotFoundError), self.lines.open("rb") as f:
            yield from (found[1].decode() for line in f if (found := KEY.match(line)))

    def claim(self) -> Batch | None:
        """The same, locked, with what is known of it now. None: another process works on it, or it is collected."""
        try:
            lock = self.lines.open("rb+")
        except FileNotFoundError:
            return None
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(self.lines)):
                return replace(_read(self.lines), lock=lock)
        lock.close()
        return None

    def end(self) -> None:
        """It is collected, or there is no such batch."""
        self.note.unlink(missing_ok=True)  # first: requests without a note are none that were sent
        self.lines.unlink(missing_ok=True)
        self.lock.close()


def folder_of(ledger: Path) -> Path:
    """Where the batches of a ledger's teacher are."""
    return ledger.with_suffix(".batches")


def fresh(folder: Path, account: str) -> Batch:
    """A batch that nothing is known of yet, locked. No one sees its file before the lock is on it."""
    folder.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(8)
    lines, unseen = folder / f"{account}-{token}.jsonl", folder / f"{account}-{token}.new"
    lock = unseen.open("wb", buffering=0)
    fcntl.flock(lock, fcntl.LOCK_EX)
    unseen.rename(lines)
    return Batch(lines, account, token, lock=lock)


def found(folder: Path) -> list[Batch]:
    """Those that are under way, or that a kill left."""
    return [_read(lines) for lines in sorted(folder.glob("*-*.jsonl"))]


def _read(lines: Path) -> Batch:
    account, _, token = lines.stem.rpartition("-")
    batch = Batch(lines, account, token)
    try:
        known = json.loads(batch.note.read_text())
        return replace(batch, upload=known.get("upload"), id=known["id"])
    except FileNotFoundError:
        return batch
    except (ValueError, KeyError, AttributeError):
        return replace(batch, torn=True)
