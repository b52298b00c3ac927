"""Every answer a teacher ever gave, one JSON line each, appended the moment it arrives: what was paid for once is never asked again.

A line begins with a checksum of the rest of it, so that a changed one is found. A torn one (kill -9, power, a full disk) is told from
a changed one by being the last, or by the whole line that another process wrote right behind it. Nothing is ever rewritten. In memory
there is a hash and a place per answer: about 150 bytes, however long the answers are.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from slmkit.errors import StoreError
from slmkit.events import now
from slmkit.teach.request import Answer, Request

START = b'{"sum":"'  # never inside a record: JSON writes quotes in texts as \\"
HEAD = len(START) + 32 + len('",')
KEY = re.compile(rb'"key":"([0-9a-f]{64})"')
EVENT = re.compile(rb'"key":"[0-9a-f]{64}","for":"[^"]*","(?:lost|held|freed)":')  # lines that are no answers
LOOPBACK = ("localhost", "127.0.0.1", "::1", "0.0.0.0")


def identity(base_url: str, model: str) -> str:
    """Who a teacher is: `host/path model`. On this machine ports come and go, and say nothing of who answers."""
    url = urlsplit(base_url.rstrip("/"))
    host = "localhost" if url.hostname in LOOPBACK else (url.netloc.rpartition("@")[2]).lower()
    return f"{host}{url.path} {model}"


def file_of(folder: Path, teacher: str) -> Path:
    """The ledger of a teacher: a name for people, and a hash that tells apart."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", teacher.rpartition(" ")[2]).strip("-.")[:40] or "teacher"
    return folder / f"{name}-{hashlib.sha256(teacher.encode()).hexdigest()[:12]}.jsonl"


def account_in(file: Path) -> str | None:
    """Under which name a step pays; None before its first attempt, or of half a name from a kill, under which nothing was sent."""
    name = file.read_text() if file.is_file() else ""
    return name if len(name) == 16 else None


def account(file: Path) -> str:
    """The name under which a step pays, kept in its state; a new one for the first attempt."""
    if (name := account_in(file)) is None:
        file.write_text(name := secrets.token_hex(8))
    return name


@dataclass
class Paid:
    """Sums over calls. unpriced: of the tokens, those that were paid for when no prices were known."""

    requests: int = 0
    tokens: int = 0
    usd: float = 0.0
    unpriced: int = 0

    def add(self, tokens: int, usd: float | None) -> None:
        self.requests, self.tokens = self.requests + 1, self.tokens + tokens
        self.usd, self.unpriced = self.usd + (usd or 0.0), self.unpriced + (tokens if usd is None else 0)


class Ledger:
    """The answers of one teacher. Several processes may read and append at once.

    account: who pays for what is recorded from now on; `spent` is what that account has paid so far, by earlier attempts too.
    Raises StoreError when a line was changed.
    """

    def __init__(self, path: Path, account: str = "", read_only: bool = False):
        """read_only: look, and change nothing, not even a torn end. Raises FileNotFoundError where there is none to look at."""
        if not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.account = path, account
        self._paid, self._lost = Paid(), Paid()
        self._held: dict[str, dict] = {}
        self.places: dict[bytes, tuple[int, int]] = {}
        self.read, self.lines = 0, 0
        self.mine = f'"for":"{account}"'.encode() if account else None
        self.lock = threading.Lock()  # an event loop and its helpers may share one
        self.claims: int | None = None
        self.handle = os.open(path, os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if not read_only:
                self._mend_tail()
            self.refresh()
            self.mine = None  # from here on, whoever asks keeps count
        except BaseException:
            os.close(self.handle)
            raise

    def _mend_tail(self) -> None:
        """Drop a torn last line, if nobody is writing just now; then say that we may write."""
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = os.fstat(self.handle).st_size
            whole = _end_of_last_line(self.handle, size)
            if whole < size:
                os.ftruncate(self.handle, whole)
        fcntl.flock(self.handle, fcntl.LOCK_SH)

    def refresh(self) -> None:
        """Take in what was appended since, by other processes too."""
        size = os.fstat(self.handle).st_size
        if size <= self.read:
            return
        with open(self.path, "rb", buffering=1 << 20) as f:
            f.seek(self.read)
            for line in f:
                if not line.endswith(b"\n"):
                    break  # being written just now
                self._take(line)

    def _take(self, line: bytes) -> None:
        self.lines += 1
        if (torn := _torn(line)) is None:
            what = f"line {self.lines} was changed after it was written"
            mend = "restore the file, or move it away: the answers in it will be asked (and paid) for again"
            raise StoreError(what, where=self.path, mend=mend)
        self.read, line = self.read + torn, line[torn:]
        key = KEY.search(line, HEAD, HEAD + 80)
        if self.mine and self.mine in line[HEAD : HEAD + 200]:
            self._count(json.loads(line))
        if not EVENT.match(line, HEAD):
            self.places[bytes.fromhex(key[1].decode())[:16]] = (self.read, len(line))
        self.read += len(line)

    def _count(self, record: dict) -> None:
        """What this account has paid, or may have to pay."""
        before = self._held.pop(record["key"], None)
        if "held" in record:
            if before:  # sent by a run that was killed, and now sent again: the first one was paid for too
                self._lost.add(before["tokens"], before["usd"])
            self._held[record["key"]] = {"tokens": record["held"], "usd": record["usd"]}
        elif "lost" in record:
            self._lost.add(record["tokens"], record["usd"])
        elif "usage" in record:
            self._paid.add(record["usage"]["input"] + record["usage"]["output"], record["usd"])

    @property
    def spent(self) -> tuple[Paid, Paid]:
        """What the account had paid when the ledger was opened: (for answers, for calls without one, which may have been billed)."""
        lost = replace(self._lost)
        for held in self._held.values():
            lost.add(held["tokens"], held["usd"])
        return self._paid, lost

    def __contains__(self, request: Request) -> bool:
        return bytes.fromhex(request.key)[:16] in self.places

    def __len__(self) -> int:
        return len(self.places)

    def find(self, request: Request) -> Answer | None:
        """The answer to a request, or None."""
        record = self.record_of(request.key)
        if record is None:
            return None
        return Answer(record["message"], record["finish"], record["usage"], record["observed"], record.get("logprobs"), record.get("seconds"))

    def record_of(self, key: str) -> dict | None:
        """The whole record: with the request, the time, and what it cost."""
        place = self.places.get(bytes.fromhex(key)[:16])
        if place is None:
            return None
        line = os.pread(self.handle, place[1], place[0])
        if not _sound(line):
            raise StoreError(f"the answer {key[:12]} was changed after it was written", where=self.path)
        return json.loads(line)

    def add(self, request: Request, answer: Answer, usd: float | None, account: str | None = None) -> None:
        """Keep an answer. It is in the file when this returns."""
        body = {"key": request.key, "for": self.account if account is None else account, "usage": answer.usage, "usd": usd, "at": now(),
                "finish": answer.finish, "message": answer.message, "observed": answer.observed, "sample": request.sample, "request": request.body}
        if answer.logprobs is not None:
            body["logprobs"] = answer.logprobs
        if answer.seconds is not None:
            body["seconds"] = round(answer.seconds, 4)
        self._append(body, request.key)

    def claim(self, request: Request) -> bool:
        """Say that a request is about to be sent; False when another process has it in flight just now.

        A claim is a lock on one byte of a file beside the ledger, which the kernel takes back from a process that was killed.
        """
        if self.claims is None:
            self.claims = os.open(self.path.with_suffix(".claims"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(self.claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte(request))
        except (BlockingIOError, PermissionError):  # POSIX allows EAGAIN and EACCES
            return False
        return True

    def unclaim(self, request: Request) -> None:
        fcntl.lockf(self.claims, fcntl.LOCK_UN, 1, _byte(request))

    def reopen(self, key: str) -> dict | None:
        """The reservation that an earlier run left open for a key; from now on it is no longer counted as spent."""
        return self._held.pop(key, None)

    def hold(self, request: Request, tokens: int, usd: float | None) -> None:
        """Note that a request is about to be sent, and the most that it can cost."""
        self._append({"key": request.key, "for": self.account, "held": tokens, "usd": usd, "at": now()}, None)

    def free(self, request: Request) -> None:
        """Note that a request held before was refused, and costs nothing."""
        self._append({"key": request.key, "for": self.account, "freed": True}, None)

    def lose(self, request: Request, why: str, tokens: int, usd: float | None) -> None:
        """Note a call that gave no answer and may have been billed: a time-out, a broken connection."""
        self._append({"key": request.key, "for": self.account, "lost": why, "tokens": tokens, "usd": usd, "at": now()}, None)

    def _append(self, body: dict, key: str | None) -> None:
        rest = json.dumps(body, ensure_ascii=False, separators=(",", ":"))[1:].encode("utf-8", "surrogatepass") + b"\n"
        line = b'{"sum":"' + _sum(rest) + b'",' + rest
        with self.lock:
            written = os.write(self.handle, line)
            if written != len(line):  # a full disk; the half line is told from a whole one that follows
                raise OSError(28, "No space left on device", str(self.path))
            end = os.lseek(self.handle, 0, os.SEEK_CUR)  # O_APPEND leaves the offset at the end of what was just written
            if key is not None:
                self.places[bytes.fromhex(key)[:16]] = (end - len(line), len(line))
            if self.read == end - len(line):
                self.read, self.lines = end, self.lines + 1

    def sync(self) -> None:
        """Put all of it on the disk."""
        os.fsync(self.handle)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.fsync(self.handle)
        os.close(self.handle)
        if self.claims is not None:
            os.close(self.claims)


def records(path: Path) -> Iterator[dict]:
    """All whole records of a ledger's file, for looking at."""
    with open(path, "rb") as f:
        for line in f:
            if line.endswith(b"\n") and (torn := _torn(line)) is not None:
                yield json.loads(line[torn:])


def _byte(request: Request) -> int:
    return int(request.key[:15], 16)  # 60 bits, all of which a file offset has


def _sum(rest: bytes) -> bytes:
    return hashlib.blake2b(rest, digest_size=16).hexdigest().encode()


def _sound(line: bytes) -> bool:
    return line[:8] == START and line[8:40] == _sum(line[HEAD:])


def _torn(line: bytes) -> int | None:
    """Bytes of a torn record before the whole one; None when the line holds no whole one: it was changed."""
    if _sound(line):
        return 0
    at = line.rfind(START)
    return at if at > 0 and _sound(line[at:]) else None


def _end_of_last_line(handle: int, size: int) -> int:
    """Where the last whole line ends."""
    end = size
    while end > 0:
        start = max(0, end - (1 << 16))
        found = os.pread(handle, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0

