"""Calibration rows: drawn by seed from rows like those of use, and none of them a question of the recipe's evaluations."""

from __future__ import annotations

import random

from slmkit.data import leaks, questions, rows, sides
from slmkit.data.rows import Rows
from slmkit.errors import DataError, Problem
from slmkit.steps._step import Given


def draw(data: Rows, samples: int, seed: int) -> Rows:
    """`samples` rows at most, in the order they were drawn."""
    drawn = list(data)
    random.Random(seed).shuffle(drawn)
    return rows.of(data.name, data.form, drawn[:samples], data.format)


def refuse_leaks(drawn: Rows, tasks: tuple[Given, ...]) -> list[str]:
    """Raise DataError where a drawn row holds a question of a task. Returns the names of tasks whose questions are not here."""
    exams, unread = questions.exams(tasks)
    looked = leaks.Leaks(exams)
    for row in drawn:
        looked.add(row, sides.place(drawn, row))
    problems, count = [], 0
    for facts in (exam.facts() for exam in exams if exam.found):
        count += facts["leaked"]
        for place, question, kind in facts["shown"]:
            problems.append(Problem(f"this calibration row is a question of `{facts['against']}` ({kind}: {question})", place,
                                    mend="take it out of the rows, or allow it: `execution: {allow: [leaks]}`"))
    if problems:
        raise DataError(problems[:5], f"{count} questions of the evaluation are among the {len(drawn)} calibration rows")
    return unread
