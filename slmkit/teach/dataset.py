"""The answers in the ledger into a dataset: rows through the filters, in the order of the prompts, written as they go by.

train.jsonl (and validation.jsonl) hold `messages` or preference pairs, as `datasets.load_dataset(FOLDER)` and every trainer read them; a mode may
put rows into a split of its own beside them; dropped.jsonl holds what was left out, and why.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from slmkit.errors import StepFailed
from slmkit.teach.filters import Filters, ordered
from slmkit.teach.job import Made

TRAIN, VALIDATION, DROPPED = "train.jsonl", "validation.jsonl", "dropped.jsonl"
HALF = ("finished", "the answer holds half a character (a lone surrogate), which no file of text can hold")


@dataclass
class Written:
    """Counts of what was written. also: rows that went with others (reasoning beside answers), by split. thoughts: rows whose answer came with
    thinking written before it, which is left out."""

    rows: int = 0
    held_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    also: Counter[str] = field(default_factory=Counter)
    thoughts: int = 0

    @property
    def made(self) -> int:
        return self.rows + self.held_out + sum(self.dropped.values())


def write(folder: Path, rows: Iterable[Made], filters: Filters, share: float | None, seed: int, tick=lambda n: None) -> Written:
    """Write the files into `folder`. share: of the questions that are held out, drawn by their text, so that one question lies on one side."""
    written = Written()
    files = {name: (folder / name).open("wb") for name in [TRAIN, DROPPED, *([VALIDATION] if share else [])]}
    try:
        for made in rows:
            fault = filters.why(made)
            line, beside = b"", []
            if not fault:
                try:
                    line, beside = _line(made.row), [(split, _line(row)) for split, row in made.also]
                except UnicodeEncodeError:
                    fault = filters.take_back(HALF)
            if fault:
                written.reasons[_general(fault[1])] += 1
                files[DROPPED].write(_line({"place": made.place, "filter": fault[0], "reason": fault[1], **made.row}, "backslashreplace"))
                continue
            written.thoughts += "thought" in made.more
            held = bool(share) and _draw(made.question, seed) < share
            written.held_out, written.rows = written.held_out + held, written.rows + (not held)
            files[VALIDATION if held else TRAIN].write(line)
            for split, row in beside:
                name = VALIDATION if held else f"{split}.jsonl"
                if name not in files:
                    files[name] = (folder / name).open("wb")
                written.also["validation" if held else split] += 1
                files[name].write(row)
            tick(written.rows + written.held_out)
    finally:
        for file in files.values():
            file.close()
    written.dropped = filters.dropped
    return written


def enough(written: Written, least: float | int, share: float | None = None) -> None:
    """Raise StepFailed when fewer rows were kept than the recipe asks for: a share of those made, or a number. share: to be held out."""
    kept = written.rows + written.held_out
    if written.held_out and not written.rows:
        what = f"all {kept} rows were drawn into `validation`, and none is left to train on"
        raise StepFailed(what, mend="the answers are kept: hold out a smaller share, or ask about more prompts", key="validation")
    if share and written.rows and not written.held_out:
        what = f"none of the {kept} rows was drawn into `validation`"
        raise StepFailed(what, mend="the answers are kept: hold out a larger share, or ask about more prompts", key="validation")
    made = written.made - written.dropped["surplus"] - written.dropped["broken"]  # which nobody wanted, and which were to be skipped
    wanted = least if isinstance(least, int) else least * made
    if kept < max(1, wanted):
        told = ", ".join(f"{name} {count}" for name, count in ordered(written.dropped)) or "nothing was made"
        first = written.reasons.most_common(1)
        most = f"; most often: {first[0][0]}" if first else ""
        mend, key = "the answers are kept: loosen `filters` or `min_kept`, or change what is asked, and run it again", "min_kept"
        if "context has" in most or "tokens of the prompt and" in most:
            mend, key = "prompt and `max_tokens` together must fit into the teacher's context: set a smaller `max_tokens`", "max_tokens"
        elif "max_tokens" in most:
            mend, key = "set a larger `max_tokens`, or ask for shorter answers", "max_tokens"
        raise StepFailed(f"{kept} of {made} rows were kept, and `min_kept` is {least} (dropped: {told}{most})", mend=mend, key=key)


def _draw(question: str, seed: int) -> float:
    digest = hashlib.blake2b(question.encode("utf-8", "surrogatepass"), digest_size=8, key=f"slmkit/held-out/{seed}".encode()).digest()
    return int.from_bytes(digest, "big") / 2**64


def _line(row: dict, errors: str = "strict") -> bytes:
    """Raises UnicodeEncodeError for half a character, which a model may write and no file of text holds."""
    return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", errors)


def _general(reason: str) -> str:
    return reason.split(":")[0].split(" (")[0][:80]
