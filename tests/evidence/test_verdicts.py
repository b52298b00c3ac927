"""Verdicts: which interval judges what, and what becomes of the odd cases."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from slmkit.data import metrics
from slmkit.errors import StoreError, UsageError
from slmkit.evidence import judge, power, samples
from slmkit.steps import _expect
from tests.support.evals import answers, write


def verdict(folder: Path, text: str, bound: str, models: dict | None = None, **more) -> judge.Verdict:
    if models is not None:
        folder.mkdir(exist_ok=True, parents=True)
        write(folder, models, **more)
    return judge.judge(_expect.parse(text, bound), samples.of_folder(folder))


def one(values: list, metric: str = "acc") -> dict:
    return {"m": {"t": {metric: values}}}


@pytest.mark.parametrize(
    ("right", "wrong", "bound", "said"),
    [
        (184, 16, ">= 0.85", "pass"), (184, 16, ">= 0.90", "inconclusive"), (184, 16, ">= 0.95", "fail"), (184, 16, "<= 0.95", "pass"),
        (184, 16, "<= 0.9", "inconclusive"), (184, 16, "< 0.85", "fail"), (184, 16, "== 0.92", "pass"), (184, 16, ">= 0.92 point", "pass"),
        (184, 16, "> 0.92 point", "fail"), (200, 0, ">= 0.98", "pass"), (200, 0, ">= 0.99", "inconclusive"), (200, 0, ">= 1", "inconclusive"),
        (199, 1, ">= 1", "fail"), (0, 200, "<= 0.02", "pass"), (0, 200, ">= 0.02", "fail"), (1, 0, ">= 0.5", "inconclusive"),
        (1, 0, ">= 0.04", "pass"), (0, 1, ">= 0.5", "inconclusive"), (0, 1, ">= 0.96", "fail"), (200, 0, "== 1", "pass"),
    ],
)  # fmt: skip
def test_a_rate_is_judged_on_its_exact_interval(tmp_path, right, wrong, bound, said):
    found = verdict(tmp_path, "m.t.acc", bound, one(answers(right, wrong)))
    assert found.verdict == said, found.detail
    assert found.holds("pass") is (said != "fail") and found.holds("fail") is (said == "pass")
    assert json.loads(json.dumps(found.figures(), allow_nan=False))["bound"] == bound


def test_an_inconclusive_verdict_says_how_many_questions_would_decide(tmp_path):
    found = verdict(tmp_path, "m.t.acc", ">= 0.90", one(answers(184, 16)))
    assert found.needed == power.needed_of_rate(0.92, 0.9) and f"about {found.needed:,} questions would show that it holds" in found.detail
    other = verdict(tmp_path, "m.t.acc", ">= 0.93")
    assert other.verdict == "inconclusive" and f"about {other.needed:,} questions would show that it does not, if" in other.detail
    assert "no number of questions decides it" in verdict(tmp_path, "m.t.acc", ">= 0.92").detail


PAIR = {"a": {"t": {"acc": answers(184, 16)}}, "b": {"t": {"acc": answers(179, 21)[:195] + answers(5, 0)}}}  # 5 one way, 5 the other


@pytest.mark.parametrize(
    ("text", "bound", "said"),
    [
        ("b.t.acc - a.t.acc", ">= -0.04", "pass"), ("b.t.acc - a.t.acc", ">= -0.02", "inconclusive"), ("b.t.acc - a.t.acc", ">= 0.05", "fail"),
        ("a.t.acc - b.t.acc", "<= 0.04", "pass"), ("a.t.acc - b.t.acc", "> 0", "inconclusive"), ("0.02 + b.t.acc - a.t.acc", ">= -0.02", "pass"),
        ("a.t.acc - a.t.acc", ">= -0.02", "pass"), ("a.t.acc + b.t.acc", ">= 1.7", "pass"), ("1 - a.t.acc", "<= 0.13", "pass"),
        ("1 - a.t.acc", "<= 0.10", "inconclusive"),
    ],
)  # fmt: skip
def test_two_models_are_judged_question_by_question(tmp_path, text, bound, said):
    assert verdict(tmp_path, text, bound, PAIR).verdict == said
    if text == "b.t.acc - a.t.acc":
        interval = verdict(tmp_path, text, bound).interval
        assert "paired on 200 questions (5 right in the first alone, 5 in the second)" in interval.method
        unpaired = 1.645 * math.sqrt(2 * 0.92 * 0.08 / 200)
        assert interval.low == pytest.approx(-interval.high) and interval.high < 0.75 * unpaired


def test_graded_metrics_and_several_tasks(tmp_path):
    rng = np.random.default_rng(0)
    f1 = rng.beta(9, 1, 150).tolist()
    less = [max(0.0, x - 0.1 * (i % 3 == 0)) for i, x in enumerate(f1)]
    models = {"a": {"t": {"f1": f1}, "u": {"f1": f1[:80]}}, "b": {"t": {"f1": less}, "u": {"f1": less[:80]}}}
    found = verdict(tmp_path, "b.t.f1 - a.t.f1", ">= -0.06", models)
    assert found.verdict == "pass" and found.interval.method.startswith("Gaffke")
    assert found.interval.low < found.value < found.interval.high and found.value == pytest.approx(np.mean(less) - np.mean(f1))
    both = verdict(tmp_path, "b.t.f1 + b.u.f1 - a.t.f1 - a.u.f1", ">= -0.2")
    assert both.interval.high - both.interval.low > found.interval.high - found.interval.low and both.interval.questions == 80
    assert verdict(tmp_path, "b.t.f1 - a.t.f1", ">= -0.03").verdict == "inconclusive"
    assert verdict(tmp_path, "b.t.f1 - a.t.f1", ">= 0.02").verdict == "fail"


def test_what_is_recomputed_from_the_samples(tmp_path):
    from sklearn.metrics import f1_score, matthews_corrcoef

    rng = np.random.default_rng(1)
    gold = rng.integers(0, 3, 120)
    told = np.where(rng.random(120) < 0.8, gold, rng.integers(0, 3, 120))
    nll, words = -rng.gamma(2, 1, 120), rng.integers(5, 30, 120)
    loud = np.stack([nll, words], 1).tolist()
    cases = {
        "f1_macro": (np.stack([gold, told], 1).tolist(), f1_score(gold, told, average="macro"), "macro F1"),
        "mcc": ([[int(g), str(t)] for g, t in zip(gold, told, strict=True)], matthews_corrcoef(gold, told), "Matthews correlation"),
        "weighted": (np.stack([gold, told], 1).tolist(), f1_score(gold, told, average="weighted"), "weighted F1"),
        "two": (np.stack([gold > 0, told > 0], 1).astype(int).tolist(), f1_score(gold > 0, told > 0), "F1"),
        "word_perplexity": (loud, math.exp(-nll.sum() / words.sum()), "weighted perplexity"),
        "bits_per_byte": (loud, -nll.sum() / words.sum() / math.log(2), "bits per byte"),
        "perplexity": (nll.tolist(), math.exp(-nll.mean()), "perplexity"),
    }
    write(tmp_path, {"m": {"t": {k: v for k, (v, _, _) in cases.items()}}}, {"m": {"t": {k: float(s) for k, (_, s, _) in cases.items()}}})
    for metric, (_, score, name) in cases.items():
        found = verdict(tmp_path, f"m.t.{metric}", f">= {score / 2:.6f}")
        assert found.interval.method.startswith(f"{name} recomputed on resampled questions (120"), (metric, found.detail)
        assert found.verdict == "pass" and found.interval.low < score < found.interval.high
    nearly = verdict(tmp_path, "m.t.perplexity", f"<= {cases['perplexity'][1]:.6f}")
    assert nearly.verdict == "inconclusive"


def test_f1_of_answers_that_are_written_is_recomputed_however_many_wrong_ones_there_are(tmp_path):
    pairs = [[f"label {i % 5 % 3}", f"label {i % 5 % 3}" if i % 2 or i % 5 == 2 else f"chatter {i}"] for i in range(600)]
    scores = {"f1_macro": metrics.f1_macro_of(pairs), "f1_weighted": metrics.f1_weighted_of(pairs)}
    write(tmp_path, {"m": {"t": dict.fromkeys(scores, pairs)}}, {"m": {"t": scores}})
    for metric, name in (("f1_macro", "macro F1 of right labels"), ("f1_weighted", "weighted F1")):
        found = verdict(tmp_path, f"m.t.{metric}", ">= 0.6")
        assert found.verdict == "pass" and found.interval.method.startswith(f"{name} recomputed"), found.detail
        assert 0.6 < found.interval.low < scores[metric] < found.interval.high < 0.85


def test_what_cannot_be_recomputed_is_judged_on_lm_evals_error_and_said(tmp_path):
    median = {"m": {"t": {"len": 7.0, "len_stderr": 0.5}}, "n": {"t": {"len": 6.0, "len_stderr": 0.5}}}
    found = verdict(tmp_path, "m.t.len", ">= 6", {m: {"t": {"len": [1.0, 7.0, 30.0] * 10}} for m in "mn"}, scores=median)
    assert found.verdict == "pass" and "by lm-eval's standard error" in found.interval.method
    apart = verdict(tmp_path, "m.t.len - n.t.len", "> 0")
    assert apart.verdict == "inconclusive" and "taken as independent" in apart.detail
    assert apart.interval.low == pytest.approx(1 - power.Z_LEVEL * math.sqrt(0.5))
    write(tmp_path, one([1.0, 7.0, 30.0]), {"m": {"t": {"acc": 7.0}}})
    lost = verdict(tmp_path, "m.t.acc", ">= 6")
    assert lost.verdict == "inconclusive" and "no standard error" in lost.detail and not lost.holds("fail")
    assert verdict(tmp_path, "m.t.acc", ">= 6 point").verdict == "pass"


def test_a_group_has_no_samples_of_its_own(tmp_path):
    found = verdict(tmp_path, "m.g.acc", ">= 0.5", one(answers(9, 1)), scores=None)
    assert found.verdict == "fail" and "no task of `m.g.acc`" in found.detail
    body = json.loads((tmp_path / "results.json").read_text())
    body["scores"]["m"]["g"] = {"acc": 0.9, "acc_stderr": 0.02}
    (tmp_path / "results.json").write_text(json.dumps(body))
    assert verdict(tmp_path, "m.g.acc", ">= 0.85").verdict == "pass"


def test_too_few_and_all_alike_are_inconclusive_for_what_has_no_ends(tmp_path):
    few = verdict(tmp_path, "m.t.len", ">= 1", one([3.0 + i for i in range(judge.FEWEST - 1)], "len"))
    assert few.verdict == "inconclusive" and "too few to resample" in few.detail
    alike = verdict(tmp_path, "m.t.len", ">= 1", one([3.0] * 50, "len"))
    assert alike.verdict == "inconclusive" and "spread is unknown" in alike.detail
    graded = verdict(tmp_path, "m.t.f1", ">= 0.48", one([0.5] * 50, "f1"))
    assert graded.verdict == "inconclusive" and graded.interval.low == pytest.approx(0.5 * 0.05 ** (1 / 50), abs=0.002)


def test_no_number_is_a_fail_that_says_so(tmp_path):
    found = verdict(tmp_path, "m.t.acc", ">= 0.1", one([*answers(9, 0), math.nan]))
    assert found.verdict == "fail" and "no number" in found.detail
    assert json.loads(json.dumps(found.figures(), allow_nan=False))["value"] is None
    kept = verdict(tmp_path, "m.t.acc", ">= 0.1", one([*answers(9, 0), math.nan]), scores={"m": {"t": {"acc": 1.0}}})
    assert kept.verdict == "inconclusive" and "(NaN)" in kept.detail
    empty = verdict(tmp_path, "m.t.acc", ">= 0.1", one([]))
    assert empty.verdict == "fail" and "no metric `acc`" in empty.detail


def test_questions_that_are_not_the_same_are_an_error_that_says_which(tmp_path):
    for place, asked, n, limit in (("a", "question", 10, None), ("b", "other", 10, None), ("c", "question", 6, 6)):
        (tmp_path / place).mkdir()
        write(tmp_path / place, one(answers(n, 0)), asked=asked, limit=limit)
    a, b, c = (samples.of_folder(tmp_path / p) for p in "abc")
    bound = _expect.parse("m.t.acc - against:m.t.acc", ">= 0")
    with pytest.raises(UsageError, match=r"10 of 10 differ, the first is 0: .*question 0.*other 0"):
        judge.judge(bound, samples.together([a, b], ["", "against:"]))
    with pytest.raises(UsageError, match=r"10 questions and 6 questions \(limit 6\)") as e:
        judge.judge(bound, samples.together([a, c], ["", "against:"]))
    assert "same `limit`" in e.value.render()
    lines = (tmp_path / "a/samples/m/t.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "c/samples/m/t.jsonl").write_text("".join(lines[4:]))
    with pytest.raises(UsageError, match="not the same questions"):
        judge.judge(bound, samples.together([a, samples.of_folder(tmp_path / "c")], ["", "against:"]))


def test_a_question_that_is_there_twice_and_a_torn_file_are_errors(tmp_path):
    write(tmp_path, one(answers(3, 1)))
    file = tmp_path / "samples/m/t.jsonl"
    whole = file.read_text()
    file.write_text(whole + whole.splitlines()[1] + "\n")
    with pytest.raises(StoreError, match="question 1 of `t` is there twice for m") as e:
        verdict(tmp_path, "m.t.acc", ">= 0")
    assert e.value.where.endswith("t.jsonl:5")
    for torn in ("{", "[1]", '{"doc": 1}'):
        file.write_text(torn)
        with pytest.raises(StoreError, match="a sample cannot be read"):
            verdict(tmp_path, "m.t.acc", ">= 0")
    (tmp_path / "results.json").write_text('{"scores"')
    with pytest.raises(StoreError, match="results.json cannot be read"):
        samples.of_folder(tmp_path)
    with pytest.raises(StoreError, match="no eval"):
        samples.of_folder(tmp_path / "samples")


def test_names_with_dots_and_filters(tmp_path):
    models = {"Qwen2.5-0.5B": {"my.task-v1.2": {"acc": answers(50, 0)}}, "Qwen2": {"my.task-v1.2": {"acc": answers(0, 50)}}}
    models["a"], models["a.b"] = {"b.t": {"acc": answers(50, 0)}, "t": {"acc": answers(0, 50)}}, {"t": {"f1": answers(0, 50)}}
    assert verdict(tmp_path, "Qwen2.5-0.5B.my.task-v1.2.acc - Qwen2.my.task-v1.2.acc", "> 0.5", models).verdict == "pass"
    assert verdict(tmp_path, "a.b.t.acc", ">= 0.9").verdict == "pass", "a.b has no acc, so it is a's task b.t"
    file = tmp_path / "samples/a/t.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(r | {"filter": f, "acc": float(f == "loose")}) + "\n" for f in ("strict", "loose") for r in rows))
    body = json.loads((tmp_path / "results.json").read_text())
    body["scores"]["a"]["t"] = {"acc_strict": 0.0, "acc_loose": 1.0}
    (tmp_path / "results.json").write_text(json.dumps(body))
    assert verdict(tmp_path, "a.t.acc_loose - a.t.acc_strict", ">= 0.8").verdict == "pass"


def test_the_same_answers_give_the_same_figures(tmp_path):
    values = np.random.default_rng(2).gamma(2, 1, 60).tolist()
    first = verdict(tmp_path, "m.t.len", ">= 1", one(values, "len"))
    assert first == verdict(tmp_path, "m.t.len", ">= 1") and first.interval.method.startswith("resampled questions (60")
