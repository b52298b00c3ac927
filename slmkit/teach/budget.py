"""What may be spent, held before a request is sent: the most it can cost is reserved, and settled by what it did cost.

The most is known without a tokenizer: no byte-level vocabulary makes more tokens than a text has bytes, the chat template adds
a few a message, and `max_tokens` bounds the answer. Near the end fewer requests are in flight, so that the last of the money
can be spent; no more than one reservation of it is left over. What an endpoint adds unseen (a preamble) is learned from its
own counts, the first of which is waited for.
"""

from __future__ import annotations

from dataclasses import dataclass

from slmkit.teach.ledger import Paid
from slmkit.teach.request import Request

PER_MESSAGE = 16  # tokens that a chat template puts around a message: 3 to 8 in those we know
BASE = 64  # around all of them: begin of text, a date, a default system message


@dataclass(frozen=True)
class Prices:
    """US dollars per million tokens. cached: of input that the endpoint had in its cache; as input if left out. share: of the price that
    is charged, as a batch has it."""

    input: float
    output: float
    cached: float | None = None
    share: float = 1.0

    def of(self, usage: dict[str, int]) -> float:
        cached = min(usage.get("cached", 0), usage["input"])
        rate = self.input if self.cached is None else self.cached
        return self.share * ((usage["input"] - cached) * self.input + cached * rate + usage["output"] * self.output) / 1e6


@dataclass(frozen=True)
class Limits:
    """The most that may be spent; None is without limit."""

    usd: float | None = None
    tokens: int | None = None
    requests: int | None = None

    def __bool__(self) -> bool:
        return (self.usd, self.tokens, self.requests) != (None, None, None)


def bytes_of(value: object) -> int:
    """Bytes of all texts in a request's messages, tools and schema."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, dict):
        return sum(bytes_of(v) + len(k) + 6 for k, v in value.items())
    if isinstance(value, list | tuple):
        return sum(map(bytes_of, value)) + 2 * len(value)
    return 8


def most_input(request: Request) -> int:
    """More tokens than the request's input can be."""
    body = request.body
    said = sum(bytes_of(m) + PER_MESSAGE for m in body["messages"])
    return BASE + said + bytes_of(body.get("tools")) + bytes_of(body.get("response_format"))


@dataclass
class Spent:
    """Sums: what answers cost, and what calls without an answer may have cost."""

    requests: int = 0
    tokens: int = 0
    usd: float = 0.0
    lost_requests: int = 0
    lost_tokens: int = 0
    lost_usd: float = 0.0


@dataclass(frozen=True)
class Held:
    """A reservation. beyond, longer: how much of its input and output is there for what was seen of other requests."""

    input: int
    output: int
    usd: float
    beyond: int = 0
    longer: int = 0

    @property
    def tokens(self) -> int:
        return self.input + self.output


class Budget:
    """Reservations and what was spent. `fits` says yes, `wait` (others in flight may leave enough) or `never`."""

    def __init__(self, limits: Limits, prices: Prices | None, before: tuple[Paid, Paid] = (Paid(), Paid())):
        """before: what earlier attempts paid, as `Ledger.spent` has it. Tokens from before there were prices count at the dearer of the two."""
        self.limits, self.prices = limits, prices
        self.held, self.flying = Held(0, 0, 0.0), 0
        self.beyond, self.longer = 0, 0  # input tokens above what `most_input` says, and output above the request's limit, as seen
        self.known = False  # whether one answer has come
        dearest = max(prices.input, prices.output) * prices.share / 1e6 if prices else 0.0
        paid, lost = ((p.requests, p.tokens, p.usd + p.unpriced * dearest) for p in before)
        self.spent = Spent(*paid, *lost)

    def _add(self, tokens: int, usd: float, lost: str | None) -> None:
        s = self.spent
        if lost:
            s.lost_requests, s.lost_tokens, s.lost_usd = s.lost_requests + 1, s.lost_tokens + tokens, s.lost_usd + usd
        else:
            s.requests, s.tokens, s.usd = s.requests + 1, s.tokens + tokens, s.usd + usd

    def most(self, request: Request) -> Held:
        input, output = most_input(request) + self.beyond, request.most + self.longer
        usd = self.prices.of({"input": input, "output": output}) if self.prices else 0.0
        return Held(input, output, usd, self.beyond, self.longer)

    def fits(self, held: Held) -> str:
        if not self.limits:
            return "yes"
        if self.over(held, self.held, self.flying):
            return "wait" if self.flying else "never"
        return "yes" if self.known or not self.flying else "wait"

    def over(self, held: Held, others: Held, flying: int) -> bool:
        s, most = self.spent, self.limits
        return (
            (most.requests is not None and s.requests + s.lost_requests + flying + 1 > most.requests)
            or (most.tokens is not None and s.tokens + s.lost_tokens + others.tokens + held.tokens > most.tokens)
            or (most.usd is not None and s.usd + s.lost_usd + others.usd + held.usd > most.usd + 1e-12)
        )

    def reserve(self, held: Held) -> None:
        self.flying += 1
        self.held = Held(self.held.input + held.input, self.held.output + held.output, self.held.usd + held.usd)

    def take_over(self, before: dict | None, held: Held) -> None:
        """Hold what was counted as lost when the ledger was opened."""
        if before is not None:
            s = self.spent
            s.lost_requests, s.lost_tokens = s.lost_requests - 1, s.lost_tokens - before["tokens"]
            s.lost_usd -= before["usd"] or 0.0
        self.reserve(held)

    def release(self, held: Held) -> None:
        """A call that cost nothing: it was refused."""
        self.flying -= 1
        self.held = Held(self.held.input - held.input, self.held.output - held.output, self.held.usd - held.usd)

    def settle(self, held: Held, usage: dict[str, int]) -> float | None:
        """A call that was answered. Returns what it cost in US dollars, None without prices."""
        self.release(held)
        usd = self.prices.of(usage) if self.prices else None
        self._add(usage["input"] + usage["output"], usd or 0.0, None)
        self.beyond = max(self.beyond, usage["input"] - (held.input - held.beyond))
        self.longer = max(self.longer, usage["output"] - (held.output - held.longer))
        self.known = True
        return usd

    def lose(self, held: Held) -> None:
        """A call that gave no answer and may have been billed in full."""
        self.release(held)
        self._add(held.tokens, held.usd, "lost")

    def told(self) -> str:
        """What was spent, in words."""
        s = self.spent
        money = f", {s.usd + s.lost_usd:.4f} USD" if self.prices else ""
        lost = f" ({s.lost_requests} calls gave no answer and may have been billed: {s.lost_tokens} tokens held)" if s.lost_requests else ""
        return f"{s.requests + s.lost_requests} requests, {s.tokens + s.lost_tokens} tokens{money}{lost}"

    def limit_told(self) -> str:
        most = self.limits
        parts = [f"{most.usd} USD" if most.usd is not None else "", f"{most.tokens} tokens" if most.tokens is not None else "",
                 f"{most.requests} requests" if most.requests is not None else ""]
        return ", ".join(p for p in parts if p)
