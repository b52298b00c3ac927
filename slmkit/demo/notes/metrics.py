"""How an answer to a delivery note is scored: the whole object, and field by field.

`exact_match` is 1 when the text parses as JSON and equals the gold object (key order and spacing are free, 12.0 equals
12, true does not equal 1). `field_f1` is the harmonic mean of precision (right fields among those given) and recall
(right fields among the gold's); text that is no JSON object scores 0 on both.
"""

from __future__ import annotations

import json


def parsed(text: str) -> dict | None:
    """The JSON object that the text is, or None."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def same(told, gold) -> bool:
    """Equality of JSON values, with booleans kept apart from numbers."""
    return isinstance(told, bool) == isinstance(gold, bool) and told == gold


def score(told: dict | None, gold: dict) -> dict[str, float]:
    """Both metrics of one answer."""
    if not told:
        return {"exact_match": 0.0, "field_f1": 0.0}
    right = sum(1 for key, value in gold.items() if key in told and same(told[key], value))
    return {"exact_match": float(right == len(gold) == len(told)), "field_f1": 2 * right / (len(gold) + len(told))}


def process_results(doc: dict, results: list[str]) -> dict[str, float]:
    """lm-eval's hook: one row of the test file and the model's text."""
    return score(parsed(results[0]), json.loads(doc["answer"]))
