"""The demo task's two scores, on answers right, half right, and broken."""

import importlib.util
import json

import pytest

from slmkit.demo import path

GOLD = {"order": "48213", "carrier": "DHL", "weight_kg": 12, "city": "Munich", "date": "2026-03-14", "priority": "high"}


@pytest.fixture(scope="module")
def metrics():
    spec = importlib.util.spec_from_file_location("demo_metrics", path("notes").parent / "metrics.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without(key):
    return {name: value for name, value in GOLD.items() if name != key}


@pytest.mark.parametrize(
    ("told", "exact", "f1"),
    [
        (json.dumps(GOLD), 1, 1),
        (json.dumps(dict(reversed(GOLD.items())), indent=2), 1, 1),
        (json.dumps(GOLD | {"weight_kg": 12.0}), 1, 1),
        (json.dumps(GOLD | {"city": "Rome"}), 0, 5 / 6),
        (json.dumps(without("city")), 0, 10 / 11),
        (json.dumps(GOLD | {"note": "x"}), 0, 12 / 13),
        ("{}", 0, 0),
        ("[1]", 0, 0),
        ("Thanks, noted.", 0, 0),
        (json.dumps(GOLD)[:-1], 0, 0),
        ("[" * 100_000, 0, 0),
    ],
)
def test_scores(metrics, told, exact, f1):
    got = metrics.process_results({"note": "", "answer": json.dumps(GOLD)}, [told])
    assert got == {"exact_match": exact, "field_f1": pytest.approx(f1)}


def test_a_boolean_is_no_number(metrics):
    gold = {"weight_kg": 1}
    assert metrics.score({"weight_kg": True}, gold)["exact_match"] == 0
