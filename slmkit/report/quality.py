"""How good, and how sure: two-sided 95 % intervals of every score, and differences of models on the same questions, from streamed answers.

The statistics are those of `slmkit compare` (evidence/paired.py): exact and Tango's for right or wrong, Gaffke's bound for means between 0 and 1,
BCa for the rest, McNemar's test and sign flips. Beyond FEW questions nothing is resampled: a mean's normal interval is as good there, and a
million answers take no longer to judge than to read.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from slmkit.evidence import intervals, paired, samples
from slmkit.evidence.aggregates import statistic
from slmkit.evidence.intervals import Statistic
from slmkit.report.answers import FEW, Answers
from slmkit.report.facts import Difference

LEVEL = paired.TWO_SIDED  # of each side
Z = 1.959964
LEAST = 2  # questions for a normal interval
Span = tuple[float | None, float | None, str]


def interval(metric: str, score: float, error: Any, answers: Answers | None) -> Span:
    """(low, high, by what) of one score; None where it cannot be had, and the method says why."""
    if answers is not None and not answers.twice:
        values = answers.values.get(metric)
        if values is not None and not _finite(values):
            return None, None, "some answers have no number here (NaN)"
        if values is not None and math.isclose(float(values.mean()), score, rel_tol=1e-9, abs_tol=1e-9):
            return _of_mean(values)
        known = _statistic(metric, score, answers)
        if known is not None:
            low, high = intervals.bca([known[1]], LEVEL)
            if math.isfinite(low):
                return low, high, f"{known[0]}, BCa"
            return None, None, f"all {len(answers.ids)} answers score alike"
    if isinstance(error, int | float) and math.isfinite(error) and error > 0:
        return score - Z * error, score + Z * error, "lm-eval's standard error"
    return None, None, "no samples and no standard error to judge it on"


def _of_mean(values: Any) -> Span:
    n = len(values)
    if samples.binary(values):
        low, high = intervals.exact(int(values.sum()), n, LEVEL)
        return low, high, "exact"
    if n <= FEW and ((values >= 0) & (values <= 1)).all():
        return float(intervals.bounded_low(values, 0.0, LEVEL)), 1 - float(intervals.bounded_low(1 - values, 0.0, LEVEL)), "Gaffke's bound"
    if n <= FEW:
        low, high = intervals.bca([Statistic(values[:, None], lambda m: m[..., 0])], LEVEL)
        return (low, high, "BCa") if math.isfinite(low) else (None, None, f"all {n} answers score alike")
    return _normal(values)


def _normal(values: Any) -> Span:
    n = len(values)
    if n < LEAST:
        return None, None, "one answer has no spread"
    reach = Z * float(values.std(ddof=1)) / math.sqrt(n)
    return float(values.mean()) - reach, float(values.mean()) + reach, "normal"


def _statistic(metric: str, score: float, answers: Answers) -> tuple[str, Statistic] | None:
    """What aggregates.py finds for values that are no plain mean, of as many questions as can be resampled."""
    if len(answers.ids) > FEW:
        return None
    numbers = answers.values.get(metric)
    values = answers.raw.get(metric) or (dict(zip(answers.ids.tolist(), numbers.tolist(), strict=True)) if numbers is not None else {})
    return statistic(samples.Samples("", "", answers.file, {}, {metric: values}), metric, score)


def differences(pairs: list[tuple[str, str, str]], scores: dict, found: dict, shares: set[str]) -> tuple[list[Difference], list[str]]:
    """(rows, notes) for (before, after, task). scores: label → task → metrics; found: (label, task) → metric → Answers."""
    rows, notes = [], []
    for before, after, task in pairs:
        a, b = scores[before][task], scores[after][task]
        for metric in (k for k in a if k in b and not k.endswith("_stderr") and all(isinstance(s[k], int | float) for s in (a, b))):
            one, two = (found.get((m, task), {}).get(metric) for m in (before, after))
            if one is not None and two is not None and not one.twice and not two.twice and not one.same_questions(two):
                notes.append(f"`{before}` and `{after}` were not asked the same questions of `{task}`, so they are not held against each other")
                break
            errors = tuple(s.get(f"{metric}_stderr") for s in (a, b))
            off = round(float(b[metric]) - float(a[metric]), 12)
            row = Difference(before, after, task, metric, off, None, None, None, None, None, None, None, "", metric in shares)
            rows.append(_judged(row, float(a[metric]), float(b[metric]), one, two, errors))
    known = [i for i, row in enumerate(rows) if row.p is not None]
    for i, p in zip(known, intervals.holm([rows[i].p for i in known]), strict=True):
        rows[i] = replace(rows[i], corrected=p)
    return rows, list(dict.fromkeys(notes))


def _judged(row: Difference, first: float, second: float, one: Answers | None, two: Answers | None, errors: tuple) -> Difference:
    import numpy as np

    x, y = (a.values.get(row.metric) if a is not None and not a.twice else None for a in (one, two))
    if x is None or y is None or not all(math.isclose(float(v.mean()), s, rel_tol=1e-9, abs_tol=1e-9) for v, s in ((x, first), (y, second))):
        return _whole(row, first, second, one, two) or _apart(row, one, errors)
    if not (_finite(x) and _finite(y)):
        return replace(row, questions=len(x), method="some answers have no number here (NaN)")
    row = replace(row, questions=len(x), up=int((y > x).sum()), down=int((y < x).sum()))
    if samples.binary(x) and samples.binary(y):
        low, high = intervals.paired(row.up, row.down, row.questions, LEVEL)
        return replace(row, low=low, high=high, p=intervals.mcnemar(row.up, row.down), method="McNemar, Tango")
    off = y - x
    if len(off) <= FEW:
        low, high = intervals.bca([Statistic(off[:, None], lambda m: m[..., 0])], LEVEL)
        ends = (low, high) if math.isfinite(low) else (None, None)
        return replace(row, low=ends[0], high=ends[1], p=intervals.sign_flips(off), method="sign flips, BCa")
    low, high, _ = _normal(off)
    spread = float(np.std(off, ddof=1)) / math.sqrt(len(off))
    p = math.erfc(abs(row.difference) / spread / math.sqrt(2)) if spread > 0 else 1.0
    return replace(row, low=low, high=high, p=p, method="normal")


def _whole(row: Difference, first: float, second: float, one: Answers | None, two: Answers | None) -> Difference | None:
    """What can only be recomputed whole (F1, perplexity), on resampled questions; None where it cannot."""
    if one is None or two is None or one.twice or two.twice:
        return None
    known = _statistic(row.metric, first, one), _statistic(row.metric, second, two)
    if None in known:
        return None
    row = replace(paired.recomputed(row, *known), questions=len(one.ids))
    return row if math.isfinite(row.low) else replace(row, low=None, high=None)


def _apart(row: Difference, one: Answers | None, errors: tuple) -> Difference:
    """Without values per question: by standard errors, as `slmkit compare` does."""
    row = replace(row, questions=len(one.ids) if one is not None else None)
    if not all(isinstance(e, int | float) and math.isfinite(e) and e > 0 for e in errors):
        return replace(row, method="no samples and no standard error to judge it on")
    error = math.hypot(*errors)
    p = math.erfc(abs(row.difference) / error / math.sqrt(2))
    return replace(row, low=row.difference - Z * error, high=row.difference + Z * error, p=p, method="standard errors, taken as independent")


def _finite(values: Any) -> bool:
    import numpy as np

    return bool(np.isfinite(values).all())
