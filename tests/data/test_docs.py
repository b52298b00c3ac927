"""The rows that docs/data.md shows are rows that are read, as the format that it says."""

import json
import re
from pathlib import Path

import pytest

from slmkit.data import read as reader
from tests.support.drive import given

PAGE = (Path(__file__).parents[2] / "docs/data.md").read_text()
SHOWN = re.findall(r"^\| `(\w+)`[^|]*\| `(\{.*?\})`[^`]*(?:`\w+`[^`]*)*\|$", PAGE, re.M)
ROWS = [(name, row) for name, row in SHOWN if "…" not in row]


def test_every_format_is_shown():
    assert {name for name, _ in SHOWN} >= {"messages", "completion", "alpaca", "sharegpt", "preference", "label", "text"} and len(ROWS) >= 8


@pytest.mark.parametrize(("name", "row"), ROWS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(ROWS)])
def test_a_row_of_the_page_is_read(tmp_path, name, row):
    (tmp_path / "d.json").write_text(json.dumps([json.loads(row)]))
    data = reader.read(given(tmp_path / "d.json", "dataset"))
    assert data.format == name and len(data) == 1
