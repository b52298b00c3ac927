"""What an answer scores beside the right one, for tasks in their short form: each metric is a function as lm-eval calls it.

    metric(references=[right answer], predictions=[the model's answer], **what the task says) → a number, or for F1 (right, told)

`…_of` turn all values of a metric into the score. An answer is read as it stands: JSON in a sentence or a fence is no JSON, since the program that
is to read it would stumble over it, too. Numbers are the last number in the answer, so that working may stand before it.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

from slmkit.data.conversation import WRITTEN

NUMBER = re.compile(r"(?:(?<![\w.])[-+])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?")
NONE = object()


def exact_match(references: list, predictions: list, **_: Any) -> float:
    """Is the answer the right one to the letter?"""
    return float(predictions[0] == references[0])


def regex(references: list, predictions: list, pattern: str, **_: Any) -> float:
    """Does the pattern match the whole answer?"""
    return float(re.fullmatch(pattern, predictions[0], re.DOTALL) is not None)


def numeric(references: list, predictions: list, tolerance: float = 0.0, **_: Any) -> float:
    """Is the last number of the answer within `tolerance` of the right one?"""
    right, told = number(references[0]), number(predictions[0])
    return float(right is not None and told is not None and abs(right - told) <= Decimal(str(tolerance)))


def number(text: str) -> Decimal | None:
    """The last number in a text: 1,234.5 and 1e3 too; None where there is none."""
    for found in reversed([m[0] for m in NUMBER.finditer(text) if any(c.isdigit() for c in m[0])]):
        try:
            return Decimal(found.replace(",", ""))
        except InvalidOperation:
            continue
    return None


def json_valid(references: list, predictions: list, **_: Any) -> float:
    """Is the answer JSON?"""
    return float(parsed(predictions[0]) is not NONE)


def schema_valid(references: list, predictions: list, json_schema: str, **_: Any) -> float:
    """Is the answer JSON that satisfies the schema (JSON text)?"""
    value = parsed(predictions[0])
    return float(value is not NONE and _validator(json_schema).is_valid(value))


def json_exact(references: list, predictions: list, **_: Any) -> float:
    """Do answer and right answer hold the same JSON, whatever the order of keys and the spaces? 1 and 1.0 are the same number, 1 and true are not."""
    value = parsed(predictions[0])
    return float(value is not NONE and _leaves(value) == _leaves(parsed(references[0])))


def json_f1(references: list, predictions: list, **_: Any) -> float:
    """F1 of the fields: a field counts where its path and its value are those of the right answer. No JSON is 0."""
    right, told = _leaves(parsed(references[0])), parsed(predictions[0])
    said = _leaves(told) if told is not NONE else set()
    return 2 * len(right & said) / (len(right) + len(said)) if right or said else 1.0


def tool_name(references: list, predictions: list, **_: Any) -> float:
    """Are the functions that are called the right ones, in order?"""
    return float([c[0] for c in calls(predictions[0])] == [c[0] for c in calls(references[0])])


def tool_call(references: list, predictions: list, **_: Any) -> float:
    """Are the functions that are called the right ones, in order, with the right arguments?"""
    return float([(n, _leaves(a)) for n, a in calls(predictions[0])] == [(n, _leaves(a)) for n, a in calls(references[0])])


def f1_macro(references: list, predictions: list, **_: Any) -> tuple[str, str]:
    """(right label, told label); what is none of the labels is told as it stands."""
    return references[0], predictions[0]


def f1_weighted(references: list, predictions: list, **_: Any) -> tuple[str, str]:
    """(right label, told label)."""
    return references[0], predictions[0]


def f1_macro_of(items: list) -> float:
    """The mean of the F1 of each label that is a right answer of some question. An answer that is no label is wrong, and no label of its own."""
    scores = _f1(items)
    return sum(f1 for f1, _ in scores) / len(scores)


def f1_weighted_of(items: list) -> float:
    """The mean of the labels' F1, each by how often it is the right answer."""
    scores = _f1(items)
    return sum(f1 * n for f1, n in scores) / sum(n for _, n in scores)


def _f1(items: list) -> list[tuple[float, int]]:
    """(F1, how often it is right) of each label that is right somewhere."""
    right, told, both = Counter(r for r, _ in items), Counter(t for _, t in items), Counter(r for r, t in items if r == t)
    return [(2 * both[label] / (right[label] + told[label]), right[label]) for label in sorted(right)]


def chosen_by(*wanted: str) -> Callable[[dict, list], dict]:
    """lm-eval's `process_results` of a task with choices: the likeliest is the model's answer. doc: choices, label (the place of the right one)."""

    def chosen(doc: dict, results: list) -> dict:
        likelihoods = [one[0] for one in results]
        best = _largest(likelihoods)
        normal = _largest([one / len(choice) for one, choice in zip(likelihoods, doc["choices"], strict=True)])
        pair = (doc["choices"][doc["label"]], doc["choices"][best])
        made = {"acc": float(best == doc["label"]), "acc_norm": float(normal == doc["label"])}
        made |= {"f1_macro": pair, "f1_weighted": pair}
        return {metric: made[metric] for metric in wanted}

    return chosen


def _largest(values: list[float]) -> int:
    """The place of the largest, the first of several, as numpy's argmax."""
    return max(range(len(values)), key=lambda i: (values[i], -i))


def _rouge(kind: str, references: list, predictions: list) -> float:
    return _scorer(kind).score(references[0], predictions[0])[kind].fmeasure


@functools.lru_cache(maxsize=4)
def _scorer(kind: str):
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], use_stemmer=False)


def rouge1(references: list, predictions: list, **_: Any) -> float:
    """ROUGE-1 F of one answer (Lin 2004), by rouge-score, without stemming."""
    return _rouge("rouge1", references, predictions)


def rouge2(references: list, predictions: list, **_: Any) -> float:
    """ROUGE-2 F of one answer."""
    return _rouge("rouge2", references, predictions)


def rougeL(references: list, predictions: list, **_: Any) -> float:  # noqa: N802 - the metric's name
    """ROUGE-L F of one answer."""
    return _rouge("rougeL", references, predictions)


def parsed(text: str) -> Any:
    """The JSON that a text is, or NONE."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return NONE


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


@functools.lru_cache(maxsize=16)
def _validator(schema: str):
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(schema))


def _leaves(value: Any, at: tuple = ()) -> set[tuple]:
    """(path, type, value) of all that is no container, and of empty containers."""
    if isinstance(value, dict) and value:
        return set().union(*(_leaves(v, (*at, k)) for k, v in value.items()))
    if isinstance(value, list) and value:
        return set().union(*(_leaves(v, (*at, i)) for i, v in enumerate(value)))
    if isinstance(value, dict | list):
        return {(at, type(value).__name__, "")}
    return {(at, "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__, value)}


def calls(text: str) -> list[tuple[str, Any]]:
    """[(function, arguments)] that a text makes: `<tool_call>` blocks, or the text itself as one JSON call or a list of them."""
    written = [parsed(one) for one in WRITTEN.findall(text)]
    if not written:
        whole = parsed(text)
        written = whole if isinstance(whole, list) else [whole]
    found = []
    for one in written:
        if not isinstance(one, dict):
            return []
        function = one.get("function") if isinstance(one.get("function"), dict) else one
        arguments = function.get("arguments", function.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = parsed(arguments) if arguments.strip() else {}
        if not isinstance(function.get("name"), str) or arguments is NONE:
            return []
        found.append((function["name"], arguments))
    return found


def unfit(metric: str, answer: str) -> str | None:
    """Why a right answer cannot be compared by a metric; None where it can."""
    if metric == "numeric":
        return None if number(answer) is not None else "and there is no number in"
    if metric in ("tool_name", "tool_call"):
        return None if calls(answer) else "and there is none in"
    value = parsed(answer)
    if value is NONE:
        return "and this is none"
    return None if metric != "json_f1" or isinstance(value, dict) else "and this is another value"
