"""docs/serve.md names every parameter that is taken, on its side, and none that is not."""

from __future__ import annotations

import re
from pathlib import Path

from slmkit.ml.completions import CHAT, PLAIN

PAGE = (Path(__file__).parents[2] / "docs/serve.md").read_text()


def test_every_parameter_is_told_where_it_is_taken():
    rows = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("| `")]
    told: tuple[set[str], set[str]] = (set(), set())
    for names, *sides in rows:
        for side, taken in zip(told, sides, strict=True):
            side |= set(re.findall(r"`(\w+)", names)) if taken.strip() else set()
    assert told == (CHAT, PLAIN)
