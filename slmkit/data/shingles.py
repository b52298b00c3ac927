"""Texts as sets of short pieces, and their likeness: Jaccard of character 5-grams, estimated by MinHash, found by hashing in bands.

MinHash: Broder 1997; bands: Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, ch. 3. rensa does both in Rust: 10,000
rows of 400 characters take 0.4 CPU-s, where a Python MinHash takes 3 and loads scipy.
"""

from __future__ import annotations

from collections.abc import Collection

PIECE = 5  # characters: words in other order, one word more or less, and typing errors leave most pieces as they were
PERMUTATIONS, BANDS = 128, 16  # 8 rows a band: two texts of likeness 0.8 meet with probability 0.95, of 0.5 with 0.06
MORE_BANDS = ((0.8, BANDS), (0.55, 32), (0.0, 64))  # from this threshold on; 4 rows: 0.6 meet with 0.99; 2 rows: 0.3 meet with 0.998
LONGEST = 4000  # characters of a text that are looked at; beyond it, only the time would grow
SHORTEST = 20  # below it, likeness is chance


def pieces(text: str) -> list[str]:
    """The 5-grams of a normal text's first 4,000 characters."""
    text = text[:LONGEST]
    return [text[i : i + PIECE] for i in range(max(1, len(text) - PIECE + 1))]


def likeness(a: Collection[str], b: Collection[str]) -> float:
    """Jaccard: shared pieces over all pieces, 0 to 1."""
    a, b = set(a), set(b)
    return len(a & b) / max(1, len(a | b))


class Index:
    """Texts by likeness. Keys are integers."""

    def __init__(self, threshold: float):
        from rensa import RMinHashLSH

        self.threshold = threshold
        bands = next(count for least, count in MORE_BANDS if threshold >= least)
        self.index = RMinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, num_bands=bands)

    def mark(self, of: list[str]):
        """The signature of a list of pieces."""
        from rensa import RMinHash

        signature = RMinHash(num_perm=PERMUTATIONS, seed=1)
        signature.update(of)
        return signature

    def add(self, key: int, signature) -> None:
        self.index.insert(key, signature)

    def near(self, signature) -> list[int]:
        """Keys of texts that may be alike: a hint, to be checked."""
        return self.index.query(signature)
