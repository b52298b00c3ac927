"""The x-ray of training data: what it holds and what is wrong with it, measured in one pass, without torch.

`measure` looks at the texts, `add_tokens` at what became of them once they were encoded, `findings` compares both with
thresholds. The train step does the first two by itself and stops on a finding of level error that `execution.allow` does not
name; `slmkit data` shows it all. Facts are plain JSON, with places (file:line) and counts, and no text of any row.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

from slmkit.data import counts, leaks, personal, questions, sides
from slmkit.data.duplicates import Duplicates
from slmkit.data.rows import SHOWN, Row, Rows
from slmkit.errors import DataError, Problem
from slmkit.steps._step import Context, Given

FILE = "xray.json"
SCHEMA = "slmkit.xray/1"
_PLACE = re.compile(r"(?P<file>.*?)(:(?P<line>\d+))?( \(.*\))?$", re.DOTALL)
CUT_SHARE = 0.05  # answers cut, or rows left out: beyond it, it is a wrong max_length rather than outliers
FOREIGN_SHARE = 0.05
Allow = Literal["leaks", "untrained", "truncation", "empty", "duplicates", "personal", "languages"]
MENDS = {
    "leaks": "take these rows out of the training data: a score on questions that were learned proves nothing",
    "drawn": "take copies and near copies out, give `validation` a file of its own, or leave it out",
    "untrained": "raise `max_length` (what a cut leaves of such a row holds no answer), or leave them out: `too_long: drop`",
    "truncation": "raise `max_length`, or shorten the rows",
    "empty": "complete these rows, or take them out",
    "duplicates": "a row that is there twice is learned twice; take copies out if that is not meant",
    "personal": "a model can repeat what it was trained on; replace such values before training",
    "languages": "take out what is of no use to the task",
}


@dataclass(frozen=True)
class Finding:
    """What is wrong: its kind, how bad, how often, in a sentence, where (first places), and the key that allows it."""

    kind: str
    level: Literal["error", "warning", "allowed"]
    count: int
    what: str
    where: tuple[str, ...]
    allow: str


def measure(data: Rows, validation: Rows | None, tasks: tuple[Given, ...] = ()) -> dict:
    """Facts of the texts: rows, roles, languages, duplicates, leaks, empty sides, personal data. One pass over the data."""
    exams = [leaks.of_rows("validation", validation, lambda r: sides.place(validation, r))] if validation else []
    from_tasks, unread = questions.exams(tuple(tasks))
    looks = _Looks(data, [*exams, *from_tasks])
    for row in data:
        looks.add(row, sides.place(data, row))
    found = looks.facts()
    if validation and validation.drawn and found["leaks"][0]["leaked"]:
        found["leaks"][0]["drawn"] = True
    return {
        "schema": SCHEMA,
        "data": {"name": data.name, "form": data.form, "format": data.format, "rows": looks.rows, "dropped": dict(data.dropped)},
        "validation": {"name": validation.name, "rows": len(validation), "dropped": dict(validation.dropped)} if validation else None,
        **found, "tasks_not_read": unread,
    }


class _Looks:
    """All that is looked at while the rows go by."""

    def __init__(self, data: Rows, exams: list[leaks.Exam]):
        self.rows, self.exams = 0, exams
        self.roles: Counter[str] = Counter()
        self.languages, self.duplicates, self.leaks = counts.Languages(len(data)), Duplicates(), leaks.Leaks(exams)
        self.personal: dict[str, list] = {}
        self.empty: dict[str, list] = {}

    def add(self, row: Row, place: str) -> None:
        self.rows += 1
        text = sides.whole(row)
        self.roles += counts.roles(row)
        self.languages.add(text)
        if not row.again:  # a weight asked for that copy
            self.duplicates.add(row, place)
        self.leaks.add(row, place)
        for kind in {kind for kind, _, _ in personal.find(text)}:
            _note(self.personal, kind, place)
        if fault := sides.lacks(row):
            _note(self.empty, fault, place)

    def facts(self) -> dict:
        return {
            "roles": dict(self.roles.most_common()), "languages": dict(self.languages.counts.most_common()),
            "duplicates": {k: {"rows": n, "shown": [list(p) for p in self.duplicates.shown[k]]} for k, n in self.duplicates.count.items()},
            "leaks": [e.facts() for e in self.exams],
            "empty": _listed(self.empty), "personal": _listed(self.personal),
        }


def _note(found: dict[str, list], kind: str, place: str) -> None:
    entry = found.setdefault(kind, [0, []])
    entry[0] += 1
    if len(entry[1]) < SHOWN:
        entry[1].append(place)


def _listed(found: dict[str, list]) -> dict:
    return {kind: {"rows": n, "shown": shown} for kind, (n, shown) in sorted(found.items())}


def add_tokens(
    facts: dict, *, lengths: Sequence[int], kept: int, trained: list[int] | None, left_out: dict, untrained: dict, cut: dict, max_length: int,
    held_out: dict | None = None,
) -> dict:
    """Facts with those of the encoding. lengths: tokens of each row before any was cut or left out. kept: of all that is learned from.

    trained: of each row that is learned from; None where the rows are prompts, and what is trained is yet to be sampled.
    left_out, untrained: {rows, shown: first places}; untrained are rows of which cutting left nothing to learn.
    cut: by side, `left` and `right`, in rows, `answers_cut`, and the first places of these; empty where nothing is ever cut.
    held_out: the last four, of the validation rows.
    """
    learned = {"trained": None} if trained is None else {"trained": sum(trained), "trained_per_row": counts.spread(trained)}
    lost = {"left_out": left_out, "untrained": untrained, "cut": cut, "max_length": max_length}
    held = {"validation": facts["validation"] | held_out} if held_out else {}
    return facts | held | {"tokens": counts.spread(lengths) | {"sum": kept} | learned | {"histogram": counts.histogram(lengths)} | lost}


def findings(facts: dict, allow: tuple[str, ...] = ()) -> list[Finding]:
    """What in the facts is beyond its threshold, worst first."""
    found = [*_errors(facts), *_warnings(facts)]
    out = [Finding(k, "allowed" if k in allow else level, n, what, tuple(where), f"execution.allow=[{k}]") for k, level, n, what, where in found]
    return sorted(out, key=lambda f: ("error", "warning", "allowed").index(f.level))


def _errors(facts: dict):
    for leak in facts["leaks"]:
        if leak["leaked"]:
            of = f"{leak['leaked']:,} of the {leak['questions']:,} questions of `{leak['against']}`"
            kinds = ", ".join(f"{n:,} {_LEAKS[k]}" for k, n in leak["kinds"].items() if n)
            draw = f"; {DRAWN}" if leak.get("drawn") else ""
            where = [f"{a} ↔ {b} ({k})" for a, b, k in leak["shown"]]
            yield "leaks", "error", leak["leaked"], f"{of} are in the training rows ({kinds}){draw}", where
    for fault, entry in facts["empty"].items():
        yield "empty", "error", entry["rows"], f"{_rows(entry['rows'])} with {fault}", entry["shown"]
    tokens = facts.get("tokens")
    if tokens:
        if n := tokens["untrained"]["rows"]:
            yield "untrained", "error", n, f"{_rows(n)} without a single trained token", tokens["untrained"]["shown"]
        if (lost := _lost(tokens, facts["data"]["rows"], "")).share > CUT_SHARE:
            yield "truncation", "error", lost.count, lost.what, lost.where
        if (held := _lost_of_validation(facts)) and held.share > CUT_SHARE:
            yield "truncation", "error", held.count, held.what, held.where


class _Lost(NamedTuple):
    """What max_length cost."""

    count: int
    share: float
    what: str
    where: list[str]


def _lost(tokens: dict, rows: int, of: str) -> _Lost:
    n = tokens["left_out"]["rows"] + tokens["cut"].get("answers_cut", 0)
    share = n / max(1, rows)
    which = f"{_rows(n)} of {rows:,} ({share:.0%}){of} {'is' if n == 1 else 'are'} left out, or {'its answer' if n == 1 else 'their answers'} cut"
    return _Lost(n, share, f"{which}, at max_length {tokens['max_length']}", [*tokens["left_out"]["shown"], *tokens["cut"].get("shown", ())][:SHOWN])


def _lost_of_validation(facts: dict) -> _Lost | None:
    """None where nothing was lost, or nobody has looked."""
    held = facts["validation"]
    found = _lost(held, held["rows"], " of `validation`") if held and "left_out" in held else None
    return found if found and found.count else None


DRAWN = "the draw of the held-out share put them there, as too many rows ask the same"
_LEAKS = {"exact": "with the same answer", "question": "with another answer", "near": "nearly the same", "contained": "inside a longer text"}
_DUPLICATES = {"exact": "copies of another row", "near": "near copies of another row", "conflicting": "the same question with another answer"}


def _warnings(facts: dict):
    if (held := _lost_of_validation(facts)) and held.share <= CUT_SHARE:
        yield "truncation", "warning", held.count, f"{held.what}: `validation_loss` is of the others", held.where
    for kind, entry in facts["duplicates"].items():
        if n := entry["rows"]:
            yield "duplicates", "warning", n, f"{_DUPLICATES[kind]}: {_rows(n)}", [f"{a} ↔ {b}" for a, b in entry["shown"]]
    for kind, entry in facts["personal"].items():
        yield "personal", "warning", entry["rows"], f"{_rows(entry['rows'])} with what looks like {_an(kind)}", entry["shown"]
    told = {k: n for k, n in facts["languages"].items() if k != "unsure"}
    others, total = sum(told.values()) - max(told.values(), default=0), sum(facts["languages"].values())
    if others > FOREIGN_SHARE * total:
        shares = ", ".join(f"{k} {n / total:.0%}" for k, n in list(told.items())[:SHOWN])
        yield "languages", "warning", others, f"several languages: {shares}", []


def _an(word: str) -> str:
    return f"an {word}" if word[0] in "eIA" else f"a {word}"


def _rows(n: int) -> str:
    return f"{n:,} row{'s' if n != 1 else ''}"


def check_rows(ctx: Context, data: Rows, validation: Rows | None) -> None:
    """The train step's own look at the texts, before a model is loaded. Writes xray.json. Raises DataError on findings not allowed."""
    started = time.process_time()
    facts = measure(data, validation, ctx.inputs.get("tasks") or ())
    for role, rows in (("data", data), ("validation", validation)):
        if rows is not None and rows.dropped:
            why = ", ".join(f"{n:,} {what}" for what, n in rows.dropped.items())
            ctx.log("warning", what=f"`{role}`: {_rows(sum(rows.dropped.values()))} of {rows.name} skipped as broken ({why})")
    _settle(ctx, facts, time.process_time() - started)


def check_tokens(ctx: Context, data: Rows, tokens: dict, held_out: dict | None = None) -> None:
    """The same after encoding; `tokens` and `held_out` are add_tokens' arguments. Raises DataError."""
    facts = json.loads((ctx.out / FILE).read_text())
    facts["data"]["name"] = data.name
    _settle(ctx, add_tokens(facts, **tokens, held_out=held_out))


def _settle(ctx: Context, facts: dict, seconds: float = 0.0) -> None:
    told = {f["what"] for f in facts.get("findings", [])}
    found = findings(facts, tuple(ctx.execution.allow))
    facts["findings"] = [asdict(f) for f in found]
    (ctx.out / FILE).write_text(json.dumps(_portable(facts), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    by_level = Counter(f.level for f in found)
    ctx.log("data", rows=facts["data"]["rows"], errors=by_level["error"], warnings=by_level["warning"], said=[f.what for f in found],
            cpu_seconds=round(seconds, 2))
    for one in (f for f in found if f.level == "warning" and f.what not in told):
        ctx.log("warning", what=one.what)
    errors = [f for f in found if f.level == "error"]
    if errors:
        raise DataError([_problem(f, ctx.step) for f in errors], "`slmkit data RECIPE` shows all of it")


def _portable(value, key: str = ""):
    """Facts without folders: they become part of an artifact, whose bytes must not depend on where the files lay."""
    if isinstance(value, dict):
        return {k: _portable(v, k) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(v, key) for v in value]
    if isinstance(value, str) and key in ("name", "shown", "where"):
        apart = ", " if key == "name" else " ↔ "
        return apart.join(place.rpartition("/")[2] for place in value.split(apart))
    return value


def _problem(found: Finding, step: str) -> Problem:
    places = "".join(f"\n  {w}" for w in found.where)
    first = _PLACE.match(found.where[0].partition(" ↔ ")[0] if found.where else "")
    mend = f"{MENDS['drawn' if found.what.endswith(DRAWN) else found.kind]}; or allow it: --set 'steps.{step}.{found.allow}'"
    return Problem(found.what + places, first["file"], int(first["line"] or 0), mend=mend)
