"""The manifest `.slmkit/manifest.json` makes a folder an artifact. It is written last, and read with suspicion."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from slmkit.artifact import digest
from slmkit.errors import StoreError

SCHEMA = "slmkit.manifest/1"
FOLDER = ".slmkit"
MANIFEST = f"{FOLDER}/manifest.json"
ANEW = "remove the folder and run the recipe again: it is built anew"
SHAPE = {
    "kind": str, "type": str, "fingerprint": str, "fingerprint_payload": dict, "name": str, "recipe": str, "config": dict, "execution": dict,
    "run": dict, "tool": dict, "environment": dict, "determinism": dict, "inputs": list, "outputs": dict, "result": dict,
}


@dataclass(frozen=True)
class Artifact:
    """A read-only handle: the folder and its manifest."""

    path: Path
    manifest: dict

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def digest(self) -> str:
        return self.manifest["outputs"]["digest"]

    @property
    def kind(self) -> str:
        return self.manifest["kind"]

    @property
    def type(self) -> str:
        return self.manifest["type"]

    @property
    def name(self) -> str:
        return self.manifest["name"]

    def faults(self) -> list[str]:
        """What differs from the manifest, each as a sentence: hashes every file again."""
        said = {f["path"]: f for f in self.manifest["outputs"]["files"]}
        there = digest.files_of(self.path)
        faults = [f"{name} is missing" for name in said if name not in there]
        faults += [f"{name} is not in the manifest" for name in there if name not in said]
        for name in sorted(said.keys() & there.keys()):
            size = there[name].stat().st_size
            if size != said[name]["bytes"]:
                faults.append(f"{name} has {size:,} bytes, the manifest says {said[name]['bytes']:,}")
            elif digest.of_file(there[name]) != said[name]["sha256"]:
                faults.append(f"{name} was altered: its sha256 is not the manifest's")
        if digest.of_listing(self.manifest["outputs"]["files"]) != self.digest:
            faults.append("the manifest was altered: its file list does not give its digest")
        return sorted(faults)

    def present(self) -> bool:
        """Whether every file of the manifest is there with its size (a quick look, no hashing)."""
        try:
            return all((self.path / f["path"]).stat().st_size == f["bytes"] for f in self.manifest["outputs"]["files"])
        except OSError:
            return False


def load(folder: Path) -> Artifact:
    """Read the artifact in a folder. Raises StoreError when there is none or its manifest is not of this schema."""
    path = folder / MANIFEST
    try:
        body = json.loads(path.read_text())
    except FileNotFoundError:
        raise StoreError("not an artifact: it has no .slmkit/manifest.json", where=folder) from None
    except (OSError, ValueError) as e:
        raise StoreError(f"its manifest cannot be read: {e}", where=path, mend=ANEW) from None
    schema = body.get("schema") if isinstance(body, dict) else None
    if schema != SCHEMA:
        raise StoreError(f"its manifest is of schema {schema!r}, this slmkit reads {SCHEMA!r}", where=path, mend=ANEW)
    wrong = [key for key, kind in SHAPE.items() if not isinstance(body.get(key), kind)]
    outputs = body["outputs"] if not wrong else {}
    if wrong or not isinstance(outputs.get("files"), list) or not isinstance(outputs.get("digest"), str):
        raise StoreError(f"its manifest lacks {', '.join(wrong) or 'outputs.files'}", where=path, mend=ANEW)
    return Artifact(folder, body)


def write(folder: Path, body: dict) -> None:
    """Write the manifest durably, with SHA256SUMS beside it for `sha256sum -c` (run in the artifact's folder)."""
    home = folder / FOLDER
    home.mkdir(exist_ok=True)
    lines = [f"{f['sha256']}  {f['path']}\n" for f in body["outputs"]["files"]]
    (home / "SHA256SUMS").write_text("".join(lines))
    with open(home / "manifest.json", "w") as f:
        json.dump(body, f, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        f.write("\n")
        f.flush()
        os.fsync(f.fileno())
