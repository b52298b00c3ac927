"""What plan says of a teacher: the calls that are left, what they will cost, and nothing asked or written."""

from __future__ import annotations

import json

from tests.teach.test_distill import RECIPE, prompts, result, teach  # noqa: F401  a fixture

PRICED = RECIPE.replace("    max_tokens", "    prices: {{input: 1, output: 10}}\n    max_tokens")


def estimate(cli, *words) -> dict:
    done = cli("plan", "r.yaml", "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["steps"][0]["estimate"]


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


def test_a_large_file_is_sampled(cli, teach):  # noqa: F811
    teach(5000, PRICED)
    assert estimate(cli)["calls"] == 5000
