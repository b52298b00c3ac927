"""Where inputs outside the recipe come from: `hf:ID[@revision][:split]`, `artifact:REF`, `demo:NAME`, a URL, a path or a glob.

A source is parsed here and turned into an identity that follows content, never a place: a path is what it holds, a hub
repository is its commit, an artifact is its fingerprint.
"""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from slmkit.artifact import digest as digests
from slmkit.artifact.manifest import MANIFEST
from slmkit.errors import CannotRun, UsageError

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?\Z")
_SCHEME = re.compile(r"([a-z][a-z0-9+]*):")
COMMIT = re.compile(r"[0-9a-f]{40}\Z")


@dataclass(frozen=True)
class Source:
    """A parsed reference. `path` for demo and path, `repo`, `revision` and `split` for hf, `ref` for artifact, `text` for a URL.

    files: what a glob matches, sorted; `path` is then the pattern.
    """

    scheme: str
    text: str
    path: Path | None = None
    repo: str | None = None
    revision: str | None = None
    ref: str | None = None
    split: str | None = None
    files: tuple[Path, ...] | None = None


def parse(text: str, folder: Path) -> Source:
    """Parse a reference written in `folder`. Raises UsageError for an unknown scheme or a malformed name."""
    scheme = _SCHEME.match(text)
    rest = text[scheme.end() :] if scheme else text
    match scheme and scheme[1]:
        case "hf":
            name, colon, split = rest.partition(":")
            repo, at, revision = name.partition("@")
            if not _REPO.match(repo) or ".." in repo or (at and not revision) or (colon and not split):
                raise UsageError(f"`{text}` is no hub name", mend="write hf:OWNER/NAME, hf:OWNER/NAME@REVISION, or hf:OWNER/NAME:SPLIT for data")
            return Source("hf", text, repo=repo, revision=revision or "main", split=split or None)
        case "artifact":
            return Source("artifact", text, path=(folder / rest).absolute(), ref=rest)
        case "demo":
            return Source("demo", text, path=_demo(rest))
        case None:
            return _path(text, folder)
        case "file":
            return _path(unquote(rest.removeprefix("//")), folder)
        case _ if rest.startswith("//"):
            if ":" in urlsplit(text).netloc.rpartition("@")[0]:
                raise UsageError("a password in a URL would be kept with every artifact", mend="let the backend find it (environment, config file)")
            return Source("url", text)
        case other:
            mend = "known are hf:, artifact:, demo:, URLs, and paths; write ./ before a path that holds a colon"
            raise UsageError(f"unknown scheme `{other}:` in `{text}`", mend=mend)


def _demo(name: str) -> Path:
    from slmkit import demo

    try:
        return demo.path(name)
    except KeyError as e:
        raise UsageError(f"`demo:{name}` does not exist", mend=str(e.args[0])) from None


def _path(text: str, folder: Path) -> Source:
    path = (folder / Path(text).expanduser()).absolute()
    if any(c in text for c in "*?[") and not path.exists():
        found = glob.glob(str(path), recursive=True)
        return Source("path", text, path=path, files=tuple(Path(f) for f in sorted(found) if os.path.isfile(f)))
    return Source("path", text, path=path)


def artifact_folder(path: Path | None) -> bool:
    return path is not None and (path / MANIFEST).is_file()


def type_of(path: Path, accepted: tuple[str, ...]) -> str:
    """What a local path is: adapters, models and exports are told by what they hold; else the first accepted type."""
    if path.suffix == ".gguf" and path.is_file():
        return "gguf"
    if path.is_dir():
        if (path / "adapter_config.json").is_file():
            return "adapter"
        if (path / "genai_config.json").is_file():
            return "onnx"
        if any(path.glob("*.gguf")) and not (path / "config.json").is_file():
            return "gguf"
        if (path / "config.json").is_file():
            return "model"
    return next((t for t in accepted if t not in ("model", "adapter")), accepted[0])


def content(path: Path, files: list[Path] | None = None, cache: digests.Cache | None = None) -> str:
    """sha256 of a file, of a folder's visible files, or of the given files by their place relative to `path`'s folder."""
    if files is not None:
        return digests.of_files({_relative(f, path.parent): f for f in files}, cache)
    return digests.of_path(path, cache)


def _relative(file: Path, folder: Path) -> str:
    return os.path.relpath(file, folder).replace(os.sep, "/")


SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model"]
MODEL_FILES = ["*.safetensors", "*.safetensors.index.json", *SMALL_FILES]


def fetch_hub(repo: str, commit: str, repo_type: str = "model", wanted: list[str] | None = None) -> Path:
    """The local folder of a hub repository at one commit, downloaded if need be. Raises CannotRun when it cannot be had.

    wanted: patterns of the files; those of a model if left out.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    ask = {"repo_type": repo_type, "revision": commit, "allow_patterns": wanted or MODEL_FILES}
    try:
        return Path(snapshot_download(repo, **ask))
    except (HTTPError, OfflineModeIsEnabled, OSError) as e:
        try:  # without a network, what is already here at that commit will do
            return Path(snapshot_download(repo, **ask, local_files_only=True))
        except (LocalEntryNotFoundError, OSError):
            pass
        raise CannotRun(
            f"cannot fetch hf:{repo} at {commit[:12]}: {_first_line(e)}",
            mend="check the network and HF_TOKEN (`slmkit doctor --online`), or give a local folder",
        ) from None


def fetch_data(repo: str, commit: str, split: str | None) -> tuple[Path, tuple[Path, ...]]:
    """(folder, files in order) of one split of a hub dataset. Raises CannotRun, DataError (no such split)."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    from slmkit.data import files

    folder = fetch_hub(repo, commit, "dataset", ["README.md"])
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None
    try:
        names = HfApi().list_repo_files(repo, revision=commit, repo_type="dataset")
    except (HTTPError, OfflineModeIsEnabled, OSError):  # without a network, what is already here at that commit will do
        names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    chosen = files.choose(names, split, text, f"hf:{repo}")
    folder = fetch_hub(repo, commit, "dataset", [glob.escape(n) for n in chosen])
    missing = next((n for n in chosen if not (folder / n).is_file()), None)
    if missing:
        raise CannotRun(f"hf:{repo} at {commit[:12]} is not here whole: {missing} is missing", mend="run it once with a network")
    return folder, tuple(folder / n for n in chosen)


def resolve_hub(repo: str, revision: str, repo_type: str = "model") -> str:
    """The 40-hex commit that a hub name means now. Raises UsageError when it does not exist, CannotRun without a network."""
    if COMMIT.match(revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return HfApi().repo_info(repo, revision=revision, repo_type=repo_type, timeout=20).sha
    except (RepositoryNotFoundError, RevisionNotFoundError) as e:
        what = "revision" if isinstance(e, RevisionNotFoundError) else "repository"
        mend = f"check the spelling (a {repo_type} is wanted); a private or gated repository needs HF_TOKEN"
        raise UsageError(f"the hub has no such {what}: {repo}@{revision}", mend=mend) from None
    except (HTTPError, OfflineModeIsEnabled, OSError) as e:
        raise CannotRun(
            f"cannot ask the hub what {repo}@{revision} is: {_first_line(e)}",
            mend="check the network, or use a lock file made where there is one (`slmkit lock`)",
        ) from None


def _first_line(e: Exception) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
