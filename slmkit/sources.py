"""Where inputs outside the recipe come from: `hf:ID[@revision]`, `artifact:REF`, `demo:NAME`, or a path.

A source is parsed here and turned into an identity that follows content, never a place: a path is what it holds, a hub
repository is its commit, an artifact is its fingerprint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from slmkit.artifact import digest as digests
from slmkit.artifact.manifest import MANIFEST
from slmkit.errors import CannotRun, UsageError

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?\Z")
_SCHEME = re.compile(r"([a-z][a-z0-9+]*):")
COMMIT = re.compile(r"[0-9a-f]{40}\Z")


@dataclass(frozen=True)
class Source:
    """A parsed reference. `path` for demo and path, `repo` and `revision` for hf, `ref` for artifact, `word` for a bare name."""

    scheme: str
    text: str
    path: Path | None = None
    repo: str | None = None
    revision: str | None = None
    ref: str | None = None


def parse(text: str, folder: Path) -> Source:
    """Parse a reference written in `folder`. Raises UsageError for an unknown scheme or a malformed name."""
    scheme = _SCHEME.match(text)
    rest = text[scheme.end() :] if scheme else text
    match scheme and scheme[1]:
        case "hf":
            repo, _, revision = rest.partition("@")
            if not _REPO.match(repo) or ".." in repo or (("@" in rest) and not revision):
                raise UsageError(f"`{text}` is no hub name", mend="write hf:OWNER/NAME or hf:OWNER/NAME@REVISION")
            return Source("hf", text, repo=repo, revision=revision or "main")
        case "artifact":
            return Source("artifact", text, path=(folder / rest).absolute(), ref=rest)
        case "demo":
            return Source("demo", text, path=_demo(rest))
        case None:
            return _path(text, folder)
        case other:
            mend = "known are hf:, artifact:, demo:, and paths; write ./ before a path that holds a colon"
            raise UsageError(f"unknown scheme `{other}:` in `{text}`", mend=mend)


def _demo(name: str) -> Path:
    from slmkit import demo

    try:
        return demo.path(name)
    except KeyError as e:
        raise UsageError(f"`demo:{name}` does not exist", mend=str(e.args[0])) from None


def _path(text: str, folder: Path) -> Source:
    path = (folder / Path(text).expanduser()).absolute()
    return Source("path", text, path=path)


def artifact_folder(path: Path | None) -> bool:
    return path is not None and (path / MANIFEST).is_file()


def type_of(path: Path, accepted: tuple[str, ...]) -> str:
    """What a local path is: adapter and model folders are told by their config; else the first accepted type."""
    if path.is_dir():
        if (path / "adapter_config.json").is_file():
            return "adapter"
        if (path / "config.json").is_file():
            return "model"
    return next((t for t in accepted if t not in ("model", "adapter")), accepted[0])


def content(path: Path, files: list[Path] | None = None, cache: digests.Cache | None = None) -> str:
    """sha256 of a file, of a folder's visible files, or of the given files by their place relative to `path`'s folder."""
    if files is not None:
        return digests.of_files({_relative(f, path.parent): f for f in files}, cache)
    return digests.of_path(path, cache)


def _relative(file: Path, folder: Path) -> str:
    import os

    return os.path.relpath(file, folder).replace(os.sep, "/")


def fetch_hub(repo: str, commit: str, weights: bool = True) -> Path:
    """The local folder of a hub repository at one commit, downloaded if need be. Raises CannotRun when it cannot be had."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    wanted = [*(["*.safetensors"] if weights else []), "*.json", "*.jinja", "*.txt", "*.model", "*.jsonl", "*.csv"]
    try:
        return Path(snapshot_download(repo, revision=commit, allow_patterns=wanted))
    except (HTTPError, OfflineModeIsEnabled, OSError) as e:
        try:  # without a network, what is already here at that commit will do
            return Path(snapshot_download(repo, revision=commit, allow_patterns=wanted, local_files_only=True))
        except (LocalEntryNotFoundError, OSError):
            pass
        raise CannotRun(
            f"cannot fetch hf:{repo} at {commit[:12]}: {_first_line(e)}",
            mend="check the network and HF_TOKEN (`slmkit doctor --online`), or give a local folder",
        ) from None


def resolve_hub(repo: str, revision: str) -> str:
    """The 40-hex commit that a hub name means now. Raises UsageError when it does not exist, CannotRun without a network."""
    if COMMIT.match(revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return HfApi().model_info(repo, revision=revision, timeout=20).sha
    except (RepositoryNotFoundError, RevisionNotFoundError) as e:
        what = "revision" if isinstance(e, RevisionNotFoundError) else "repository"
        mend = "check the spelling; a private or gated repository needs HF_TOKEN"
        raise UsageError(f"the hub has no such {what}: {repo}@{revision}", mend=mend) from None
    except (HTTPError, OfflineModeIsEnabled, OSError) as e:
        raise CannotRun(
            f"cannot ask the hub what {repo}@{revision} is: {_first_line(e)}",
            mend="check the network, or use a lock file made where there is one (`slmkit lock`)",
        ) from None


def _first_line(e: Exception) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
