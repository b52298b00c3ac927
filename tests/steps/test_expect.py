"""The language of `expect`."""

import pytest

from slmkit.errors import UsageError
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
def test_bounds(text, bound, ok):
    check = _expect.check(_expect.parse(text, bound), SCORES)
    assert check.ok is ok and check.name == text
    assert bound.strip() in check.detail and "acc = 0." in check.detail.replace("strict", "acc")


@pytest.mark.parametrize(
    ("text", "bound", "said"),
    [
        ("int4.notes.acc", "0.9", "no bound"),
        ("int4.notes.acc", ">= high", "no bound"),
        ("int4.notes.acc", "=> 0.9", "no bound"),
        ("int4.notes.acc", ">= 0.9 or so", "no bound"),
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


def test_a_score_that_is_not_there_fails_the_check():
    assert "it has acc, acc_stderr" in _expect.check(_expect.parse("base.notes.f1", "> 0"), SCORES).detail
    check = _expect.check(_expect.parse("base.other.acc", "> 0"), SCORES)
    assert not check.ok and "base has notes" in check.detail
