"""Two models on the same questions: how far apart, how sure, and which answers turned.

For each task and metric the difference with a two-sided 95 % interval, a p of no difference, and that p corrected (Holm) for all the rows
that are shown, since the best of many differences is large by chance. A right-or-wrong metric has McNemar's exact test and Tango's interval; a
mean of other numbers has random sign flips and BCa; what can only be recomputed whole has BCa, and a p by its bootstrap's spread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from slmkit.errors import UsageError
from slmkit.evidence import intervals
from slmkit.evidence.aggregates import statistic
from slmkit.evidence.samples import Evidence, Samples, binary, check_same_questions

TWO_SIDED = 0.975  # of each side
DOWN = ("perplexity", "bits_per_byte", "brier_score", "ter", "wer", "cer", "loss")  # metrics that are better when lower
KEPT_TEXT = 160


@dataclass(frozen=True)
class Flip:
    """One question whose answer scored otherwise."""

    doc_id: int
    question: str
    target: str
    before: str
    after: str
    scores: tuple[float, float]


@dataclass(frozen=True)
class Row:
    """after - before, of one metric of one task. up and down: questions that scored higher and lower. p is None where none can be had."""

    before: str
    after: str
    task: str
    metric: str
    values: tuple[float, float]
    difference: float
    low: float
    high: float
    p: float | None
    corrected: float | None
    questions: int | None
    up: int | None
    down: int | None
    method: str
    flips: tuple[Flip, ...] = ()

    def figures(self) -> dict:
        """For JSON: no NaN."""
        body = {k: v for k, v in vars(self).items() if k not in ("values", "flips")}
        body |= {"value_before": self.values[0], "value_after": self.values[1], "flips": [vars(f) for f in self.flips]}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in body.items()}


def compare(evidence: Evidence, pairs: list[tuple[str, str]], task: str | None, metric: str | None, shown: int = 3) -> list[Row]:
    """Rows for each (before, after) pair of models. Raises UsageError where nothing can be compared, or the questions are not the same."""
    rows = []
    for before, after in pairs:
        tasks = [t for t in evidence.scores[before] if t in evidence.scores[after] and task in (t, None)]
        if not tasks:
            there = " and ".join(f"{m}: {', '.join(evidence.scores[m]) or 'none'}" for m in (before, after))
            what = f"{before} and {after} have no task `{task}` in common" if task else f"{before} and {after} were scored on no task in common"
            raise UsageError(what, mend=f"their tasks are {there}")
        for one in tasks:
            rows += _of_task(evidence, before, after, one, metric, shown)
    if not rows:
        known = sorted({k for m in {m for p in pairs for m in p} for t in evidence.scores[m].values() for k in t if not k.endswith("_stderr")})
        what = f"no metric `{metric}` was scored by both" if metric else "no metric was scored by both"
        raise UsageError(what, mend=f"there are {', '.join(known)}")
    known = [i for i, row in enumerate(rows) if row.p is not None]
    for i, p in zip(known, intervals.holm([rows[i].p for i in known]), strict=True):
        rows[i] = replace(rows[i], corrected=p)
    return rows


def _of_task(evidence: Evidence, before: str, after: str, task: str, metric: str | None, shown: int) -> list[Row]:
    a, b = evidence.scores[before][task], evidence.scores[after][task]
    one, two = evidence.samples(before, task), evidence.samples(after, task)
    if one is not None and two is not None:
        check_same_questions(one, two, (evidence.settings[before].get("limit"), evidence.settings[after].get("limit")))
    names = [k for k in a if k in b and not k.endswith("_stderr") and metric in (k, None) and all(isinstance(s[k], int | float) for s in (a, b))]
    return [_row(evidence, before, after, task, name, one, two, shown) for name in names]


def _row(evidence: Evidence, before: str, after: str, task: str, metric: str, one: Samples | None, two: Samples | None, shown: int) -> Row:
    values = float(evidence.scores[before][task][metric]), float(evidence.scores[after][task][metric])
    row = Row(before, after, task, metric, values, round(values[1] - values[0], 12), math.nan, math.nan, None, None, None, None, None, "")
    if one is None or two is None:
        return _apart(row, evidence, None)
    row = replace(row, questions=len(one.rows))
    x, y = one.array(metric), two.array(metric)
    if x is not None and y is not None and not (_finite(x) and _finite(y)):
        return replace(row, method="some answers have no number here (NaN)")
    known = statistic(one, metric, values[0]), statistic(two, metric, values[1])
    if None in known:
        return _apart(row, evidence, row.questions)
    if known[0][0] != "mean" or x is None:
        return recomputed(row, *known)
    row = replace(row, up=int((y > x).sum()), down=int((y < x).sum()), flips=_flips(one, two, x, y, shown))
    if binary(x) and binary(y):
        low, high = intervals.paired(row.up, row.down, row.questions, TWO_SIDED)
        return replace(row, low=low, high=high, p=intervals.mcnemar(row.up, row.down), method="McNemar, Tango")
    parts = [intervals.Statistic((y - x)[:, None], lambda m: m[..., 0])]
    low, high = intervals.bca(parts, TWO_SIDED)
    return replace(row, low=low, high=high, p=intervals.sign_flips(y - x), method="sign flips, BCa")


def _finite(values: Any) -> bool:
    import numpy as np

    return bool(np.isfinite(values).all())


def recomputed(row: Any, before: tuple, after: tuple) -> Any:
    """What has no value per question: both statistics on the same resampled questions. row: a dataclass with difference, low, high, p, method."""
    import numpy as np

    width = before[1].features.shape[1]

    def of(m: Any) -> Any:
        return after[1].of(m[..., width:]) - before[1].of(m[..., :width])

    parts = [intervals.Statistic(np.concatenate([before[1].features, after[1].features], 1), of)]
    low, high = intervals.bca(parts, TWO_SIDED)
    spread = float(np.std(intervals.resampled(parts)[1]))
    p = math.erfc(abs(row.difference) / spread / math.sqrt(2)) if math.isfinite(low) and spread > 0 else None
    return replace(row, low=low, high=high, p=p, method=f"{after[0]}, BCa on resampled questions")


def _apart(row: Row, evidence: Evidence, questions: int | None) -> Row:
    errors = [evidence.scores[m][row.task].get(f"{row.metric}_stderr") for m in (row.before, row.after)]
    if not all(isinstance(e, int | float) and math.isfinite(e) and e > 0 for e in errors):
        return replace(row, questions=questions, method="no samples and no standard error to judge it on")
    error = math.hypot(*errors)
    p = math.erfc(abs(row.difference) / error / math.sqrt(2))
    low, high = row.difference - 1.959964 * error, row.difference + 1.959964 * error
    return replace(row, low=low, high=high, p=p, questions=questions, method="standard errors, taken as independent")


def _flips(one: Samples, two: Samples, x: Any, y: Any, shown: int) -> tuple[Flip, ...]:
    """The first questions that scored lower, then the first that scored higher: losses are what one looks for."""
    ids = sorted(one.rows)
    turned = [int(i) for worse in (y < x, y > x) for i in worse.nonzero()[0][:shown]]
    return tuple(
        Flip(ids[i], _short(str(one.rows[ids[i]].get("prompt", ""))), _short(_text(one.rows[ids[i]].get("target"))), _short(answer(one.rows[ids[i]])),
             _short(answer(two.rows[ids[i]])), (float(x[i]), float(y[i]))) for i in turned
    )  # fmt: skip


def answer(row: dict) -> str:
    """What a model said; of a choice, which it found likeliest."""
    said = row.get("filtered_resps") or row.get("resps") or []
    if len(said) > 1 and all(isinstance(r, list) and len(r) == 2 for r in said):
        try:
            scores = [float(r[0]) for r in said]
        except (TypeError, ValueError):
            return _text(said)
        return f"choice {scores.index(max(scores))}"
    return _text(said[0] if isinstance(said, list) and len(said) == 1 else said)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _short(text: str) -> str:
    """The end of a long text, on one line: that is where a prompt has its question."""
    line = " ".join(text.split())
    return line if len(line) <= KEPT_TEXT else "…" + line[1 - KEPT_TEXT :]


def better_when_lower(metric: str) -> bool:
    return any(metric == name or metric.endswith(f"_{name}") or metric.startswith(f"{name}_") for name in DOWN)


def differing_settings(evidence: Evidence, pairs: list[tuple[str, str]]) -> list[str]:
    """What was measured otherwise: a sentence for each setting in which the two sides of a pair differ."""
    said = []
    for before, after in pairs:
        a, b = evidence.settings[before], evidence.settings[after]
        for key in sorted(a.keys() | b.keys()):
            if a.get(key) != b.get(key) and key != "limit":
                said.append(f"{before} was scored with {key} {_setting(a.get(key))}, {after} with {_setting(b.get(key))}")
    return list(dict.fromkeys(said))


def _setting(value: Any) -> str:
    return {None: "none", True: "true", False: "false"}.get(value, str(value)) if value is None or isinstance(value, bool) else str(value)
