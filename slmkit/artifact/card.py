"""The README.md of an artifact: Hub metadata as front matter, then what it is, from what, and how to use it."""

from __future__ import annotations

from pathlib import Path

import yaml


def write(folder: Path, metadata: dict, text: str, fingerprint: str, version: str) -> None:
    """Write README.md. It holds no time and no local path, because it is part of the payload and of its digest."""
    front = yaml.safe_dump({k: v for k, v in metadata.items() if v not in (None, [], {})}, sort_keys=True, allow_unicode=True)
    foot = (
        f"\n---\nMade by slmkit {version}. Fingerprint `{fingerprint[:12]}`: `.slmkit/manifest.json` holds what was asked, from which "
        "inputs, on what machine, and the hash of every file; `.slmkit/recipe.yaml` is the recipe.\n"
        "`sha256sum -c .slmkit/SHA256SUMS` in this folder checks it without slmkit.\n"
    )
    (folder / "README.md").write_text(f"---\n{front}---\n\n{text.rstrip()}\n{foot}")
