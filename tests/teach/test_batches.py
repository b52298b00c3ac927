"""Batches are a carrier of the same requests: resumable, within the budget, and half the price."""

from __future__ import annotations

import json

import pytest

from tests.teach.test_distill import RECIPE, result, rows, teach  # noqa: F401  a fixture

BATCH = ["--set", "steps.teach.execution.transport=batch"]


def test_a_batch_is_collected_by_the_same_command_later(cli, teach):  # noqa: F811
    teacher = teach(30, polls=2)
    said = [*BATCH, "--set", "steps.teach.execution.detach=true"]
    for told in ("is under way", "is under way"):
        done = cli("distill", "r.yaml", *said)
        assert done.returncode == 75 and told in done.stderr and "same command again" in done.stderr and not done.stdout
    found = result(cli("distill", "r.yaml", "--json", *said))
    assert (found["rows"], found["answered"]) == (30, 30) and teacher.calls() == {"batch": 1, "ok": 30}
    batched = rows(cli)
    again = result(cli("distill", "r.yaml", "--json", "--set", "steps.teach.min_kept=2"))  # calls: the ledger has all of it
    assert again["answered"] == 0 and rows(cli) == batched


def test_what_expired_goes_into_the_next_batch(cli, teach):  # noqa: F811
    teacher = teach(40, expired=0.15)
    found = result(cli("distill", "r.yaml", "--json", *BATCH))
    assert found["rows"] == 40 and set(teacher.answered().values()) == {1} and teacher.calls()["batch"] >= 2


def test_a_batch_is_reserved_across_runs_and_charged_at_its_share(cli, teach):  # noqa: F811
    recipe = RECIPE.replace("    max_tokens", "    budget: {{usd: 0.001}}\n    prices: {{input: 1, output: 10}}\n    max_tokens")
    teacher = teach(60, recipe)
    said = [*BATCH, "--set", "steps.teach.execution.detach=true"]
    assert cli("distill", "r.yaml", *said).returncode == 75
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
