"""Several sources as one, by weights; and a share of rows held out. All of it drawn by seed, the same on every machine.

A weight says how often a source's rows stand in one pass: 0.5 is half of them, none twice; 2.5 is all of them twice and
half of them a third time. Sources stand one after another; the training shuffles. Held out are rows by their content, so a
row that stands in the data twice is never on both sides; and a row whose question the x-ray would find among the training rows
goes back to them, for the next of the draw.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain

from slmkit.data import leaks
from slmkit.data.rows import Form, Row, Rows
from slmkit.errors import DataError, Problem

DRAWS = 8  # at most; each is a pass over the rows. Where one question in a hundred has a near copy, two mend the draw; one in three, five
LOOKED_AT = 200_000  # rows over all passes, some 0.1 to 0.2 CPU-ms each; of data with more rows than that, the first draw stands


def of(parts: list[tuple[Rows, float]], seed: int) -> Rows:
    """One set of rows from sources with weights. Raises DataError when their forms differ."""
    form = _form([rows for rows, _ in parts])
    lifted = [(_lifted(rows) if rows.form != form else rows, weight) for rows, weight in parts]
    weighed = [_weighed(rows, weight, seed, i) for i, (rows, weight) in enumerate(lifted)]
    if len(weighed) == 1:
        return weighed[0]
    dropped = sum((Counter(rows.dropped) for rows in weighed), Counter())
    names, looks = (list(dict.fromkeys(getattr(rows, a) for rows in weighed)) for a in ("name", "format"))
    opens = [rows.open for rows in weighed]
    count = sum(rows.count for rows in weighed)
    return Rows(", ".join(names), form, count, lambda: chain.from_iterable(o() for o in opens), " + ".join(looks), dict(dropped))


def _form(parts: list[Rows]) -> Form:
    forms = {rows.form: rows for rows in parts}
    if len(forms) == 1:
        return parts[0].form
    if set(forms) == {"messages", "completion"}:
        return "messages"
    (first, a), (second, b) = list(forms.items())[:2]
    what = f"sources of a mixture must be of one form: {a.name} is {first}, {b.name} is {second}"
    raise DataError([Problem(what, mend="train on them in two steps, or bring them into one form")])


def _lifted(rows: Rows) -> Rows:
    """Prompt and completion as a conversation of two messages."""

    def lift(row: Row) -> Row:
        talk = ({"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.completion})
        return dataclasses.replace(row, prompt="", completion="", messages=talk)

    return dataclasses.replace(rows, form="messages", open=lambda: map(lift, rows.open()))


def _weighed(rows: Rows, weight: float, seed: int, place: int) -> Rows:
    if weight == 1:
        return rows
    count = max(1, round(rows.count * weight))
    whole, rest = divmod(count, rows.count)
    drawn = bytearray(rows.count)
    for i in random.Random(f"{seed}/{place}").sample(range(rows.count), rest):
        drawn[i] = 1

    def again() -> Iterator[Row]:
        for turn in range(whole):
            yield from rows.open() if not turn else map(_again, rows.open())
        if rest:
            some = (row for row, taken in zip(rows.open(), drawn, strict=True) if taken)
            yield from map(_again, some) if whole else some

    return dataclasses.replace(rows, count=count, open=again)


def _again(row: Row) -> Row:
    return dataclasses.replace(row, again=True)


def hold_out(rows: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    """(training rows, held-out rows). About share × rows are held out, at least one. Raises DataError when all rows are the same."""
    mark = _marker(seed)
    counts = Counter(mark(row) for row in rows)
    wanted, barred = max(1, round(len(rows) * share)), set()
    first = taken = _drawn(counts, wanted, barred)
    if sum(counts[key] for key in taken) == len(rows):
        mend = "give more rows, or leave `validation` out"
        raise DataError([Problem("no rows can be held out: all are the same", rows.name, mend=mend)])
    for _ in range(min(DRAWS, LOOKED_AT // len(rows))):
        found = _asked_too(*_parts(rows, mark, taken, counts), mark)
        if not found:
            break
        barred |= found
        taken = _drawn(counts, wanted, barred)
        if 2 * sum(counts[key] for key in taken) < wanted:
            taken = first  # as good as all rows ask what others ask: no draw mends that, and the x-ray says so
            break
    return _parts(rows, mark, taken, counts)


def _drawn(counts: Counter[int], wanted: int, barred: set[int]) -> set[int]:
    """The marks of about `wanted` rows, in the order of the marks."""
    taken, total = set(), 0
    order = sorted(key for key in counts if key not in barred)
    for key in order:
        if total + counts[key] <= wanted:
            taken.add(key)
            total += counts[key]
        if total == wanted:
            break
    if not taken and order:  # every row stands in the data more often than rows are wanted
        return {min(order, key=lambda k: (counts[k], k))}
    return taken


def _parts(rows: Rows, mark: Callable[[Row], int], taken: set[int], counts: Counter[int]) -> tuple[Rows, Rows]:
    """(training rows, held-out rows) by the marks of those held out."""
    total = sum(counts[key] for key in taken)

    def part(out: bool) -> Callable[[], Iterator[Row]]:
        return lambda: (row for row in rows.open() if (mark(row) in taken) == out)

    rest = dataclasses.replace(rows, count=len(rows) - total, open=part(False))
    return rest, dataclasses.replace(rows, count=total, open=part(True), dropped={}, drawn=True)


def _asked_too(rest: Rows, held: Rows, mark: Callable[[Row], int]) -> set[int]:
    """The marks of held-out rows whose questions the x-ray would find in the training rows: near copies, or other answers to the same."""
    exam = leaks.of_rows("validation", held, lambda row: "")
    marks, look = [mark(row) for row in held], leaks.Leaks([exam])
    for row in rest:
        look.add(row, "")
    return {marks[number] for number in exam.found}


def _marker(seed: int) -> Callable[[Row], int]:
    """A 64-bit number of a row's content, another for every seed: sorting by it is a draw."""
    key = f"slmkit/held-out/{seed}".encode()

    def mark(row: Row) -> int:
        body = [row.messages, row.prompt, row.completion, row.text, row.tools, row.chosen, row.rejected, row.label]
        text = json.dumps(body, sort_keys=True, ensure_ascii=False)
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest(), "big")

    return mark
