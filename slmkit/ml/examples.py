"""Examples: token ids and which of them are learned; and what happens to those that are longer than max_length."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Literal

from slmkit.data.rows import SHOWN, Rows
from slmkit.errors import DataError, Problem

IGNORED = -100
TOO_LONG_SHARE = 0.05  # beyond it, rows are being lost to a wrong max_length rather than to outliers
TooLong = Literal["drop", "cut_end", "cut_start"]
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids (array('i'): 4 bytes each) and the spans of them that are learned, [start, end). line: of the row it came from."""

    line: int
    ids: array
    spans: tuple[Span, ...]
    file: str = ""

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


@dataclass
class Encoded:
    """All examples that fit.

    too_long: lines of rows that lost an example. cut: what cutting lost: rows, tokens, answers_cut (rows with fewer trained tokens), side.
    notes: what else happened, with counts.
    """

    examples: list[Example]
    too_long: list[int] = field(default_factory=list)
    notes: dict[str, int | bool | str] = field(default_factory=dict)
    cut: dict[str, int | str] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return sum(len(e.ids) for e in self.examples)

    @property
    def trained(self) -> int:
        return sum(e.trained for e in self.examples)


def fitted(examples: list[Example], max_length: int, how: TooLong, bos: int | None, encoded: Encoded) -> list[Example]:
    """A row's examples that fit, and what cutting leaves of the others; counts what is lost."""
    long = [e for e in examples if len(e.ids) > max_length]
    if not long or how == "drop":
        encoded.too_long += [e.line for e in long[:1]]
        return [e for e in examples if len(e.ids) <= max_length]
    kept = [e if len(e.ids) <= max_length else _cut(e, max_length, how, bos) for e in examples]
    shorter = sum(e.trained for e in kept) < sum(e.trained for e in examples)
    lost = {"rows": 1, "answers_cut": int(shorter), "tokens": sum(len(e.ids) - max_length for e in long)}
    for name, count in lost.items():
        encoded.cut[name] = encoded.cut.get(name, 0) + count
    encoded.cut["side"] = how.removeprefix("cut_")
    return [e for e in kept if e.trained]


def _cut(example: Example, length: int, how: TooLong, bos: int | None) -> Example:
    """The first or the last `length` tokens. A cut at the start leaves BOS, without which some models are lost."""
    if how == "cut_end":
        spans = tuple((start, min(end, length)) for start, end in example.spans if start < length)
        return Example(example.line, example.ids[:length], spans, example.file)
    over = len(example.ids) - length
    kept = int(example.ids[0] == bos)
    spans = tuple((max(start - over, kept), end - over) for start, end in example.spans if end - over > kept)
    return Example(example.line, example.ids[:kept] + example.ids[over + kept :], spans, example.file)


def refuse_losses(data: Rows, encoded: Encoded, max_length: int) -> None:
    """Raise DataError if more rows, or more answers, were lost to max_length than outliers would explain."""
    answers = encoded.cut.get("answers_cut", 0)
    lost = max(len(encoded.too_long), answers)
    if lost <= TOO_LONG_SHARE * len(data) and encoded.examples:
        return
    problems = [Problem(f"longer than max_length ({max_length} tokens)", data.name, line) for line in encoded.too_long[:SHOWN]]
    what = "are longer than" if lost > answers or not answers else f"lose a part of an answer (cut at the {encoded.cut['side']}) to"
    raise DataError(
        problems,
        f"{lost} of {len(data)} rows ({lost / max(len(data), 1):.0%}) {what} max_length: {max_length}; "
        "raise `max_length`, or shorten the rows (up to 5 % are left out with a note)",
    )
