"""What batches of requests took, as figures with intervals: time to the first token and a token after it, tokens a second by size of batch.

Times on a machine are skewed and have stragglers, so nothing here is a mean with a standard error. A figure is a median (or a 95th
percentile), and its interval lies between two of the measurements: which two is the binomial's affair, whatever the distribution
(Thompson 1936). Too few measurements for 95 % give all that was seen, and say how sure that is; an end that no measurement bounds is None.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

LEVEL = 0.95


@dataclass(frozen=True)
class Batch:
    """One batch, asked at once. first, last: for each request, seconds until its first and its last token. read, wrote: tokens of each.
    in_turn: it was answered one request after another, so that the next prompt is read only when the last answer is written."""

    first: tuple[float, ...]
    last: tuple[float, ...]
    read: tuple[int, ...]
    wrote: tuple[int, ...]
    in_turn: bool = False

    @property
    def prefill(self) -> float:
        """Seconds in which prompts were read: until every request has its first token."""
        return max(self.last) - self.decode if self.in_turn else max(self.first)

    @property
    def decode(self) -> float:
        """Seconds in which answers were written: from then until all are done."""
        if self.in_turn:
            return sum(last - first for first, last in zip(self.first, self.last, strict=True))
        return max(self.last) - self.prefill

    @property
    def later(self) -> int:
        """Tokens written after each request's first, which the prompt's pass gives."""
        return sum(self.wrote) - len(self.wrote)


def quantile(values: list[float], share: float = 0.5, level: float = LEVEL) -> dict[str, float | None]:
    """{value, low, high, level}: the quantile (between neighbours by share, as everywhere) and its distribution-free interval, whose level is at
    least the one asked for, or as much as all of them give. A level is None where an end is open."""
    ordered, n = sorted(values), len(values)
    place = share * (n - 1)
    below = int(place)
    value = ordered[below] + (place - below) * (ordered[min(below + 1, n - 1)] - ordered[below])
    chances = _binomial(n, share)
    tail = (1 - level) / 2
    # the k-th smallest is above the true quantile with P(fewer than k lie below it), the k-th is below it with P(at least k do)
    low = max((k for k, above in enumerate(accumulate(chances[:n]), 1) if above <= tail), default=None)
    rest = max((k for k, below in enumerate(accumulate(reversed(chances[1:])), 1) if below <= tail), default=None)
    high = n + 1 - rest if rest else None
    if low is None and high is None and share == 0.5:
        low, high = 1, n
    reached = sum(chances[low:high]) if low and high else None
    return {"value": value, "low": ordered[low - 1] if low else None, "high": ordered[high - 1] if high else None, "level": reached}


def _binomial(n: int, share: float) -> list[float]:
    """P(exactly k of n), for k = 0 … n."""
    from slmkit.evidence.power import chance

    return [chance(n, k, share) for k in range(n + 1)]


def latency(alone: list[Batch]) -> dict[str, Any]:
    """Of requests that were asked one at a time: p50 and p95 of the first token, and of each token after it, in seconds."""
    first = [b.prefill for b in alone]
    each = [b.decode / b.later for b in alone if b.later]
    named = {"time_to_first_token": first} | ({"time_per_token": each} if each else {})
    return {name: {"p50": quantile(x), "p95": quantile(x, 0.95)} for name, x in named.items()} | {"requests": len(alone)}


def throughput(batches: list[Batch]) -> dict[str, Any]:
    """Of batches of one size: tokens read a second while prompts are read, and written a second while answers are."""
    read = [sum(b.read) / b.prefill for b in batches]
    wrote = [b.later / b.decode for b in batches if b.later]
    out = {"input_tokens_per_second": quantile(read), "batches": len(batches), "mean_input_tokens": _mean(batches, "read")}
    if wrote:
        out |= {"output_tokens_per_second": quantile(wrote), "mean_output_tokens": _mean(batches, "wrote")}
    return out


def _mean(batches: list[Batch], side: str) -> float:
    counts = [n for b in batches for n in getattr(b, side)]
    return sum(counts) / len(counts)


def curve(batches: dict[int, list[Batch]]) -> dict[str, Any]:
    """The throughput by size of batch. Keys are text, as JSON's are."""
    return {str(size): throughput(some) for size, some in sorted(batches.items())}


def of_answers(seconds: list[float], written: list[int]) -> dict[str, Any]:
    """Of answers that came whole, each timed by the client that asked: p50 and p95 in seconds, and the tokens of one answer a second. written: tokens
    of each, 0 where the endpoint counts none."""
    rates = [n / s for s, n in zip(seconds, written, strict=True) if n and s > 0]
    out: dict[str, Any] = {"answers": len(seconds), "seconds": {"p50": quantile(seconds), "p95": quantile(seconds, 0.95)}}
    return out | ({"output_tokens_per_second": quantile(rates)} if rates else {})


def answers_line(timed: dict[str, Any]) -> str:
    """An endpoint's speed in one line."""
    half, most = (timed["seconds"][k] for k in ("p50", "p95"))
    said = f"a whole answer {_ms(half)} (p95 {_ms(most)})"
    return said + (f", {timed['output_tokens_per_second']['value']:,.0f} tokens/s" if "output_tokens_per_second" in timed else "")


def line(measured: dict[str, Any]) -> str:
    """A model's speed in one line."""
    first, each = (measured["latency"].get(k) for k in ("time_to_first_token", "time_per_token"))
    said = [f"first token {_ms(first['p50'])} (p95 {_ms(first['p95'])})"]
    if each:
        said.append(f"then {_ms(each['p50'])} a token (p95 {_ms(each['p95'])})")
    size, best = max(measured["curve"].items(), key=lambda item: item[1].get("output_tokens_per_second", item[1]["input_tokens_per_second"])["value"])
    if "output_tokens_per_second" in best:
        rates = (best["input_tokens_per_second"]["value"], best["output_tokens_per_second"]["value"])
        said.append(f"at batch {size} {rates[0]:,.0f} tokens/s read and {rates[1]:,.0f} written")
    if measured.get("peak_memory_bytes"):
        said.append(f"{measured['peak_memory_bytes'] / 1e6:,.0f} MB at most")
    return ", ".join(said)


def _ms(figure: dict[str, float | None]) -> str:
    return f"{1000 * figure['value']:.3g} ms"
