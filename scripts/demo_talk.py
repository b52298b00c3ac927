"""What the demo's student reads before it meets the task: talk about delivery notes, and never their JSON.

Each conversation is a list of turns, user first. Most are about a note: single questions (which city? what date, in
ISO?), short lists, a sentence that restates part of it, or a thank-you when the note comes without any question. Others
are bare conversions (1,2 t in kg) and JSON of records from other trades. So the student owns the parts of the task
(finding, copying, normalising, braces and quotes) and has still never joined them: to a bare note it says thank you.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from slmkit.demo.notes import FIELDS, Dice, facts, spell, spell_date, stream

QUESTIONS = {
    "order": ("Which order?", "Order number?", "What is the reference?", "Copy the order number."),
    "carrier": ("Which carrier?", "Who carries it?", "Carrier?", "Who ships this?"),
    "weight_kg": ("Weight in kg?", "How heavy, in kilograms?", "How many kg?", "Give the weight in kg."),
    "city": ("Which city?", "Where does it go?", "City in English?", "Destination?"),
    "date": ("When, as ISO date?", "Date?", "Delivery date in ISO form?", "When is it due?"),
    "priority": ("How urgent?", "Priority?", "Is it urgent: low, normal or high?", "Low, normal or high?"),
}
NAMES = {
    "order": ("order", "number", "ref"), "carrier": ("carrier", "haulier", "by"), "weight_kg": ("weight", "kg", "kilograms"),
    "city": ("city", "to", "destination"), "date": ("date", "due", "on"), "priority": ("priority", "prio", "urgency"),
}  # fmt: skip
THANKS = ("Thanks, we have it.", "Noted, thank you.", "Your note is in.", "Thank you, all clear.", "Received. Any question?")
PHRASES = {
    "order": ("{}", "order {}"), "carrier": ("with {}", "by {}"), "weight_kg": ("{} kg", "weighing {} kg"),
    "city": ("to {}", "for {}"), "date": ("on {}", "due {}"), "priority": ("{} priority", "urgency {}"),
}  # fmt: skip
OTHER_WORDS = {
    "name": ("Ana", "Tom", "Mia", "Jan", "Eva", "Otto", "Lea", "Max"), "color": ("red", "blue", "green", "black", "white"),
    "team": ("north", "south", "sales", "office"), "item": ("lamp", "chair", "table", "paper", "cable", "bottle"),
    "state": ("open", "closed", "new", "paid"), "room": ("A", "B", "C", "D"),
}  # fmt: skip
IN_SHORT = ("Say it in short.", "Sum it up.", "In one line?", "Put it in other words.")
CONVERT = {
    "weight_kg": ("{} in kg?", "How many kg is {}?", "kg: {}"), "date": ("{} as ISO", "ISO date of {}?", "{} in ISO form?"),
    "city": ("{} in English?", "English name of {}?", "Translate {}"), "order": ("Tidy up {}", "{}, properly?", "Write {} well"),
    "carrier": ("Who is {}?", "Carrier {}?"), "priority": ('How urgent is "{}"?', "{} means?"),
}  # fmt: skip
AS_JSON = ("as JSON", "Write JSON:", "JSON please", "Turn it into JSON.", "to JSON")
Turns = list[tuple[str, str]]


def said(value) -> str:
    """A value as plain text."""
    return value if isinstance(value, str) else json.dumps(value)


def with_note(dice: Dice, question: str, text: str) -> str:
    return dice.pick(("{0}\n{1}", "{1}\n{0}", "{0} {1}")).format(question, text)


def listed(dice: Dice, gold: dict, most: int) -> tuple[str, str]:
    """`List: city, date` and its answer, `city: Munich; date: 2026-03-14`."""
    fields = dice.shuffled(FIELDS)[: 2 + dice.below(most - 1)]
    names = {field: dice.pick(NAMES[field]) for field in fields}
    question = dice.pick(("List: ", "Give me ", "I need: ", "Name ")) + ", ".join(names.values())
    return question, dice.pick(("; ", "\n", ", ")).join(f"{names[field]}: {said(gold[field])}" for field in fields)


def restated(dice: Dice, gold: dict) -> tuple[str, str]:
    """A request for a sentence and the sentence, over two to four of the facts."""
    fields = dice.shuffled(FIELDS)[: 2 + dice.below(3)]
    parts = [dice.pick(PHRASES[field]).format(said(gold[field])) for field in fields]
    return dice.pick(IN_SHORT), "A parcel " + ", ".join(parts) + "."


def asked(dice: Dice, gold: dict) -> tuple[str, str]:
    """One question about a note with its answer."""
    kind = dice.below(10)
    if kind < 5:
        field = dice.pick(FIELDS)
        return dice.pick(QUESTIONS[field]), said(gold[field])
    return listed(dice, gold, 5) if kind < 8 else restated(dice, gold)


def about_note(dice: Dice, text: str, gold: dict) -> Turns:
    """A note, often with no question at first, then two or three questions about it."""
    turns = [asked(dice, gold) for _ in range(2 + dice.below(2))]
    if dice.chance(0.5):
        return [(text, dice.pick(THANKS)), *turns]
    question, reply = turns[0]
    return [(with_note(dice, question, text), reply), *turns[1:]]


def conversion(dice: Dice) -> tuple[str, str]:
    """One small normalisation, without a note around it."""
    gold = facts(dice)
    spoken = spell(dice, gold)
    field = dice.pick([field for field in FIELDS if spoken[field]])
    return dice.pick(CONVERT[field]).format(spoken[field]), said(gold[field])


def other_value(dice: Dice, key: str):
    if key == "code":
        return f"{dice.pick('ABCDEFGHKLMNPRSTVX')}{dice.pick('ABCDEFGHKLMNPRSTVX')}-{100 + dice.below(99900)}"
    if key == "count":
        return 1 + dice.below(999)
    if key == "price":
        return round((1 + dice.below(9999)) / dice.pick((10, 10, 100)), 2)
    return facts(dice)["date"] if key == "since" else dice.pick(OTHER_WORDS[key])


def other_record(dice: Dice) -> Turns:
    """A record of some other trade, from labelled text to JSON."""
    keys = dice.shuffled([*OTHER_WORDS, "code", "count", "price", "since"])[: 3 + dice.below(4)]
    record = {key: other_value(dice, key) for key in keys}
    sign, between = dice.pick((": ", " ", " = ")), dice.pick(("\n", ", ", "; ", " "))
    spoken = {key: spell_date(dice, value) if key == "since" else said(value) for key, value in record.items()}
    text = between.join(key + sign + spoken[key] for key in (dice.shuffled(keys) if dice.chance(0.3) else keys))
    order = keys if dice.chance(0.5) else sorted(keys)
    ask = with_note(dice, dice.pick(AS_JSON) + ("" if order == keys else " sorted"), text)
    return [(ask, json.dumps({key: record[key] for key in order}, separators=(",", ":")))]


def talk(seed: int, without: frozenset[str]) -> Iterator[Turns]:
    """Endless conversations of all kinds; no note bears an order number from `without`."""
    dice, source = Dice(seed), stream(seed + 1, without)
    while True:
        kind = dice.below(20)
        if kind < 14:
            yield about_note(dice, *next(source))
        elif kind < 17:
            yield [conversion(dice) for _ in range(3 + dice.below(3))]
        else:
            yield other_record(dice)
