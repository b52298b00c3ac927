"""Rows that are there twice: to the letter (after normalising), nearly, or with the same question and another answer.

A row that was found to be a copy is not compared with again, so a thousand copies cost a thousand look-ups, not a million.
Memory is two hashes and a signature a row, about 2.3 kB: 100,000 rows take 230 MB, however long they are.
"""

from __future__ import annotations

import hashlib

from slmkit.data import shingles, sides
from slmkit.data.rows import SHOWN, Row

NEAR = 0.85  # Jaccard of 5-grams: one word in ten changed


class Duplicates:
    """Counts as rows go by. `shown` holds the first pairs of places of each kind."""

    KINDS = ("exact", "near", "conflicting")

    def __init__(self) -> None:
        self.count = dict.fromkeys(self.KINDS, 0)
        self.shown: dict[str, list[tuple[str, str]]] = {kind: [] for kind in self.KINDS}
        self.places: list[str] = []
        self.rows: dict[bytes, int] = {}
        self.asked: dict[bytes, tuple[int, bytes]] = {}
        self.index = shingles.Index(NEAR)
        self.signatures: dict[int, object] = {}

    def add(self, row: Row, place: str) -> None:
        text = sides.normal(sides.whole(row))
        number, key = len(self.places), _hash(text)
        self.places.append(place)
        if key in self.rows:
            return self._found("exact", self.rows[key], place)
        self.rows[key] = number
        self._conflict(row, number, place)
        self._near(text, number, place)

    def _conflict(self, row: Row, number: int, place: str) -> None:
        answer = sides.answer(row)
        if not answer or row.rejected:
            return
        before = [sides.content(m) for m in row.messages if m["role"] != "assistant"] or [row.prompt]
        asked, answered = _hash(sides.normal("\n".join(before))), _hash(sides.normal(answer))
        first, said = self.asked.setdefault(asked, (number, answered))
        if said != answered and row.label is None:
            self._found("conflicting", first, place)

    def _near(self, text: str, number: int, place: str) -> None:
        if len(text) < shingles.SHORTEST:
            return
        signature = self.index.mark(shingles.pieces(text))
        for other in self.index.near(signature):
            if signature.jaccard(self.signatures[other]) >= NEAR:
                return self._found("near", other, place)
        self.index.add(number, signature)
        self.signatures[number] = signature

    def _found(self, kind: str, first: int, place: str) -> None:
        self.count[kind] += 1
        if len(self.shown[kind]) < SHOWN:
            self.shown[kind].append((self.places[first], place))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()
