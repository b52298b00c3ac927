"""How far a number of a rebuilt artifact may be from the recorded one, where the bytes need not be the same.

- a score: its recorded standard error. Where that is 0 (all answers right, or all wrong): 3 / questions, the rate that so many alike rule out
  at 95 % (Jovanovic and Levy, The American Statistician 51, 1997);
- a loss, nats, a perplexity: 5 % of it;
- a size (an integer: rows, steps, tokens, bytes, parameters): exact;
- weights: ‖a − b‖ / ‖a‖ of all floats of a file of at most 0.5 where they were trained or made of such, else of at most 0.05.

Where the bounds of losses and weights come from: the quickstart's training (375 steps at 3e-3) with its sums in another order, once by
execution.micro_batch 1 for 16 and once by two threads for one, came out 0.23 and 0.24 apart in its adapter, 0.056 and 0.059 merged, 0.4 and
0.6 % in its loss, at most 1.7 % in nats on rows held out, and less than one standard error in every score. Unrelated weights of one norm are
1.4 apart. Quantizing the very same model with two threads for one: 0.0045; merging: 0.
What times, memory and meters of divergence say is told and never judged: the divergence of a worst probe moves by half of itself in such a case.
Nor are packed codes: with the scale that they share 1 % off, nine in ten words of them are others. What they do is judged by scores and losses.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

LOSS = 0.05
TRAINED, STILL = 0.5, 0.05
ALIKE = 3.0  # over the number of questions

NOISE = re.compile(
    r"(^|[._])(seconds|per_second|speed|time|date|started|finished|peak_memory(_bytes)?|memory\w*|host|usd\w*|answered|from_ledger|attempts|"
    r"resumed_\w+|lost_requests|failures|observed)([._]|$)|^checks\[\d+\]\.(detail|figures)"
)
METER = re.compile(
    r"(^|[._])(\w*kl|nats_lost|relative_error\w*|top1|worst_\w+|answers_\w+|best_step|stopped_early|checks|stderr)([._,\[]|$)|_stderr|,stderr"
)
LOSSES = re.compile(r"(^|[._])(\w*loss|nats|perplexity\w*)([._]|$)")


@dataclass(frozen=True)
class Number:
    """One figure of the result that is not what it was. allowed: how far it may be, None where it is told and not judged."""

    path: str
    recorded: Any
    rebuilt: Any
    allowed: float | None
    ok: bool

    def told(self) -> str:
        bound = "" if self.allowed is None else f" (within {self.allowed:.3g})" if self.ok else f" (more than {self.allowed:.3g} off)"
        return f"{self.path} {_short(self.recorded)} → {_short(self.rebuilt)}{bound}"


def numbers(recorded: dict, rebuilt: dict, questions: dict[str, int] | None = None) -> list[Number]:
    """What differs between two results, judged; the noisy ones left out. questions: `MODEL.TASK` → how many were asked."""
    out = []
    leaves, others = dict(_leaves(recorded)), dict(_leaves(rebuilt))
    for path in [*leaves, *(p for p in others if p not in leaves)]:
        old, new = leaves.get(path), others.get(path)
        if (type(old) is type(new) and old == new) or NOISE.search(path):
            continue
        allowed = _allowed(path, old, new, leaves, questions or {})
        out.append(Number(path, old, new, allowed, allowed is None or _within(old, new, allowed)))
    return out


def weights(result: dict, inputs_moved: bool) -> float:
    """How far a file's weights may be apart: more where an optimizer amplifies what is otherwise rounding."""
    return TRAINED if inputs_moved or "train_loss" in result else STILL


def _allowed(path: str, old: Any, new: Any, leaves: dict[str, Any], questions: dict[str, int]) -> float | None:
    if METER.search(path) or not (_number(old) or _number(new)):
        return None
    if path.startswith("scores."):
        error = leaves.get(_beside(path))
        if _number(error) and error > 0:
            return float(error)
        asked = questions.get(".".join(path.split(".")[1:-1]))
        return ALIKE / asked if asked else 0.0
    if LOSSES.search(path):
        return LOSS * abs(old) if _number(old) else 0.0
    return 0.0 if isinstance(old, int) or isinstance(new, int) else LOSS * abs(old)


def _beside(path: str) -> str:
    """Where a metric's standard error is: `exact_match` → `exact_match_stderr`."""
    return f"{path}_stderr"


def _within(old: Any, new: Any, allowed: float) -> bool:
    if not (_number(old) and _number(new)):
        return False
    if math.isnan(old) or math.isnan(new):
        return math.isnan(old) and math.isnan(new)
    return abs(old - new) <= allowed * (1 + 1e-9)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [leaf for k, v in value.items() for leaf in _leaves(v, f"{path}.{k}" if path else str(k))]
    if isinstance(value, list):
        return [leaf for i, v in enumerate(value) for leaf in _leaves(v, f"{path}[{i}]")]
    return [(path, value)]


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:59] + "…"
