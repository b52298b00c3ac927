"""What plan says of a teacher: the calls that are left, what they will cost, and nothing asked or written."""

from __future__ import annotations

import json
from pathlib import Path

from slmkit.cli.verbs import load_and_plan
from slmkit.teach.ledger import Ledger, file_of, identity
from slmkit.teach.request import Answer, Request
from tests.teach.test_batches import BATCH, DETACHED
from tests.teach.test_distill import RECIPE, prompts, result, teach  # noqa: F401  a fixture
from tests.teach.test_modes import school  # noqa: F401  a fixture

PRICED = RECIPE.replace("    max_tokens", "    prices: {{input: 1, output: 10}}\n    max_tokens")
LIMITED = PRICED.replace("    prices", "    budget: {{requests: 12}}\n    prices")


def estimate(cli, *words) -> dict:
    done = cli("plan", "r.yaml", "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["steps"][0]["estimate"]


def planned(cli, *sets: str) -> dict:
    """The same, in this process."""
    said = [s for s in sets if s != "--set"]
    made, _, _ = load_and_plan(cli.folder / "r.yaml", None, None, said, [], cli.folder / "artifacts", False)
    return made.rows[0].estimate


def test_plan_counts_the_calls_that_are_left_and_asks_nothing(cli, teach):  # noqa: F811
    teacher = teach(40, PRICED)
    first = estimate(cli)
    assert first["calls"] == 40 and "tokens_at_most" in first and first["cost"].startswith("at most") and "answers_known" not in first
    assert not teacher.calls() and not (cli.folder / "artifacts/ledgers").exists()
    found = result(cli("distill", "r.yaml", "--json"))
    prompts(cli, 100)
    left = estimate(cli)
    assert (left["calls"], left["answers_known"]) == (60, 40)
    assert 0.5 < left["tokens"] / (1.5 * found["tokens"]) < 2  # 60 calls like the 40 before them
    assert 0.5 < float(left["cost"].strip("~ USD")) / (1.5 * found["usd"]) < 2
    assert teacher.calls() == {"ok": 40}


def test_plan_counts_samples_and_says_when_the_budget_is_too_small(cli, teach):  # noqa: F811
    teach(10, PRICED)
    said = estimate(cli, "--set", "steps.teach.n=3", "--set", "steps.teach.budget.usd=0.000001")
    assert said["calls"] == 30 and "budget" in said["beyond"]
    assert estimate(cli, "--set", "steps.teach.budget.requests=9")["beyond"] == "more than the budget of 9 requests"
    assert "beyond" not in estimate(cli, "--set", "steps.teach.budget.requests=10")


def test_in_a_large_file_the_new_prompts_are_counted_wherever_they_are(cli, teach):  # noqa: F811
    teacher = teach(2100, PRICED)
    book = Ledger(file_of(cli.folder / "artifacts/ledgers", identity(teacher.url, "t")))
    for i in range(2050):
        asked = {"model": "t", "messages": [{"role": "user", "content": f"question {i}"}], "max_tokens": 20}
        book.add(Request(asked), Answer({"role": "assistant", "content": "a"}, "stop", {"input": 5, "output": 3, "cached": 0}), None)
    book.close()
    said = estimate(cli)
    assert (said["calls"], said["answers_known"]) == (50, 2050) and 50 * 5 < said["tokens"] < 50 * 20


def kept(cli) -> dict[Path, bytes]:
    """All of the store but the cache of hashes, which planning may write."""
    return {p: p.read_bytes() for p in (cli.folder / "artifacts").rglob("*") if p.is_file() and p.name != "digests.json"}


def test_what_earlier_attempts_spent_is_taken_off_the_budget(cli, teach):  # noqa: F811
    teacher = teach(20, LIMITED)
    assert "spent" not in planned(cli)
    done = cli("distill", "r.yaml")
    assert done.returncode == 4 and "12 of 20 requests are answered" in done.stderr and "come after" not in done.stderr
    paid, before = [line for line in teacher.lines() if line["kind"] == "ok"], kept(cli)
    tokens = sum(line["prompt_tokens"] + line["completion_tokens"] for line in paid)
    usd = sum(line["prompt_tokens"] + 10 * line["completion_tokens"] for line in paid) / 1e6
    said = planned(cli)
    assert (said["calls"], said["answers_known"]) == (8, 12)
    assert said["spent"] == f"spent by earlier attempts: 12 requests, {tokens} tokens, {usd:.4f} USD"
    assert said["beyond"] == "more than the 0 left of the budget of 12 requests"
    tried = {"requests: 19": "the 7 left of the budget of 19 requests", "requests: 20": None, f"tokens: {tokens + 20}": "the 20 left",
             f"tokens: {3 * tokens}": None, f"usd: {1.1 * usd:.6f}": "left of the budget of", f"usd: {3 * usd:.6f}": None}  # fmt: skip
    for limit, left in tried.items():
        beyond = planned(cli, "--set", f"steps.teach.budget={{{limit}}}").get("beyond")
        assert (left in beyond) if left else beyond is None, (limit, beyond)
    assert kept(cli) == before, "planning changes nothing"


def test_requests_in_batches_under_way_are_no_calls(cli, teach):  # noqa: F811
    teacher = teach(20, LIMITED)
    assert cli("distill", "r.yaml", *DETACHED).returncode == 75
    before = kept(cli)
    said = planned(cli, *BATCH)  # 12 were handed in
    assert (said["calls"], said["in_batches_under_way"], said["beyond"]) == (8, 12, "more than the 0 left of the budget of 12 requests")
    assert "spent" not in said and "answers_known" not in said
    assert "beyond" not in planned(cli, *BATCH, "--set", "steps.teach.budget.requests=20")
    other = planned(cli, "--set", "steps.teach.min_kept=2")  # another step, by calls: it waits for them, and they are not its to pay
    assert (other["calls"], other["in_batches_under_way"]) == (8, 12) and "beyond" not in other
    assert kept(cli) == before and teacher.calls() == {"batch": 1}
    next(cli.folder.glob("artifacts/ledgers/*.batches/*.json")).unlink()  # the requests were written down, and never sent
    said = planned(cli, *BATCH, "--set", "steps.teach.budget.requests=20")
    assert said["calls"] == 20 and not {"in_batches_under_way", "beyond", "spent"} & set(said)


def test_an_altered_ledger_is_told(cli, teach):  # noqa: F811
    teach(5, PRICED)
    result(cli("distill", "r.yaml", "--json"))
    book = next((cli.folder / "artifacts/ledgers").glob("*.jsonl"))
    lines = book.read_text().splitlines(keepends=True)
    book.write_text("".join([*lines[:2], lines[2].replace("echo", "ECHO"), *lines[3:]]))
    prompts(cli, 6)
    assert planned(cli)["refused"].startswith(f"{book}: line 3 was changed after it was written: it will be refused (restore the file")
    assert "line 3 was changed" in cli("plan", "r.yaml").stdout


def test_what_cannot_even_be_asked_is_told(cli, teach):  # noqa: F811
    teach(2, PRICED)
    assert "it will fail: Out of range float" in planned(cli, "--set", "steps.teach.teacher.extra={x: .nan}")["refused"]
    (cli.folder / "own.jinja").write_text("{{ row.absent }}")
    assert planned(cli, "--set", "steps.teach.template=own.jinja") == {}, "of what does not fit the step speaks itself, before it asks anything"


def test_verdicts_that_come_after_are_told_by_plan_and_by_the_budget(school):  # noqa: F811
    one = school("critic")
    one.rows("prompts.jsonl", [{"prompt": "x" * n} for n in range(1, 9)])
    one.write(prompts="prompts.jsonl", judge={"rubric": "the number"}, filters={"min_score": 1}, budget={"requests": 5})
    done = one.cli("distill", "r.yaml")
    assert done.returncode == 4 and "5 of 8 requests are answered" in done.stderr and "up to 8 verdicts come after them" in done.stderr
    assert "without what comes after: raise `budget`" in done.stderr
    more = ["--set", "steps.teach.budget.requests=11"]
    said = planned(one.cli, *more)
    assert (said["calls"], said["verdicts_at_most"]) == (3, 8)
    assert said["beyond"] == "perhaps, with the verdicts, more than the 6 left of the budget of 11 requests"
    done = one.cli("distill", "r.yaml", *more)
    assert done.returncode == 4 and "11 of 16 requests are answered" in done.stderr and "after" not in done.stderr, done.stderr
    said = planned(one.cli, *more)
    assert (said["calls"], said["answers_known"], said["verdicts_at_most"]) == (0, 8, 5), "of the verdicts three are here"
    assert said["beyond"] == "more than the 0 left of the budget of 11 requests", "all of these will be asked for"
    enough = ["--set", "steps.teach.budget.requests=16"]
    assert "beyond" not in planned(one.cli, *enough)
    found = one.again(*enough)
    assert (found["requests"], found["from_ledger"], found["answered"]) == (16, 11, 5)
