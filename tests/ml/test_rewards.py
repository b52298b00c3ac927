"""Rewards, alone: right is 1, wrong is 0, and lengths only take away."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmkit.errors import RecipeError, StepFailed
from slmkit.ml import rewards
from slmkit.steps._objectives import Grpo


def answer(text: str, reference: str | None = None, tokens: int = 3) -> rewards.Answer:
    return rewards.Answer(({"role": "user", "content": "?"},), text, reference, tokens)


def test_exact_match():
    assert rewards.exact_match(" Graz\n", "Graz") == 1 and rewards.exact_match("graz", "Graz") == 0
    assert rewards.exact_match("graz", "Graz", lower=True) == 1 and rewards.exact_match(" Graz", "Graz", strip=False) == 0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 1,234.5 in all.", 1234.5), ("$3", 3), ("first 4, then 5", 5), ("so 7 \n#### 42", 42), ("#### $1,000", 1000), ("-2", -2),
        ("none", None), ("1e3", 1000), ("3.", 3), ("costs 1,23", 23), ("#### no\nor 6", 6), (".5", 0.5), ("5-3", 3), ("5 - -3", -3),
    ],
)  # fmt: skip
def test_last_number(text, number):
    assert rewards.last_number(text) == number


def test_numeric():
    assert rewards.numeric("about 3.14", "#### 3.15", tolerance=0.02) == 1 and rewards.numeric("3.14", "3.15") == 0
    assert rewards.numeric("none", "3") == rewards.numeric("3", "none") == 0


@given(st.integers(-(10**9), 10**9))
def test_a_number_is_found_however_it_is_written(n):
    for text in (f"{n}", f"I say {n:,}", f"${n:,}.", f"12 of them\n#### {n:,}"):
        if not (n < 0 and "$" in text):
            assert rewards.last_number(text) == n


def test_regex():
    assert rewards.regex(" ab\n", "a.") == 1 and rewards.regex("xab", "a.") == 0 and rewards.regex("xab", "a.", "search") == 1
    assert rewards.regex("a\nb", "a.*b") == 1


def test_json_schema():
    schema = {"type": "object", "required": ["city"], "properties": {"city": {"enum": ["Graz"]}}}
    assert rewards.json_schema('{"city": "Graz"}', schema) == 1
    assert [rewards.json_schema(t, schema) for t in ("{}", '{"city": "Linz"}', "Graz", "```\n{}\n```", "")] == [0] * 5
    with pytest.raises(RecipeError, match=r"json_schema.type is no JSON Schema"):
        build({"json_schema": {"json_schema": {"type": "objekt"}}})


@given(st.integers(0, 100), st.integers(0, 50), st.integers(1, 50))
def test_length_only_takes_away(size, least, more):
    most = least + more
    value = rewards.length(size, least, most)
    assert -1 <= value <= 0 and (value == 0) == (least <= size <= most)
    assert rewards.length(0, 10, 20) == rewards.length(40, 10, 20) == -1 and rewards.length(5, 10, 20) == rewards.length(30, 10, 20) == -0.5


def build(*entries, code=None):
    return rewards.build(Grpo(rewards=list(entries)).rewards, code)


def test_build():
    short = {"max": 4}
    made = build({"exact_match": {"weight": 2.0, "lower": True}}, {"length": short}, {"length": short | {"unit": "characters"}}, {"numeric": None})
    assert [(r.name, r.kind, r.weight, r.top, r.needs_reference) for r in made] == [
        ("exact_match", "content", 2.0, 1.0, True), ("length", "format", 1.0, 0.0, False), ("length_2", "format", 1.0, 0.0, False),
        ("numeric", "content", 1.0, 1.0, True),
    ]  # fmt: skip
    assert [r.score(answer("GRAZ ", "graz", 8)) for r in made] == [1, -1, -0.25, 0]


def test_a_function_of_ones_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def score(prompt, answer, reference):\n    return {'a': 1, 'b': True, 'c': float('nan')}.get(answer)\n")
    made = build({"python": {"weight": 0.5}}, code=file)[0]
    assert (made.name, made.top, made.score(answer("a"))) == ("score", None, 1.0)
    for bad in ("c", "d"):
        with pytest.raises(StepFailed, match="instead of a number"):
            made.score(answer(bad))
    with pytest.raises(RecipeError, match="no function `other`"):
        build({"python": {"function": "other"}}, code=file)


BROKEN = [
    ("import nowhere_to_be_found\n", "cannot be imported: ModuleNotFoundError", "mine.py:1", "pip install nowhere_to_be_found"),
    ("\n\n1 / 0\n", "cannot be imported: ZeroDivisionError: division by zero", "mine.py:3", None),
    ("def score(prompt, answer, reference)\n    return 1\n", "this is no Python: expected ':'", "mine.py:1:37", None),
    ("import sys\nsys.exit(3)\n", "cannot be imported: SystemExit: 3", "mine.py:2", None),
    ("import lies_beside\ndef score(p, a, r):\n    return 1\n", "imports lies_beside.py beside it, which is no part of", "mine.py", "one file"),
    ("score = 3\n", "has no function `score`", "mine.py", "def score(prompt, answer, reference)"),
]


@pytest.mark.parametrize(("text", "what", "where", "mend"), BROKEN)
def test_code_that_cannot_be_used_is_said_with_its_place(tmp_path, monkeypatch, text, what, where, mend):
    file = tmp_path / "mine.py"
    file.write_text(text)
    (tmp_path / "lies_beside.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)  # as the current folder is for `python -m slmkit`
    with pytest.raises(RecipeError) as e:
        build({"python": {}}, code=file)
    said = e.value.render()
    assert what in said and f"{tmp_path}/{where}" in said and (mend or "") in said


@pytest.mark.parametrize(
    ("body", "what", "line"),
    [
        ("\n    return {}[answer]", "the reward `score` raised KeyError: 'Graz' on row d.jsonl:7, for the answer 'Graz'", 2),
        ("\n    return helper(answer)\n\ndef helper(text):\n    raise OSError('no')", "raised OSError: no on row d.jsonl:7", 5),
        ("\n    raise SystemExit(0)", "the reward `score` raised SystemExit: 0 on row d.jsonl:7", 2),
        (" return float('nan')", "gave nan instead of a number on row d.jsonl:7, for the answer 'Graz'", 1),
        (" return None", "gave None instead of a number", 1),
        (" return [1.0, 0.5]", "gave a list of 2 instead of a number", 1),
        (" return '1'", "gave '1' instead of a number", 1),
    ],
)
def test_a_function_that_fails_is_said_with_file_line_and_row(tmp_path, body, what, line):
    file = tmp_path / "mine.py"
    file.write_text(f"def score(prompt, answer, reference):{body}\n")
    made = build({"python": {}}, code=file)[0]
    with pytest.raises(StepFailed) as e:
        made.score(rewards.Answer(({"role": "user", "content": "?"},), "Graz", None, 3, "d.jsonl:7"))
    assert what in e.value.what and e.value.where == f"{file}:{line}" and e.value.mend


def test_a_function_that_takes_something_else_is_said(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def score(answer):\n    return 1\n")
    with pytest.raises(StepFailed, match="takes 1 positional argument but 3 were given") as e:
        build({"python": {}}, code=file)[0].score(answer("a"))
    assert e.value.where == f"{file}:1" and "score(prompt, answer, reference)" in e.value.mend


def test_what_is_no_reward_is_refused():
    for bad in ([], [{}], [{"exact_match": {}, "regex": {"pattern": "a"}}], [{"regex": {"pattern": "("}}], [{"length": {"min": 5, "max": 4}}]):
        with pytest.raises(ValueError, match=r"at least 1|one of|regular expression|less than"):
            Grpo(rewards=bad)
