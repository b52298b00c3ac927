"""The questions of a task in its short form: each row's question, right answer and choices, read from any file that training reads.

All rows are read and checked before a model is loaded: a missing column, an empty question, a right answer that no metric could
compare (no number, no JSON) is told with file and line, the first five of all.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmkit.data import containers, conversation, files, metrics, rows, sandbox
from slmkit.data.faults import Bad, Fault, Record, Tally, problem
from slmkit.data.read import shown, tallied
from slmkit.data.tables import Cells
from slmkit.errors import DataError, Problem
from slmkit.steps._step import Given
from slmkit.steps._task_form import PARSED, Task

HALF = re.compile("[\\ud800-\\udfff]")


@dataclass(frozen=True, slots=True)
class Question:
    """One row. user: the text that is asked, or None where `messages` is the conversation so far (with the `tools` on offer)."""

    place: str
    user: str | None
    answer: str
    choices: tuple[str, ...] | None = None
    messages: tuple[dict, ...] = ()
    tools: tuple[dict, ...] = ()


def questions(given: Given) -> Iterator[Question]:
    """All questions of a task's data in order. Raises DataError with the first broken rows once all were read."""
    task: Task = given.columns
    place = shown(Path(given.path))
    tally = Tally()
    read = _reader(task)
    yield from tallied(files.of(Path(given.path), given.files, task.split, place), tally, lambda record, name: _question(record, read, name))
    tally.check()
    if not tally.good:
        raise DataError([_nothing(task, place)])


def misfit(task: Task, path: Path) -> Problem | None:
    """What the first row alone shows to be wrong, such as a column that is not there; the rest is told when all rows are read."""
    record = next(iter(containers.records(path)), None)
    found = _question(record, _reader(task), shown(path)) if isinstance(record, Record) else None
    return problem(found, shown(path)) if isinstance(found, Fault) else None


def doubts(task: Task, found: list[Question]) -> list[str]:
    """What can be asked and is seldom meant: empty right answers, questions that come again, the same one with several right answers."""
    out = []
    if count := sum(not q.answer for q in found):
        out.append(f"task `{task.name}`: {count:,} of {len(found):,} right answers are empty, and an empty answer of a model is right there")
    answers: dict[tuple, list[str]] = defaultdict(list)
    for q in found:
        asked = q.user if q.user is not None else json.dumps([q.messages, q.tools], sort_keys=True)
        answers[asked, q.choices].append(q.answer)
    if again := len(found) - len(answers):
        torn = sum(len(set(some)) > 1 for some in answers.values())
        more = f", {torn:,} of them with different right answers" if torn else ""
        out.append(f"task `{task.name}`: {again:,} of {len(found):,} questions were asked before{more}: intervals take each for one of its own")
    return out


def labels(task: Task, found: list[Question]) -> list[str] | None:
    """The answers to choose from where they are the same for every question, in a fixed order."""
    if task.choices == "labels":
        return sorted({q.answer for q in found})
    return list(task.choices) if isinstance(task.choices, list) else None


def _nothing(task: Task, place: str) -> Problem:
    return Problem(f"task `{task.name}` has no questions: the file holds no rows", place)


def _question(record: Record, read: Callable[[Any, str], Question], name: str) -> Question | Fault:
    try:
        if not isinstance(record.value, dict):
            raise Bad("a row is an object of columns")
        return read(record.value, rows.place(name, record.number, record.begins))
    except Bad as e:
        return Fault(str(e), record.number, record.line)


def _reader(task: Task) -> Callable[[dict, str], Question]:
    ask, solve = _field(task.user, "user"), _field(task.answer, "answer")
    parsed = next((m for m in task.metric if m in PARSED), None)

    def read(row: dict, place: str) -> Question:
        talk, tools = _talk(task, row) if task.messages else ([], [])
        answer = solve(row) if solve else conversation_answer(talk)
        question = Question(
            place, ask(row) if ask else None, answer.strip(), _choices(task, row), tuple(talk[:-1] if not solve else talk), tuple(tools)
        )
        if any(HALF.search(text) for text in (question.user or "", question.answer, *(question.choices or ()))):
            raise Bad("it holds half a character (a lone surrogate), which no file and no model can take")
        if question.user is not None and not question.user.strip():
            raise Bad(f"the question (`user: {task.user}`) is empty")
        if parsed and (why := metrics.unfit(parsed, question.answer)):
            raise Bad(f"metric {parsed} needs {PARSED[parsed]} as the right answer, {why}: `{question.answer[:60]}`")
        if question.answer not in (question.choices or (task.choices if isinstance(task.choices, list) else (question.answer,))):
            raise Bad(f"the right answer `{question.answer[:60]}` is none of the choices ({', '.join(question.choices or task.choices)[:120]})")
        return question

    return read


def conversation_answer(talk: list[dict]) -> str:
    """The text of the last message, or its calls as JSON."""
    last = talk[-1]
    if last.get("tool_calls"):
        calls = [{"name": c["function"]["name"], "arguments": c["function"]["arguments"]} for c in last["tool_calls"]]
        return json.dumps(calls if len(calls) > 1 else calls[0], ensure_ascii=False)
    return last.get("content") or ""


def _talk(task: Task, row: dict) -> tuple[list[dict], list[dict]]:
    if task.messages not in row:
        raise Bad(_no_field(row, task.messages))
    talk = conversation.messages(conversation.listed(row[task.messages], task.messages), task.messages)
    if task.answer is None and talk[-1]["role"] != "assistant":
        raise Bad(f"`{task.messages}` does not end with an answer; name its column in `answer`")
    if task.answer is not None and talk[-1]["role"] == "assistant":
        raise Bad(f"`{task.messages}` ends with an answer, and `answer` names another; leave one out")
    return conversation.opened(talk, row.get("system"), task.messages), conversation.tools(row["tools"]) if row.get("tools") else []


def _choices(task: Task, row: dict) -> tuple[str, ...] | None:
    if isinstance(task.choices, list):
        return tuple(task.choices) if not task.generated else None
    if task.choices in (None, "labels"):
        return None
    if task.choices not in row:
        raise Bad(_no_field(row, task.choices))
    value = conversation.listed(row[task.choices], task.choices) if isinstance(row, Cells) else row[task.choices]
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(v, str) and v.strip() for v in value):
        raise Bad(f"`{task.choices}` is no list of two texts or more")
    return tuple(v.strip() for v in value)


def _field(said: str | None, key: str) -> Callable[[dict], str] | None:
    """A function from a row to a text: of a column, or of a template of columns."""
    if said is None:
        return None
    if "{{" not in said and "{%" not in said:
        return lambda row: _text(row, said)
    return sandbox.of_columns(said, key)


def _text(row: dict, column: str) -> str:
    if column not in row:
        raise Bad(_no_field(row, column))
    value = row[column]
    if value is None:
        raise Bad(f"`{column}` is null")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _no_field(row: dict, column: str) -> str:
    return f"no column `{column}` (found: {', '.join(map(str, row)) or 'nothing'})"
