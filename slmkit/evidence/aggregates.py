"""How a task's score comes out of its samples, found by trying: a score is recomputed in each way that is known, and the way that gives the
recorded number is the one. What no way gives (a user's own aggregation) is judged on lm-eval's standard error, and that is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from slmkit.evidence.intervals import Statistic
from slmkit.evidence.samples import Samples

CLOSE = 1e-9
MOST_CLASSES = 200  # a table of all pairs of labels: 40,000 columns at most, and fewer, since only pairs that occur are kept
OTHER = "\x00other"  # stands for all answers that are right nowhere
OF_RIGHT_LABELS = ("macro F1 of right labels", "weighted F1", "accuracy")  # the same whether wrong answers are told apart or not


def statistic(samples: Samples, metric: str, score: float) -> tuple[str, Statistic] | None:
    """(its name, the statistic) that gives `score` from the samples' values of a metric; None when none is known."""
    import numpy as np

    values = [v for _, v in sorted(samples.values.get(metric, {}).items())]
    if not values:
        return None
    if all(isinstance(v, float) for v in values):
        ways = _of_numbers(np.array(values))
    elif all(isinstance(v, list) and len(v) == 2 for v in values):
        ways = _of_pairs(values)
    else:
        return None
    for name, made in ways.items():
        with np.errstate(all="ignore"):
            value = made.value
        if math.isclose(value, score, rel_tol=CLOSE, abs_tol=CLOSE):
            return name, made
    return None


def _of_numbers(x: Any) -> dict[str, Statistic]:
    import numpy as np

    one = x[:, None]
    return {"mean": Statistic(one, lambda m: m[..., 0]), "perplexity": Statistic(one, lambda m: np.exp(-m[..., 0]))}


def _of_pairs(values: list) -> dict[str, Statistic]:
    """Sums with their weights (word_perplexity, bits_per_byte), or gold and predicted labels (F1, Matthews)."""
    import numpy as np

    out: dict[str, Statistic] = {}
    if all(isinstance(part, float) for pair in values for part in pair):
        both = np.array(values)
        out |= {
            "weighted perplexity": Statistic(both, lambda m: np.exp(-m[..., 0] / m[..., 1])),
            "bits per byte": Statistic(both, lambda m: -m[..., 0] / m[..., 1] / math.log(2)),
            "weighted mean": Statistic(both, lambda m: m[..., 0] / m[..., 1]),
        }
    flat = [part for pair in values for part in pair]
    if any(isinstance(part, list | dict) for part in flat):
        return out
    labels, folded = sorted(set(flat), key=str), False
    if len(labels) > MOST_CLASSES:  # answers that are written are of any number; those that are right nowhere count alike where right labels do
        right = {gold for gold, _ in values}
        values, folded = [(gold, told if told in right else OTHER) for gold, told in values], True
        labels = sorted({part for pair in values for part in pair}, key=str)
        if len(labels) > MOST_CLASSES:
            return out
    place = {label: i for i, label in enumerate(labels)}
    cells = [(place[gold], place[told]) for gold, told in values]
    kept = sorted(set(cells))
    features = np.zeros((len(values), len(kept)))
    features[np.arange(len(values)), [kept.index(c) for c in cells]] = 1
    gold, told = (np.array(side) for side in zip(*kept, strict=True))
    for name, of in _of_table(gold, told, len(labels), place.get(1.0)).items():
        if not folded or name in OF_RIGHT_LABELS:
            out[name] = Statistic(features, of)
    return out


def _of_table(gold: Any, told: Any, classes: int, positive: int | None) -> dict[str, Callable]:
    """Statistics of shares of (gold, told) pairs. positive: the place of label 1, for the F1 of two classes."""
    import numpy as np

    is_gold, is_told = (np.eye(classes)[side] for side in (gold, told))
    right = is_gold * is_told

    def f1(m: Any) -> Any:
        below = m @ is_gold + m @ is_told
        return np.divide(2 * (m @ right), below, out=np.zeros_like(below), where=below > 0)

    def matthews(m: Any) -> Any:
        g, t = m @ is_gold, m @ is_told
        below = np.sqrt((1 - (g * g).sum(-1)) * (1 - (t * t).sum(-1)))
        above = (m @ right).sum(-1) - (g * t).sum(-1)
        return np.divide(above, below, out=np.zeros_like(below), where=below > 1e-15)

    # A class that a resample lacks altogether counts 0 in the macro mean, as it would for scikit-learn where it was predicted.
    table = {"F1": lambda m: f1(m)[..., positive]} if positive is not None and classes <= 2 else {}
    asked = is_gold.any(0)  # labels that are right somewhere: an answer that is no label is none of its own
    return table | {
        "macro F1": lambda m: f1(m).mean(-1), "macro F1 of right labels": lambda m: f1(m)[..., asked].mean(-1),
        "weighted F1": lambda m: (f1(m) * (m @ is_gold)).sum(-1), "Matthews correlation": matthews,
        "accuracy": lambda m: (m @ right).sum(-1),
    }  # fmt: skip
