"""The shipped recipes' fingerprints are golden: whoever changes one says so in the changelog, and raises a VERSION where due.

They hold for the pinned lm-eval (a pin of eval) and move with the demo's data and models, which are inputs like any other.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slmkit.artifact.provenance import version
from slmkit.artifact.store import Store
from slmkit.plan import make
from slmkit.recipe.load import load
from slmkit.recipe.lock import Lock
from tests.support.cli import ROOT

GOLDEN = Path(__file__).with_name("golden") / "fingerprints.json"


def now(tmp_path: Path) -> dict[str, dict[str, str]]:
    found = {}
    for name in ("quickstart", "hub-qlora", "distill-support"):
        recipe = load(ROOT / f"recipes/{name}.yaml")
        rows = make(recipe, Store(tmp_path / "store"), Lock(recipe.lock_path, frozen=True)).rows
        found[name] = {row.name: row.fingerprint for row in rows}
    return found


@pytest.mark.skipif(version("lm_eval") != "0.4.13", reason="eval pins lm-eval; the golden ones are of 0.4.13")
def test_fingerprints_of_the_shipped_recipes(tmp_path: Path) -> None:
    assert now(tmp_path) == json.loads(GOLDEN.read_text())
