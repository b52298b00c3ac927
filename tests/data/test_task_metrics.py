"""What an answer scores beside the right one."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmkit.data import metrics as m


def score(metric, told, right, **more):
    return metric(references=[right], predictions=[told], **more)


@pytest.mark.parametrize(
    ("told", "right", "tolerance", "ok"),
    [
        ("so it is 1,234.50", "1234.5", 0, 1), ("12 and then 13", "13", 0, 1), ("12 and then 13", "12", 0, 0), ("-7", "-7", 0, 1),
        ("10-7", "7", 0, 1),
        ("about 3.14", "3.1416", 0.01, 1), ("about 3.14", "3.1416", 0.001, 0), ("1e3", "1000", 0, 1), ("0.1", "0.3", 0.2, 1), ("none", "1", 0, 0),
        ("", "1", 5, 0), ("٣", "3", 0, 1), ("$18", "18", 0, 1), ("18.", "18", 0, 1), ("1" + "0" * 400, "1", 0, 0),
    ],
)  # fmt: skip
def test_numbers(told, right, tolerance, ok):
    assert score(m.numeric, told, right, tolerance=tolerance) == ok


def test_json_is_compared_by_what_it_says():
    right = '{"order": "7", "weight": 1.0, "items": [{"n": 1}, {"n": 2}]}'
    assert score(m.json_exact, '{"items":[{"n":1},{"n":2}],"weight":1,"order":"7"}', right) == 1
    assert score(m.json_exact, right.replace("1.0", "true"), right) == 0  # true is no number
    assert score(m.json_f1, right, right) == 1
    assert score(m.json_f1, '{"order": "7"}', right) == pytest.approx(2 * 1 / (1 + 4))
    assert score(m.json_f1, '{"order": 7, "extra": 1}', right) == 0
    assert score(m.json_f1, "{}", "{}") == 1 and score(m.json_f1, '{"a": []}', '{"a": []}') == 1
    for broken in ("", "{", "```json\n{}\n```", "NaN", "[" * 100_000, "\ud83d"):
        assert score(m.json_f1, broken, right) == score(m.json_valid, broken, right) == score(m.json_exact, broken, right) == 0
    schema = json.dumps({"type": "object", "required": ["a"]})
    assert [score(m.schema_valid, t, "", json_schema=schema) for t in ('{"a": 1}', "{}", "a")] == [1, 0, 0]


def test_calls_are_compared_by_name_and_arguments():
    right = '{"name": "pay", "arguments": {"sum": 5, "to": "Ann"}}'
    for same in (
        '<tool_call>\n{"name": "pay", "arguments": {"to": "Ann", "sum": 5}}\n</tool_call>',
        '[{"function": {"name": "pay", "arguments": "{\\"sum\\": 5.0, \\"to\\": \\"Ann\\"}"}}]',
        '{"name": "pay", "parameters": {"sum": 5, "to": "Ann"}}',
    ):
        assert score(m.tool_call, same, right) == score(m.tool_name, same, right) == 1
    assert score(m.tool_name, '{"name": "pay", "arguments": {}}', right) == 1
    assert score(m.tool_call, '{"name": "pay", "arguments": {}}', right) == 0
    for none in ("", "I pay.", '{"name": 5}', f"[{right}, {right}]", "<tool_call>{</tool_call>", '{"name": "pay", "arguments": "{"}'):
        assert score(m.tool_name, none, right) == score(m.tool_call, none, right) == 0


LABELS = st.sampled_from("abc")


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=40))
def test_f1_is_that_of_scikit_learn(pairs):
    from sklearn.metrics import f1_score

    right, told = zip(*pairs, strict=True)
    for average, ours in (("macro", m.f1_macro_of), ("weighted", m.f1_weighted_of)):
        theirs = f1_score(right, told, labels=sorted(set(right)), average=average, zero_division=0)
        assert math.isclose(ours(list(pairs)), theirs, abs_tol=1e-12)


def test_what_is_no_label_is_wrong_and_no_label_of_its_own():
    assert m.f1_macro_of([("a", "a"), ("b", "hm"), ("b", "b")]) == pytest.approx((1 + 2 / 3) / 2)


def test_the_chosen_label_is_that_of_lm_eval():
    doc = {"choices": ["yes", "certainly not"], "label": 1}
    chosen = m.chosen_by("acc", "acc_norm", "f1_macro")
    assert chosen(doc, [(-3.0, False), (-6.0, False)]) == {"acc": 0, "acc_norm": 1, "f1_macro": ("certainly not", "yes")}
    assert chosen(doc, [(-3.0, False), (-3.0, False)])["f1_macro"] == ("certainly not", "yes")  # the first of equals, as numpy's argmax


def test_words_are_compared_by_rouge():
    assert score(m.rouge1, "the cat sat", "the cat sat down") == pytest.approx(2 * 1 * 0.75 / 1.75)
    assert score(m.rougeL, "sat cat the", "the cat sat") == pytest.approx(1 / 3)
    assert score(m.rouge2, "", "a b") == 0
    assert score(m.regex, "AB-12", "", pattern=r"[A-Z]{2}-\d+") == 1 and score(m.regex, "xAB-12", "", pattern=r"[A-Z]{2}-\d+") == 0
