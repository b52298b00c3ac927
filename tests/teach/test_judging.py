"""A judge's reply is read by number, whatever it is wrapped in; what is short, doubled or off the scale is no verdict."""

from __future__ import annotations

import json

import pytest

from slmkit.teach import draws, judging, replies, templates
from slmkit.teach.judging import Scale, Verdict
from slmkit.teach.replies import Unreadable

SCALE = Scale()


@pytest.mark.parametrize("reply", [
    '{"score": 7, "reason": "fine"}', '```json\n{"reason": "fine", "score": 7}\n```', 'Here you go:\n\n{"score": "7/10", "reason": "fine"} Bye!',
    '<think>{"score": 1}? no.</think>{"score": 7.0, "reason": "fine"}', '[{"rating": 7, "explanation": "fine"}]',
    'As said in [1], {"score": 7, "reason": "fine"}',
])  # fmt: skip
def test_a_score_is_read_from_whatever_it_is_wrapped_in(reply):
    assert judging.score(reply, SCALE) == Verdict(7, "fine")


@pytest.mark.parametrize(("reply", "told"), [
    ("seven", "no JSON"), ('{"score": 11}', "leaves the scale"), ('{"score": NaN}', "no JSON"), ('{"reason": "x"}', "no score"),
    ('{"score": true}', "leaves the scale"), ('{"score": "good"}', "no number"), ("[1, 2]", "no JSON"), ("{" * 5000, "no JSON"),
])  # fmt: skip
def test_what_is_no_score_is_told(reply, told):
    with pytest.raises(Unreadable, match=told):
        judging.score(reply, SCALE)


def test_scores_come_back_in_the_answers_own_order():
    order = judging.shuffled(5, 0, "a prompt")
    assert sorted(order) == list(range(5)) and order == judging.shuffled(5, 0, "a prompt") != judging.shuffled(5, 1, "a prompt")
    assert judging.shuffled(5, 0, "a prompt", number=1) == order[::-1] != judging.shuffled(5, 0, "a prompt", number=2)
    said = [{"id": place, "score": which + 1} for place, which in enumerate(order, 1)]
    for text in (json.dumps(said), json.dumps({"scores": said[::-1]}), "\n".join(map(json.dumps, said)), f"```\n{json.dumps(said)}\n```"):
        assert [v.score for v in judging.scores(text, order, SCALE)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("entries", "told"), [
    ([(1, 5)], "1 of 2"), ([(1, 5), (1, 6)], "twice"), ([(1, 5), (3, 6)], "not shown"), ([(1, 5), (2, 0)], "leaves the scale"),
    ([(1, 5), (None, 6)], "not shown"), ([], "no JSON"),
])  # fmt: skip
def test_a_short_or_doubled_ranking_is_no_verdict(entries, told):
    with pytest.raises(Unreadable, match=told):
        judging.scores(json.dumps([{"id": i, "score": s} for i, s in entries]), [0, 1], SCALE)


def test_what_the_judge_is_shown_carries_the_order():
    known = {"prompt": "2+2?", "messages": [{"role": "user", "content": "2+2?"}], "reference": None, "row": {}}
    said = judging.ask_scores(templates.load("rank", None), "p:1", known, ["four", "five"], [1, 0], "right?", SCALE)
    text = said[-1]["content"]
    assert text.index("five") < text.index("four") and '<answer id="1">\nfive' in text and "right?" in text and "from 1 (bad) to 10" in text
    shape = json.loads(text[text.rindex("\n") + 1 :])
    assert shape == [{"id": 1, "reason": "a sentence", "score": 10}, {"id": 2, "reason": "a sentence", "score": 1}]
    one = judging.ask_score(templates.load("judge", None), "p:1", known | {"reference": "4"}, "four", "right?", SCALE)[-1]["content"]
    assert "<answer>\nfour" in one and "<reference>\n4" in one


def test_whole_objects_of_a_cut_list_are_kept():
    assert replies.items('[{"a": 1}, {"a": 2}, {"a": ') == ([{"a": 1}, {"a": 2}], "a part of the reply is no JSON")
    assert replies.items('{"rows": [{"a": 1}], "n": 1}') == ([{"a": 1}], None)
    assert replies.items('{"rows": [{"a": 1}, {"a": {"b": 2}}, {"a"')[0] == [{"a": 1}, {"a": {"b": 2}}]
    assert replies.items("nothing") == ([], "the reply holds no JSON")


def test_draws_are_the_same_everywhere():
    assert draws.order(draws.by("x", 1), 8) == [4, 6, 2, 0, 3, 5, 1, 7]
    assert draws.some(draws.by("x"), "abc", 9) and len(set(draws.some(draws.by("x"), range(1000), 50))) == 50
    counts = [0] * 3
    for i in range(3000):
        counts[draws.order(draws.by(i), 3)[0]] += 1
    assert all(900 < c < 1100 for c in counts)
