"""Questions of an evaluation that stand in the training rows: to the letter, nearly, or inside a longer text.

The questions are held, the training rows go by. What most questions share (an instruction before each, say) is taken out
first, so that two questions under one instruction are compared by what tells them apart. A near match is checked on the
pieces themselves, not on their sketch. One question counts once, by its best match. The question of a conversation is all of it
up to its last user message, and its beginning (`sides.asked`): a turn in the middle, such as a thank-you, is no question alone.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from slmkit.data import shingles, sides
from slmkit.data.rows import SHOWN, Row
from slmkit.data.sides import WORDS

NEAR = 0.85
CONTAINED = 0.8  # share of a question's runs found in one row; all of them where there are fewer than six
COMMON = 0.05  # pieces in more than this share of the questions (and in more than ten) are nobody's own
KINDS = ("exact", "question", "near", "contained")  # best first; exact: question and answer; question: with another answer


@dataclass(frozen=True)
class Asked:
    """One question of an evaluation, in one or several wordings (the bare field, and the field in its prompt)."""

    wordings: tuple[str, ...]
    answer: str
    place: str


@dataclass
class Exam:
    """A set of questions (`validation`, a task's name) and what was found of it."""

    name: str
    asked: list[Asked]
    found: dict[int, tuple[int, str]] = field(default_factory=dict)  # question → (rank of the kind, place of the training row)

    def note(self, number: int, kind: str, place: str) -> None:
        rank = KINDS.index(kind)
        if number not in self.found or rank < self.found[number][0]:
            self.found[number] = (rank, place)

    def facts(self) -> dict:
        """Counts by kind, and the first pairs: [training row, question, kind]."""
        pairs = [(place, self.asked[n].place, KINDS[rank]) for n, (rank, place) in sorted(self.found.items())]
        counts = Counter(kind for _, _, kind in pairs)
        shown = sorted(pairs, key=lambda p: KINDS.index(p[2]))[:SHOWN]
        return {"against": self.name, "questions": len(self.asked), "leaked": len(pairs), "kinds": {k: counts[k] for k in KINDS},
                "shown": [list(p) for p in shown]}


def of_rows(name: str, rows: Iterable[Row], place) -> Exam:
    """Rows (of validation, say) as questions."""
    return Exam(name, [Asked(tuple(q for q in map(sides.normal, sides.questions(r)) if q), sides.normal(sides.answer(r)), place(r)) for r in rows])


class Leaks:
    """Looks each training row up in all exams at once."""

    def __init__(self, exams: list[Exam]):
        self.exams = exams
        self.texts: list[tuple[Exam, int, str]] = [(e, n, w) for e in exams for n, a in enumerate(e.asked) for w in a.wordings]
        self.exact: dict[str, list[int]] = defaultdict(list)
        for i, (_, _, text) in enumerate(self.texts):
            self.exact[text].append(i)
        self.common = _common(shingles.pieces(t) for _, _, t in self.texts)
        self.index = shingles.Index(NEAR)
        for i, (_, _, text) in enumerate(self.texts):
            if len(own := self._own(text)) >= shingles.SHORTEST:
                self.index.add(i, self.index.mark(own))
        self._runs()

    def _own(self, text: str) -> list[str]:
        return [p for p in shingles.pieces(text) if p not in self.common]

    def _runs(self) -> None:
        """Runs of eight words → the texts they stand in; runs that many questions share are left out."""
        self.runs: dict[tuple[str, ...], list[int]] = defaultdict(list)
        self.of: list[int] = []
        common = _common(set(_runs(t.split())) for _, _, t in self.texts)
        for i, (_, _, text) in enumerate(self.texts):
            own = set(_runs(text.split())) - common
            self.of.append(len(own))
            for run in own:
                self.runs[run].append(i)

    def add(self, row: Row, place: str) -> None:
        if not self.texts:
            return
        answer = sides.normal(sides.answer(row))
        for question in map(sides.normal, sides.heard(row)):
            for i in self.exact.get(question, ()):
                exam, n, _ = self.texts[i]
                exam.note(n, "exact" if exam.asked[n].answer == answer else "question", place)
            self._near(question, place)
        self._contained(sides.normal(sides.whole(row)), place)

    def _near(self, question: str, place: str) -> None:
        own = self._own(question)
        if len(own) < shingles.SHORTEST:
            return
        for i in self.index.near(self.index.mark(own)):
            exam, n, text = self.texts[i]
            if exam.found.get(n, (9,))[0] > KINDS.index("near") and shingles.likeness(own, self._own(text)) >= NEAR:
                exam.note(n, "near", place)

    def _contained(self, text: str, place: str) -> None:
        hits: Counter[int] = Counter()
        for run in set(_runs(text.split())) if self.runs else ():
            hits.update(self.runs.get(run, ()))
        for i, count in hits.items():
            if count >= max(min(self.of[i], 6), math.ceil(CONTAINED * self.of[i])):
                exam, n, _ = self.texts[i]
                exam.note(n, "contained", place)


def _runs(words: list[str]) -> Iterator[tuple[str, ...]]:
    return (tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1))


def _common(sets: Iterable[Iterable]) -> set:
    counts: Counter = Counter()
    total = 0
    for one in sets:
        total += 1
        counts.update(set(one))
    return {piece for piece, n in counts.items() if n > max(10, COMMON * total)}
