"""A verdict on a bound: pass, fail, or inconclusive with the number of questions that would decide it.

The questions asked stand for all that there could be. What they leave open is an interval, one-sided at 95 % to either side; a bound holds when
the whole of it is on the right side, fails when the whole of it is on the wrong side, and is undecided when it lies within. So a model that
stands exactly at the margin passes at most one time in twenty, however few the questions are.

Which interval, by what is known: of one right-or-wrong score the exact one; of two on the same questions the paired score interval; of means of
metrics between 0 and 1 Gaffke's; of anything that can be recomputed from the samples the wider of BCa and Student's t; else lm-eval's standard error.
Each verdict says which. Terms of one task are paired by question, terms of several tasks are independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from slmkit.errors import UsageError
from slmkit.evidence import intervals, power
from slmkit.evidence.aggregates import statistic
from slmkit.evidence.intervals import Statistic
from slmkit.evidence.samples import Evidence, binary, check_same_questions
from slmkit.steps._expect import COMPARE, Expectation, look_up

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"
FEWEST = 20  # questions, for bootstraps of what has no known ends: below it their intervals are too short by more than a percent


@dataclass(frozen=True)
class Interval:
    """low and high: one-sided bounds, each at 95 %; NaN when it cannot be had, and `method` says why. error: the standard error.
    of: `rate`, one right-or-wrong score; `share`, something made of scores between 0 and 1; or nothing known."""

    low: float
    high: float
    method: str
    questions: int | None
    error: float = 0.0
    of: str = ""


@dataclass(frozen=True)
class Verdict:
    """What was asked, what was found, and what it was judged on. needed: questions that would decide an inconclusive one."""

    text: str
    bound: str
    verdict: str
    detail: str
    value: float | None = None
    interval: Interval | None = None
    needed: int | None = None

    def holds(self, inconclusive: str) -> bool:
        return self.verdict == PASS or (self.verdict == INCONCLUSIVE and inconclusive == PASS)

    def figures(self) -> dict:
        """For JSON: numbers or None, no NaN."""
        i = self.interval
        return {
            "bound": self.bound, "value": _finite(self.value), "low": _finite(i and i.low), "high": _finite(i and i.high),
            "method": i.method if i else "point", "questions": i.questions if i else None, "needed": self.needed,
        }  # fmt: skip


@dataclass(frozen=True)
class _Term:
    sign: int
    text: str
    model: str
    task: str
    metric: str
    value: float


def judge(expectation: Expectation, evidence: Evidence) -> Verdict:
    """Hold one expectation against the evidence. A score that is not there, or is no number, is a fail that says so. Raises UsageError when
    terms of one task were scored on different questions."""
    told, terms, constant = [], [], 0.0
    for sign, term in expectation.terms:
        if isinstance(term, float):
            constant += sign * term
            continue
        found = look_up(term, evidence.scores)
        if isinstance(found, str):
            return _verdict(expectation, FAIL, found)
        terms.append(_Term(sign, term, *found, float(evidence.scores[found[0]][found[1]][found[2]])))
        told.append(f"{term} = {terms[-1].value:.6g}")
    _same_questions(terms, evidence)
    # A difference of two scores such as 0.9 - 0.88 carries noise of the last binary digit.
    value, shown = round(sum(t.sign * t.value for t in terms) + constant, 12), "; ".join(told)
    if math.isnan(value):
        return _verdict(expectation, FAIL, f"the value is no number ({shown})", value)
    holds = COMPARE[expectation.compare]
    if expectation.point:
        ok = holds(value, expectation.limit)
        return _verdict(expectation, PASS if ok else FAIL, f"{value:.6g} {'is' if ok else 'is not'} {expectation.bound} ({shown})", value)
    interval = _interval(terms, constant, evidence)
    return _decide(expectation, value, interval, shown)


def _decide(expectation: Expectation, value: float, interval: Interval, shown: str) -> Verdict:
    holds, limit = COMPARE[expectation.compare], expectation.limit
    if math.isnan(interval.low):
        return _verdict(expectation, INCONCLUSIVE, f"{value:.6g} cannot be judged: {interval.method} ({shown})", value, interval)
    near, far = (interval.low, interval.high) if expectation.compare in (">", ">=") else (interval.high, interval.low)
    span = f"between {interval.low:.4g} and {interval.high:.4g} at 95 % to either side, {interval.method}"
    if holds(near, limit):
        return _verdict(expectation, PASS, f"{value:.6g} is {expectation.bound}: {span} ({shown})", value, interval)
    if not holds(far, limit):
        return _verdict(expectation, FAIL, f"{value:.6g} is not {expectation.bound}: {span} ({shown})", value, interval)
    right = holds(value, limit) and value != limit
    more = _needed(interval, value, near if right else far, limit, sum(t for _, t in expectation.terms if isinstance(t, float)))
    if more is None:
        said = "no number of questions decides it while the score stands so near the bound" if interval.questions else "more questions are needed"
    else:
        said = f"about {more:,} questions would show that it {'holds' if right else 'does not'}, if the score stays there"
    text = f"{value:.6g} leaves open whether it is {expectation.bound}: {span}; {said} ({shown})"
    return _verdict(expectation, INCONCLUSIVE, text, value, interval, more)


def _needed(interval: Interval, value: float, end: float, limit: float, constant: float) -> int | None:
    if not interval.questions:
        return None
    if interval.of == "rate" and not constant:
        return power.needed_of_rate(abs(value), abs(limit))
    return power.needed(interval.questions, interval.error, abs(value - end), abs(value - limit), interval.of == "share")


def _verdict(expectation: Expectation, verdict: str, detail: str, value: float | None = None, interval=None, needed=None) -> Verdict:
    return Verdict(expectation.text, expectation.bound, verdict, f"{expectation.text}: {detail}", value, interval, needed)


def _same_questions(terms: list[_Term], evidence: Evidence) -> None:
    first: dict[str, _Term] = {}
    for term in terms:
        held = first.setdefault(term.task, term)
        one, other = evidence.samples(held.model, term.task), evidence.samples(term.model, term.task)
        if one is not None and other is not None:
            check_same_questions(one, other, (evidence.settings[held.model].get("limit"), evidence.settings[term.model].get("limit")))


def _interval(terms: list[_Term], constant: float, evidence: Evidence) -> Interval:
    kept = [evidence.samples(t.model, t.task) for t in terms]
    known = [s and statistic(s, t.metric, t.value) for s, t in zip(kept, terms, strict=True)]
    for term, samples in zip(terms, kept, strict=True):
        if samples is not None and any(isinstance(v, float) and math.isnan(v) for v in samples.values.get(term.metric, {}).values()):
            return Interval(math.nan, math.nan, f"some answers of `{term.model}` to `{term.task}` have no `{term.metric}` (NaN)", None)
    if any(k is None for k in known):
        return _by_errors(terms, constant, evidence)
    questions = min(len(s.rows) for s in kept)
    columns = [s.array(t.metric) if k[0] == "mean" else None for s, t, k in zip(kept, terms, known, strict=True)]
    if any(c is None for c in columns):
        ways = ", ".join(dict.fromkeys(k[0] for k in known))
        return _resampled(_parts(terms, known), constant, questions, f"{ways} recomputed on resampled questions")
    if len(terms) == 1 and binary(columns[0]):
        right = int(columns[0].sum())
        low, high = _turned(*intervals.exact(right, questions, power.LEVEL), terms[0].sign)
        error = math.sqrt(right * (questions - right) / questions) / questions
        return Interval(low + constant, high + constant, f"exact on {questions} questions", questions, error, "rate")
    if len(terms) == 2 and terms[0].task == terms[1].task and terms[0].sign != terms[1].sign and all(map(binary, columns)):
        gained, lost = int((columns[0] > columns[1]).sum()), int((columns[0] < columns[1]).sum())
        low, high = _turned(*intervals.paired(gained, lost, questions, power.LEVEL), terms[0].sign)
        said = f"paired on {questions} questions ({gained} right in the first alone, {lost} in the second)"
        error = math.sqrt(gained + lost - (gained - lost) ** 2 / questions) / questions
        return Interval(low + constant, high + constant, said, questions, error, "share")
    if all(((c >= 0) & (c <= 1)).all() for c in columns):
        low, high, error = _bounded(terms, columns)
        return Interval(low + constant, high + constant, f"Gaffke's bound on {questions} questions", questions, error, "share")
    return _resampled(_parts(terms, known), constant, questions, "resampled questions")


def _turned(low: float, high: float, sign: int) -> tuple[float, float]:
    return (low, high) if sign > 0 else (-high, -low)


def _by_task(terms: list[_Term], items: list) -> dict[str, list[tuple[_Term, Any]]]:
    out: dict[str, list[tuple[_Term, Any]]] = {}
    for term, item in zip(terms, items, strict=True):
        out.setdefault(term.task, []).append((term, item))
    return out


def _bounded(terms: list[_Term], columns: list) -> tuple[float, float, float]:
    """Means between 0 and 1: per task the signed sum of each question, between how low and how high it could be. (low, high, standard error)"""
    import numpy as np

    low, high, square = 0.0, 0.0, 0.0
    for i, held in enumerate(_by_task(terms, columns).values()):
        each = sum(t.sign * c for t, c in held)
        least, most = -sum(t.sign < 0 for t, _ in held), sum(t.sign > 0 for t, _ in held)
        low = low + intervals.bounded_draws(each, least, seed=intervals.SEED + i)
        high = high - intervals.bounded_draws(-each, -most, seed=intervals.SEED + i)
        square += float(each.var()) / len(each)
    return float(np.quantile(low, 1 - power.LEVEL)), float(np.quantile(high, power.LEVEL)), math.sqrt(square)


def _parts(terms: list[_Term], known: list) -> list[Statistic]:
    """One statistic per task, of the features of all its terms side by side, so that they are resampled together."""
    import numpy as np

    parts = []
    for held in _by_task(terms, [k[1] for k in known]).values():
        cuts = np.cumsum([0, *(s.features.shape[1] for _, s in held)])

        def of(means: Any, held=held, cuts=cuts) -> Any:
            return sum(t.sign * s.of(means[..., a:b]) for (t, s), a, b in zip(held, cuts[:-1], cuts[1:], strict=True))

        parts.append(Statistic(np.concatenate([s.features for _, s in held], 1), of))
    return parts


def _resampled(parts: list[Statistic], constant: float, questions: int, said: str) -> Interval:
    if questions < FEWEST:
        return Interval(math.nan, math.nan, f"{questions} questions are too few to resample, {FEWEST} are the least", questions)
    one, other = intervals.bca(parts, power.LEVEL), intervals.student(parts, power.LEVEL)
    if any(map(math.isnan, (*one, *other))):
        return Interval(math.nan, math.nan, f"all {questions} questions score alike (or are no numbers), so their spread is unknown", questions)
    method = f"{said} ({questions}; the wider of BCa and t)"
    error = (other[1] - other[0]) / 2 / power.Z_LEVEL
    return Interval(min(one[0], other[0]) + constant, max(one[1], other[1]) + constant, method, questions, error)


def _by_errors(terms: list[_Term], constant: float, evidence: Evidence) -> Interval:
    """By lm-eval's standard errors, as if the scores were independent: too wide for models that answer alike, and said to be."""
    errors = [evidence.scores[t.model][t.task].get(f"{t.metric}_stderr") for t in terms]
    lacking = next((t for t, e in zip(terms, errors, strict=True) if not isinstance(e, int | float) or not math.isfinite(e) or e <= 0), None)
    if lacking is not None:
        said = f"`{lacking.text}` cannot be recomputed from the samples, and lm-eval gives no standard error"
        return Interval(math.nan, math.nan, f"{said}; a bound that ends in `point` can be judged", None)
    middle = sum(t.sign * t.value for t in terms) + constant
    reach = power.Z_LEVEL * math.sqrt(sum(e * e for e in errors))
    kept = [evidence.samples(t.model, t.task) for t in terms]
    questions = min((len(s.rows) for s in kept if s is not None), default=None)
    apart = ", taken as independent" if len(terms) > 1 else ""
    return Interval(middle - reach, middle + reach, f"by lm-eval's standard error{apart}", questions, reach / power.Z_LEVEL)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def unknown_names(expected: list[Expectation], evidence: Evidence) -> None:
    """Raises UsageError for an expression that names what was never scored: on a command line that is a slip, not a verdict."""
    for expectation in expected:
        for _, term in expectation.terms:
            if isinstance(term, str) and isinstance(said := look_up(term, evidence.scores), str):
                raise UsageError(f"`{expectation.text}`: {said}", mend="`slmkit show REF` lists the scores")
