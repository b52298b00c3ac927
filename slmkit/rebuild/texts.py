"""Two files that are not the same, and the first place where: a key of JSON, a line of text, a byte of anything else."""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path

from slmkit.artifact.fingerprint import differences

SMALL = 64 << 20  # JSON beyond this is compared by lines
SHOWN = 60


def first_difference(old: Path, new: Path) -> str:
    """In words. The files are known to differ."""
    if old.suffix == ".json" and max(old.stat().st_size, new.stat().st_size) <= SMALL:
        try:
            found = differences(*(json.loads(p.read_text(encoding="utf-8")) for p in (old, new)))
        except ValueError:
            found = []
        if found:
            where, before, now = found[0]
            return f"key {where or '(all of it)'}: {_short(before)} → {_short(now)}" + (f", and {len(found) - 1} more" if len(found) > 1 else "")
    return _line(old, new) or _byte(old, new)


def only_versions(old: Path, new: Path) -> bool:
    """Do two JSON files differ in nothing but which release of a library wrote them?"""
    try:
        found = differences(*(json.loads(p.read_text(encoding="utf-8")) for p in (old, new)))
    except ValueError:
        return False
    return all(where.endswith("version") for where, _, _ in found)


def _line(old: Path, new: Path) -> str | None:
    """The first line that differs, and of JSON lines its key; None where one of the files is no text."""
    try:
        with open(old, encoding="utf-8", newline="") as a, open(new, encoding="utf-8", newline="") as b:
            for number, (one, two) in enumerate(zip_longest(a, b), 1):
                if one == two:
                    continue
                if "\0" in (one or "") + (two or ""):
                    return None
                if one is None or two is None:
                    return f"line {number} is in the {'rebuilt' if one is None else 'recorded'} file alone"
                return f"line {number}{_key(one, two)}"
    except UnicodeDecodeError:
        return None
    return None


def _key(one: str, two: str) -> str:
    try:
        before, now = json.loads(one), json.loads(two)
    except ValueError:
        before = now = None
    if isinstance(before, dict) and isinstance(now, dict) and (found := differences(before, now)):
        return f", key {found[0][0]}: {_short(found[0][1])} → {_short(found[0][2])}"
    return f": {_short(one.rstrip())} → {_short(two.rstrip())}"


def _byte(old: Path, new: Path) -> str:
    at = 0
    with open(old, "rb") as a, open(new, "rb") as b:
        while True:
            one, two = a.read(1 << 20), b.read(1 << 20)
            if one != two:
                at += next((i for i, (x, y) in enumerate(zip(one, two, strict=False)) if x != y), min(len(one), len(two)))
                return f"byte {at:,} (of {old.stat().st_size:,} recorded and {new.stat().st_size:,} rebuilt)"
            if not one:
                return "no byte of it"
            at += len(one)


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
