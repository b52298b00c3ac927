"""The store: immutable artifact folders, names for people in refs/, unfinished work in .work/.

Publishing is one rename of a folder that already holds its manifest, so at any moment, kill -9 included, every folder of the
store is a whole artifact. A work folder is keyed by its fingerprint: resuming under another config cannot happen. Its lock is
held by flock, which the kernel lets go when the process dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from slmkit.artifact import manifest
from slmkit.artifact.manifest import Artifact
from slmkit.errors import Busy, StoreError, UsageError


class Store:
    """A folder of artifacts. Nothing is created until something is written."""

    def __init__(self, root: Path):
        if not str(root) or str(root) == ".":
            raise UsageError("the store's name is empty or the current folder", mend="name a folder of its own: --store artifacts")
        self.root = root.absolute()
        self.refs, self.works, self.ledgers = self.root / "refs", self.root / ".work", self.root / "ledgers"

    def place(self, kind: str, fingerprint: str) -> Path:
        return self.root / f"{kind}-{fingerprint[:12]}"

    def work(self, kind: str, fingerprint: str) -> Path:
        return self.works / f"{kind}-{fingerprint[:12]}"

    def find(self, kind: str, fingerprint: str) -> Artifact | None:
        """The artifact of a fingerprint, compared whole; None when it is not there or lacks files."""
        place = self.place(kind, fingerprint)
        if not (place / manifest.MANIFEST).is_file():
            return None
        try:
            found = manifest.load(place)
        except StoreError:  # publishing the same work again replaces it
            return None
        return found if found.fingerprint == fingerprint and found.present() else None

    def artifacts(self, broken: Callable[[StoreError], None] = lambda _: None) -> list[Artifact]:
        """All artifacts, newest last. Folders whose manifest cannot be read are told to `broken` and left out."""
        found = []
        for folder in sorted(p.parent.parent for p in self.root.glob(f"*/{manifest.MANIFEST}")):
            try:
                found.append(manifest.load(folder))
            except StoreError as e:
                broken(e)
        return sorted(found, key=lambda a: (str(a.manifest["run"].get("finished")), a.path.name))

    def by_fingerprint(self, fingerprint: str) -> Artifact | None:
        return next((a for a in self.artifacts() if a.fingerprint == fingerprint), None)

    def names(self) -> list[tuple[str, Path]]:
        """(`recipe/step`, the artifact's folder) of every name that points at an artifact."""
        links = [p for p in sorted(self.refs.glob("*/*")) if p.is_symlink() and not p.name.startswith(".")]
        return [(f"{p.parent.name}/{p.name}", p.resolve()) for p in links if (p / manifest.MANIFEST).is_file()]

    def ref(self, recipe: str, step: str) -> Artifact | None:
        """The artifact that a name stands for; None when there is none that can be read."""
        path = self.refs / recipe / step
        try:
            return manifest.load(path.resolve())
        except StoreError:
            return None

    def resolve(self, text: str) -> Artifact:
        """An artifact by path, `recipe/step`, folder name, at least 6 hex digits of its fingerprint, or a step's name where one recipe has it.

        Raises UsageError.
        """
        path = Path(text)
        try:
            if text and (path / manifest.MANIFEST).is_file():
                return manifest.load(path.resolve())
        except OSError as e:
            raise UsageError(f"`{text[:80]}` is no reference: {e.strerror}") from None
        parts = text.split("/")
        if len(parts) == 2 and ".." not in parts and (self.refs / text / manifest.MANIFEST).is_file():
            return manifest.load((self.refs / text).resolve())
        if path.is_dir() and "/" in text:
            raise UsageError(f"{text} is a folder but no artifact: it has no .slmkit/manifest.json")
        digits = text if re.fullmatch(r"[0-9a-f]{6,64}", text) else None
        if (self.root / text / manifest.MANIFEST).is_file() and len(parts) == 1 and text:
            return manifest.load(self.root / text)
        hits = [a for a in self.artifacts() if digits and a.fingerprint.startswith(digits)]
        if len(hits) == 1:
            return hits[0]
        if len(hits) > 1:
            raise UsageError(f"`{text}` is ambiguous", mend=f"one of {', '.join(h.path.name for h in hits)}")
        same = [name for name, _ in self.names() if name.partition("/")[2] == text]
        if len(same) == 1:
            return manifest.load((self.refs / same[0]).resolve())
        if same:
            raise UsageError(f"`{text}` is ambiguous", mend=f"one of {', '.join(same)}")
        raise UsageError(f"no artifact `{text}` in {self.root}", mend="`slmkit ls` lists what is there")

    @contextlib.contextmanager
    def hold(self, kind: str, fingerprint: str, wait: bool, waiting: Callable[[str], None]) -> Iterator[Path]:
        """Hold the lock of a piece of work; yields its work folder. Raises Busy without `wait` when another process has it."""
        work = self.work(kind, fingerprint)
        told = False
        while True:
            work.mkdir(parents=True, exist_ok=True)
            try:
                handle = os.open(work / "lock", os.O_RDWR | os.O_CREAT, 0o644)
            except FileNotFoundError:
                continue  # the other process published and removed the folder in between
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                number = os.pread(handle, 64, 0).decode(errors="replace").strip()  # it may not have written it yet
                holder = f"process {number}" if number else "another process"
                os.close(handle)
                if not wait:
                    what = f"{work.name} is being built by {holder}"
                    raise Busy(what, where=work, mend="leave out --no-wait to wait for it") from None
                if not told:
                    waiting(f"{work.name} is being built by {holder}; waiting for it")
                    told = True
                time.sleep(0.2)
                continue
            if _same(handle, work / "lock"):
                break
            os.close(handle)  # we locked a file that was removed: the work is done, look again
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
            yield work
        finally:
            os.close(handle)

    def publish(self, work: Path, kind: str, fingerprint: str) -> Artifact:
        """Rename work/out into the store. Whatever stood there under the same fingerprint goes to the trash first."""
        place = self.place(kind, fingerprint)
        _sync_folder(work / "out")
        if place.exists() or place.is_symlink():
            self.discard(place)
        os.rename(work / "out", place)
        _sync_folder(self.root)
        return manifest.load(place)

    def discard(self, path: Path) -> None:
        """Remove a folder of the store: renamed out of sight first, so that no half of it is ever seen."""
        self.works.mkdir(parents=True, exist_ok=True)
        trash = self.works / f"trash-{path.name}-{os.getpid()}-{time.time_ns()}"
        os.rename(path, trash)
        if trash.is_symlink():
            trash.unlink()
        else:
            shutil.rmtree(trash, ignore_errors=True)

    @contextlib.contextmanager
    def using(self, fingerprints: list[str]) -> Iterator[None]:
        """Tell gc that these are wanted for as long as this process runs: a locked file in .work that names them."""
        self.works.mkdir(parents=True, exist_ok=True)
        path = self.works / f"run-{os.getpid()}-{time.time_ns()}"
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            os.write(handle, "".join(f"{f}\n" for f in fingerprints).encode())
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(handle)

    def name(self, recipe: str, step: str, artifact: Artifact) -> None:
        """Point refs/<recipe>/<step> at an artifact, atomically; nothing is written when it does already."""
        link = self.refs / recipe / step
        target = os.path.relpath(artifact.path, link.parent)
        if link.is_symlink() and os.readlink(link) == target:
            return
        link.parent.mkdir(parents=True, exist_ok=True)
        temporary = link.with_name(f".{step}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        os.symlink(target, temporary)
        os.replace(temporary, link)

    def pin(self, text: str, artifact: Artifact) -> Path:
        """Point the name `group/name` at an artifact; returns the link. Raises UsageError for a name that runs of a recipe move."""
        group, name = _pinned(text)
        if artifact.path.resolve().parent != self.root.resolve():
            mend = f"pin it there: --store {artifact.path.parent}"
            raise UsageError(f"{artifact.path} lies in another store, whose gc would not see the name", mend=mend)
        held = self.ref(group, name) if (self.refs / group / name).is_symlink() else None
        if held is not None and (held.manifest["recipe"], held.name) == (group, name):
            raise UsageError(f"{text} is a step of recipe {group}, and its next run would move the name", mend=f"another name: {group}/prod, say")
        self.name(group, name, artifact)
        return self.refs / group / name

    def unpin(self, text: str) -> None:
        """Take a name away. Raises UsageError when there is none."""
        group, name = _pinned(text)
        link = self.refs / group / name
        if not link.is_symlink():
            raise UsageError(f"there is no name {text} in {self.root}", mend="`slmkit ls` lists the names")
        link.unlink()


def _pinned(text: str) -> tuple[str, str]:
    match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9_-]{0,39})/([A-Za-z0-9][\w.-]{0,79})", text, re.ASCII)
    if match is None:
        raise UsageError(f"`{text}` is no name: it is GROUP/NAME, of letters, digits, - and _", mend="for example banking/prod")
    return match[1], match[2]


def _same(handle: int, path: Path) -> bool:
    try:
        here, there = os.fstat(handle), os.stat(path)
    except FileNotFoundError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def explain_os_error(error: BaseException, root: Path) -> StoreError | None:
    """Disk full or read-only anywhere in an exception's chain as a clear StoreError, else None.

    Libraries wrap these in errors of their own (safetensors, torch), so the free space is looked at too.
    """
    seen: BaseException | None = error
    while seen is not None:
        number = getattr(seen, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(seen):
            return StoreError("the disk is full", where=root, mend="free some space (`slmkit gc`) and run the same command again: it goes on")
        if number in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG) and str(root) in str(getattr(seen, "filename", "")):
            what = f"the store cannot be used: {os.strerror(number)}"
            return StoreError(what, where=seen.filename, mend="something else stands there; move it away, or choose another --store")
        if number in (errno.EROFS, errno.EACCES, errno.EPERM):
            path = getattr(seen, "filename", None) or root
            return StoreError(f"cannot write: {os.strerror(number)}", where=path, mend="choose a store that can be written with --store")
        seen = seen.__cause__ or seen.__context__
    nearest = next(p for p in (root, *root.parents) if p.exists())
    if shutil.disk_usage(nearest).free < 1 << 16:
        return StoreError("the disk is full", where=root, mend="free some space (`slmkit gc`) and run the same command again: it goes on")
    return None
