"""What a model costs, beside how good it is: the one place that knows where an eval's manifest keeps size, speed and cost.

A column of the table and a picture follow from each row here; one that no model has is left out.
"""

from __future__ import annotations

import math
from typing import Any

from slmkit.report.facts import Measure


def of_model(result: dict[str, Any], model: str) -> tuple[Measure, ...]:
    """result: an eval's. Figures that were not recorded, or are no numbers, are left out."""
    speed = _of(result, "speed", model)
    rows = (
        ("size", "size", "bytes", _of(result, "size_bytes", model), True, True),
        ("tokens_per_second", "tokens/s", "rate", speed.get("tokens_per_second") if isinstance(speed, dict) else None, False, True),
        ("seconds", "time to score", "seconds", speed.get("seconds") if isinstance(speed, dict) else None, True, False),
        ("usd_per_million", "$ per million tokens", "usd", _of(result, "cost_per_million", model), True, True),
    )
    return tuple(Measure(key, label, unit, float(v), lower, axis) for key, label, unit, v, lower, axis in rows if _number(v))


def _of(result: dict, key: str, model: str) -> Any:
    by_model = result.get(key)
    return by_model.get(model) if isinstance(by_model, dict) else None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
