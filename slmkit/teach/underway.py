"""Batches that are under way, in files: of each its requests, and a note of what the endpoint calls it.

A note is written before the batch is created, with a token that goes along in the batch's metadata: after a kill -9 between the two the
endpoint's own list tells whether there is such a batch. Requests without a note were never sent.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from slmkit.teach.request import Request


@dataclass(frozen=True)
class Batch:
    """lines: the file of its requests. upload, id: what the endpoint calls that file, and the batch. torn: the note cannot be read."""

    lines: Path
    token: str
    upload: str | None = None
    id: str | None = None
    torn: bool = False

    @property
    def note(self) -> Path:
        return self.lines.with_suffix(".json")

    def noted(self, **known: str) -> Batch:
        """The same with what is known now. It is on the disk, whole, when this returns."""
        after = replace(self, **known)
        partial = self.lines.with_suffix(".partial")
        with partial.open("w") as f:
            f.write(json.dumps({"token": after.token, "upload": after.upload, "id": after.id}))
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, self.note)
        return after

    def requests(self) -> Iterator[tuple[Request, int]]:
        """Each with the number of batches that it was in before. A torn last line was never sent."""
        for line in self.lines.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                value = json.loads(line)
                yield Request(value["body"], value["sample"]), value.get("trials", 0)

    def end(self) -> None:
        """It is collected, or there is no such batch."""
        self.note.unlink(missing_ok=True)  # first: requests without a note are none that were sent
        self.lines.unlink(missing_ok=True)


def fresh(folder: Path) -> Batch:
    """A batch that nothing is known of yet."""
    token = secrets.token_hex(8)
    return Batch(folder / f"batch-{token}.jsonl", token)


def found(folder: Path) -> list[Batch]:
    """Those that earlier runs left."""
    return [_read(lines) for lines in sorted(folder.glob("batch-*.jsonl"))]


def _read(lines: Path) -> Batch:
    batch = Batch(lines, lines.stem.removeprefix("batch-"))
    try:
        known = json.loads(batch.note.read_text())
        return replace(batch, token=known.get("token", batch.token), upload=known.get("upload"), id=known["id"])
    except FileNotFoundError:
        return batch
    except (ValueError, KeyError, AttributeError):
        return replace(batch, torn=True)
