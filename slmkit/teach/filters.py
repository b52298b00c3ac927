"""What an answer must be to become a row, in a fixed order; each filter counts, and each row it drops is kept with the reason.

    broken → answered → finished → not empty → readable → JSON Schema → regex → verifier → majority → novelty → verdict → judge's score
    → duplicates → near-duplicates → leaks → personal data → refusals → surplus

A row is dropped by the first that says no. What only a mode can say (readable: is the reply what was asked for; majority; novelty; verdict: did
the judge's reply rank the answers) it says itself, and it is counted in its place.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from slmkit.data import leaks, personal, shingles, sides
from slmkit.data.rows import Row
from slmkit.teach.job import Made

UNABLE = r"(?:can(?:no|['’])?t|could(?: not|n['’]t)|(?:am|['’]?m) (?:not able|unable)|won['’]?t|will not|must decline|have to decline)"
DEED = (
    r"(?:to )?(?:help|assist|comply|fulfil|answer|do (?:that|this|so)|provide|discuss|generate|create|write|share|continue|engage|respond|"
    r"offer|give)"
)
REFUSAL = re.compile(
    rf"\A\W*(?:(?:i['’]?m (?:very |so |really )?sorry|i apologi[sz]e|sorry|unfortunately|apologies)[,.!:]? (?:\w+ )?i ?{UNABLE}\b|"
    rf"i ?{UNABLE} (?:\w+ )?{DEED}\b|as an ai(?: language model| assistant| model)?,? i\b|i do not have the ability\b|"
    r"es tut mir leid,? (?:aber )?(?:ich kann|das kann ich|dabei kann ich)\b|(?:das|dabei) kann ich (?:leider )?nicht\b|"
    r"ich kann (?:das |ihnen |dir |dabei )?(?:leider )?nicht\b|(?:je suis )?désolée?,? (?:mais )?je ne (?:peux|puis)\b|"
    r"lo siento,? (?:pero )?no puedo\b)",
    re.IGNORECASE,
)
"""At the beginning of an answer. `I'm sorry to hear that your card was stolen` is none, and `Unfortunately, I can only say …` neither."""
ORDER = ("broken", "answered", "finished", "empty", "readable", "json_schema", "regex", "verify", "majority",
         "novelty", "verdict", "judge", "duplicates", "near_duplicates", "leaks", "personal", "refusals", "surplus")
MODES_OWN = ("broken", "answered", "readable", "majority", "novelty", "verdict")


@dataclass
class Filters:
    """Checks in order; `passed` and `dropped` count."""

    checks: list[tuple[str, Callable[[Made], str | None]]]
    passed: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def why(self, made: Made) -> tuple[str, str] | None:
        """(filter, reason) of the first that says no, else None."""
        for name, check in self.checks:
            if reason := check(made):
                self.dropped[name] += 1
                return name, reason
        self.passed += 1
        return None

    def take_back(self, fault: tuple[str, str]) -> tuple[str, str]:
        """The row that passed last is dropped after all."""
        self.passed -= 1
        self.dropped[fault[0]] += 1
        return fault


def build(config: Any, exams: list[leaks.Exam], verify: Callable[[Made], str | None] | None, before: str | None = None) -> Filters:
    """The filters of a config. exams: questions that must not be among the rows. verify: a reason to drop, or None. before: only those that
    come before this one."""
    f, checks = config.filters, {name: _by(name) for name in MODES_OWN}
    checks["finished"] = _finished
    checks["empty"] = lambda m: None if m.why or m.answer.strip() or m.more.get("calls") else "the answer is empty"
    if config.json_schema is not None:
        checks["json_schema"] = _schema(config.json_schema)
    if f.regex is not None:
        pattern = re.compile(f.regex, re.DOTALL)
        checks["regex"] = lambda m: None if pattern.fullmatch(m.answer.strip()) else "the answer does not match the pattern"
    if verify is not None:
        checks["verify"] = verify
    if f.min_score is not None:
        checks["judge"] = lambda m: _scored(m, f.min_score)
    if f.duplicates:
        checks["duplicates"] = _Seen()
    if f.near_duplicates is not None:
        checks["near_duplicates"] = _Near(f.near_duplicates)
    if f.leaks and exams:
        checks["leaks"] = _Leaks(exams)
    if f.personal:
        checks["personal"] = _personal
    if f.refusals:
        checks["refusals"] = lambda m: "the teacher refused" if REFUSAL.match(m.answer) else None
    if config.generate is not None:
        checks["surplus"] = _AtMost(config.generate.count)
    wanted = ORDER if before is None else ORDER[: ORDER.index(before)]
    return Filters([(name, checks[name]) for name in wanted if name in checks])


def _by(name: str) -> Callable[[Made], str | None]:
    return lambda made: made.why if made.by == name else None


WHOLE = ("stop", "tool_calls", "function_call", None)
"""How an answer ends that nothing cut short."""


def _finished(made: Made) -> str | None:
    if made.finish in WHOLE:
        return None
    return "the answer was cut at max_tokens" if made.finish == "length" else f"the answer ended with `{made.finish}`"


def _schema(schema: dict) -> Callable[[Made], str | None]:
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(schema)

    def check(made: Made) -> str | None:
        try:
            value = json.loads(made.answer)
        except (ValueError, RecursionError):
            return "the answer is no JSON"
        fault = next(iter(sorted(validator.iter_errors(value), key=str)), None)
        place = ".".join(str(p) for p in fault.absolute_path) if fault else ""
        return f"the answer does not satisfy the schema{f' at {place}' if place else ''}: {fault.message[:120]}" if fault else None

    return check


def _scored(made: Made, least: float) -> str | None:
    score = made.more.get("score")
    if score is None:
        return f"the judge gave no score: {made.more.get('unscored', 'not asked')}"
    return None if score >= least else f"the judge gave {score:g}, below {least:g}"


def _row(made: Made) -> Row:
    """A made row in the form that the x-ray's checks look at."""
    row = made.row
    pair = (tuple(row.get(side) or ()) for side in ("chosen", "rejected"))
    return Row(0, tuple(row.get("messages") or row.get("prompt") or ()), "", "", "", (), *pair)


class _AtMost:
    """Rows beyond the number that was asked for: paid for, kept in the ledger, and there when more are wanted."""

    def __init__(self, count: int):
        self.count, self.seen = count, 0

    def __call__(self, made: Made) -> str | None:
        self.seen += 1
        return None if self.seen <= self.count else f"more than the {self.count} rows that were wanted"


class _Seen:
    """The same question and answer, each text normalised; what else a row has (a score) tells none apart. About 100 bytes a row."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()

    def __call__(self, made: Made) -> str | None:
        import hashlib

        said = [_normal(made.row.get(key)) for key in ("messages", "prompt", "chosen", "rejected", "tools")]
        text = json.dumps(said, sort_keys=True, ensure_ascii=False, default=str)
        key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()
        if key in self.seen:
            return "the same row is there already"
        self.seen.add(key)
        return None


def _normal(value: Any) -> Any:
    if isinstance(value, str):
        return sides.normal(value)
    if isinstance(value, dict):
        return {k: _normal(v) for k, v in value.items()}
    return [_normal(v) for v in value] if isinstance(value, list | tuple) else value


class _Near:
    """Nearly the same row by MinHash, checked on the estimate of both signatures; about 2 kB a row."""

    def __init__(self, threshold: float):
        self.index, self.threshold = shingles.Index(threshold), threshold
        self.signatures: list[Any] = []
        self.places: list[str] = []

    def __call__(self, made: Made) -> str | None:
        text = sides.normal(sides.whole(_row(made)))
        if len(text) < shingles.SHORTEST:
            return None
        signature = self.index.mark(shingles.pieces(text))
        for other in self.index.near(signature):
            if signature.jaccard(self.signatures[other]) >= self.threshold:
                return f"nearly the same as {self.places[other]}"
        self.index.add(len(self.signatures), signature)
        self.signatures.append(signature)
        self.places.append(made.place)
        return None


class _Leaks:
    """Questions of the recipe's evaluation tasks and validation data."""

    def __init__(self, exams: list[leaks.Exam]):
        self.exams, self.leaks = exams, leaks.Leaks(exams)

    def __call__(self, made: Made) -> str | None:
        for exam in self.exams:
            exam.found.clear()
        self.leaks.add(_row(made), made.place)
        for exam in self.exams:
            if exam.found:
                number, (rank, _) = next(iter(exam.found.items()))
                place = exam.asked[number].place.rpartition("/")[2]  # the reason is part of what comes out, wherever the exam lies
                return f"a question of {exam.name} ({leaks.KINDS[rank]}: {place})"
        return None


def _personal(made: Made) -> str | None:
    texts = [sides.whole(_row(made)), *(sides.content(m) for _, row in made.also for m in row["messages"])]
    found = {kind for text in texts for kind, _, _ in personal.find(text)}
    return f"likely personal data: {', '.join(sorted(found))}" if found else None


def ordered(dropped: Counter[str]) -> Iterator[tuple[str, int]]:
    return ((name, dropped[name]) for name in ORDER if dropped[name])
