"""The x-ray finds what was planted, counts it all, names its place, and is quiet about look-alikes."""

from __future__ import annotations

import dataclasses
import json
import re
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from slmkit.data import counts, mixture, read, report, xray
from slmkit.data.rows import Row, of
from slmkit.errors import DataError
from slmkit.steps._step import Context
from slmkit.steps._task_form import Task
from slmkit.steps.train import Execution
from tests.support.drive import given, mapped

PLAIN = [  # texts with nothing in common, so that what is found is what was planted
    ("Where is my parcel from last Tuesday evening?", "It lies at the depot."),
    ("How many legs does a full-grown spider have?", "Eight of them."),
    ("Name the capital city of Portugal, please.", "Lisbon"),
    ("Translate the word bread into simple French.", "pain"),
]


def chat(pairs, name="d.jsonl", **more):
    rows = [Row(i, messages=({"role": "user", "content": q}, {"role": "assistant", "content": a}), **more) for i, (q, a) in enumerate(pairs, 1)]
    return of(name, "messages", rows)


def kinds(facts, allow=()):
    return {f.kind: f for f in xray.findings(facts, allow)}


def task(folder: Path, docs: list[dict], text: str = "'{{q}}'", more: str = "") -> object:
    (folder / "t.jsonl").write_text("".join(json.dumps(d) + "\n" for d in docs))
    (folder / "t.yaml").write_text(
        f"task: t\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: t.jsonl}}}}\ntest_split: test\ndoc_to_text: {text}\n"
        f"doc_to_target: '{{{{a}}}}'\n{more}")
    return given(folder / "t.yaml", "task", "tasks")


def test_clean_rows_have_no_finding():
    facts = xray.measure(chat(PLAIN), None)
    assert xray.findings(facts) == [] and facts["data"]["rows"] == 4 and facts["roles"] == {"user": 4, "assistant": 4}


def test_copies_near_copies_and_contradictions():
    q, a = PLAIN[0]
    long = "I tried to buy something online yesterday but it kept saying declined, and I tried again today"
    facts = xray.measure(chat([*PLAIN, (q.upper() + " ", a), (long, "yes"), (long.replace("today", "todey"), "yes"), (PLAIN[1][0], "Six.")]), None)
    found = {k: (v["rows"], v["shown"]) for k, v in facts["duplicates"].items()}
    assert found["exact"] == (1, [["d.jsonl:1", "d.jsonl:5"]])
    assert found["near"] == (1, [["d.jsonl:6", "d.jsonl:7"]])
    assert found["conflicting"] == (1, [["d.jsonl:2", "d.jsonl:8"]])
    assert {f.level for f in xray.findings(facts)} == {"warning"}


def test_punctuation_tells_sums_apart():
    facts = xray.measure(chat([("2 - 3", "a"), ("2 + 3", "b")]), None)
    assert [v["rows"] for v in facts["duplicates"].values()] == [0, 0, 0]


def test_a_task_whose_template_would_use_up_memory_is_read_without_it(tmp_path):
    bomb = "\"{{ (q * 9).replace(' ', 'y' * 99999).replace('y', 'z' * 99) }}\""
    peaks = []
    tracemalloc.start()
    try:
        for text in ("'{{ q }}'", "'{{ q }}'", bomb):  # the first call imports
            tracemalloc.reset_peak()
            facts = xray.measure(chat(PLAIN), None, (task(tmp_path, [{"q": PLAIN[0][0]}], text),))
            peaks.append(tracemalloc.get_traced_memory()[1])
            assert "leaks" in kinds(facts)
        assert peaks[2] < peaks[1] + 20e6
    finally:
        tracemalloc.stop()


def test_leaks_to_the_letter_with_another_answer_nearly_and_inside(tmp_path):
    inside = "the train from Lisbon to Porto leaves at nine in the morning from platform four"
    docs = [{"q": PLAIN[0][0], "a": PLAIN[0][1]}, {"q": PLAIN[1][0], "a": "None."}, {"q": "Please name the capital city of Portugal", "a": "x"},
            {"q": inside, "a": "x"}, {"q": "What is the exchange rate on a Sunday?", "a": "x"}]
    data = chat([*PLAIN, ("Summarise: yesterday we heard that " + inside + ", but nobody believed it for long", "A train.")])
    docs[2]["q"] = PLAIN[2][0].replace(", please.", ", please")
    facts = xray.measure(data, None, (task(tmp_path, docs),))
    leak = facts["leaks"][0]
    assert (leak["against"], leak["questions"], leak["leaked"]) == ("t", 5, 4)
    assert leak["kinds"] == {"exact": 1, "question": 1, "near": 1, "contained": 1}
    assert [(a, b.rpartition("/")[2], k) for a, b, k in leak["shown"]] == [
        ("d.jsonl:1", "t.jsonl:1", "exact"), ("d.jsonl:2", "t.jsonl:2", "question"),
        ("d.jsonl:3", "t.jsonl:3", "near"), ("d.jsonl:5", "t.jsonl:4", "contained"),
    ]
    assert kinds(facts)["leaks"].level == "error" and kinds(facts, ("leaks",))["leaks"].level == "allowed"


def test_a_prompt_around_the_question_hides_nothing_and_a_shared_instruction_is_no_leak(tmp_path):
    instruction = "You are given a question by a customer of a bank, answer it with one word and nothing else than that word:"
    others = [f"{w} of number {i}" for i in range(30) for w in ("colour", "price", "weight")]
    docs = [{"q": f"What is the {o} on the shelf?", "a": "x"} for o in others]
    look = task(tmp_path, docs, text=f"'{instruction} {{{{q}}}}'")
    data = chat([(f"{instruction} {q}", a) for q, a in PLAIN] + [(docs[7]["q"], "x"), (f"{instruction} {docs[8]['q']}", "x")])
    leak = xray.measure(data, None, (look,))["leaks"][0]
    assert sorted((a, int(b.rpartition(":")[2])) for a, b, _ in leak["shown"]) == [("d.jsonl:5", 8), ("d.jsonl:6", 9)]


@pytest.mark.parametrize("text", ["q", "'{{q | trim}}'", "!function f.g", "'{{q | no_such_filter}}'", "'{{ missing.deep.er }}'"])
def test_however_a_task_makes_its_question(tmp_path, text):
    (tmp_path / "f.py").write_text("raise SystemExit('a task is not run to look at it')\n")
    found = xray.measure(chat(PLAIN), None, (task(tmp_path, [{"q": PLAIN[0][0]}], text),))["leaks"][0]
    assert found["leaked"] == 1


@pytest.mark.parametrize("kind", ["csv", "parquet", "array"])
def test_a_task_in_another_container(tmp_path, kind):
    q = PLAIN[0][0]
    if kind == "csv":
        (tmp_path / "t.csv").write_text(f'q,a\n"two\nlines",x\n{q},y\n')
        name, source, place = "t.csv", "csv", "t.csv:4"
    elif kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"q": ["other words", q], "a": ["x", "y"]}), tmp_path / "t.parquet")
        name, source, place = "t.parquet", "parquet", "t.parquet (row 2)"
    else:
        (tmp_path / "t.json").write_text(json.dumps([{"q": "other words"}, {"q": q}], indent=1))
        name, source, place = "t.json", "json", "t.json:5 (row 2)"
    (tmp_path / "t.yaml").write_text(f"task: t\ndataset_path: {source}\ndataset_kwargs: {{data_files: {name}}}\ndoc_to_text: '{{{{q}}}}'\n")
    leak = xray.measure(chat(PLAIN), None, (given(tmp_path / "t.yaml", "task", "tasks"),))["leaks"][0]
    assert leak["leaked"] == 1 and leak["shown"][0][1].endswith(place)


def test_tasks_on_the_hub_are_said_not_to_be_checked(tmp_path):
    (tmp_path / "t.yaml").write_text("task: far\ndataset_path: EleutherAI/arc\n")
    facts = xray.measure(chat(PLAIN), None, (given(tmp_path / "t.yaml", "task", "tasks"),))
    assert facts["tasks_not_read"] == ["far"] and "far" in dict(report.table(facts))["not checked"]


def test_validation_rows_leak_too():
    facts = xray.measure(chat(PLAIN), chat([PLAIN[3], ("Something else altogether, isn't it?", "b")], "v.jsonl"))
    assert kinds(facts)["leaks"].where == ("d.jsonl:4 ↔ v.jsonl:1 (exact)",)


def talks(*chats, name="d.jsonl"):
    def row(i, said):
        return Row(i, messages=tuple({"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)))

    return of(name, "messages", [row(i, said) for i, said in enumerate(chats, 1)])


def test_turns_that_many_chats_share_are_no_questions():
    """A thank-you at the end, a greeting at the beginning: what is asked is the conversation before the answer."""
    thanks = "Thank you so much, that is all that I wanted to know for today."
    chats = [("Hi!", f"Hello, what about {a}?", q, a, thanks, f"You are welcome, {a}.") for q, a in PLAIN]
    facts = xray.measure(talks(*chats[:3]), talks(*chats[3:], name="v.jsonl"))
    assert facts["leaks"][0]["leaked"] == 0


def test_a_question_is_found_wherever_it_stands_in_a_chat(tmp_path):
    (first, a), (second, b), *_ = PLAIN
    deep = "Which of these two cards would you take on a long journey abroad?"
    data = talks((first, a, deep, "The blue one.", "Thank you!", "Gladly."), ("A short one", "Yes?", second, b))
    held = talks((first, a, "And tomorrow?", "No."), ("Hi!", "Hello.", *PLAIN[2], "Thank you!", "Gladly."), (deep, "None."), name="v.jsonl")
    leak = xray.measure(data, held)["leaks"][0]
    assert leak["shown"] == [["d.jsonl:1", "v.jsonl:1", "question"], ["d.jsonl:1", "v.jsonl:3", "question"]]
    docs = [{"q": q, "a": "x"} for q in (first, "A short one", deep, "Thank you!")]
    leak = xray.measure(data, None, (task(tmp_path, docs),))["leaks"][0]
    assert [b.rpartition(":")[2] for _, b, _ in leak["shown"]] == ["1", "2", "3"]


def test_the_same_chat_is_a_leak_to_the_letter_and_nearly():
    q, a = PLAIN[0]
    chat = ("Hi!", "Hello, what can I do for you today?", q, a, "Is that depot open at night?", "No.")
    nearly = (*chat[:4], "Is that depot open by night?", "Yes.")
    short = ("Hi!", "Hello.", "2 + 2?", "4")
    leak = xray.measure(talks(chat, short), talks(chat, nearly, short, (*short[:2], "2 - 2?", "0"), name="v.jsonl"))["leaks"][0]
    assert leak["kinds"] == {"exact": 2, "question": 1, "near": 0, "contained": 0}, "of a short chat, all of it is compared"


def test_a_task_of_conversations_asks_what_stands_before_the_answer(tmp_path):
    thanks = ("Thank you so much, that is all that I wanted to know for today.", "Gladly.")
    chats = [[{"role": r, "content": c} for r, c in zip(("user", "assistant") * 2, (*pair, *thanks), strict=True)] for pair in PLAIN]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"m": c}) + "\n" for c in chats[:2]))
    form = given(tmp_path / "t.jsonl", "task", "tasks", columns=Task(name="t", data="t.jsonl", messages="m", metric=["exact_match"]))
    leak = xray.measure(of("d.jsonl", "messages", [Row(i, messages=tuple(c)) for i, c in enumerate(chats[1:], 1)]), None, (form,))["leaks"][0]
    assert [b.rpartition(":")[2] for _, b, _ in leak["shown"]] == ["2"]


def test_a_draw_that_cannot_be_mended_is_told_as_one():
    same = [("Where is my parcel from last Tuesday evening?", f"answer {i}") for i in range(12)]
    data, held = mixture.hold_out(chat([*same, *PLAIN[1:]]), 0.4, 0)
    assert [r.line for r in held] == [13, 14, 15] and not xray.measure(data, held)["leaks"][0]["leaked"], "half of the share is better than a leak"
    data, held = mixture.hold_out(chat([*same, *PLAIN[2:]]), 0.4, 0)
    found = kinds(xray.measure(data, held))["leaks"]
    assert len(held) == 6 and found.count >= 4
    assert found.what.endswith("the draw of the held-out share put them there, as too many rows ask the same")
    assert "give `validation` a file of its own" in xray._problem(found, "sft").mend


def test_empty_sides():
    rows = [
        Row(1, messages=({"role": "assistant", "content": "hello there"},)),
        Row(2, messages=({"role": "user", "content": " "}, {"role": "assistant", "content": "b"})),
        Row(3, messages=({"role": "user", "content": "a"}, {"role": "assistant", "content": " "})),
        Row(4, messages=({"role": "user", "content": "a"},), chosen=({"role": "assistant", "content": "B"},),
            rejected=({"role": "assistant", "content": "b "},)),
        Row(5, messages=({"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]})),
    ]
    facts = xray.measure(of("d.jsonl", "messages", rows), None)
    assert {k: v["shown"] for k, v in facts["empty"].items()} == {
        "no question": ["d.jsonl:1", "d.jsonl:2"], "nothing to learn": ["d.jsonl:3"], "no difference between chosen and rejected": ["d.jsonl:4"]}
    assert {f.kind for f in xray.findings(facts) if f.level == "error"} == {"empty"}


def lost(left_out=0, untrained=0, cut=None):
    left, bare = ({"rows": n, "shown": [f"d.jsonl:{20 - i}" for i in range(n)]} for n in (left_out, untrained))
    return {"left_out": left, "untrained": bare, "cut": cut or {}, "max_length": 32}


def encoded(facts, trained, left_out=0, cut=None, untrained=0, held_out=None):
    rows = len(trained) + left_out
    return xray.add_tokens(facts, lengths=[10] * rows, kept=10 * len(trained), trained=trained, **lost(left_out, untrained, cut), held_out=held_out)


def test_thresholds_of_tokens_and_the_key_that_allows_them():
    facts = xray.measure(chat([(f"{q} {i}", f"{a} {i}") for i in range(5) for q, a in PLAIN]), None)  # 20 rows
    assert "untrained" not in kinds(encoded(facts, [3] * 20)) and "truncation" not in kinds(encoded(facts, [3] * 19, 1))
    assert kinds(encoded(facts, [3] * 19, untrained=1))["untrained"].where == ("d.jsonl:20",)
    assert kinds(encoded(facts, [3] * 18, 2))["truncation"].level == "error"
    found = kinds(encoded(facts, [3] * 20, cut={"answers_cut": 2, "right": 2, "shown": ["d.jsonl:7"]}), ("truncation",))["truncation"]
    assert (found.level, found.allow, found.where) == ("allowed", "execution.allow=[truncation]", ("d.jsonl:7",))


def test_rows_lost_of_validation_are_shown_warned_of_and_too_many_an_error():
    held = chat([(f"Is number {i} held out, or is it not?", f"{i}.") for i in range(30)], "v.jsonl")
    facts = xray.measure(chat(PLAIN), dataclasses.replace(held, dropped={"not JSON": 2}))
    one, two = (kinds(encoded(facts, [3] * 4, held_out=lost(n)))["truncation"] for n in (1, 2))
    assert (one.level, one.count, one.where) == ("warning", 1, ("d.jsonl:20",)) and "1 row of 30 (3%) of `validation` is left out" in one.what
    assert (two.level, two.count) == ("error", 2) and "`validation`" in two.what
    assert "truncation" not in kinds(encoded(facts, [3] * 4, held_out=lost()))
    shown = dict(report.table(encoded(facts, [3] * 4, held_out=lost(2))))["validation"]
    assert shown == "30 rows of v.jsonl · 2 rows left out (6.7%) at max_length 32 · dropped: 2 not JSON"


def test_what_max_length_would_cost_is_seen_in_the_lengths_before_it():
    facts = xray.measure(chat(PLAIN), None)
    made = xray.add_tokens(facts, lengths=[10, 20, 900], kept=30, trained=[3, 4], **lost(1))["tokens"]
    assert (made["max"], made["sum"], made["trained"]) == (900, 30, 7) and sum(made["histogram"]["counts"]) == 3
    assert "30, of which 7 trained (23%)" in dict(report.table(facts | {"tokens": made}))["tokens"]


def test_the_mend_of_too_long_rows_names_max_length_and_the_key():
    facts = encoded(xray.measure(chat(PLAIN), None), [3] * 3, 1)
    facts |= {"findings": [dataclasses.asdict(f) for f in xray.findings(facts)], "samples": []}
    mend = "raise `max_length`, or shorten the rows; or allow it: --set 'steps.sft.execution.allow=[truncation]'"
    assert mend in report.plain(report.lines("sft", facts, brackets=True))
    page = re.sub("<.*?>", "", report.html("r", {"sft": facts}))
    assert "raise max_length, or shorten the rows; or allow it: --set 'steps.sft.execution.allow=[truncation]'" in page


def test_copies_that_a_weight_makes_are_no_finding_and_a_file_given_twice_is(tmp_path):
    for name, pairs in (("a.jsonl", PLAIN), ("b.jsonl", [("Two of a kind, which is which of them?", "That.")] * 2)):
        (tmp_path / name).write_text("".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in pairs))
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    weighed = xray.measure(read.read((mapped(a, weight=2.5), mapped(b, weight=3))), None)
    assert weighed["data"]["rows"] == 16 and weighed["duplicates"]["exact"]["rows"] == 1, "that of b, once"
    assert xray.measure(read.read((given(a, "dataset", "data"), given(a, "dataset", "data"))), None)["duplicates"]["exact"]["rows"] == 4


def context(tmp_path, **execution):
    said = []
    ctx = Context(tmp_path, tmp_path, {"tasks": ()}, Execution(**execution), lambda e, **f: said.append((e, f)), lambda *a, **k: None, str, "sft")
    return ctx, said


def test_train_stops_names_the_key_and_goes_on_when_allowed(tmp_path):
    held = chat([PLAIN[1]], "v.jsonl")
    ctx, _ = context(tmp_path)
    with pytest.raises(DataError) as e:
        xray.check_rows(ctx, chat(PLAIN), held)
    assert "--set 'steps.sft.execution.allow=[leaks]'" in e.value.render() and e.value.problems[0].line == 2
    ctx, said = context(tmp_path, allow=["leaks"])
    xray.check_rows(ctx, chat(PLAIN, "some/where/d.jsonl"), held)
    xray.check_tokens(ctx, chat(PLAIN), {"lengths": [5] * 4, "kept": 20, "trained": [1] * 4} | lost(), lost())
    written = json.loads((tmp_path / xray.FILE).read_text())
    assert [f["level"] for f in written["findings"]] == ["allowed"] and written["tokens"]["trained"] == 4
    assert written["findings"][0]["where"] == ["d.jsonl:2 ↔ v.jsonl:1 (exact)"], "no folders: they are no part of what comes out"
    assert said[-1][1].items() >= {"rows": 4, "errors": 0, "warnings": 0, "said": [written["findings"][0]["what"]]}.items()


def test_train_says_what_it_skipped_on_either_side(tmp_path):
    ctx, said = context(tmp_path)
    data, held = (dataclasses.replace(chat(pairs, name), dropped=why) for pairs, name, why in (
        (PLAIN[:3], "d.jsonl", {}), (PLAIN[3:], "v.jsonl", {"not JSON": 1, "no answer": 2})))  # fmt: skip
    xray.check_rows(ctx, data, held)
    assert [f["what"] for e, f in said if e == "warning"] == ["`validation`: 3 rows of v.jsonl skipped as broken (1 not JSON, 2 no answer)"]
    assert json.loads((tmp_path / xray.FILE).read_text())["validation"] == {"name": "v.jsonl", "rows": 1, "dropped": {"not JSON": 1, "no answer": 2}}


def test_the_place_of_an_error_is_that_of_its_first_row(tmp_path):
    for place, file, line in (("my data.json:50 (row 5)", "my data.json", 50), ("d.parquet (row 5)", "d.parquet", 0), ("d.jsonl:3", "d.jsonl", 3)):
        found = xray.Finding("leaks", "error", 1, "1 leaks", (f"{place} ↔ v.jsonl:1 (exact)",), "execution.allow=[leaks]")
        problem = xray._problem(found, "sft")
        assert (problem.file, problem.line) == (file, line)


def test_what_is_written_holds_no_text_of_a_row(tmp_path):
    ctx, _ = context(tmp_path)
    xray.check_rows(ctx, chat([("Write to marie.curie@sorbonne.fr about the spectacles", "DE89370400440532013000 it is")]), None)
    written = (tmp_path / xray.FILE).read_text()
    assert "e-mail address" in written and not any(w in written for w in ("marie", "sorbonne", "spectacles", "DE89"))


@drawn(st.lists(st.integers(0, 10**6), min_size=1, max_size=200))
@settings(max_examples=100, deadline=None)
def test_the_histogram_counts_every_row_once(values):
    made = counts.histogram(values)
    assert sum(made["counts"]) == len(values) and len(made["edges"]) == len(made["counts"]) + 1 <= counts.BINS + 1
    assert made["edges"][0] == min(values) and made["edges"][-1] > max(values)
    for low, high, n in zip(made["edges"], made["edges"][1:], made["counts"], strict=False):
        assert n == sum(low <= v < high for v in values)


def test_languages_are_told_and_short_texts_are_not():
    asked = "Wo ist denn bitte meine neue Karte geblieben, die ich bestellt habe"
    german = [(f"{asked} {word}?", "Sie liegt bei der Post.") for word in ("gestern", "neulich")]
    found = kinds(xray.measure(chat([*PLAIN, *german, ("12", "13")]), None))["languages"]
    assert found.level == "warning" and "en" in found.what and "de" in found.what


def test_hostile_rows_are_escaped_in_html_and_on_the_terminal():
    facts = encoded(xray.measure(chat(PLAIN, "<b>.jsonl"), None), [1] * 4) | {"findings": []}
    pieces = [{"text": "<script>alert(1)</script>\x1b[31m", "trained": False}, {"text": "</mark>{{x}}", "trained": True}]
    facts["samples"] = [{"place": "d:1", "why": "first", "tokens": 3, "trained": 1, "pieces": pieces}]
    page = report.html("r", {"sft": facts})
    assert "<script" not in page and "&lt;script&gt;" in page and "<b>.jsonl" not in page and "<mark>&lt;/mark&gt;{{x}}</mark>" in page
    assert "http://" not in page and "https://" not in page and "default-src 'none'" in page
    text = report.plain(report.lines("sft", facts, brackets=True))
    assert "\x1b" not in text and "\\x1b[31m" in text and "⟦</mark>{{x}}⟧" in text


def test_ten_thousand_rows_are_looked_at_in_seconds_of_cpu():
    """The budget is 15 CPU-s; the bound here only notices that something became quadratic."""
    asked = "Question {} about item {} in aisle {}, what does it cost on day {}?"
    rows = [(asked.format(i * 7919 % 10007, i, i % 97, i % 31), f"{i * 31 % 977}") for i in range(10_000)]
    started = time.process_time()
    xray.measure(chat(rows), chat(rows[:500], "v.jsonl"))
    assert time.process_time() - started < 60


def test_the_reader_and_the_look_fit(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in [*PLAIN, PLAIN[0]]))
    facts = xray.measure(read.read(given(path, "dataset", "data")), None)
    assert facts["data"]["form"] == "completion" and facts["duplicates"]["exact"]["rows"] == 1
