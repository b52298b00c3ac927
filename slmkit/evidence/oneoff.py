"""What making a model took, from the manifests of the steps that made it: their hours at a price, and the dollars that teachers and judges were paid.

What a manifest does not say is not made up: an endpoint without prices leaves the whole unknown, and it is said which step that is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slmkit.evidence.figures import Figure, exactly, unknown


@dataclass(frozen=True)
class OneOff:
    """usd: in all, or unknown. parts: (what, US dollars). assumptions: sentences."""

    usd: Figure
    parts: tuple[tuple[str, float], ...] = ()
    assumptions: tuple[str, ...] = ()


def given(usd: float) -> OneOff:
    """As the user says it."""
    return OneOff(exactly(usd), (("as given", usd),), (f"making the model cost {usd:g} USD, as given",))


def of_chain(steps: list[dict[str, Any]], missing: list[str], usd_per_hour: float | None) -> OneOff:
    """steps: the manifests of all that the model was made from, its own too, each once. missing: what of that is no longer there."""
    parts: list[tuple[str, float]] = []
    unsaid = [f"{name} is no longer in the store" for name in missing]
    notes: list[str] = []
    perhaps, hours = 0.0, 0.0
    for m in steps:
        name, result = f"{m['kind']} `{m['name']}`", m["result"]
        paid = {k: v for k, v in result.items() if (k == "usd" or k.endswith("_usd")) and isinstance(v, int | float)}
        parts += [(f"{name}: teacher" if k == "usd" else f"{name}: {k.removesuffix('_usd')}", float(v)) for k, v in paid.items()]
        perhaps += result.get("usd_perhaps_billed", 0.0)
        asks = _endpoint(m["config"])
        if asks and not paid:
            unsaid.append(f"{name} asked {asks} without `prices`, so what that cost is not known")
        if result.get("from_ledger") and asks:
            notes.append(f"{name}: {result['from_ledger']} answers were in the ledger already; what other steps had paid for them is not in it")
        if m["kind"] == "distill" and asks:
            notes.append(f"{name}: the hours of waiting for {asks} are not counted, they need no machine to speak of")
            continue
        hours += m["run"]["seconds"] / 3600
        if m["run"].get("attempts", 1) > 1:
            notes.append(f"{name}: {m['run']['attempts']} attempts, of which the last one's seconds are counted")
        if usd_per_hour is not None:
            parts.append((f"{name}: {m['run']['seconds']:,.0f} s", m["run"]["seconds"] / 3600 * usd_per_hour))
    if steps and hours and usd_per_hour is None:
        unsaid.append("the price of the machine that the model was made on is not known: say training_usd_per_hour, or usd_per_hour")
    if steps and usd_per_hour is not None:
        took = f"the steps that made the model took {hours:,.3f} hours of a machine at {usd_per_hour:g} USD an hour"
        notes.insert(0, f"{took}; trials before them are not in it")
    if not steps and not missing:
        notes.append("the model was not made by slmkit, so making it cost nothing here")
    if perhaps:
        notes.append(f"calls without an answer, perhaps billed, are the upper end: {perhaps:g} USD")
    if unsaid:
        return OneOff(unknown("; ".join(unsaid)), tuple(parts), tuple(notes))
    total = sum(usd for _, usd in parts)
    return OneOff(Figure(total, total, total + perhaps) if perhaps else exactly(total), tuple(parts), tuple(notes))


def _endpoint(config: Any) -> str | None:
    """The name of a model behind an endpoint that a step's config asks, at any depth: `teacher: {model: …, base_url: …}`."""
    if isinstance(config, list):
        return next((found for x in config if (found := _endpoint(x))), None)
    if not isinstance(config, dict):
        return None
    teacher = config.get("teacher")
    if isinstance(teacher, dict) and "model" in teacher:
        return str(teacher["model"])
    return next((found for x in config.values() if (found := _endpoint(x))), None)


def prices(steps: list[dict[str, Any]]) -> dict[str, float] | None:
    """The prices of an API that some of these steps recorded; None where none did, or two do not agree."""
    found = [m["result"]["prices"] for m in steps if isinstance(m["result"].get("prices"), dict)]
    return found[0] if found and all(f == found[0] for f in found) else None
