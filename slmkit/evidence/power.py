"""How little a test set can see, and how much it would take: plain arithmetic, so that `plan` can say it before anything is spent.

Everywhere the same terms: one-sided at 5 %, and a power of 80 % (four times in five what is so is seen). Absolute bounds are reckoned exactly,
by the binomial tails that the verdict itself uses; paired differences by the score test with its continuity correction (intervals.py), for
an assumed share of questions that the two models answer differently.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

LEVEL = 0.95
POWER = 0.80
Z_LEVEL, Z_POWER = NormalDist().inv_cdf(LEVEL), NormalDist().inv_cdf(POWER)
DISCORDANCE = 0.10
CORRECTION = 0.5  # of a question, off the difference's count: see intervals.paired_score
COUNTED = 60  # questions that differ: up to here the chance is counted out, beyond it the normal curve is within a percent
EXACT = 20_000  # questions: up to here the number needed for a rate is counted out
NEVER = 10_000_000  # questions; more than this is said to be out of reach


def tail(n: int, k: int, p: float) -> float:
    """P(at least k right of n) at rate p. Summed from the side with fewer terms."""
    if k <= 0 or k > n or p <= 0 or p >= 1:
        return float(k <= 0 or (k <= n and p >= 1))
    if k > n / 2:
        return min(1.0, math.fsum(chance(n, i, p) for i in range(k, n + 1)))
    return max(0.0, 1 - math.fsum(chance(n, i, p) for i in range(k)))


def chance(n: int, k: int, p: float) -> float:
    """P(exactly k right of n) at rate p."""
    if p <= 0 or p >= 1:
        return float(k == (n if p >= 1 else 0))
    whole = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(whole + k * math.log(p) + (n - k) * math.log1p(-p))


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
    Few differing questions are counted out; many are left to the normal curve, which is then right to a percent of power.
    """
    if n * discordance > COUNTED:
        return _smallest(lambda delta: _short(n, delta, discordance))
    return _smallest(lambda delta: seen(n, delta, discordance) < POWER)


def _smallest(short: Callable[[float], bool]) -> float | None:
    if short(1.0):
        return None
    low, high = 0.0, 1.0
    for _ in range(16):
        middle = (low + high) / 2
        low, high = (middle, high) if short(middle) else (low, middle)
    return high


def _short(n: int, delta: float, discordance: float) -> bool:
    """Does the normal curve give less than the power?"""
    spread = max(discordance, delta)
    reach = n * delta - CORRECTION - Z_LEVEL * math.sqrt(n * spread)
    return reach < Z_POWER * math.sqrt(n * max(spread - delta * delta, 0.0))


def seen(n: int, delta: float, discordance: float) -> float:
    """The chance that n questions show a difference of `delta` to be above 0, counted over the numbers of questions that differ."""
    spread = max(discordance, delta)
    up = (1 + delta / spread) / 2
    middle, reach = n * spread, 6 * math.sqrt(n * spread * (1 - spread)) + 6
    total = 0.0
    for differing in range(max(1, int(middle - reach)), min(n, int(middle + reach)) + 1):
        fewest = math.ceil((differing + CORRECTION + Z_LEVEL * math.sqrt(differing)) / 2)
        if fewest <= differing:
            total += chance(n, differing, spread) * tail(differing, fewest, up)
    return total


def questions_for(delta: float, discordance: float = DISCORDANCE) -> int | None:
    """About how many questions show a paired difference of `delta`; None when out of reach."""
    return _fewest(lambda n: not _short(n, delta, discordance)) if delta > 0 else None


def _fewest(enough: Callable[[int], bool]) -> int | None:
    """The least n from which on it is enough, found by doubling and halving; None beyond NEVER."""
    low, high = 0, 1
    while not enough(high):
        low, high = high, 2 * high
        if high > NEVER:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def needed_of_rate(value: float, limit: float) -> int | None:
    """How many questions would decide with the power whether a rate is above `limit` (or below), if it stays at `value`."""
    if value < limit:
        value, limit = 1 - value, 1 - limit
    if value <= limit:
        return None
    gap = (Z_LEVEL * math.sqrt(limit * (1 - limit)) + Z_POWER * math.sqrt(value * (1 - value))) / (value - limit)
    if not gap * gap < EXACT:
        return math.ceil(gap * gap) if gap * gap <= NEVER else None
    return _fewest(lambda n: (k := fewest_right(n, limit)) is not None and tail(n, k, value) >= POWER)


def needed(n: int, error: float, reach: float, gap: float, share: bool = False) -> int | None:
    """How many questions would decide a bound that is `gap` away with the power, if the score stays there. error: the standard error on n
    questions; reach: how far the interval goes towards the bound, which stands for it where all answers score alike. share: whether the score lies
    between 0 and 1, so that its interval is also wider by about half a question. None when out of reach."""
    error = error or reach / Z_LEVEL
    if gap <= 0 or not math.isfinite(error):
        return None
    found = n * ((Z_LEVEL + Z_POWER) * error / gap) ** 2 + (2 * CORRECTION / gap if share else 0)
    return max(math.ceil(found), n + 1) if found <= NEVER else None
