"""Alters an artifact the way a liar, an accident or another machine would, with a manifest that fits what is altered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from slmkit.artifact import digest, fingerprint, manifest


def alter(folder: Path, edit: Callable[[dict], None]) -> None:
    """Change the manifest; its fingerprint, file list and digest are made right again, as far as they follow from the rest."""
    body = json.loads((folder / manifest.MANIFEST).read_text())
    edit(body)
    body["fingerprint"] = fingerprint.fingerprint(body["fingerprint_payload"])
    body["config"] = body["fingerprint_payload"]["config"]
    files = digest.listing(folder)
    body["outputs"] = {"digest": digest.of_listing(files), "bytes": sum(f["bytes"] for f in files), "files": files}
    manifest.write(folder, body)


def nudge(folder: Path, name: str, by: float) -> None:
    """Add to the last number of one tensor."""
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {n: t.copy() for n, t in load_file(path).items()}
    tensors[name].reshape(-1)[-1] += by
    save_file(tensors, path)


def state(store: Path) -> dict[Path, tuple[int, int]]:
    """Every file and folder of a store with its size and time of change: equal iff nothing was written."""
    return {p: (p.lstat().st_size, p.lstat().st_mtime_ns) for p in [store, *store.rglob("*")]}
