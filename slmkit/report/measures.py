"""What a model costs, beside how good it is: the one place that knows where an eval's manifest keeps size and speed, and what of its bill is shown.

A column of a table and a picture follow from each row here; one that no model has is left out. Costs are those of `slmkit cost`, by the prices that
the eval's `cost:` block gives and those of its teacher.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from slmkit.artifact.chain import behind
from slmkit.artifact.manifest import Artifact
from slmkit.evidence import bill
from slmkit.evidence.bill import Bill
from slmkit.report.facts import Batch, Measure
from slmkit.steps._speed import Cost

COSTS = (  # figure of the bill, label, unit, lower is better, axis
    ("usd_per_million_tokens", "$ per million tokens", "usd", True, True),
    ("usd_per_million_input_tokens", "$ per million tokens read", "usd", True, False),
    ("usd_per_million_output_tokens", "$ per million tokens written", "usd", True, False),
    ("usd_per_thousand_requests", "$ per 1,000 requests", "usd", True, False),
    ("usd_one_off", "$ once, for making it", "usd", True, False),
    ("usd_per_million_tokens_with_one_off", "$ per million tokens, with that", "usd", True, False),
    ("api_usd_per_million_tokens", "the API: $ per million tokens", "usd", True, False),
    ("break_even_requests", "pays from request", "count", True, False),
    ("break_even_days", "pays after days", "number", True, False),
)


def bills(artifact: Artifact, find: Callable[[str], Artifact | None]) -> dict[str, Bill]:
    """By model, of those whose speed the eval measured. find: fingerprint → artifact."""
    manifest = artifact.manifest
    chains = {}
    for name in manifest["result"].get("scores") or {}:
        steps, missing = behind(find, [i for i in manifest["inputs"] if i["role"] == "models" and i["name"] == name])
        chains[name] = [a.manifest for a in steps], missing
    said = Cost.model_validate(manifest["result"].get("cost") or {})
    return {b.name: b for b in bill.draw_up(manifest, bill.measured_in(manifest), chains, said)}


def of_model(result: dict[str, Any], model: str, told: Bill | None = None) -> tuple[Measure, ...]:
    """result: an eval's. Figures that were not recorded, or are no numbers, are left out."""
    speed = _of(result, "speed", model)
    speed = speed if isinstance(speed, dict) else {}
    rows = [
        Measure("size", "size", "bytes", _of(result, "size_bytes", model), True, True),
        Measure("tokens_per_second", "tokens/s, scoring" if told else "tokens/s", "rate", speed.get("tokens_per_second"), False, told is None),
        Measure("seconds", "time to score", "seconds", speed.get("seconds"), True, False),
        *_answers(speed.get("answers") or {}), *(_speed(told.measured) if told else ()), *(_costs(told) if told else ()),
    ]
    return tuple(m for m in rows if _number(m.value))


def batches(told: Bill) -> tuple[Batch, ...]:
    """Throughput by how many requests are there at once."""
    out = []
    for size, point in told.measured["curve"].items():
        read, wrote = point["input_tokens_per_second"], point.get("output_tokens_per_second") or {}
        sides = [side.get(k) for side in (read, wrote) for k in ("value", "low", "high")]
        out.append(Batch(int(size), *sides))
    return tuple(sorted(out, key=lambda b: b.size))


def unknown(told: Bill) -> tuple[str, ...]:
    """Why figures are left out, each reason once. Without any price nothing was to be reckoned."""
    if told.said == Cost():
        return ()
    return tuple(dict.fromkeys(f.why for f in told.reckoned.figures.values() if f.why))


def _answers(timed: dict[str, Any]) -> list[Measure]:
    """Of an endpoint."""
    out = [_figure(f"answer_{s}", f"a whole answer, {s}", "latency", (timed.get("seconds") or {}).get(s) or {}, True, False) for s in ("p50", "p95")]
    return [*out, _figure("answer_rate", "tokens/s of an answer", "rate", timed.get("output_tokens_per_second") or {}, False, False)]


def _speed(measured: dict[str, Any]) -> list[Measure]:
    out = []
    for key, label in (("time_to_first_token", "first token"), ("time_per_token", "a token after it")):
        for share, axis in (("p50", key == "time_to_first_token"), ("p95", False)):
            figure = (measured["latency"].get(key) or {}).get(share) or {}
            out.append(_figure(f"{key}_{share}", f"{label}, {share}", "latency", figure, True, axis))
    key = "output_tokens_per_second" if all("output_tokens_per_second" in p for p in measured["curve"].values()) else "input_tokens_per_second"
    size, best = max(measured["curve"].items(), key=lambda item: item[1][key]["value"])
    word = "written" if key.startswith("output") else "read"
    out.append(_figure(f"{word}_per_second", f"tokens/s {word}, best batch", "rate", best[key], False, True))
    out.append(Measure("best_batch", "best batch", "count", int(size), False, False, "speed"))
    out.append(Measure("peak_memory", "memory, peak", "bytes", measured.get("peak_memory_bytes"), True, False, "speed"))
    return out


def _figure(key: str, label: str, unit: str, figure: dict[str, Any], lower: bool, axis: bool) -> Measure:
    return Measure(key, label, unit, figure.get("value"), lower, axis, "speed", figure.get("low"), figure.get("high"))


def _costs(told: Bill) -> list[Measure]:
    if told.said == Cost():  # no price was named, so nothing costs anything that is known
        return []
    figures = told.reckoned.figures
    return [Measure(key, label, unit, figures[key].value, lower, axis, "cost", figures[key].low, figures[key].high)
            for key, label, unit, lower, axis in COSTS]


def _of(result: dict, key: str, model: str) -> Any:
    by_model = result.get(key)
    return by_model.get(model) if isinstance(by_model, dict) else None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
