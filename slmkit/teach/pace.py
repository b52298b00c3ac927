"""How many requests are in flight, and when the next may go: as many as the teacher bears.

The very first request goes alone: a wrong key costs one. Slow start as in TCP (RFC 5681): the limit grows by one with each answer
until the first refusal, then by one a round; a refusal (429, overload, a time-out) takes it down by a third, at most once a round.
`Retry-After` stops all sending until then, since limits are an account's and not a call's. When nothing but failures comes back, a
circuit breaker lets one request through now and then.
"""

from __future__ import annotations

import random
import time
from collections import deque

START = 16
CUT = 0.67
BREAK_AFTER = 10  # failures in a row, and at least the limit of that moment
FIRST_REST, LONGEST_REST = 1.0, 30.0  # seconds between the breaker's trials


class Pace:
    """concurrency: the most at once. requests_per_minute, tokens_per_minute: limits to keep below, None without."""

    def __init__(self, concurrency: int, requests_per_minute: int | None = None, tokens_per_minute: int | None = None):
        self.most = concurrency
        self.limit = float(min(START, concurrency))
        self.threshold = float("inf")
        self.flying, self.cut_at, self.not_before = 0, 0.0, 0.0
        self.failures, self.rest, self.last_success = 0, FIRST_REST, time.monotonic()
        self.proven = False  # has anything been answered yet?
        self.requests = _Window(requests_per_minute)
        self.tokens = _Window(tokens_per_minute)

    @property
    def broken(self) -> bool:
        """Is the circuit open: has nothing but failure come back for long?"""
        return self.failures >= max(BREAK_AFTER, self.limit)

    def delay(self, tokens: int) -> float | None:
        """Seconds until a request may go; None: when one of those in flight has come back."""
        now = time.monotonic()
        if self.flying >= (int(self.limit) if self.proven and not self.broken else 1):
            return None
        return max(0.0, self.not_before - now, self.requests.delay(now, 1), self.tokens.delay(now, tokens))

    def sent(self, tokens: int) -> float:
        """A request goes now. Returns the moment, for `answered` and `refused`."""
        now = time.monotonic()
        self.flying += 1
        self.requests.add(now, 1)
        self.tokens.add(now, tokens)
        return now

    def back(self) -> None:
        self.flying -= 1

    def answered(self) -> None:
        self.failures, self.rest, self.last_success, self.proven = 0, FIRST_REST, time.monotonic(), True
        self.limit = min(float(self.most), self.limit + (1.0 if self.limit < self.threshold else 1.0 / self.limit))

    def refused(self, sent: float, after: float | None) -> None:
        """Too much: slower from here. after: the seconds of Retry-After."""
        now = time.monotonic()
        if sent >= self.cut_at:
            self.limit = self.threshold = max(1.0, self.limit * CUT)
            self.cut_at = now
        if after is not None:
            self.not_before = max(self.not_before, now + after)

    def failed(self) -> None:
        """A failure of whatever kind. Opens the breaker when there are many in a row."""
        self.failures += 1
        if self.broken:
            self.not_before = max(self.not_before, time.monotonic() + self.rest * random.uniform(0.8, 1.2))
            self.rest = min(LONGEST_REST, self.rest * 2)


class _Window:
    """At most `most` in any 60 seconds."""

    def __init__(self, most: int | None):
        self.most, self.sum = most, 0
        self.seen: deque[tuple[float, int]] = deque()

    def delay(self, now: float, size: int) -> float:
        if self.most is None:
            return 0.0
        while self.seen and now - self.seen[0][0] >= 60:
            self.sum -= self.seen.popleft()[1]
        if self.sum + size <= self.most or not self.seen:
            return 0.0
        over = self.sum + size - self.most
        for at, n in self.seen:
            over -= n
            if over <= 0:
                return at + 60 - now
        return self.seen[-1][0] + 60 - now

    def add(self, now: float, size: int) -> None:
        if self.most is not None:
            self.seen.append((now, size))
            self.sum += size


def backoff(attempt: int) -> float:
    """Seconds before trial number `attempt` + 1: 0.5, 1, 2 … 60, with full jitter."""
    return random.uniform(0.25, 1.0) * min(60.0, 0.5 * 2**attempt)
