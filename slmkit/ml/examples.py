"""Examples: token ids and which of them are learned; and what happens to those that are longer than max_length."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Literal

from slmkit.data import faults
from slmkit.data.rows import Noted, Rows, place
from slmkit.errors import DataError

IGNORED = -100
TOO_LONG_SHARE = 0.05  # beyond it, rows are being lost to a wrong max_length rather than to outliers
TooLong = Literal["drop", "cut_end", "cut_start"]
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids (array('i'): 4 bytes each) and the spans of them that are learned, [start, end). line, file, begins: of the row it came from."""

    line: int
    ids: array
    spans: tuple[Span, ...]
    file: str = ""
    begins: int = 0

    def place(self, name: str) -> str:
        return place(self.file or name, self.line, self.begins)

    @property
    def input_ids(self) -> list[int]:
        return self.ids.tolist()

    @property
    def labels(self) -> list[int]:
        """The ids where they are learned, -100 elsewhere."""
        labels = [IGNORED] * len(self.ids)
        for start, end in self.spans:
            labels[start:end] = self.ids[start:end]
        return labels

    @property
    def trained(self) -> int:
        """Tokens whose loss counts; the first token of an example is never predicted."""
        return sum(end - max(start, 1) for start, end in self.spans if end > 1)


@dataclass(kw_only=True)
class Fitted:
    """What became of rows at max_length, whatever was made of them (examples, pairs, prompts).

    lengths: tokens of each before any was cut or left out. too_long: rows left out. cut: what cutting lost: rows, tokens, answers_cut (rows
    with fewer trained tokens), side. answers_cut: these rows; untrained: those of them in which nothing was left to learn, which are left
    out, too. notes: what else happened, with counts.
    """

    lengths: array = field(default_factory=lambda: array("I"))
    too_long: Noted = field(default_factory=Noted)
    cut: dict[str, int | str] = field(default_factory=dict)
    answers_cut: Noted = field(default_factory=Noted)
    untrained: Noted = field(default_factory=Noted)
    notes: dict[str, int | bool | str] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Of all sequences that are learned from."""
        raise NotImplementedError

    def trained_each(self) -> list[int] | None:
        """Trained tokens of each; None where what is trained is yet to be sampled."""
        raise NotImplementedError


@dataclass
class Encoded(Fitted):
    """All examples that fit."""

    examples: list[Example]

    @property
    def tokens(self) -> int:
        return sum(len(e.ids) for e in self.examples)

    @property
    def trained(self) -> int:
        return sum(self.trained_each())

    def trained_each(self) -> list[int]:
        return [e.trained for e in self.examples]


def fitted(examples: list[Example], max_length: int, how: TooLong, bos: int | None, encoded: Encoded) -> list[Example]:
    """A row's examples that fit, and what cutting leaves of the others; counts what is lost."""
    encoded.lengths.extend(len(e.ids) for e in examples)
    long = [e for e in examples if len(e.ids) > max_length]
    if not long or how == "drop":
        for one in long[:1]:
            encoded.too_long.add(one)
        return [e for e in examples if len(e.ids) <= max_length]
    kept = [e if len(e.ids) <= max_length else _cut(e, max_length, how, bos) for e in examples]
    shorter = sum(e.trained for e in kept) < sum(e.trained for e in examples)
    lost = {"rows": 1, "answers_cut": int(shorter), "tokens": sum(len(e.ids) - max_length for e in long)}
    for name, count in lost.items():
        encoded.cut[name] = encoded.cut.get(name, 0) + count
    encoded.cut["side"] = how.removeprefix("cut_")
    left = [e for e in kept if e.trained]
    if shorter:
        encoded.answers_cut.add(long[0])
    if not left:
        encoded.untrained.add(long[0])
    return left


def _cut(example: Example, length: int, how: TooLong, bos: int | None) -> Example:
    """The first or the last `length` tokens. A cut at the start leaves BOS, without which some models are lost."""
    if how == "cut_end":
        spans = tuple((start, min(end, length)) for start, end in example.spans if start < length)
        return Example(example.line, example.ids[:length], spans, example.file, example.begins)
    over = len(example.ids) - length
    kept = int(example.ids[0] == bos)
    spans = tuple((max(start - over, kept), end - over) for start, end in example.spans if end - over > kept)
    return Example(example.line, example.ids[:kept] + example.ids[over + kept :], spans, example.file, example.begins)


def refuse_losses(data: Rows, encoded: Encoded, max_length: int) -> None:
    """Raise DataError if more rows, or more answers, were lost to max_length than outliers would explain."""
    answers = encoded.answers_cut.count
    lost = max(encoded.too_long.count, answers)
    if lost <= TOO_LONG_SHARE * len(data) and encoded.examples:
        return
    some = encoded.too_long.first or encoded.answers_cut.first
    problems = [faults.of_row(f"longer than max_length ({max_length} tokens)", one, data.name) for one in some]
    what = "are longer than" if lost > answers or not answers else f"lose a part of an answer (cut at the {encoded.cut['side']}) to"
    raise DataError(
        problems,
        f"{lost} of {len(data)} rows ({lost / max(len(data), 1):.0%}) {what} max_length: {max_length}; "
        "raise `max_length`, or shorten the rows (up to 5 % are left out with a note)",
    )
