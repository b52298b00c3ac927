"""The demo's task: messy delivery notes and the one JSON object each of them means.

A note is made backwards. First the facts are drawn (the gold answer), then each fact gets a spelling (a unit, a date
format, a city in some language), then the spellings are laid out as a form, a mail, loose clauses or a bare line, and at
last the text is soiled: case, typos, line breaks, asides, a second city or a second date that must not be taken.
Only `random.Random(seed).random()` is used, the one method whose sequence Python promises to keep, so a seed gives the
same notes on every version and machine. `python -m slmkit.demo.notes` writes the checked-in files anew.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from slmkit.demo.words import (
    ASIDES,
    CARRIERS,
    CITIES,
    CLAUSES,
    CLOSINGS,
    GREETINGS,
    LABELS,
    MONTHS,
    PREFIXES,
    PRIORITIES,
    SENTENCES,
    TYPOS,
)

FIELDS = ("order", "carrier", "weight_kg", "city", "date", "priority")
SEED = 20261122
SIZES = {"test": 200, "validation": 200, "train": 2000}
BREAKS = (", ", "\n", ". ")
FOLDER = Path(__file__).parent / "notes"


class Dice:
    """Choices from `random()` alone."""

    def __init__(self, seed: int):
        self._random = random.Random(seed).random

    def chance(self, share: float) -> bool:
        return self._random() < share

    def below(self, n: int) -> int:
        return int(self._random() * n)

    def pick(self, options):
        return options[self.below(len(options))]

    def shuffled(self, items) -> list:
        keys = [self._random() for _ in items]
        return [items[i] for i in sorted(range(len(items)), key=lambda i: keys[i])]


def facts(dice: Dice) -> dict:
    """What a note says, its keys in the answer's order."""
    return {
        "order": f"{dice.pick(PREFIXES)}-{10000 + dice.below(90000)}",
        "carrier": dice.pick(tuple(CARRIERS)),
        "weight_kg": 0,
        "city": dice.pick(tuple(CITIES)),
        "date": f"{2025 + dice.below(3)}-{1 + dice.below(12):02d}-{1 + dice.below(28):02d}",
        "priority": dice.pick(("low", "normal", "normal", "high")),
    }


def compact(record: dict) -> str:
    """JSON in one line without spaces."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"))


def digits(order: str) -> str:
    """`48213` of `PO-48213`."""
    return order.split("-")[1]


def answer(gold: dict) -> str:
    """The gold answer as the assistant writes it. The order goes by its five digits; the series letters stay behind."""
    return compact(gold | {"order": digits(gold["order"])})


def spell_order(dice: Dice, order: str) -> str:
    """`PO-48213` in the ways that people type it."""
    head, tail = order.split("-")
    lower = f"{head.lower()}-{tail}"
    return dice.pick((order, order, f"{head}{tail}", f"{head} {tail}", f"#{order}", f"{head}/{tail}", lower))


def spell_weight(dice: Dice) -> tuple[float, str]:
    """A weight in kilograms and a text for it in kg, g, t or lbs."""
    unit = dice.pick(("kg", "kg", "kg", "kg", "g", "t", "lbs"))
    if unit == "g":
        grams = 50 * (1 + dice.below(19))
        kilos, number = grams / 1000, str(grams)
    elif unit == "t":
        kilos = 100 * (1 + dice.below(60))
        number = f"{kilos / 1000:g}"
    elif unit == "lbs":
        kilos = 5 * (1 + dice.below(20))
        number = str(kilos * 11 // 5)
    else:
        kilos = 1 + dice.below(dice.pick((30, 100, 999)))
        kilos = round(kilos + dice.pick((0.5, 0.2, 0.8, 0.4)), 1) if dice.chance(0.3) else kilos
        number = f"{kilos:g}"
    if dice.chance(0.4):
        number = number.replace(".", ",")
    unit = dice.pick({"kg": ("kg", "kg", "kgs", "KG", "kilos"), "g": ("g", "g", "gr", "grams"), "t": ("t", "t", "to", "tons"),
                      "lbs": ("lbs", "lbs", "lb", "pounds")}[unit])  # fmt: skip
    return int(kilos) if kilos == int(kilos) else kilos, number + dice.pick(("", " ", " ")) + unit


def spell_date(dice: Dice, date: str) -> str:
    """An ISO date in one of eleven formats; numeric ones are day first."""
    year, month, day = date.split("-")
    long, short, german = MONTHS[int(month) - 1]
    d, m, yy = str(int(day)), str(int(month)), year[2:]
    return dice.pick((date, date, f"{day}.{month}.{year}", f"{d}.{m}.{year}", f"{day}.{month}.{yy}", f"{day}/{month}/{year}",
                      f"{d} {long} {year}", f"{short} {d}, {year}", f"{long} {d}, {year}", f"{d} {short} {yy}",
                      f"{d}. {german} {year}"))  # fmt: skip


def spell(dice: Dice, gold: dict) -> dict:
    """The spelling of every fact, by field; priority may be None (nothing said means normal). Fills in gold's weight."""
    gold["weight_kg"], weight = spell_weight(dice)
    silent = gold["priority"] == "normal" and dice.chance(0.7)
    return {
        "order": spell_order(dice, gold["order"]),
        "carrier": dice.pick(CARRIERS[gold["carrier"]]),
        "weight_kg": weight,
        "city": dice.pick(CITIES[gold["city"]]),
        "date": spell_date(dice, gold["date"]),
        "priority": None if silent else dice.pick(PRIORITIES[gold["priority"]]),
    }


def as_form(dice: Dice, said: dict) -> str:
    """Labelled lines, as from a scanner."""
    sign, between = dice.pick((": ", ": ", " ", " = ", ":")), dice.pick(("\n", "\n", "\n", " | ", "; "))
    lines = [dice.pick(LABELS[field]) + sign + said[field] for field in FIELDS if said[field]]
    return between.join(dice.shuffled(lines) if dice.chance(0.6) else lines)


def as_mail(dice: Dice, said: dict) -> str:
    """A written sentence, the priority before or after it."""
    text = dice.pick(SENTENCES).format(**said)
    if not said["priority"]:
        return text
    return dice.pick(("{0} {1}", "{1}: {0}", "{0}\n{1}", "{0} - {1}")).format(text, said["priority"])


def as_clauses(dice: Dice, said: dict) -> str:
    """Loose clauses in any order."""
    parts = [dice.pick(CLAUSES[field]).format(said[field]) for field in FIELDS if said[field]]
    return dice.pick((", ", ", ", "; ", " - ", "\n")).join(dice.shuffled(parts))


def as_line(dice: Dice, said: dict) -> str:
    """The bare values, as in the subject of a mail."""
    return dice.pick((" ", " ", " / ", ", ", " ; ")).join(dice.shuffled([value for value in said.values() if value]))


def soil(dice: Dice, text: str, gold: dict) -> str:
    """Greeting and closing, asides, a second city or date, typos, case and line breaks."""
    if dice.chance(0.15):
        text += dice.pick(BREAKS) + dice.pick(ASIDES)
    if dice.chance(0.12):
        other = dice.pick([city for city in CITIES if city != gold["city"]])
        origin = dice.pick(("from {}", "coming from {}", "sender {}"))
        text += dice.pick(BREAKS) + origin.format(dice.pick(CITIES[other]))
    if dice.chance(0.1):
        other = spell_date(dice, facts(dice)["date"])
        text += dice.pick(BREAKS) + dice.pick(("ordered {}", "written {}", "invoice of {}")).format(other)
    if dice.chance(0.3):
        text = dice.pick(GREETINGS) + dice.pick((" ", "\n")) + text
    if dice.chance(0.3):
        text += dice.pick((" ", "\n")) + dice.pick(CLOSINGS)
    for right, wrong in TYPOS:
        if dice.chance(0.2):
            text = text.replace(right, wrong)
    if dice.chance(0.2):
        text = text.lower() if dice.chance(0.9) else text.upper()
    if dice.chance(0.15):
        text = "".join("\n" if mark == " " and dice.chance(0.12) else mark for mark in text)
    return text


def note(dice: Dice) -> tuple[str, dict]:
    """One note and its gold answer."""
    gold = facts(dice)
    said = spell(dice, gold)
    layout = dice.pick((as_form, as_mail, as_clauses, as_line))
    return soil(dice, layout(dice, said), gold), gold


def stream(seed: int, without: frozenset[str] = frozenset()) -> Iterator[tuple[str, dict]]:
    """Endless (note, gold) pairs; no order number comes twice, and none from `without`."""
    dice, seen = Dice(seed), set(without)
    while True:
        text, gold = note(dice)
        if gold["order"] not in seen:
            seen.add(gold["order"])
            yield text, gold


def row(text: str, gold: dict) -> dict:
    """A training row in messages form."""
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer(gold)}]}


def notes(seed: int, n: int) -> list[dict]:
    """The first n rows of a seed, in messages form."""
    source = stream(seed)
    return [row(*next(source)) for _ in range(n)]


def drawn(seed: int = SEED) -> dict[str, list[tuple[str, dict]]]:
    """The (note, gold) pairs of each split. All come from one stream, and no order's digits are in two of them."""
    source, taken = stream(seed), set()
    pairs = {name: [] for name in SIZES}
    for name, size in SIZES.items():
        while len(pairs[name]) < size:
            text, gold = next(source)
            if digits(gold["order"]) not in taken:
                taken.add(digits(gold["order"]))
                pairs[name].append((text, gold))
    return pairs


def splits(seed: int = SEED) -> dict[str, list[dict]]:
    """The checked-in rows by split: the test as lm-eval reads it, the others in messages form."""
    pairs = drawn(seed)
    rows = {name: [row(*pair) for pair in pairs[name]] for name in ("validation", "train")}
    unlabelled = [{"prompt": text} for text, _ in pairs["train"]]  # the same notes as train, for a teacher to answer
    return {"test": [{"note": text, "answer": answer(gold)} for text, gold in pairs["test"]], **rows, "prompts": unlabelled}


def lines(rows: list[dict]) -> str:
    """Rows as the text of a JSONL file."""
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)


if __name__ == "__main__":
    for name, rows in splits().items():
        (FOLDER / f"{name}.jsonl").write_text(lines(rows), encoding="utf-8")
