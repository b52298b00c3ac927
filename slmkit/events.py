"""events.jsonl: the one log format. One JSON object a line, written whole and at once, so a killed run leaves readable lines."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any


def now() -> str:
    """UTC, ISO 8601 with milliseconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Events:
    """Appends events to a file. Fields must be JSON; paths and others are written as text."""

    def __init__(self, path: Path):
        self.handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def __call__(self, event: str, **fields: Any) -> None:
        line = json.dumps({"time": now(), "event": event, **fields}, default=str, ensure_ascii=False)
        os.write(self.handle, line.encode() + b"\n")

    def close(self) -> None:
        os.close(self.handle)


def read(path: Path) -> list[dict]:
    """All whole events of a file; a torn last line is left out."""
    out = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            out.append(json.loads(line))
        except ValueError:
            break
    return out
