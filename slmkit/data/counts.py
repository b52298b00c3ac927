"""Plain numbers of many rows: their spread, a histogram, roles, languages."""

from __future__ import annotations

import itertools
from collections import Counter

from slmkit.data.rows import Row

BINS = 20
LETTERS = 20  # a text with fewer cannot be told
SURE = 0.9
SAMPLE = 1000  # rows whose language is looked at, evenly spread: 0.2 CPU-s, and 0.7 to load the model


def spread(values: list[int]) -> dict:
    """min, median, p95, max, mean and sum; empty for no values."""
    if not values:
        return {}
    ordered = sorted(values)

    def at(share: float) -> int:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    mean = round(sum(ordered) / len(ordered), 1)
    return {"min": ordered[0], "median": at(0.5), "p95": at(0.95), "max": ordered[-1], "mean": mean, "sum": sum(ordered)}


def histogram(values: list[int], bins: int = BINS) -> dict:
    """Counts of equal bins, with their edges (one more than counts): a value lies in [edge, next edge), the last bin holds its end, too."""
    if not values:
        return {"edges": [], "counts": []}
    low, high = min(values), max(values)
    width = max(1, -(-(high - low + 1) // bins))
    used = -(-(high - low + 1) // width)
    counts = [0] * used
    for value in values:
        counts[(value - low) // width] += 1
    return {"edges": [low + width * i for i in range(used + 1)], "counts": counts}


def roles(row: Row) -> Counter:
    """Messages by role."""
    return Counter(m["role"] for m in itertools.chain(row.messages, row.chosen, row.rejected))


class Languages:
    """The languages of a sample. What has too few letters, or is like several, is `unsure`."""

    def __init__(self, rows: int):
        self.every = max(1, rows // SAMPLE)
        self.seen, self.counts = 0, Counter()
        self.identifier = None

    def add(self, text: str) -> None:
        self.seen += 1
        if (self.seen - 1) % self.every:
            return
        text = text[:1000]
        if sum(c.isalpha() for c in text) < LETTERS:
            self.counts["unsure"] += 1
            return
        language, probability = self._load().classify(text)
        self.counts[language if probability >= SURE else "unsure"] += 1

    def _load(self):
        if self.identifier is None:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier

            self.identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        return self.identifier
