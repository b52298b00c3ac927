"""How little a test set can see, and how much it would take: plain arithmetic, so that `plan` can say it before anything is spent.

Everywhere the same terms: one-sided at 5 %, and a power of 80 % (four times in five what is so is seen). Absolute bounds are reckoned exactly,
by the binomial tails that the verdict itself uses; paired differences by the normal approximation of the score test with its
continuity correction (intervals.py), for an assumed share of questions that the two models answer differently.
"""

from __future__ import annotations

import math
from statistics import NormalDist

LEVEL = 0.95
POWER = 0.80
Z_LEVEL, Z_POWER = NormalDist().inv_cdf(LEVEL), NormalDist().inv_cdf(POWER)
DISCORDANCE = 0.10
CORRECTION = 0.5  # of a question, off the difference's count: see intervals.paired_score
NEVER = 10_000_000  # questions; more than this is said to be out of reach


def tail(n: int, k: int, p: float) -> float:
    """P(at least k right of n) at rate p. Summed from the side with fewer terms."""
    if k <= 0 or p >= 1:
        return 1.0
    if k > n or p <= 0:
        return 0.0
    low, high = math.log(p), math.log1p(-p)
    whole = math.lgamma(n + 1)

    def term(i: int) -> float:
        return math.exp(whole - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * low + (n - i) * high)

    return min(1.0, math.fsum(map(term, range(k, n + 1)))) if k > n / 2 else max(0.0, 1 - math.fsum(map(term, range(k))))


def fewest_right(n: int, limit: float) -> int | None:
    """The fewest right answers of n whose exact interval is wholly at or above `limit`; None where even n of n do not show it."""
    if tail(n, n, limit) > 1 - LEVEL:
        return None
    low, high = 0, n  # low does not show it, high does
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if tail(n, middle, limit) > 1 - LEVEL else (low, middle)
    return high


def rate_that_passes(n: int, limit: float) -> float | None:
    """The smallest true rate that passes `>= limit` with the power, on n questions; None where no rate does."""
    if limit <= 0:
        return 0.0
    k = fewest_right(n, limit) if limit < 1 else None
    if k is None:
        return None
    low, high = limit, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(n, k, middle) < POWER else (low, middle)
    return high


def difference(n: int, discordance: float = DISCORDANCE) -> float | None:
    """The smallest paired difference of a right-or-wrong metric that n questions show with the power.

    Where more must differ than was assumed, all that differ are taken to go one way. None where even every question would not do.
    """
    def short(delta: float) -> bool:
        spread = max(discordance, delta)
        reach = n * delta - CORRECTION - Z_LEVEL * math.sqrt(n * spread)
        return reach < Z_POWER * math.sqrt(n * max(spread - delta * delta, 0.0))

    if short(1.0):
        return None
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if short(middle) else (low, middle)
    return high


def questions_for(delta: float, discordance: float = DISCORDANCE) -> int | None:
    """How many questions show a paired difference of `delta`; None when out of reach."""
    if delta <= 0:
        return None
    low, high = 1, 2
    while (found := difference(high, discordance)) is None or found > delta:
        low, high = high, 2 * high
        if high > NEVER:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        found = difference(middle, discordance)
        low, high = (middle, high) if found is None or found > delta else (low, middle)
    return high


def needed(n: int, value: float, end: float, limit: float) -> int | None:
    """How many questions would decide it with the power, if the score stays at `value`. end: the end of the interval, n questions wide,
    that lies across the limit; its distance shrinks with the root of n. None when out of reach."""
    reach, gap = abs(value - end), abs(value - limit)
    if gap <= 0 or not math.isfinite(reach):
        return None
    found = math.ceil(n * ((Z_LEVEL + Z_POWER) / Z_LEVEL * reach / gap) ** 2)
    return found if found <= NEVER else None
