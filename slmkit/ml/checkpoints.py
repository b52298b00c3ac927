"""Checkpoints that can be trusted. The trainer writes many files and none atomically, and its own resume takes the newest
folder even when it is torn, silently going on with other weights. So each gets a digest file, written last and by rename,
and only folders that agree with theirs are resumed from; the others are removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

SEAL = "slmkit-checkpoint.json"
KEPT = 2


def seal(folder: Path) -> None:
    """Write the digests of all files of a finished checkpoint."""
    digests = {str(p.relative_to(folder)): _sha256(p) for p in sorted(folder.rglob("*")) if p.is_file() and p.name != SEAL}
    partial = folder / (SEAL + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(digests, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / SEAL)


def whole(folder: Path) -> bool:
    """Does every file agree with the seal?"""
    try:
        digests = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        return all(_sha256(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError):
        return False


def latest(root: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and the names of torn ones, which are removed with any newer than it."""
    torn = []
    for folder in sorted(_all(root), key=step, reverse=True):
        if whole(folder):
            return folder, torn
        torn.append(folder.name)
        shutil.rmtree(folder)
    return None, torn


def step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _all(root: Path) -> list[Path]:
    return [p for p in root.glob("checkpoint-*") if p.is_dir() and p.name.rpartition("-")[2].isdigit()]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
