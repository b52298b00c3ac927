"""Batches are a carrier of the same requests: resumable, within the budget, and half the price."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from slmkit.teach.ledger import records
from tests.teach.test_distill import RECIPE, prompts, result, rows, teach  # noqa: F401  a fixture

BATCH = ["--set", "steps.teach.execution.transport=batch"]
DETACHED = [*BATCH, "--set", "steps.teach.execution.detach=true"]


def card(cli) -> str:
    return (cli.folder / "artifacts/refs/r/teach/README.md").read_text()


def ledger_of(cli) -> Path:
    return next((cli.folder / "artifacts/ledgers").glob("*.jsonl"))


def booked(cli) -> Counter[str]:
    """How often the ledger has an answer, by key."""
    return Counter(r["key"] for r in records(ledger_of(cli)) if "usage" in r)


def test_a_batch_is_collected_by_the_same_command_later(cli, teach):  # noqa: F811
    teacher = teach(30, polls=2)
    said = DETACHED
    for told in ("is under way", "is under way"):
        done = cli("distill", "r.yaml", *said)
        assert done.returncode == 75 and told in done.stderr and "same command again" in done.stderr and not done.stdout
    found = result(cli("distill", "r.yaml", "--json", *said))
    assert (found["rows"], found["answered"], found["from_ledger"], found["requests"]) == (30, 30, 0, 30) and "was asked 30 times" in card(cli)
    assert teacher.calls() == {"batch": 1, "ok": 30}
    batched = rows(cli)
    again = result(cli("distill", "r.yaml", "--json", "--set", "steps.teach.min_kept=2"))  # calls: the ledger has all of it
    assert again["answered"] == 0 and rows(cli) == batched


def test_what_expired_goes_into_the_next_batch(cli, teach):  # noqa: F811
    teacher = teach(40, expired=0.15)
    found = result(cli("distill", "r.yaml", "--json", *BATCH))
    assert found["rows"] == 40 and set(teacher.answered().values()) == {1} and teacher.calls()["batch"] >= 2


def test_what_expired_of_a_detached_batch_goes_into_the_next_one(cli, teach):  # noqa: F811
    teacher = teach(20, batches={"expire_after": 12})  # and not a word of the others
    assert [cli("distill", "r.yaml", *DETACHED).returncode for _ in range(2)] == [75, 75]
    found = result(cli("distill", "r.yaml", "--json", *DETACHED))
    assert (found["rows"], found["from_ledger"] + found["answered"]) == (20, 20) and teacher.calls() == {"batch": 2, "ok": 20}


def killed_while_it_creates(cli, teacher) -> None:
    process = cli.start("distill", "r.yaml", *BATCH)
    while not teacher.calls()["batch"]:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close(), process.stderr.close()


def test_a_batch_that_was_created_just_before_a_kill_is_found_at_the_endpoint(cli, teach):  # noqa: F811
    teacher = teach(20, batches={"slow_create": 1})
    killed_while_it_creates(cli, teacher)
    assert result(cli("distill", "r.yaml", "--json", *BATCH))["rows"] == 20
    assert teacher.calls() == {"batch": 1, "ok": 20}


def test_a_creation_that_is_not_answered_in_time_is_not_tried_twice(cli, teach):  # noqa: F811
    teacher = teach(20, batches={"slow_create": 2})  # it takes longer than execution.timeout
    assert result(cli("distill", "r.yaml", "--json", *BATCH))["rows"] == 20
    assert teacher.calls() == {"batch": 1, "ok": 20}


def test_where_nobody_can_say_whether_there_is_a_batch_its_reservation_stays(cli, teach):  # noqa: F811
    teacher = teach(20, RECIPE.replace("    max_tokens", "    budget: {{requests: 35}}\n    max_tokens"), batches={"slow_create": 1, "no_list": True})
    killed_while_it_creates(cli, teacher)
    done = cli("distill", "r.yaml", *BATCH)
    assert done.returncode == 4 and "20 calls gave no answer and may have been billed" in done.stderr and "cannot be found again" in done.stderr
    assert result(cli("distill", "r.yaml", "--json", "--set", "steps.teach.budget.requests=99", *BATCH))["rows"] == 20


def test_what_a_kill_left_unsent_costs_nothing(cli, teach):  # noqa: F811
    teacher = teach(20, RECIPE.replace("    max_tokens", "    budget: {{requests: 25}}\n    max_tokens"))
    assert cli("distill", "r.yaml", *DETACHED).returncode == 75
    next(cli.folder.glob("artifacts/ledgers/*.batches/*.json")).unlink()  # the requests were written down, and no more
    found = result(cli("distill", "r.yaml", "--json", *BATCH))
    assert (found["rows"], found["answered"], found["lost_requests"]) == (20, 20, 0) and teacher.calls()["batch"] == 2


@pytest.mark.parametrize("kept", [7, 0])
def test_killed_while_answers_are_kept_it_books_each_once(cli, teach, kept):  # noqa: F811
    teacher = teach(20, RECIPE.replace("    max_tokens", "    budget: {{requests: 99}}\n    max_tokens"))
    assert cli("distill", "r.yaml", *DETACHED).returncode == 75
    store, before = cli.folder / "artifacts", cli.folder / "before"
    shutil.copytree(store, before, symlinks=True)
    sent = len(ledger_of(cli).read_bytes().splitlines())
    result(cli("distill", "r.yaml", "--json", *DETACHED))
    lines = ledger_of(cli).read_bytes().splitlines(keepends=True)
    shutil.rmtree(store)
    before.rename(store)
    ledger_of(cli).write_bytes(b"".join(lines[: sent + kept]))  # what the disk has after a kill among the answers
    found = result(cli("distill", "r.yaml", "--json", *DETACHED))
    assert (found["rows"], found["from_ledger"], found["answered"], found["lost_requests"]) == (20, kept, 20 - kept, 0)
    assert len(booked(cli)) == 20 and set(booked(cli).values()) == {1} and teacher.calls() == {"batch": 1, "ok": 20}


def test_a_torn_note_of_a_batch_is_none(cli, teach):  # noqa: F811
    teach(20)
    assert cli("distill", "r.yaml", *DETACHED).returncode == 75
    (note,) = cli.folder.glob("artifacts/ledgers/*.batches/*.json")
    note.write_bytes(note.read_bytes()[:-20])
    assert result(cli("distill", "r.yaml", "--json", *BATCH))["rows"] == 20


@pytest.mark.parametrize("status", [500, 429, 409])
def test_an_endpoint_that_cannot_just_now_ends_nothing(cli, teach, status):  # noqa: F811
    teach(5, batches={"poll_status": status})
    done = cli("distill", "r.yaml", *BATCH)
    assert done.returncode == 4 and f"{status}" in done.stderr and "everything is kept, and the same command goes on" in done.stderr, done.stderr


@pytest.mark.parametrize("where", ["upload", "create", "poll", "content"])
def test_a_page_in_place_of_the_batch_api_is_told_and_loses_nothing(cli, teach, where):  # noqa: F811
    teacher = teach(5, batches={"page": where})
    done = cli("distill", "r.yaml", *BATCH)
    assert done.returncode == 4 and "<html>" in done.stderr and "everything is kept" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert teacher.calls()["batch"] == (where != "upload")


def test_an_odd_line_of_a_batch_is_asked_again(cli, teach):  # noqa: F811
    lines = [{"error": "boom"}, {"response": [1]}, {"response": {"status_code": 200}}, {"response": {"status_code": 500, "body": "bad"}}]
    teach(6, batches={"lines": lines})
    done = cli("distill", "r.yaml", "--json", *BATCH)
    assert result(done)["rows"] + sum(result(done)["dropped"].values()) == 6, done.stderr


def test_a_batch_that_is_gone_at_the_endpoint_is_asked_anew(cli, teach):  # noqa: F811
    teacher = teach(5, batches={"poll_status": 404})
    done = cli("distill", "r.yaml", "--json", *BATCH)
    assert result(done)["rows"] == 5 and "batch-0 is not at the endpoint any more" in done.stderr and teacher.calls() == {"batch": 2, "ok": 5}


def payers(cli) -> list[int]:
    """How many answers each account paid for."""
    return sorted(Counter(r["for"] for r in records(ledger_of(cli)) if "usage" in r).values())


def test_another_step_waits_for_what_is_in_a_batch_and_pays_for_the_rest(cli, teach):  # noqa: F811
    teacher = teach(20)
    assert cli("distill", "r.yaml", *DETACHED).returncode == 75
    prompts(cli, 21)
    assert cli("distill", "r.yaml", *DETACHED).returncode == 75
    found = result(cli("distill", "r.yaml", "--json", *DETACHED))
    assert (found["rows"], found["from_ledger"], found["answered"]) == (21, 20, 1) and payers(cli) == [1, 20]
    assert teacher.calls() == {"batch": 2, "ok": 21} and not list(cli.folder.glob("artifacts/ledgers/*.batches/*"))


def test_calls_bring_only_what_is_in_no_batch_or_was_not_answered_there(cli, teach):  # noqa: F811
    teacher = teach(20, batches={"expire_after": 12})
    assert cli("distill", "r.yaml", *DETACHED).returncode == 75
    prompts(cli, 21)
    found = result(cli("distill", "r.yaml", "--json"))
    assert (found["rows"], found["from_ledger"], found["answered"]) == (21, 12, 9) and payers(cli) == [9, 12]
    assert teacher.calls() == {"batch": 1, "ok": 21} and set(teacher.answered().values()) == {1}


def test_the_same_step_by_calls_takes_its_own_batch_over(cli, teach):  # noqa: F811
    teacher = teach(20, polls=2, batches={"expire_after": 12})
    assert cli("distill", "r.yaml", *DETACHED).returncode == 75
    done = cli("distill", "r.yaml", "--json")
    found = result(done)
    assert (found["rows"], found["from_ledger"], found["answered"]) == (20, 0, 20) and "batch-0, which an earlier run handed in" in done.stderr
    assert teacher.calls() == {"batch": 1, "ok": 20}


def test_a_batch_that_a_running_step_waits_for_is_left_to_it(cli, teach):  # noqa: F811
    teacher = teach(20, polls=2)
    first = cli.start("distill", "r.yaml", *BATCH)
    while not list(cli.folder.glob("artifacts/ledgers/*.batches/*.json")):
        assert first.poll() is None
        time.sleep(0.02)
    found = result(cli("distill", "r.yaml", "--json", "--set", "steps.teach.min_kept=2", *BATCH))
    assert first.communicate()[0] is not None and first.returncode == 0
    assert (found["rows"], found["from_ledger"]) == (20, 20) and teacher.calls() == {"batch": 1, "ok": 20} and payers(cli) == [20]


def test_a_batch_is_reserved_across_runs_and_charged_at_its_share(cli, teach):  # noqa: F811
    recipe = RECIPE.replace("    max_tokens", "    budget: {{usd: 0.001}}\n    prices: {{input: 1, output: 10}}\n    max_tokens")
    teacher = teach(60, recipe)
    assert cli("distill", "r.yaml", *DETACHED).returncode == 75
    done = cli("distill", "r.yaml", *BATCH)
    assert done.returncode == 4 and "is reached" in done.stderr, done.stderr
    paid = [line for line in teacher.lines() if line["kind"] == "ok"]
    usd = 0.5 * sum(line["prompt_tokens"] + 10 * line["completion_tokens"] for line in paid) / 1e6
    assert 0.0002 < usd <= 0.001 and teacher.calls()["batch"] >= 2
    found = result(cli("distill", "r.yaml", "--json", "--set", "steps.teach.budget.usd=9", *BATCH))
    assert found["rows"] == 60 and set(teacher.answered().values()) == {1}


@pytest.mark.parametrize(("change", "told"), [("execution.detach=true", "transport: batch"), ("execution.transport=serve", "local teacher")])
def test_what_does_not_go_together_is_blocked(cli, teach, change, told):  # noqa: F811
    teach(3)
    done = cli("distill", "r.yaml", "--set", f"steps.teach.{change}")
    assert done.returncode == 4 and told in done.stderr
    assert "blocked" in json.loads(cli("plan", "r.yaml", "--json", "--set", f"steps.teach.{change}").stdout)["steps"][0]["action"]
