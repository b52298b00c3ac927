"""The language of `expect`."""

from pathlib import Path

import pytest

from slmkit.errors import UsageError
from slmkit.evidence import judge, samples
from slmkit.steps import _expect

SCORES = {
    "base": {"notes": {"acc": 0.5, "acc_stderr": 0.1}},
    "int4": {"notes": {"acc": 0.88}, "my-task": {"exact_match_strict": 0.25}},
    "Qwen2.5-0.5B": {"notes": {"acc": 0.9}},
}


@pytest.mark.parametrize(
    ("text", "bound", "ok"),
    [
        ("int4.notes.acc", ">= 0.88", True),
        ("int4.notes.acc", "> 0.88", False),
        ("int4.notes.acc", "<=.9", True),
        ("int4.notes.acc", "== 0.88", True),
        ("int4.notes.acc - Qwen2.5-0.5B.notes.acc", ">= -0.02", True),  # -0.020000000000000018 in binary
        ("int4.notes.acc - base.notes.acc - 0.3", "> 0", True),
        ("int4.my-task.exact_match_strict + base.notes.acc", "< 7.5e-1", False),
        ("base.notes.acc", "< -1", False),
    ],
)
def test_bounds_on_the_point(text, bound, ok):
    bound = bound if "==" in bound else f"{bound}  point"
    expectation = _expect.parse(text, bound)
    verdict = judge.judge(expectation, samples.Evidence(SCORES, {m: (Path("nowhere"), m) for m in SCORES}, {m: {} for m in SCORES}, {}))
    assert expectation.point and verdict.verdict == ("pass" if ok else "fail") and verdict.text == text
    assert bound.strip() in verdict.detail and "acc = 0." in verdict.detail.replace("strict", "acc")


def test_a_bound_without_a_word_is_judged_on_its_interval():
    assert not _expect.parse("int4.notes.acc", ">= 0.88").point and _expect.parse("int4.notes.acc", "== 1").point


@pytest.mark.parametrize(
    ("text", "bound", "said"),
    [
        ("int4.notes.acc", "0.9", "no bound"),
        ("int4.notes.acc", ">= high", "no bound"),
        ("int4.notes.acc", "=> 0.9", "no bound"),
        ("int4.notes.acc", ">= 0.9 or so", "no bound"),
        ("int4.notes.acc", ">= 0.9point", "no bound"),
        ("int4.notes.acc", ">= nan", "no bound"),
        ("int4.acc", "> 0", "`int4.acc` in `int4.acc` is no score"),
        ("int4.notes.acc * 2", "> 0", "`*` in"),
        ("int4.notes.acc -", "> 0", "ends in an operator"),
        ("1 + 2", "> 0", "names no score"),
        ("", "> 0", "empty expression"),
        ("__import__('os').system('x').y", "> 0", "is no score"),
    ],
)
def test_what_is_no_expectation_is_refused(text, bound, said):
    with pytest.raises(ValueError, match=None) as e:
        _expect.parse(text, bound)
    assert said in str(e.value)


def test_names_are_checked_against_what_is_scored():
    parsed = [_expect.parse("int4.notes.acc - base.notes.acc", "> 0")]
    _expect.check_names(parsed, list(SCORES), ["notes"])
    with pytest.raises(UsageError) as e:
        _expect.check_names(parsed, ["int4"])
    assert "`base.notes.acc`" in e.value.render() and "the models are int4" in e.value.render()
    with pytest.raises(UsageError, match="unknown task"):
        _expect.check_names(parsed, list(SCORES), ["note"])


def test_a_score_is_looked_up_by_the_longest_names_that_fit():
    assert _expect.look_up("Qwen2.5-0.5B.notes.acc", SCORES) == ("Qwen2.5-0.5B", "notes", "acc")
    assert "it has acc, acc_stderr" in _expect.look_up("base.notes.f1", SCORES)
    assert "base has notes" in _expect.look_up("base.other.acc", SCORES)
    assert "there are base, int4, Qwen2.5-0.5B" in _expect.look_up("nope.notes.acc", SCORES)
    nested = {"a": {"b.t": {"acc": 1.0}, "b": {"t.acc": 0.0}}, "a.b": {"t": {"f1": 0.5}}}
    assert _expect.look_up("a.b.t.f1", nested) == ("a.b", "t", "f1") and _expect.look_up("a.b.t.acc", nested) == ("a", "b.t", "acc")
