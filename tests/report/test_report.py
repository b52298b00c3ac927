"""What a report says: the same every time, all of it in its JSON, paired as `compare` pairs it, and honest about what is gone."""

from __future__ import annotations

import html
import json
import random
import re
import shutil
import tracemalloc
from dataclasses import fields
from pathlib import Path

import pytest
from markupsafe import Markup

from slmkit.artifact.store import Store
from slmkit.cli import costing
from slmkit.cli.report import render, report
from slmkit.errors import CheckFailed, StoreError, UsageError
from slmkit.evidence import paired, samples, timing
from slmkit.evidence.timing import Batch
from slmkit.report import answers, markdown, page, quality, records, words
from slmkit.report.facts import Report
from slmkit.report.gather import gather
from tests.support import chains
from tests.support.chains import build, events, finder, given, put


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Store:
    """shop/score and its chain; other/score, whose models answered the same questions a little worse."""
    store = Store(tmp_path_factory.mktemp("report") / "artifacts")
    build(store)
    build(store, chains.questions() | {"int4": {"notes": {"exact_match": [0.0] * 40, "f1": [0.25] * 40}}}, "other")
    return store


@pytest.fixture(scope="module")
def whole(shop) -> Report:
    return gather([shop.resolve("shop/score")], finder(shop))


@pytest.fixture(scope="module")
def text(whole) -> str:
    return page.render(whole)


def test_the_same_artifacts_give_the_same_bytes_wherever_they_lie(shop, tmp_path, text, monkeypatch):
    moved = Store(tmp_path / "elsewhere")
    shutil.copytree(shop.root, moved.root, symlinks=True)
    monkeypatch.chdir(tmp_path)
    assert render(moved.root, ["shop/score"], "html") == text
    for kind in ("md", "json"):
        assert render(moved.root, ["shop/score"], kind) == render(shop.root, ["shop/score"], kind)


def test_the_chain_is_drawn_in(whole):
    assert [s.name for s in whole.steps] == ["teach", "sft", "tuned", "int4", "score"]
    steps = {s.name: s for s in whole.steps}
    assert (steps["teach"].seconds, steps["teach"].tokens, steps["teach"].usd, steps["teach"].terms) == (37.81, 98765, 1.75, "our own model")
    made_of = [(i.role, i.step, i.witness) for i in steps["tuned"].inputs]
    assert made_of == [("model", steps["sft"].id, False), ("probes", steps["teach"].id, True)]
    assert steps["score"].command == "slmkit run 'a b.yaml'" and steps["score"].commit == "dddddddddddd with changes"
    assert steps["sft"].config["method"] == "qlora"
    assert whole.recipes[0].commands == ("slmkit run recipe.yaml score", *(f"slmkit verify {s.id}" for s in whole.steps),
                                         f"slmkit reproduce {steps['score'].id} --env")
    assert whole.notes == ()
    assert whole.curves[0].loss[0] == (1, 3.1) and whole.curves[0].validation == ((30, 0.4), (60, 0.3)) and len(whole.fidelity) == 2
    seen = whole.xrays[0]
    assert seen.findings == (("warning", "copies of another row: 3 rows"),) and ("leaks", "0 of 40 questions of notes") in seen.lines
    boxes, arrows = page.picture.graph(list(whole.steps))
    ids = {s.name: s.id for s in whole.steps}
    assert len(boxes) == 8 and (ids["sft"], ids["tuned"]) in arrows and (ids["teach"], ids["tuned"]) not in arrows
    told = " ".join(whole.headline)
    assert "`demo:student` trained by qlora (sft) on `teach`, written by `demo:teacher`" in told and "`int4` reaches" in told
    assert "Against its teacher, `teacher`" in told and "0.11 × the size" in told and "The one bound that was set holds." in told
    assert "98,765 tokens of the teacher for $1.75" in told


def _shown(report: Report) -> set[str]:
    """Every way in which a number of the structure may be written, and every text of it."""
    found: set[str] = set()

    def visit(value):
        if isinstance(value, dict):
            for key, below in value.items():
                found.add(str(key))
                visit(below)
        elif isinstance(value, list | tuple):
            for below in value:
                visit(below)
        elif isinstance(value, str):
            found.add(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            ways = (words.share, words.number, words.count, words.size, words.seconds, words.rate, words.usd, words.p, words.small, str,
                    words.latency, lambda v: words.points(v, True), lambda v: words.points(v, False), lambda v: f"{100 * v:.1f}")  # fmt: skip
            found.update(way(value) for way in ways)

    visit(json.loads(json.dumps(report.plain())))
    return found


NUMBER = re.compile(r"(?<![\w.])\d[\w.,:-]*\w|(?<![\w.])\d")  # with what is grown together with it: 1,999 or 4-bit or a hash


def _numbers(text: str) -> list[str]:
    return NUMBER.findall(text)


def test_every_number_on_the_page_is_in_the_json(whole, text):
    body = text[text.index("<body>") :]
    told = html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<svg.*?</svg>|<footer.*?</footer>", " ", body, flags=re.S)))
    told = told.replace("95 % ", "").replace("p99", "").replace("top-1", "")  # words, not figures
    known = {n for way in _shown(whole) for n in _numbers(way)} | {n for s in whole.steps for n in (s.finished[:10], s.finished[11:19])}
    numbers = _numbers(told)
    assert len(numbers) > 250 and [n for n in numbers if n not in known] == []
    drawn = re.findall(r">([^<>]+)</text>", page.picture.across(list(whole.steps)))
    assert "37.8 s · " in " ".join(drawn) and "98,765 tokens · $1.75" in drawn


def test_markdown_is_of_the_same_figures(whole):
    told = markdown.render(whole)
    known = {n for way in _shown(whole) for n in _numbers(way)}
    cells = [c.strip() for line in told.splitlines() if line.startswith("| ") for c in line.strip("| ").split(" | ")]
    numbers = [n for c in cells for n in _numbers(c.replace("95 % ", "").replace("top-1", ""))]
    assert len(numbers) > 120 and [n for n in numbers if n not in known] == []
    assert told.startswith("## shop/score\n") and "<script>" not in told.split("```yaml")[0] and "\n| **pass** | `int4.notes.exact" in told


def test_intervals_and_differences_are_those_of_compare(shop, whole):
    pairs = [("base", m) for m in ("teacher", "tuned", "int4")]
    rows = paired.compare(samples.of_folder(shop.resolve("shop/score").path), pairs, None, None, 0)
    mine = {(d.before, d.after, d.metric): d for d in whole.differences}
    assert len(rows) == 6 and len(mine) == 8
    for r in rows:
        d = mine[r.before, r.after, r.metric]
        theirs = (r.difference, r.low, r.high, r.p, r.up, r.down, 40, r.method)
        assert (d.difference, d.low, d.high, d.p, d.up, d.down, d.questions, d.method) == theirs
    assert {(d.before, d.after) for d in whole.differences} >= {("teacher", "int4")} and all(d.corrected >= d.p for d in whole.differences)
    assert all(s.low <= s.value <= s.high for s in whole.scores) and {s.method for s in whole.scores} == {"exact", "Gaffke's bound"}
    assert {s.metric for s in whole.scores if s.main} == {"exact_match"}


def test_what_is_recomputed_whole_and_what_cannot_be(tmp_path):
    store, draw = Store(tmp_path / "s"), random.Random(2)
    labels = [draw.randint(0, 1) for _ in range(60)]
    told = {m: [[g, g if draw.random() < rate else 1 - g] for g in labels] for m, rate in (("a", 0.6), ("b", 0.9))}
    models = {m: {"t": {"f1": pairs, "own": [[1], *[[2]] * 59]}} for m, pairs in told.items()}
    f1 = {m: _f1(v["t"]["f1"]) for m, v in models.items()}
    build(store, models, scores={m: {"t": {"f1": f1[m], "own": 0.5, "own_stderr": 0.1}} for m in models})
    told = gather([store.resolve("shop/score")], finder(store))
    by_metric = {(s.model, s.metric): s for s in told.scores}
    assert by_metric["b", "f1"].method == "F1, BCa" and by_metric["b", "f1"].low < f1["b"] < by_metric["b", "f1"].high
    assert by_metric["a", "own"].method == "lm-eval's standard error" and by_metric["a", "own"].high == pytest.approx(0.5 + 0.196, abs=1e-4)
    rows = {d.metric: d for d in told.differences}
    theirs = paired.compare(samples.of_folder(store.resolve("shop/score").path), [("a", "b")], None, "f1", 0)[0]
    assert (rows["f1"].low, rows["f1"].high, rows["f1"].p, rows["f1"].method) == (theirs.low, theirs.high, theirs.p, theirs.method)
    assert "independent" in rows["own"].method


def _f1(pairs: list) -> float:
    hit = sum(g == t == 1 for g, t in pairs)
    return 2 * hit / (sum(g for g, _ in pairs) + sum(t for _, t in pairs))


def test_beyond_few_questions_nothing_is_resampled_and_little_changes(tmp_path):
    draw = random.Random(3)
    found = {}
    for count in (answers.FEW, answers.FEW + 1):
        values = [round(draw.betavariate(4, 2), 6) for _ in range(count)]
        kept = answers.Answers(Path("x"))
        for i, v in enumerate(values):
            kept.add({"m": v, "doc": i, "target": ""}, i, 0, "")
        found[count] = quality.interval("m", sum(values) / count, None, kept.settled())
    (low, high, how), (other_low, other_high, other) = found.values()
    assert (how, other) == ("Gaffke's bound", "normal") and high - low == pytest.approx(other_high - other_low, rel=0.1)


def test_answers_are_streamed(tmp_path):
    folder = tmp_path / "samples/m"
    folder.mkdir(parents=True)
    filler = "x" * 3000
    with (folder / "t.jsonl").open("w") as file:
        for i in range(6000):
            row = {"doc_id": 5999 - i, "doc": filler, "target": "", "filter": "none", "acc": float(i % 3 == 0), "pair": [i, 1]}
            file.write(json.dumps(row) + "\n")
    tracemalloc.start()
    found, broken = answers.read(tmp_path, "m", "t")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    acc = found["acc"]
    assert broken == 0 and len(acc.ids) == 6000 and acc.ids[0] == 0 and len(acc.raw["pair"]) == answers.FEW
    assert peak < 3_500_000, f"{peak:,} bytes for a file of {(folder / 't.jsonl').stat().st_size:,}"
    assert acc.row(0)["doc_id"] == 0 and acc.row(5999)["doc_id"] == 5999 and acc.values["acc"][5999] == 1.0


def test_the_worst_come_in_order(tmp_path):
    scores = {"base": [1, 1, 0, 0, 1, 0], "mid": [1, 1, 1, 0, 0, 0], "last": [1, 0, 0, 0, 1, 1]}
    store = Store(tmp_path / "s")
    build(store, {m: {"t": {"acc": [float(x) for x in v]}} for m, v in scores.items()})
    told = gather([store.resolve("shop/score")], finder(store))
    assert [(s.why, s.doc_id) for s in told.samples] == [("`base` scores higher than `last`", 1), ("models disagree", 2), ("all models are wrong", 3)]
    first = told.samples[0]
    assert (first.question, first.target) == ("<|user|>question 1", "right 1") and [a.text for a in first.answers] == [f"{m} says 1" for m in scores]
    assert [a.score for a in first.answers] == [1.0, 1.0, 0.0]


def test_a_gone_upstream_is_said_and_the_rest_goes_on(shop, tmp_path):
    store = Store(tmp_path / "s")
    shutil.copytree(shop.root, store.root, symlinks=True)
    gone = store.resolve("shop/sft").path
    shutil.rmtree(gone)
    told = gather([store.resolve("shop/score")], finder(store))
    step = next(s for s in told.steps if s.gone)
    assert (step.id, step.name, step.kind, step.seconds) == (gone.name, "sft", "train", None) and step.digest
    assert f"`{gone.name}`, of which `tuned` was made, is not in the store any more" in told.notes[0]
    text = page.render(told)
    assert "not in the store any more" in text and "without what is gone (1 of 5 steps)" in told.headline[-1] and 'class="gone"' in text
    teach = store.resolve("shop/teach").path / ".slmkit/manifest.json"
    body = json.loads(teach.read_text())
    body["outputs"]["digest"] = "0" * 64
    teach.write_text(json.dumps(body))
    data = gather([put(store, "train", "adapter", "late", [given("data", shop.resolve("shop/teach"))], {})], finder(store))
    assert data.notes == ("`late` was made of other bytes of `teach` than lie in the store now",)


def test_several_artifacts_stand_side_by_side(shop, capsys):
    told = gather([shop.resolve("shop/score"), shop.resolve("other/score")], finder(shop))
    assert told.title == "shop/score and other/score" and [m.label for m in told.models][3:5] == ["shop/score:int4", "other/score:base"]
    pairs = {(d.before, d.after) for d in told.differences}
    assert {("shop/score:int4", "other/score:int4"), ("other/score:base", "other/score:int4"), ("shop/score:base", "shop/score:int4")} <= pairs
    worse = next(d for d in told.differences if (d.before, d.after, d.metric) == ("shop/score:int4", "other/score:int4", "exact_match"))
    assert worse.up == 0 and worse.down == 30 and worse.difference == -0.75
    assert "Against `other/score:int4`: +75.0 points (+" in " ".join(told.headline)
    alone = gather([shop.resolve("shop/sft")], finder(shop))
    assert [s.name for s in alone.steps] == ["teach", "sft"] and alone.scores == () and "Quality, size" not in page.render(alone)


def test_other_questions_are_not_held_against_each_other(tmp_path):
    store = Store(tmp_path / "s")
    build(store)
    build(store, recipe="other", asked="another")
    told = gather([store.resolve("shop/score"), store.resolve("other/score")], finder(store))
    assert len([n for n in told.notes if "were not asked the same questions of `notes`" in n]) == 4
    assert not any(d.before.startswith("shop") and d.after.startswith("other") for d in told.differences)


def test_answers_that_cannot_be_read_are_left_out_with_a_note(tmp_path):
    def spoil(out: Path) -> None:
        file = out / "samples/tuned/notes.jsonl"
        file.write_text("\n".join(["{torn", "[]", *file.read_text().splitlines()[2:]]) + "\n")
        twice = out / "samples/base/notes.jsonl"
        twice.write_text(twice.read_text() + twice.read_text().splitlines()[0] + "\n")

    store = Store(tmp_path / "s")
    build(store, spoil=spoil)
    told = gather([store.resolve("shop/score")], finder(store))
    assert any(n.startswith("`notes` was asked several times of `base`") for n in told.notes)
    assert any(n.startswith("2 answers of `tuned` to `notes` cannot be read") for n in told.notes)
    assert {a.model for s in told.samples for a in s.answers} == {"teacher", "int4"}
    assert {d.method for d in told.differences if "base" in (d.before, d.after)} == {"no samples and no standard error to judge it on"}
    page.render(told)


def _measured(rate: float, in_turn: bool = False) -> dict:
    """What an eval records of a model's speed, made of batches whose times are known: 100 tokens read in 0.1 s, 11 written, 10 at a rate."""
    batches = {n: [Batch((0.1,) * n, (0.1 + 10 / rate * k,) * n, (100,) * n, (11,) * n) for k in (1.0, 1.01, 0.99)] for n in (1, 4)}
    return {"asked": {"own_ends": False}, "latency": timing.latency(batches[1]), "curve": timing.curve(batches), "peak_memory_bytes": 123_000_000,
            "mix": {"input_tokens": 100.0, "output_tokens": 11.0}, "runtime": {"name": "transformers", "in_turn": in_turn}}  # fmt: skip


def test_speed_and_cost_that_were_recorded_are_tables_and_pictures(tmp_path, text):
    store = Store(tmp_path / "s")
    rates = {"base": 50, "teacher": 10, "int4": 100}
    speed = {m: {"tokens_per_second": 5.0, "seconds": 1.0, "measured": _measured(rate)} for m, rate in rates.items()}
    prices = {"usd_per_hour": 3.6, "api": {"input": 20.0, "output": 200.0}}
    build(store, eval_result={"speed": speed, "cost": prices})
    told = gather([store.resolve("shop/score")], finder(store))
    models = {m.name: {x.key: x for x in m.measures} for m in told.models}
    int4 = models["int4"]
    assert int4["time_to_first_token_p50"].value == pytest.approx(0.1) and int4["time_per_token_p95"].value == pytest.approx(0.0101, rel=1e-2)
    assert int4["written_per_second"].value == pytest.approx(400) and int4["best_batch"].value == 4 and int4["peak_memory"].value == 123_000_000
    assert [(b.size, round(b.written)) for b in next(m for m in told.models if m.name == "int4").batches] == [(1, 100), (4, 400)]
    assert int4["usd_per_million_input_tokens"].value == pytest.approx(0.25) and int4["usd_per_million_output_tokens"].value == pytest.approx(2.5)
    _, bills = costing.find(store.root, "shop/score", None)
    named = costing.find(store.root, "shop/score", None)[0]
    theirs = {b.name: b.reckoned.figures for b in costing.reckon(store.root, named, None, bills, {"api": {}})}
    keys = [k for k in theirs["int4"] if k in int4]
    assert len(keys) > 6 and all((int4[k].value, int4[k].low, int4[k].high) == (f.value, f.low, f.high) for k in keys for f in [theirs["int4"][k]])
    assert "written_per_second" not in models["tuned"] and "usd_one_off" not in models["tuned"], "its speed was not measured"
    body = page.render(told)
    for axis in ("$ per million tokens", "first token, p50", "tokens/s written, best batch"):
        assert f"exact_match on notes against {axis}" in body and axis not in text
    assert "No cost per token was recorded" not in body and "No cost per token was recorded" in text
    assert "Throughput by requests at once" in body and "the machine that was measured costs 3.6 USD an hour" in body
    assert any(s.startswith("At the prices given, a million tokens cost $") and "from request" in s for s in told.headline)
    assert any("10.00 × the tokens/s written" in s for s in told.headline), "what was measured stands for what fell off in scoring"
    tables = body[body.index("<h3>Speed") : body.index("<details><summary>What speed")].split("<svg")[0]
    numbers = _numbers(html.unescape(re.sub(r"<[^>]+>", " ", tables)))
    assert len(numbers) > 60 and [n for n in numbers if n not in {n for way in _shown(told) for n in _numbers(way)} | {"95", "50"}] == []
    assert "| first token, p50 |" in markdown.render(told) and "$ per million tokens |" in markdown.render(told)
    unpriced = Store(tmp_path / "u")
    build(unpriced, eval_result={"speed": speed})
    (first, *_) = [m for m in gather([unpriced.resolve("shop/score")], finder(unpriced)).models if m.name == "int4"]
    assert not [m for m in first.measures if m.table == "cost"] and first.batches, "no price was named, so nothing is said to cost anything"


def test_a_training_that_went_on_has_one_course(tmp_path):
    store = Store(tmp_path / "s")
    first = events({1: 5.0, 2: 4.0, 3: 9.0}, {}) + '{"event": "step", "st'
    second = events({3: 3.0, 4: 2.0}, {4: 1.5}) + '[1]\n{"event": "step", "step": 5, "loss": NaN}\n'
    files = {".slmkit/attempt-1/events.jsonl": first, ".slmkit/attempt-2/events.jsonl": second}
    curve = records.curve(put(store, "train", "adapter", "sft", [], files))
    assert curve.loss == ((1, 5.0), (2, 4.0), (3, 3.0), (4, 2.0)) and curve.validation == ((4, 1.5),) and curve.every == 1
    many = events({s: float(s) for s in range(1, 1001)}, {})
    long = records.curve(put(store, "train", "adapter", "long", [], {".slmkit/attempt-1/events.jsonl": many}))
    assert len(long.loss) <= records.POINTS and long.every == 5 and long.loss[0] == (5, 3.0)


def test_what_cannot_be_read_is_said(tmp_path):
    store = Store(tmp_path / "s")
    bad = put(store, "train", "adapter", "sft", [], {"xray.json": "{", ".slmkit/fidelity.json": "[1]"})
    worse = put(store, "train", "adapter", "two", [], {"xray.json": '{"schema": 1}'})
    told = gather([bad, worse], finder(store))
    assert [n.partition(":")[0] for n in told.notes] == [
        "xray.json of `sft` cannot be read", ".slmkit/fidelity.json of `sft` is no JSON object", "the x-ray of `two` cannot be read",
    ]  # fmt: skip
    page.render(told)


def test_the_verb(shop, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    report(["shop/teach"], store=shop.root)
    assert capsys.readouterr().out == "report.html\n" and (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    report(["shop/teach"], store=shop.root, format_="json", output=Path("a/b.json"))
    assert capsys.readouterr().out == "a/b.json\n" and set(json.loads((tmp_path / "a/b.json").read_text())) == {f.name for f in fields(Report)}
    report([str(shop.resolve("shop/teach").path)], store=tmp_path / "another", output=Path("-"))
    assert "<h1>shop/teach</h1>" in capsys.readouterr().out
    report([str(shop.resolve("shop/teach").path), "shop/teach"], store=shop.root, format_="md", output=Path("-"))
    assert capsys.readouterr().out.startswith("## shop/teach\n") and not (tmp_path / "-").exists()
    for refs, options, error, said in (
        (["nope"], {}, UsageError, "no artifact `nope`"), ([str(tmp_path)], {}, UsageError, "no artifact"), (["score"], {}, UsageError, "ambiguous"),
        (["shop/teach"], {"format_": "pdf"}, UsageError, "--format pdf"), (["shop/teach"], {"output": tmp_path}, StoreError, "cannot write"),
    ):
        with pytest.raises(error, match=said):
            report(refs, store=shop.root, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "report.html"]


def test_altered_answers_are_not_reported(shop, tmp_path):
    store = Store(tmp_path / "s")
    shutil.copytree(shop.root, store.root, symlinks=True)
    file = store.resolve("shop/score").path / "samples/int4/notes.jsonl"
    file.write_text(file.read_text().replace('"exact_match": 0.0', '"exact_match": 1.0'))
    with pytest.raises(CheckFailed, match="altered"):
        render(store.root, ["shop/score"], "json")


def test_numbers_are_written_one_way():
    assert [words.size(v) for v in (999, 1_972_448, 5e9)] == ["999 bytes", "1.97 MB", "5 GB"]
    assert [words.seconds(v) for v in (0.04, 59.9, 59.96, 76.66, 3725)] == ["0.0 s", "59.9 s", "1 min 00 s", "1 min 17 s", "1 h 02 min"]
    assert [words.usd(v) for v in (0, 0.0123, 0.2, 1234.5)] == ["$0.00", "$0.012", "$0.20", "$1,234.50"] and words.points(-0.035, True) == "\u22123.5"
    assert words.visible("a\u202eb\x1b\ud800\n") == "a\\u202eb\\x1b\\ud800\n" and page._seen(Markup("<b>")) == "<b>"
