"""distill against a real teacher that misbehaves: every row delivered or listed, nothing that was answered asked again, the budget never passed."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.support import teacher as teachers
from tests.support.cli import Cli
from tests.support.teacher import says

RECIPE = """\
recipe: r
steps:
  teach:
    kind: distill
    prompts: prompts.jsonl
    teacher: {{model: t, base_url: "{url}"}}
    max_tokens: 20
    execution: {{timeout: 1.5, concurrency: 16}}
"""


@pytest.fixture
def teach(cli: Cli, tmp_path: Path):
    """Starts a teacher with faults and writes a recipe for it; returns it."""
    running = []

    def start(count: int = 60, recipe: str = RECIPE, **faults) -> teachers.Teacher:
        one = teachers.start(tmp_path / "teacher", **faults)
        running.append(one)
        cli.write("r.yaml", recipe.format(url=one.url))
        prompts(cli, count)
        return one

    yield start
    for one in running:
        one.stop()


def prompts(cli: Cli, count: int) -> None:
    (cli.folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(count)))


def rows(cli: Cli, name: str = "train.jsonl") -> list[dict]:
    return [json.loads(line) for line in (cli.folder / "artifacts/refs/r/teach" / name).read_text().splitlines()]


def result(done) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["result"]


def test_every_row_is_delivered_in_order_through_all_faults(cli, teach):
    teacher = teach(300, _429=0.05, _500=0.05, reset=0.02, hang=0.01, garbage=0.02)
    found = result(cli("distill", "r.yaml", "--json"))
    assert found["rows"] == 300 and found["answered"] == 300
    for i, row in enumerate(rows(cli)):
        assert row == {"messages": [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": says(f"question {i}")}]}
    assert set(teacher.answered().values()) == {1}
    assert len(teacher.calls()) >= 4  # it did misbehave
    again = cli("distill", "r.yaml", "--json", "--store", "other")  # another store knows nothing: it is asked again, and gives the same bytes
    assert result(again)["from_ledger"] == 0
    assert (cli.folder / "other/refs/r/teach/train.jsonl").read_bytes() == (cli.folder / "artifacts/refs/r/teach/train.jsonl").read_bytes()


def test_one_more_prompt_costs_one_more_call_and_another_recipe_hits(cli, teach):
    teacher = teach(40)
    result(cli("distill", "r.yaml", "--json"))
    prompts(cli, 41)
    found = result(cli("distill", "r.yaml", "--json"))
    assert (found["from_ledger"], found["answered"]) == (40, 1)
    (cli.folder / "s.yaml").write_text((cli.folder / "r.yaml").read_text().replace("recipe: r", "recipe: s"))
    said = ["--set", "steps.teach.filters.refusals=false", "--set", "steps.teach.execution.concurrency=3", "--set", "steps.teach.min_kept=2"]
    assert result(cli("distill", "s.yaml", "--json", *said))["answered"] == 0
    assert teacher.calls() == {"ok": 41}


def test_killed_again_and_again_it_asks_nothing_twice_that_was_answered(cli, teach):
    teacher = teach(250, latency=0.03, _500=0.03)
    chance = random.Random(5)
    before: list[int] = []
    for _ in range(6):
        process = cli.start("distill", "r.yaml", "--set", "steps.teach.execution.concurrency=8")
        known = teacher.calls()["ok"]
        while teacher.calls()["ok"] == known and process.poll() is None:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close(), process.stderr.close()
        before.append(teacher.calls()["ok"])
        if process.returncode != -signal.SIGKILL:
            break
    found = result(cli("distill", "r.yaml", "--json"))
    assert found["rows"] == 250
    assert len(before) > 2 and before[0] < 200, "killed too late"
    assert sum(teacher.answered().values()) <= 250 + 8 * len(before)  # at most the calls in flight at each kill
    book = next((cli.folder / "artifacts/ledgers").glob("*.jsonl")).read_text()
    assert book.count('"finish":') == 250


@pytest.mark.parametrize("limit", ["tokens: 1500", "requests: 37", "usd: 0.004"])
def test_the_budget_is_never_passed_and_says_how_far_it_got(cli, teach, limit):
    recipe = RECIPE.replace("    max_tokens", f"    budget: {{{{{limit}}}}}\n    prices: {{{{input: 1, output: 10}}}}\n    max_tokens")
    teacher = teach(400, recipe, latency=0.02, garbage=0.02, _429=0.02)
    kind, value = limit.split(": ")

    def spent() -> float:
        paid = [line for line in teacher.lines() if line["kind"] == "ok"]
        tokens = sum(line["prompt_tokens"] + line["completion_tokens"] for line in paid)
        usd = sum(line["prompt_tokens"] + 10 * line["completion_tokens"] for line in paid) / 1e6
        return {"tokens": tokens, "requests": len(paid), "usd": usd}[kind] / float(value)

    process, until = cli.start("distill", "r.yaml"), time.monotonic() + 60
    while process.poll() is None and spent() < 0.45 and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)  # what is in flight is counted by the next run
    process.wait()
    process.stdout.close(), process.stderr.close()
    done = cli("distill", "r.yaml")
    assert done.returncode == 4, done.stderr
    assert "the budget" in done.stderr and "is reached" in done.stderr and "raise `budget`" in done.stderr
    assert 0.4 < spent() <= 1
    found = result(cli("distill", "r.yaml", "--json", "--set", "steps.teach.budget={tokens: 10000000}"))
    assert found["rows"] == 400
    assert max(teacher.answered().values()) <= 2


def test_raising_the_budget_builds_nothing_anew(cli, teach):
    recipe = RECIPE.replace("    max_tokens", "    budget: {{tokens: 100000}}\n    max_tokens")
    teach(5, recipe)
    result(cli("distill", "r.yaml", "--json"))
    done = cli("distill", "r.yaml", "--json", "--set", "steps.teach.budget.tokens=5", "--set", "steps.teach.teacher.api_key_env=NONE")
    assert json.loads(done.stdout)["cached"]


def test_a_wrong_key_ends_with_the_first_call_and_stays_secret(cli, teach):
    teacher = teach(50, key="right")
    said = ["--set", "steps.teach.teacher.api_key_env=TEACHER_KEY"]
    done = cli("distill", "r.yaml", *said, TEACHER_KEY="canary-7f3a")
    assert done.returncode == 4 and "check the key in TEACHER_KEY" in done.stderr and "error: --set:1:33: " in done.stderr
    assert teacher.calls() == {"401": 1}
    broken = cli("distill", "r.yaml", *said, TEACHER_KEY="canary-\n7f3a")
    assert broken.returncode == 4 and "TEACHER_KEY holds no key" in broken.stderr and teacher.calls() == {"401": 1}
    assert result(cli("distill", "r.yaml", "--json", *said, TEACHER_KEY="right\n"))["rows"] == 50
    kept = b"".join(p.read_bytes() for p in (cli.folder / "artifacts").rglob("*") if p.is_file())
    assert b"canary-7f3a" not in kept and "canary-7f3a" not in done.stderr + done.stdout
    unset = cli("distill", "r.yaml", "--set", "steps.teach.teacher.api_key_env=NOT_THERE", "--set", "steps.teach.n=2")
    assert unset.returncode == 4 and "NOT_THERE is not set" in unset.stderr


def test_a_bad_request_ends_at_once_with_what_the_endpoint_says(cli, teach):
    teacher = teach(50, _400=1.0)
    done = cli("distill", "r.yaml")
    assert done.returncode == 2 and "Unsupported parameter" in done.stderr and "limit_key" in done.stderr and "error: r.yaml:6:14: " in done.stderr
    assert teacher.calls() == {"400": 1}


def test_an_endpoint_that_wants_more_rest_than_there_is_patience_is_left_alone(cli, teach):
    teacher = teach(50, _429=1.0, after=900)
    started = time.monotonic()
    done = cli("distill", "r.yaml")
    assert done.returncode == 4 and "wants to be left alone for 900 s (429: slow down)" in done.stderr and "execution.patience" in done.stderr
    assert "error: r.yaml:6:14: " in done.stderr and time.monotonic() - started < 20
    assert teacher.calls() == {"429": 1}


def test_a_server_fault_that_names_a_pause_is_tried_again_after_it(cli, teach):
    teacher = teach(6, _500=0.5, after=1)
    assert result(cli("distill", "r.yaml", "--json"))["rows"] == 6
    last: dict[str, tuple[str, float]] = {}
    for line in teacher.lines():
        kind, at = last.get(line["digest"], ("", 0.0))
        assert kind != "500" or line["at"] - at > 0.95
        last[line["digest"]] = line["kind"], line["at"]
    assert teacher.calls()["500"] > 1


def test_thinking_and_code_fences_are_no_part_of_a_row(cli, teach):
    said = {
        "question 0": "<think>\nHm, <b> or </b>?\n</think>\n\nfour", "question 1": "So it is.\n</think>\n\nfive",
        "question 2": "Close it with </think> then", "question 3": "<think></think>six",
    }  # fmt: skip
    teach(4, script=said)
    done = cli("distill", "r.yaml", "--json")
    assert result(done)["rows"] == 4 and "2 answers came with thinking before them" in done.stderr
    assert [row["messages"][-1]["content"] for row in rows(cli)] == ["four", "five", "Close it with </think> then", "six"]
    said = {"question 0": "```json\n{\"a\": 1}\n```", "question 1": '<think>x</think>\n{"a": 2}', "question 2": "Here:\n```json\n{\"a\": 3}\n```"}
    teach(3, script=said)
    schema = ["--set", 'steps.teach.json_schema={type: object, required: [a]}', "--set", "steps.teach.structured=false"]
    assert result(cli("distill", "r.yaml", "--json", *schema, "--store", "other"))["dropped"] == {"json_schema": 1}
    made = (cli.folder / "other/refs/r/teach/train.jsonl").read_text().splitlines()
    assert [json.loads(row)["messages"][-1]["content"] for row in made] == ['{"a": 1}', '{"a": 2}']


def test_broken_rows_of_prompts_are_listed_as_dropped(cli, teach):
    teach(2)
    with (cli.folder / "prompts.jsonl").open("a") as file:
        file.write('{"prompt": 5}\nno json\n')
    skip = ["--set", "steps.teach.on_bad_row=skip"]
    done = cli("distill", "r.yaml", "--json", *skip)
    assert result(done)["dropped"] == {"broken": 2} and "2 of 4 rows were dropped (broken 2)" in done.stderr
    assert [(row["place"], row["filter"]) for row in rows(cli, "dropped.jsonl")] == [("prompts.jsonl:3", "broken"), ("prompts.jsonl:4", "broken")]
    assert "| dropped: broken | 2 |" in (cli.folder / "artifacts/refs/r/teach/README.md").read_text()
    assert cli("distill", "r.yaml", *skip, "--set", "steps.teach.min_kept=1.0").returncode == 0  # of those that were to be asked about


def test_a_share_that_holds_nothing_out_is_no_validation(cli, teach):
    teach(4)
    done = cli("distill", "r.yaml", "--set", "steps.teach.validation=0.01")
    assert done.returncode == 1 and "none of the 4 rows was drawn into `validation`" in done.stderr and "--set:1:" in done.stderr


def test_a_closed_terminal_keeps_what_was_answered(cli, teach):
    teacher = teach(400, latency=0.2)
    process = cli.start("distill", "r.yaml")
    while len(teacher.answered()) < 30:
        time.sleep(0.05)
    process.send_signal(signal.SIGHUP)
    assert process.wait(20) == 129
    assert result(cli("distill", "r.yaml", "--json"))["rows"] == 400 and set(teacher.answered().values()) == {1}


def test_plan_says_nothing_of_a_teacher_that_is_yet_to_be_made(cli, teach):
    teach(2)
    cli.write("rows.jsonl", json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    sft = "steps:\n  sft: {kind: train, model: demo:student, data: rows.jsonl, max_steps: 1}"
    text = (cli.folder / "r.yaml").read_text().replace("steps:", sft)
    cli.write("r.yaml", "\n".join("    teacher: $sft" if "teacher:" in line else line for line in text.splitlines() if "execution" not in line))
    done = cli("plan", "r.yaml")
    assert done.returncode == 0 and "teach  distill" in done.stdout and "calls" not in done.stdout, done.stderr


def test_answers_that_do_not_fit_name_the_key_that_makes_room(cli, teach):
    teach(2, script={f"question {i}": "word " * 40 for i in range(2)})
    done = cli("distill", "r.yaml")
    assert done.returncode == 1 and "error: r.yaml:7:" in done.stderr and "set a larger `max_tokens`" in done.stderr, done.stderr
    done = cli("distill", "r.yaml", "--set", "steps.teach.teacher=demo:student", "--set", "steps.teach.max_tokens=4096")
    assert done.returncode == 1 and "0 of 2 rows" in done.stderr and "set a smaller `max_tokens`" in done.stderr, done.stderr


def test_no_teacher_there_is_told_within_seconds(cli, teach):
    teach(5).stop()
    started = time.monotonic()
    done = cli("distill", "r.yaml")
    assert done.returncode == 4 and "cannot connect" in done.stderr
    assert time.monotonic() - started < 15
    done = cli("distill", "prompts.jsonl", "--teacher.model", "t", "--teacher.base_url", "http://127.0.0.1:1/v1")
    assert done.returncode == 4 and "error: --teacher.base_url: http://127.0.0.1:1/v1: cannot connect" in done.stderr


def test_a_server_that_is_no_such_endpoint_is_told_after_a_few_answers(cli, teach):
    teacher = teach(50, garbage=1.0)
    started = time.monotonic()
    done = cli("distill", "r.yaml")
    assert done.returncode == 4 and "not as such an endpoint does: the response is no JSON" in done.stderr and "teacher.base_url" in done.stderr
    assert teacher.calls() == {"garbage": 5} and time.monotonic() - started < 60


def test_rows_are_dropped_with_their_reason(cli, teach):
    recipe = RECIPE.replace("    max_tokens: 20", "    max_tokens: 9\n    filters: {{regex: 'echo .*'}}\n    json_schema: null")
    script = {"question 1": "x" * 200, "question 2": "", "question 3": "I'm sorry, but I cannot help.", "question 4": "nonsense"}
    teach(8, recipe, script=script, refuse="question 5")
    found = result(cli("distill", "r.yaml", "--json"))
    assert found["rows"] == 3
    reasons = {row["place"]: row["filter"] for row in rows(cli, "dropped.jsonl")}
    assert reasons == {f"prompts.jsonl:{n + 1}": f for n, f in {1: "finished", 2: "empty", 3: "regex", 4: "regex", 5: "answered"}.items()}
    done = cli("distill", "r.yaml", "--set", "steps.teach.min_kept=0.9")
    assert done.returncode == 1 and "3 of 8 rows were kept" in done.stderr and "min_kept" in done.stderr


def test_the_majority_of_several_answers_is_kept(cli, teach):
    recipe = RECIPE.replace("    max_tokens", "    n: 5\n    majority: 0.6\n    seed: 0\n    max_tokens")
    script = {"question 0": ["a", "b", "b", "c", "b"], "question 1": ["a", "b", "c", "d", "a"]}
    teacher = teach(3, recipe, script=script)
    found = result(cli("distill", "r.yaml", "--json"))
    assert [row["messages"][-1]["content"] for row in rows(cli)] == ["b", says("question 2")]
    assert found["dropped"] == {"majority": 1} and teacher.calls() == {"ok": 15}


def test_ctrl_c_keeps_what_was_answered_and_says_how_to_go_on(cli, teach):
    teacher = teach(300, latency=0.05)
    process = cli.start("distill", "r.yaml")
    while teacher.calls()["ok"] < 40 and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130 and "the same command goes on" in told
    asked = teacher.calls()["ok"]
    found = result(cli("distill", "r.yaml", "--json"))
    assert found["rows"] == 300 and found["from_ledger"] >= asked - 2 and max(teacher.answered().values()) == 1


def test_the_dataset_loads_as_it_stands_and_trains(cli, teach):
    recipe = RECIPE.replace("    max_tokens", """\
    validation: 0.2
    terms: internal use
    system: Be brief.
    student_system: You echo.
    max_tokens""")
    teach(50, recipe)
    found = result(cli("distill", "r.yaml", "--json"))
    assert found["rows"] + found["validation_rows"] == 50 and 2 <= found["validation_rows"] <= 20
    import datasets

    folder = cli.folder / "artifacts/refs/r/teach"
    loaded = datasets.load_dataset(str(folder.resolve()), cache_dir=str(cli.folder / "cache"))
    assert {k: len(v) for k, v in loaded.items()} == {"train": found["rows"], "validation": found["validation_rows"]}
    assert loaded["train"][0]["messages"][0] == {"role": "system", "content": "You echo."}
    card = (folder / "README.md").read_text()
    assert "internal use" in card and "Determinism: none" in card and "t-1 fp" in card


@pytest.mark.parametrize(("change", "told"), [
    ("budget={usd: 1}", "needs `prices`"), ("budget={}", "names none of"), ("majority=0.5", "set `n`"), ("teacher.modle=x", "model"),
    ("filters.regex='('", "regular expression"), ("verify_code=r.yaml", "verify: python"), ("teacher.extra={n: 3}", "set by the step itself"),
    ("json_schema={type: nonsense}", "no JSON Schema"), ("prompts=nothing.jsonl", "no such file"),
])  # fmt: skip
def test_wrong_recipes_are_told_before_any_call(cli, change, told):
    cli.write("r.yaml", RECIPE.format(url="http://127.0.0.1:9/v1"))
    prompts(cli, 3)
    done = cli("distill", "r.yaml", "--set", f"steps.teach.{change}")
    assert done.returncode == 2 and told in done.stderr, done.stderr


def test_a_file_without_prompts_says_what_it_should_hold(cli):
    cli.write("r.yaml", RECIPE.format(url="http://127.0.0.1:9/v1"))
    (cli.folder / "prompts.jsonl").write_text("\n")
    done = cli("distill", "r.yaml")
    assert done.returncode == 2 and "the file holds no rows" in done.stderr, done.stderr
    assert 'help: it holds prompts, such as `{"prompt"' in done.stderr


def test_two_recipes_at_once_pay_for_a_request_once(cli, teach):
    teacher = teach(200, RECIPE.replace("timeout: 1.5", "timeout: 20"), latency=0.1, _500=0.03)
    other = (cli.folder / "r.yaml").read_text().replace("recipe: r", "recipe: s").replace("max_tokens: 20", "max_tokens: 20\n    min_kept: 2")
    (cli.folder / "s.yaml").write_text(other)
    both = [cli.start("distill", name, "--json") for name in ("r.yaml", "s.yaml")]
    told = [process.communicate(timeout=60) for process in both]
    found = [json.loads(out)["result"] for out, _ in told]
    assert [f["rows"] for f in found] == [200, 200] and sum(f["answered"] for f in found) == 200
    assert [f["from_ledger"] + f["answered"] for f in found] == [200, 200]
    assert min(f["answered"] for f in found) > 0, "they did not run side by side"
    assert set(teacher.answered().values()) == {1}


def test_five_seconds_are_five_seconds():
    """The SDK takes a client's time-out of 5 s for the library's default, and would wait 600 s."""
    from slmkit.teach.endpoint import Endpoint, Route

    for seconds in (1.5, 5.0, 120.0):
        assert Endpoint(Route("http://127.0.0.1:9/v1", None, None, seconds)).client.timeout.read == seconds
