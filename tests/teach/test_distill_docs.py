"""The recipes that docs/distill.md shows load as they stand, and its tables name every mode and filter there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from slmkit.recipe.load import load
from slmkit.steps._modes import MODES
from slmkit.teach.filters import ORDER

PAGE = (Path(__file__).parents[2] / "docs/distill.md").read_text()
RECIPES = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)


@pytest.mark.parametrize("text", RECIPES, ids=[text.split()[1] for text in RECIPES])
def test_a_recipe_of_the_page_loads(tmp_path, text):
    for name in re.findall(r"^    prompts: (\w+\.jsonl)", text, re.M):
        (tmp_path / name).write_text('{"prompt": "p", "completion": "c"}\n')
    (tmp_path / "r.yaml").write_text(text)
    assert all(step.config is not None for step in load(tmp_path / "r.yaml").steps.values())


def test_every_mode_and_every_filter_is_told():
    assert len(RECIPES) == 4
    modes = re.search(r"\| mode \|.*?\n\n", PAGE, re.S)[0]
    assert re.findall(r"^\| `(\w+)` \|", modes, re.M) == list(MODES)
    rows = re.search(r"\| filter \|.*?\n\n", PAGE, re.S)[0]
    told = [name for first in re.findall(r"^\| (`[^|]*`) \|", rows, re.M) for name in re.findall(r"`(\w+)`", first)]
    assert told == list(ORDER)
