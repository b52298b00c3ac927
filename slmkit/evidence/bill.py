"""Speed and cost of models told: a table of each for a terminal, what making them took, and the assumptions, each said once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slmkit.evidence import cost, oneoff
from slmkit.evidence.cost import Reckoning
from slmkit.evidence.figures import Figure
from slmkit.evidence.oneoff import OneOff
from slmkit.steps._speed import Charges, Cost


@dataclass(frozen=True)
class Bill:
    """One model: its record of speed, what was said of prices, what making it took, and what comes of these."""

    name: str
    measured: dict[str, Any]
    size_bytes: int | None
    said: Cost
    made: OneOff
    reckoned: Reckoning

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        speed = {k: self.measured[k] for k in ("latency", "curve", "mix", "runtime", "peak_memory_bytes") if k in self.measured}
        given = self.said.model_dump(mode="json", exclude_none=True)
        parts = [{"what": what, "usd": usd} for what, usd in self.made.parts]
        return {"size_bytes": self.size_bytes, "speed": speed, "given": given, "one_off": parts, **self.reckoned.record()}


Chain = tuple[list[dict[str, Any]], list[str]]
"""The manifests of all that a model was made from, and what of it is no longer there."""


def measured_in(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """An eval's records of speed by model, in the recipe's order (a manifest's keys are sorted)."""
    told = manifest["result"].get("speed") or {}
    order = dict.fromkeys([*(i["name"] for i in manifest["inputs"] if i["role"] == "models"), *told])
    return {n: told[n]["measured"] for n in order if isinstance(told.get(n), dict) and "measured" in told[n]}


def draw_up(manifest: dict[str, Any], speeds: dict[str, dict[str, Any]], chains: dict[str, Chain], said: Cost) -> list[Bill]:
    """A Bill for each model of `speeds`. chains: of all models of the eval, for the API's prices too, where none are said.

    Raises KeyError for a batch that was not measured.
    """
    result = manifest["result"]
    said, sizes, out = _with_api(said, chains, result.get("asked") or {}), result.get("size_bytes") or {}, []
    for name, measured in speeds.items():
        steps, missing = chains[name]
        made = oneoff.given(said.one_off_usd) if said.one_off_usd is not None else oneoff.of_chain(
            steps, missing, said.training_usd_per_hour or said.usd_per_hour)  # fmt: skip
        out.append(Bill(name, measured, sizes.get(name), said, made, cost.reckon(measured, said, made)))
    return out


def _with_api(said: Cost, chains: dict[str, Chain], asked: dict[str, dict[str, Any]]) -> Cost:
    """What is not said of the API, as the eval has it: the prices of the one endpoint that it scored, else of the models' teacher; the tokens that a
    request had at that endpoint. That a share of the input is cached is not said there, so none is."""
    scored = next(iter(asked.values())) if len(asked) == 1 else {}
    found = scored.get("prices") or oneoff.prices([m for steps, _ in chains.values() for m in steps])
    api = said.api or (Charges(input=found["input"], output=found["output"]) if found else None)
    if api is None:
        return said
    counted = {k: v for k, v in scored.get("mean", {}).items() if getattr(api, k) is None}
    return said.model_copy(update={"api": api.model_copy(update=counted)})


ROWS = {
    "usd_per_million_input_tokens": "USD / million input tokens", "usd_per_million_output_tokens": "USD / million output tokens",
    "usd_per_million_tokens": "USD / million tokens of this mix", "usd_per_thousand_requests": "USD / 1,000 requests",
    "usd_one_off": "USD once, for making it", "usd_per_million_tokens_with_one_off": "USD / million tokens, with that",
    "usd_per_thousand_requests_with_one_off": "USD / 1,000 requests, with that",
    "api_usd_per_million_tokens": "API: USD / million tokens of this mix",
    "api_usd_per_thousand_requests": "API: USD / 1,000 requests",
    "break_even_requests": "pays from request", "break_even_tokens": "pays from token", "break_even_days": "pays after days",
    "requests_per_day_of_a_machine": "requests a day, at most",
    "break_even_requests_per_day_of_a_machine": "requests a day that pay for a machine",
}  # fmt: skip


def lines(manifest: dict[str, Any], bills: list[Bill]) -> list[str]:
    """The whole report."""
    ran, environment = bills[0].measured.get("runtime", {}), manifest.get("environment", {})
    where = ", ".join(str(x) for x in (ran.get("name"), ran.get("device"), f"{ran.get('threads')} threads", environment.get("platform")) if x)
    out = [f"speed, measured {manifest['run'].get('finished', '')[:10]} ({where})", *_columns(_speed(bills)), ""]
    out += _columns([("cost", *(f"{b.name} (batch {b.reckoned.batch})" for b in bills)), *_costs(bills)])
    reasons = list(dict.fromkeys(f.why for b in bills for f in b.reckoned.figures.values() if f.why))
    out += ["", "not known, or none:", *(f"- {why}" for why in reasons)] if reasons else []
    for bill in bills:
        if bill.made.parts:
            out += ["", f"{bill.name} took, once:", *(f"- {what}: {usd:,.4f} USD" for what, usd in bill.made.parts)]
    shared = [a for a in bills[0].reckoned.assumptions if all(a in b.reckoned.assumptions for b in bills)]
    out += ["", "assumed:", *(f"- {a}" for a in shared)]
    out += [f"- {b.name}: {a}" for b in bills for a in b.reckoned.assumptions if a not in shared]
    return out


def _speed(bills: list[Bill]) -> list[tuple[str, ...]]:
    sizes = sorted({s for b in bills for s in b.measured["curve"]}, key=int)
    rates = [f"{side}/s ×{s}" for side in ("in", "out") for s in sizes]
    rows: list[tuple[str, ...]] = [("model", "first token p50", "p95", "a token p50", "p95", *rates, "memory", "size")]
    for b in bills:
        latency = [b.measured["latency"].get(k) for k in ("time_to_first_token", "time_per_token")]
        times = [f"{1000 * x[p]['value']:.3g} ms" if x else "" for x in latency for p in ("p50", "p95")]
        rates = [_rate(b.measured["curve"].get(s, {}).get(f"{side}_tokens_per_second")) for side in ("input", "output") for s in sizes]
        rows.append((b.name, *times, *rates, _bytes(b.measured.get("peak_memory_bytes")), _bytes(b.size_bytes)))
    return rows


def _rate(figure: dict[str, float] | None) -> str:
    return f"{figure['value']:,.0f}" if figure else ""


def _bytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:,.1f} MB"


def _costs(bills: list[Bill]) -> list[tuple[str, ...]]:
    """The rows of which at least one model has a figure, or an end of one."""
    told = [(label, *(_figure(b.reckoned.figures[key]) for b in bills)) for key, label in ROWS.items()]
    return [row for row in told if any(row[1:])]


def _figure(f: Figure) -> str:
    if not f.known:
        return "never" if f.why and f.why.startswith("never") else ""
    if f.low == f.high:
        return _number(f.value)
    return f"{_number(f.value)} [{_number(f.low)}, {_number(f.high) if f.high is not None else 'never'}]"


def _number(x: float) -> str:
    return f"{x:,.0f}" if x >= 1000 else f"{x:.4g}"


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)).rstrip() for row in rows]
