"""Every mode against a teacher that thinks, well and badly: which rows come, which do not and why, and that nothing is asked twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from slmkit import demo
from slmkit.data import read as reader
from tests.support import teacher as teachers
from tests.support.cli import Cli
from tests.support.drive import given

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}}}  # fmt: skip


class Class:
    """A recipe with one distill step, its teacher, and what came of it."""

    def __init__(self, cli: Cli, teacher: teachers.Teacher):
        self.cli, self.teacher, self.steps = cli, teacher, {}

    def rows(self, name: str, rows: list[dict]) -> str:
        (self.cli.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return name

    def write(self, **step) -> None:
        base = {"kind": "distill", "teacher": {"model": "t", "base_url": self.teacher.url}, "seed": 0, "max_tokens": 2000}
        self.cli.write("r.yaml", yaml.safe_dump({"recipe": "r", "steps": {"teach": base | step} | self.steps}, sort_keys=False))

    def run(self, **step) -> dict:
        self.write(**step)
        return self.again()

    def again(self, *words: str) -> dict:
        done = self.cli("distill", "r.yaml", "--json", *words)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["result"]

    def made(self, name: str = "train.jsonl") -> list[dict]:
        return [json.loads(line) for line in (self.cli.folder / "artifacts/refs/r/teach" / name).read_text().splitlines()]

    def dropped(self) -> dict[str, tuple[str, str]]:
        return {row["place"]: (row["filter"], row["reason"]) for row in self.made("dropped.jsonl")}

    def bodies(self) -> list[dict]:
        return [line["body"] for line in self.teacher.lines() if line["kind"] == "ok"]


@pytest.fixture
def school(cli: Cli, tmp_path: Path):
    running = []

    def start(mind: str, **faults) -> Class:
        running.append(teachers.start(tmp_path / "teacher", mind=mind, **faults))
        return Class(cli, running[-1])

    yield start
    for one in running:
        one.stop()


def said(row: dict) -> tuple[str, str]:
    return row["messages"][-2]["content"], row["messages"][-1]["content"]


GENERATE = {"description": "questions to a bank", "count": 12, "topics": ["cards", "loans"], "difficulties": ["easy", "hard"], "examples": 2,
            "per_request": 4}  # fmt: skip


def test_generate_asks_in_rounds_until_there_are_enough_new_rows(school):
    one = school("writer")
    one.rows("seeds.jsonl", [{"prompt": f"seed question {i}", "completion": f"answer {i}"} for i in range(9)])
    found = one.run(mode="generate", prompts="seeds.jsonl", generate=GENERATE, filters={"refusals": True})
    assert found["rows"] == 12 and found["dropped"]["novelty"] >= 4 and found["dropped"]["readable"] >= 6
    bodies = one.bodies()
    assert len(bodies) == found["answered"] > 3, "more than one round"
    first = next(b for b in bodies if b["seed"] == 0)["messages"][-1]["content"]
    assert first.count('"prompt": "seed question') == 2 and "What is wanted: questions to a bank" in first and "Write 4 new ones" in first
    topics = {next(line for line in b["messages"][-1]["content"].splitlines() if line.startswith("Topic")) for b in bodies}
    assert topics == {"Topic: cards", "Topic: loans"}
    rows = one.made()
    assert {row["topic"] for row in rows} == {"cards", "loans"} and len({said(row)[0] for row in rows}) == 12
    reasons = Counter(name for name, _ in one.dropped().values())
    assert set(reasons) <= {"novelty", "readable", "surplus"}
    again = one.again("--set", "steps.teach.execution.concurrency=1", "--set", "steps.teach.min_kept=2")
    assert again["answered"] == 0 and one.made() == rows
    one.again("--store", "other", "--set", "steps.teach.execution.concurrency=1")
    assert [json.loads(line) for line in (one.cli.folder / "other/refs/r/teach/train.jsonl").read_text().splitlines()] == rows
    more = one.again("--set", "steps.teach.generate.count=16")
    assert more["from_ledger"] >= 4 and one.made()[:12] == rows and len(one.made()) == 16
    assert max(one.teacher.answered().values()) == 2, "once for each store"


def test_what_is_more_than_was_wanted_is_no_lost_row(school):
    found = school("writer").run(mode="generate", generate=GENERATE | {"count": 1}, min_kept=0.4)
    assert found["rows"] == 1 and found["dropped"]["surplus"] == 2 and sum(found["dropped"].values()) == 3


def test_generate_needs_no_seeds_and_stops_at_its_last_round(school):
    one = school("writer")
    one.write(mode="generate", generate=GENERATE | {"count": 40, "rounds": 2, "topics": ["cards"], "novelty": 1}, min_kept=40)
    done = one.cli("distill", "r.yaml")
    assert done.returncode == 1 and "of" in done.stderr and "min_kept" in done.stderr and "novelty" in done.stderr
    assert 10 < len(one.bodies()) <= 20


def test_reasoning_becomes_a_second_task(school):
    one = school("reasoner")
    one.rows("sums.jsonl", [{"prompt": f"{i} + {i}", "answer": str(2 * i)} for i in range(4)]
             + [{"prompt": "blurt 1 + 1", "answer": "2"}, {"prompt": "wrong 1 + 1", "answer": "2"}])  # fmt: skip
    found = one.run(mode="rationale", prompts="sums.jsonl", filters={"verify": "exact", "near_duplicates": 0.5})
    assert found["rows"] == 4 and found["rows_beside"] == {"train": 4} and found["dropped"] == {"readable": 1, "verify": 1}
    rows = one.made()
    assert [row["task"] for row in rows] == ["answer", "rationale"] * 4
    assert said(rows[2]) == ("1 + 1", "2")
    assert said(rows[3]) == ("[rationale] 1 + 1", "The numbers add up to 2.\nAnswer: is what comes next.")
    apart = one.again("--set", "steps.teach.rationale.rows=apart", "--set", "steps.teach.validation=0.5")
    assert apart["answered"] == 0 and apart["rows_beside"]["rationale"] == apart["rows"]
    assert [row["task"] for row in one.made("rationale.jsonl")] == ["rationale"] * apart["rows"]
    held = {said(row)[0].removeprefix("[rationale] ") for row in one.made("validation.jsonl")}
    assert held and not held & {said(row)[0].removeprefix("[rationale] ") for row in one.made() + one.made("rationale.jsonl")}
    import datasets

    folder = one.cli.folder / "artifacts/refs/r/teach"
    loaded = datasets.load_dataset(str(folder.resolve()), cache_dir=str(one.cli.folder / "cache"))
    assert set(loaded) == {"train", "validation", "rationale"}
    mixture = [{"path": "$teach"}, {"path": "$teach", "split": "rationale", "weight": 0.5}]
    one.steps["sft"] = {"kind": "train", "model": "demo:student", "data": mixture}
    one.write(mode="rationale", prompts="sums.jsonl", filters={"verify": "exact", "near_duplicates": 0.5}, rationale={"rows": "apart"})
    assert one.cli("distill", "r.yaml").returncode == 0
    look = one.cli("data", "r.yaml", "sft", "--json")
    assert json.loads(look.stdout)["steps"]["sft"]["data"]["rows"] == 6, look.stderr


def test_what_a_reasoning_model_thought_is_its_rationale(school):
    one = school("reasoner")
    one.rows("sums.jsonl", [{"prompt": "3 + 4"}, {"prompt": "silent 1 + 1"}])
    found = one.run(mode="rationale", prompts="sums.jsonl", rationale={"source": "reasoning", "rows": "thinking"})
    assert found["dropped"] == {"readable": 1}
    assert one.made() == [{"messages": [{"role": "user", "content": "3 + 4"},
                                        {"role": "assistant", "content": "7", "reasoning_content": "The numbers add up to 7."}]}]  # fmt: skip


def test_answers_and_prompts_are_rewritten(school):
    one = school("rewriter")
    one.rows("rows.jsonl", [{"prompt": "what is it?", "completion": "a cat"}, {"prompt": "stubborn", "completion": "x"}, {"prompt": "bare"}])
    found = one.run(mode="rewrite", prompts="rows.jsonl", rewrite={"keep": True, "instruction": "louder"})
    assert found["dropped"] == {"readable": 1} and "no answer of its own" in one.dropped()["rows.jsonl:3"][1]
    assert said(one.made()[0]) == ("what is it?", "A CAT PLEASE") and one.made()[0]["original"] == "a cat"
    assert all("What to do: louder" in b["messages"][-1]["content"] for b in one.bodies()) and len(one.bodies()) == 2
    found = one.run(mode="rewrite", prompts="rows.jsonl", rewrite={"what": "prompt"})
    assert [said(row) for row in one.made()] == [("WHAT IS IT? PLEASE", "a cat")]
    assert one.dropped()["rows.jsonl:2"][0] == "novelty"


RUBRIC = {"rubric": "the number"}


def test_rows_are_scored_by_a_rubric(school):
    one = school("critic")
    one.rows("rows.jsonl", [{"prompt": p, "completion": f"quality {n}"} for p, n in
                            (("a", 9), ("b", 3), ("garbled", 9), ("once", 8), ("off", 40))] + [{"prompt": "bare"}])  # fmt: skip
    found = one.run(mode="judge", prompts="rows.jsonl", judge=RUBRIC, filters={"min_score": 5})
    rows = [(said(row)[1], row["score"], row["reason"]) for row in one.made()]
    assert rows == [("quality 9", 9.0, "by its number"), ("quality 8", 8.0, "by its number")]
    assert {p: f for p, (f, _) in one.dropped().items()} == {
        "rows.jsonl:2": "judge", "rows.jsonl:3": "verdict", "rows.jsonl:5": "verdict", "rows.jsonl:6": "readable"}  # fmt: skip
    assert "leaves the scale" in one.dropped()["rows.jsonl:5"][1] and found["answered"] == 5 + 3, "what cannot be read is asked once more"
    assert one.again("--set", "steps.teach.filters.min_score=2", "--set", "steps.teach.filters.refusals=false")["answered"] == 0
    assert one.again("--set", "steps.teach.judge.scale=[0, 50]")["rows"] == 3, "another scale is another question"


def test_answers_are_judged_only_after_the_filters_before(school):
    one = school("critic")
    one.rows("prompts.jsonl", [{"prompt": "x" * n} for n in range(1, 11)])
    found = one.run(prompts="prompts.jsonl", judge=RUBRIC | {"temperature": 0, "max_tokens": 55}, filters={"min_score": 8, "regex": r"quality \d"})
    assert sorted(said(row)[1] for row in one.made()) == ["quality 8", "quality 9"]
    assert found["dropped"] == {"regex": 1, "judge": 7}
    judged = [b for b in one.bodies() if "Rubric:" in b["messages"][-1]["content"]]
    assert len(judged) == 9 and all(b["temperature"] == 0 and b["max_tokens"] == 55 for b in judged)
    assert all("temperature" not in b for b in one.bodies() if b not in judged)


def test_pairs_of_the_best_and_the_worst(school):
    one = school("critic")
    words = ("a question", "all alike", "all level", "garbled", "short", "once more")
    one.rows("prompts.jsonl", [{"prompt": w} for w in words])
    one.steps["prefer"] = {"kind": "train", "model": "demo:student", "data": "$teach", "objective": "dpo"}
    found = one.run(mode="preference", prompts="prompts.jsonl", n=4, judge=RUBRIC, system="Be brief.", student_system="You answer.",
                    preference={"orders": 2})  # fmt: skip
    planned = one.cli("plan", "r.yaml", "--json", "--set", "steps.teach.n=5")
    assert {"calls": 6, "answers_known": 24, "verdicts_at_most": 12}.items() <= json.loads(planned.stdout)["steps"][0]["estimate"].items()
    rows = one.made()
    assert [row["prompt"][-1]["content"] for row in rows] == ["a question", "once more"] and found["dropped"] == {"verdict": 4}
    for row in rows:
        assert row["prompt"][0] == {"role": "system", "content": "You answer."}
        good, bad = (int(row[side][0]["content"].split()[1]) for side in ("chosen", "rejected"))
        assert (good, bad) == (row["score_chosen"], row["score_rejected"]) and good > bad
    reasons = {place: reason for place, (_, reason) in one.dropped().items()}
    assert [reasons[f"prompts.jsonl:{n}"].partition(":")[0] for n in (2, 3, 4, 5)] == ["only one answer", "a tie", "no ranking", "no ranking"]
    shown = [text for b in one.bodies() if "a question" in (text := b["messages"][-1]["content"]) and "Rubric" in text]
    orders = {tuple(line for line in text.splitlines() if line.startswith("quality")) for text in shown}
    assert len(shown) == 2 and {o[::-1] for o in orders} == orders and len(orders) == 2, "the second order is the first, turned round"
    look = one.cli("data", "r.yaml", "prefer", "--json")
    assert look.returncode == 0, look.stderr
    facts = json.loads(look.stdout)["steps"]["prefer"]
    assert facts["data"]["rows"] == 2 and facts["data"]["form"] == "preference"
    assert one.again("--set", "steps.teach.filters.min_score=1")["answered"] == 0


def test_calls_are_checked_against_the_schemas_on_offer(school):
    one = school("caller")
    (one.cli.folder / "tools.json").write_text(json.dumps([WEATHER]))
    own = [WEATHER["function"] | {"name": "launch", "description": "own"}]
    asked = ("weather in Rome", "hello", "written for Oslo", "unknown Rome", "broken Rome", "unfit Rome")
    one.rows("prompts.jsonl", [*({"prompt": p} for p in asked), {"prompt": "unknown Kiev", "tools": own}])
    found = one.run(mode="tools", prompts="prompts.jsonl", tools="tools.json")
    assert found["rows"] == 4 and found["dropped"] == {"readable": 3}
    rows = one.made()
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome", "days": 2}'}}
    assert rows[0]["messages"][-1] == {"role": "assistant", "content": "", "tool_calls": [{"id": "call_9"} | call]}
    assert rows[1]["messages"][-1] == {"role": "assistant", "content": "Hello to you."}
    assert rows[2]["messages"][-1]["tool_calls"][0]["function"]["arguments"] == '{"city": "Oslo", "days": 2}'
    assert json.loads(rows[0]["tools"]) == [WEATHER] and json.loads(rows[3]["tools"])[0]["function"]["name"] == "launch"
    reasons = [one.dropped()[f"prompts.jsonl:{n}"][1] for n in (4, 5, 6)]
    assert "not on offer" in reasons[0] and "no JSON object" in reasons[1] and "schema at days" in reasons[2]
    folder = one.cli.folder / "artifacts/refs/r/teach"
    read = list(reader.read(given(folder, "dataset")))
    assert read[0].messages[-1]["tool_calls"][0]["function"]["arguments"] == {"city": "Rome", "days": 2} and list(read[0].tools) == [WEATHER]
    import datasets

    assert len(datasets.load_dataset(str(folder.resolve()), cache_dir=str(one.cli.folder / "cache"))["train"]) == 4
    found = one.again("--set", "steps.teach.tool_choice=required")
    assert found["rows"] == 3 and all(b.get("tool_choice") == "required" for b in one.bodies()[-7:])
    found = one.run(prompts="prompts.jsonl")  # mode answer: rows with functions of their own may be answered with calls
    assert [len(row["messages"][-1].get("tool_calls", ())) for row in one.made()] == [0, 0, 1] and found["dropped"] == {"empty": 4}


def test_a_file_of_functions_is_checked_before_any_call(school):
    one = school("caller")
    one.rows("prompts.jsonl", [{"prompt": "p"}])
    for text, told in (("{", "no functions"), ("[]", "no functions in this file"), ('[{"name": "f", "parameters": {"type": 3}}]', "no JSON Schema")):
        (one.cli.folder / "tools.json").write_text(text)
        one.write(mode="tools", prompts="prompts.jsonl", tools="tools.json")
        done = one.cli("distill", "r.yaml")
        assert done.returncode == 2 and told in done.stderr and "tools.json" in done.stderr, done.stderr
    assert not one.bodies()


def test_a_model_that_is_run_here_goes_through_the_modes(cli: Cli):
    """It constrains nothing, so no schema and no forced call is sent; what it cannot do is dropped with its reason, after two trials."""
    steps, kind = {}, {"kind": "distill", "teacher": "demo:teacher", "max_tokens": 160, "temperature": 0, "seed": 1}
    schema = {"type": "object", "required": ["order"]}
    cli.write("notes.jsonl", "\n".join(json.dumps(row) for row in notes(6)))
    steps["rewrite"] = kind | {"mode": "rewrite", "prompts": "notes.jsonl", "json_schema": schema, "template": "bare.jinja", "min_kept": 6}
    steps["judge"] = kind | {"mode": "judge", "prompts": "$rewrite", "judge": {"rubric": "right?"}}
    cli.write("bare.jinja", "{{ prompt }}")
    cli.write("r.yaml", yaml.safe_dump({"recipe": "r", "steps": steps}, sort_keys=False))
    done = cli("run", "r.yaml")
    rows = [json.loads(line) for line in (cli.folder / "artifacts/refs/r/rewrite/train.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and all("order" in json.loads(said(row)[1]) for row in rows), done.stderr
    assert done.returncode == 1 and "0 of 6 rows were kept" in done.stderr and "verdict 6" in done.stderr, done.stderr
    book = next((cli.folder / "artifacts/ledgers").glob("*.jsonl")).read_text()
    assert book.count('"finish":') == 6 + 12 and "response_format" not in book


def notes(count: int) -> list[dict]:
    """Delivery notes of the demo, each with a poor answer."""
    rows = demo.path("train").read_text().splitlines()[:count]
    return [{"prompt": json.loads(row)["messages"][-2]["content"], "completion": "?"} for row in rows]
