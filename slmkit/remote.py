"""Data behind a URL (s3://, gs://, https://, … whatever fsspec has a backend for): a local copy, named by its content.

The identity of an input is its content, so a plan needs the bytes. A copy is kept in the user's cache and used again while
the server's own mark of the file (ETag, size, time) stays the same. The URL in manifests has no user, password or query.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from slmkit.errors import CannotRun, UsageError
from slmkit.sources import Source

BLOCK = 1 << 20
PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs", "adl": "adlfs",
    "http": "aiohttp", "https": "aiohttp", "sftp": "paramiko", "ssh": "paramiko", "smb": "smbprotocol", "oci": "ocifs", "webhdfs": "requests",
}  # fmt: skip
"""Which package brings a scheme's backend."""


def folder() -> Path:
    """Where copies lie: $SLMKIT_CACHE, else the user's cache."""
    named = os.environ.get("SLMKIT_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slmkit"


def fetched(source: Source) -> Source:
    """The source with `path` (and `files`, of a glob) of its copy. Raises UsageError (no such file), CannotRun (no backend, no network)."""
    scheme = urlsplit(source.text).scheme
    try:
        from fsspec.core import url_to_fs

        proxied = {"client_kwargs": {"trust_env": True}} if scheme in ("http", "https") else {}  # HTTPS_PROXY and friends
        fs, place = url_to_fs(source.text, **proxied)
        glob = any(c in place for c in "*?[") and scheme not in ("http", "https")
        places = sorted(fs.glob(place)) if glob else [place]
        if not places:
            raise FileNotFoundError(place)
        copies = [_copy(fs, one, _clean(source.text)) for one in places]
    except ImportError as e:
        package = PACKAGES.get(scheme, "the package that the message names")
        raise CannotRun(f"{scheme}:// needs a backend that is not installed: {_first(e)}", mend=f"pip install {package}") from None
    except FileNotFoundError as e:
        cause = e.__cause__  # fsspec says "not found" of a server that is not there, too
        if cause is not None and not isinstance(cause, FileNotFoundError) and getattr(cause, "status", None) not in (404, 410):
            raise _unreachable(source, cause) from None
        raise UsageError(f"no such file: {_clean(source.text)}", mend="check the spelling, and that you may read it") from None
    except ValueError as e:
        mend = "known are s3://, gs://, https:// and what fsspec has a backend for"
        raise UsageError(f"`{scheme}://` cannot be read: {_first(e)}", mend=mend) from None
    except Exception as e:  # noqa: BLE001 - each backend has errors of its own, and none of them is ours
        raise _unreachable(source, e) from None
    files = tuple(copies) if glob else None
    return replace(source, text=_clean(source.text), path=copies[0].parent.parent / "glob" if glob else copies[0], files=files)


def _unreachable(source: Source, e: BaseException) -> CannotRun:
    mend = "check the network and your credentials for it, or give a local copy"
    return CannotRun(f"cannot fetch {_clean(source.text)}: {_first(e)}", mend=mend)


def _clean(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _copy(fs, place: str, url: str) -> Path:
    """A local copy at <cache>/<sha256>/<name>; the server's mark says when the one of last time will do."""
    name = Path(urlsplit(place).path).name or "data"
    note = folder() / "urls" / hashlib.sha256(f"{url} {place}".encode()).hexdigest()
    mark = _mark(fs, place)
    known = _note(note)
    if mark and known.get("mark") == mark and (copy := folder() / "data" / str(known.get("sha256")) / name).is_file():
        return copy
    return _download(fs, place, name, note, mark)


def _mark(fs, place: str) -> str | None:
    """What the server says of the file's state, if it says enough to trust: without ETag or time nothing is remembered."""
    info = fs.info(place)
    said = {k: str(info[k]) for k in ("ETag", "etag", "mtime", "LastModified", "last_modified", "created", "size") if info.get(k) is not None}
    return json.dumps(said, sort_keys=True) if set(said) - {"size"} else None


def _note(path: Path) -> dict:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _download(fs, place: str, name: str, note: Path, mark: str | None) -> Path:
    home = folder() / "data"
    home.mkdir(parents=True, exist_ok=True)
    part = home / f".{os.getpid()}.part"
    digest = hashlib.sha256()
    try:
        with fs.open(place, "rb") as source, open(part, "wb") as target:
            while block := source.read(BLOCK):
                digest.update(block)
                target.write(block)
        copy = home / digest.hexdigest() / name
        copy.parent.mkdir(exist_ok=True)
        os.replace(part, copy)
    finally:
        part.unlink(missing_ok=True)
    note.parent.mkdir(exist_ok=True)
    note.write_text(json.dumps({"sha256": digest.hexdigest(), "mark": mark}))
    return copy


def _first(e: BaseException) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
