"""Numbers and texts as people read them, the same way on the page, in Markdown and in the verdict."""

from __future__ import annotations

import math

MINUS = "\u2212"
UNKNOWN = "–"


def share(value: float | None) -> str:
    """0.915 → 91.5 %"""
    return UNKNOWN if value is None else f"{100 * value:.1f} %"


def number(value: float | None) -> str:
    return UNKNOWN if value is None else _sign(f"{value:.4g}")


def score(value: float | None, is_share: bool) -> str:
    return share(value) if is_share else number(value)


def span(low: float | None, high: float | None, is_share: bool) -> str:
    """88.1 to 94.9 %"""
    if low is None or high is None:
        return UNKNOWN
    return f"{100 * low:.1f} to {100 * high:.1f} %" if is_share else f"{number(low)} to {number(high)}"


def points(value: float | None, is_share: bool) -> str:
    """A difference with its sign: of shares in points (hundredths)."""
    return UNKNOWN if value is None else _sign(f"{100 * value:+.1f}" if is_share else f"{value:+.4g}")


def points_span(low: float | None, high: float | None, is_share: bool) -> str:
    return UNKNOWN if low is None or high is None else f"{points(low, is_share)} to {points(high, is_share)}"


def count(value: int | float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"


def size(value: int | float | None) -> str:
    """Decimal units, as files are sold: 1972448 → 1.97 MB"""
    if value is None:
        return UNKNOWN
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f} bytes"


def seconds(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def rate(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def usd(value: float | None) -> str:
    """To the cent, and below ten cents to two digits."""
    if value is None:
        return UNKNOWN
    return f"${value:,.2f}" if value >= 0.095 or value == 0 else f"${value:.2g}" if value >= 1e-4 else f"${value:.1e}"


def measure(value: float | None, unit: str) -> str:
    """A figure of measures.py, in its unit."""
    return {"bytes": size, "rate": rate, "seconds": seconds, "usd": usd, "latency": latency, "count": count}.get(unit, number)(value)


def measure_span(low: float | None, high: float | None, unit: str) -> str:
    """Its interval: `3.3 ms to 4.1 ms`; an end that nothing bounds is left open. Nothing where the figure has none, or is exact."""
    if low is None and high is None or low == high:
        return ""
    return f"{measure(low, unit)} to {measure(high, unit)}"


def latency(value: float | None) -> str:
    return UNKNOWN if value is None else f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


def p(value: float | None) -> str:
    return UNKNOWN if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def small(value: float | None) -> str:
    """Two digits: divergences, relative errors."""
    return UNKNOWN if value is None else f"{value:.2g}"


def times(one: float, other: float) -> str:
    """0.38 ×"""
    return f"{one / other:.2f} ×" if other and math.isfinite(one / other) else UNKNOWN


def visible(text: str) -> str:
    """What is not seen (controls, marks that turn the direction of writing, halves of characters) by its number: an answer must not play tricks."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _sign(text: str) -> str:
    return text.replace("-", MINUS, 1) if text.startswith("-") else text
