"""Texts on which a model is compared with itself before and after: rows of the recipe's training data, else a fixed few of our own.

Rows are taken evenly over the data, never by chance, so that the same data gives the same probes. Training rows are free of the evaluation's
questions, since train looks for those. What is measured is the answer's tokens, as in use.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from slmkit.data import read, rows
from slmkit.data.rows import Row, Rows
from slmkit.errors import DataError
from slmkit.ml import chat, models
from slmkit.steps._step import Given

COUNT = 24
PLACES = 32  # measured tokens of a probe; their logits are kept for all probes: 24 × 32 × 150,000 tokens × 4 bytes are 460 MB
LONGEST = 1024
WRITTEN = 48  # tokens that a model may answer with

BUILT_IN = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Translate to German: The book is on the table.", "Das Buch liegt auf dem Tisch."),
    ("How many legs do three spiders have?", "A spider has 8 legs, so three spiders have 24 legs."),
    ("Write a Python function that adds two numbers.", "def add(a, b):\n    return a + b\n"),
    ('Give me the city as JSON: "She moved to Graz in 2019."', '{"city": "Graz", "year": 2019}'),
    ("Is this review positive or negative? The battery died after two days.", "negative"),
    ("Name three colours.", "Red, green and blue."),
    ("Summarise: The meeting was moved from Monday to Thursday because the room was taken.", "The meeting is now on Thursday."),
    ("Correct the spelling: recieve, definately, seperate", "receive, definitely, separate"),
    ("Continue the list: 2, 4, 8, 16,", "32, 64, 128, 256"),
    ("Who wrote Hamlet?", "William Shakespeare wrote Hamlet around 1600."),
    ("Classify the message as order, return or other: Where is my parcel 48213?", "order"),
    ("What does HTTP stand for?", "Hypertext Transfer Protocol."),
    ("Write the date 3 May 2024 in ISO format.", "2024-05-03"),
    ("Résume en une phrase : Il pleut depuis trois jours à Lyon.", "La pluie tombe sur Lyon depuis trois jours."),
    ("What comes after Tuesday?", "Wednesday."),
)


@dataclass(frozen=True)
class Probe:
    """ids: prompt and answer; the answer begins at `start`, and the tokens up to `end` are measured. name: for people."""

    name: str
    ids: tuple[int, ...]
    start: int
    end: int

    @property
    def prompt(self) -> list[int]:
        return list(self.ids[: self.start])


@dataclass(frozen=True)
class Probes:
    """source: where they are from. messages: of each, for its chat template; () where there is none. ends: ids that end an answer."""

    source: str
    probes: tuple[Probe, ...]
    messages: tuple[list[dict], ...]
    ends: frozenset[int]


def choose(data: tuple[Given, ...], model: Given) -> Probes:
    """Probes for a model from the first dataset whose rows it can be asked; the built-in ones where there is none."""
    tokenizer = models.tokenizer(model)
    for given in data:
        try:
            found = of(_even(read.read(given, on_bad_row="skip")), given.name, tokenizer, model)
        except DataError:
            continue  # rows of another form, or longer than any probe; train says what is wrong with them
        if found.probes:
            return found
    chats = bool(tokenizer.chat_template)
    made = [Row(i, messages=_talk(*pair)) if chats else Row(i, prompt=pair[0] + "\n", completion=pair[1]) for i, pair in enumerate(BUILT_IN, 1)]
    return of(rows.of("slmkit", "messages" if chats else "completion", made, ""), "slmkit", tokenizer, model)


def _talk(user: str, assistant: str) -> tuple[dict, ...]:
    return ({"role": "user", "content": user}, {"role": "assistant", "content": assistant})


def _even(data: Rows) -> Rows:
    """COUNT rows, evenly over all; of preferences, the better answer."""
    step = max(1, len(data) // COUNT)
    taken = list(islice(data, 0, step * COUNT, step))
    if data.form in ("preference", "label"):
        taken = [Row(r.line, messages=r.messages + r.chosen, tools=r.tools, file=r.file) for r in taken]
        return rows.of(data.name, "messages", taken, data.format)
    return rows.of(data.name, data.form, taken, data.format)


def room(model: Given) -> int:
    """Tokens of a probe: what the model has places for, less those of an answer."""
    config = models.read_config(Path((model.base or model).path))
    text = config.get("text_config") or config
    return min(LONGEST, max(16, (text.get("max_position_embeddings") or text.get("n_positions") or LONGEST) - WRITTEN))


def of(part: Rows, source: str, tokenizer, model: Given) -> Probes:
    """A probe of every row."""
    ends = models.end_ids(model, tokenizer)
    encoded = chat.encode(part, tokenizer, loss_on="assistant", max_length=room(model), ends=ends, too_long="cut_end", allow_truncation=True)
    made, seen = [], set()
    for example in encoded.examples:
        if example.line not in seen:
            seen.add(example.line)
            first, last = example.spans[0]
            first = first or min(8, last - 1)  # of plain text: its beginning is the prompt
            made.append(Probe(f"{source} {example.line}", tuple(example.ids), first, min(last, first + PLACES)))
    spoken = tuple(list(r.messages) for r in part if r.messages) if tokenizer.chat_template else ()
    return Probes(source, tuple(p for p in made if 0 < p.start < p.end), spoken, frozenset(ends))
