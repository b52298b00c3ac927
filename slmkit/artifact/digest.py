"""The digest says what came out: sha256 of files, and of the sorted list of a folder's files.

A folder's digest is the hash of its `(path, sha256)` list, so it moves with content and names inside the folder, never with
the folder's own place. `Cache` remembers the hash of a file by (path, size, mtime, inode) for planning only; whatever is
about to be consumed or published is hashed in full.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from slmkit.artifact.fingerprint import canonical


def of_file(path: Path) -> str:
    """sha256 of a file's bytes, 64 hex digits."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


class Cache:
    """Hashes of files by what `stat` says of them, kept in a JSON file. A cache that cannot be read or written is no error."""

    def __init__(self, path: Path | None):
        self.path, self.known, self.fresh = path, {}, False
        try:
            known = json.loads(path.read_text()) if path else {}
        except (OSError, ValueError):
            known = {}
        self.known = known if isinstance(known, dict) else {}

    def of_file(self, path: Path) -> str:
        stat = path.stat()
        # ctime too: tar, rsync -t and touch set mtime back, nothing sets ctime back
        key, state = str(path), [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        entry = self.known.get(key)
        if not (isinstance(entry, list) and entry[:-1] == state):
            entry = self.known[key] = [*state, of_file(path)]
            self.fresh = True
        return entry[-1]

    def save(self) -> None:
        if not self.fresh or self.path is None or not self.path.parent.is_dir():
            return
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            temporary.write_text(json.dumps(dict(list(self.known.items())[-5000:])))
            os.replace(temporary, self.path)
        except OSError:
            with contextlib.suppress(OSError):  # a read-only store: the next plan hashes again
                temporary.unlink(missing_ok=True)


def of_files(files: dict[str, Path], cache: Cache | None = None) -> str:
    """Digest of named files: the hash of the canonical list [[name, sha256], …] sorted by name."""
    one = cache.of_file if cache else of_file
    return hashlib.sha256(canonical([[name, one(path)] for name, path in sorted(files.items())])).hexdigest()


def files_of(folder: Path) -> dict[str, Path]:
    """Relative name → path of every visible file below a folder (no dotfiles, no dot-folders)."""
    found = {}
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link that leads back up
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                path = Path(place, name)
                found[path.relative_to(folder).as_posix()] = path
    return found


def of_path(path: Path, cache: Cache | None = None) -> str:
    """Digest of a file or of a folder."""
    if path.is_dir():
        return of_files(files_of(path), cache)
    return cache.of_file(path) if cache else of_file(path)


def listing(folder: Path) -> list[dict]:
    """What the manifest says of a payload: [{path, bytes, sha256}], sorted by path."""
    files = sorted(files_of(folder).items())
    return [{"path": name, "bytes": path.stat().st_size, "sha256": of_file(path)} for name, path in files]


def of_listing(files: list[dict]) -> str:
    """The digest of a payload from its listing; equal to `of_path` of the folder."""
    return hashlib.sha256(canonical([[f["path"], f["sha256"]] for f in sorted(files, key=lambda f: f["path"])])).hexdigest()
