"""What an endpoint, or a model, does that it should not: counts left out, more tokens than asked for, half a character, the key said again."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from slmkit.errors import StepFailed
from slmkit.teach import dataset
from slmkit.teach.budget import Budget, Limits, Prices, most_input
from slmkit.teach.desk import Desk
from slmkit.teach.filters import Filters
from slmkit.teach.job import Made
from slmkit.teach.ledger import Ledger
from slmkit.teach.modes import answer as answering
from slmkit.teach.modes import preference
from slmkit.teach.request import Answer, Request, answer


def request(text: str = "q", most: int = 20) -> Request:
    return Request({"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": most})


def said(usage: object) -> Answer:
    return answer({"choices": [{"message": {"content": "a"}}], "usage": usage})


@pytest.mark.parametrize(("usage", "counted"), [
    ({"prompt_tokens": 7, "completion_tokens": 3}, {"input": 7, "output": 3, "cached": 0}),
    ({"total_tokens": 10}, {"input": 0, "output": 10, "cached": 0}),
    ({"total_tokens": 10, "prompt_tokens": 7}, {"input": 7, "output": 3, "cached": 0}),
    ({"prompt_tokens": 7}, {"input": 7, "output": 0, "cached": 0, "uncounted": 1}),
    ({"prompt_tokens": "n/a", "completion_tokens": None}, {"input": 0, "output": 0, "cached": 0, "uncounted": 1}),
    (None, {"input": 0, "output": 0, "cached": 0, "uncounted": 1}), ([], {"input": 0, "output": 0, "cached": 0, "uncounted": 1})])  # fmt: skip
def test_what_an_endpoint_counts(usage, counted):
    assert said(usage).usage == counted


def test_under_a_budget_what_nobody_counted_is_booked_at_the_most_it_can_be(tmp_path):
    desk = Desk(Ledger(tmp_path / "l.jsonl", "me"), Budget(Limits(tokens=300), Prices(1, 10)))
    one = request()
    held = desk.budget.most(one)
    desk.reserve(one, held)
    desk.keep(one, said(None), held)
    most = most_input(one) + 20
    assert desk.uncounted == 1 and desk.budget.spent.tokens == most and desk.budget.spent.usd == pytest.approx((most_input(one) + 200) / 1e6)
    assert desk.budget.fits(desk.budget.most(request("x" * 300))) == "never"
    assert Ledger(tmp_path / "l.jsonl", "me").spent[0].tokens == most, "a run that goes on knows it too"


def test_more_output_than_was_asked_for_is_learned_from_the_first_answer():
    budget = Budget(Limits(tokens=2000), None)
    held = budget.most(request())
    budget.reserve(held)
    budget.settle(held, {"input": 5, "output": 500})
    assert budget.most(request()).output == 500 and budget.fits(budget.most(request("x" * 1500))) == "never"


def test_what_is_learned_does_not_add_up_over_requests_in_flight():
    """Each was held before the others came back: what they had in excess is the same excess."""
    budget = Budget(Limits(tokens=10**6), None)
    plain = budget.most(request())
    flying = [budget.most(request()) for _ in range(5)]
    for held in flying:
        budget.reserve(held)
    for held in flying:
        budget.settle(held, {"input": plain.input + 30, "output": 500})
    assert (budget.most(request()).input, budget.most(request()).output) == (plain.input + 30, 500)


def test_a_model_that_runs_here_keeps_to_the_budget(cli):
    (cli.folder / "p.jsonl").write_text("".join(json.dumps({"prompt": f"note {i}"}) + "\n" for i in range(9)))
    step = "{kind: distill, prompts: p.jsonl, teacher: demo:student, max_tokens: 4, budget: {requests: 5}, execution: {concurrency: 4}}"
    cli.write("r.yaml", f"recipe: r\nsteps:\n  teach: {step}\n")
    done = cli("distill", "r.yaml")
    assert done.returncode == 4 and "5 of 9 requests are answered" in done.stderr, done.stderr
    book = next((cli.folder / "artifacts/ledgers").glob("*.jsonl")).read_text()
    assert book.count('"finish":') == 5


def made(text: str, finish: str = "stop", **more) -> Made:
    return Made("p:1", {"messages": [{"role": "assistant", "content": text}]}, text, "q", finish=finish, **more)


def test_half_a_character_is_dropped_and_the_rest_is_written(tmp_path):
    rows = [made("fine"), made("half \ud83d"), made("beside", also=(("reasoning", {"messages": "\udc00"}),)), made("🙂")]
    written = dataset.write(tmp_path, rows, Filters([]), None, 0)
    assert (written.rows, written.dropped, written.made) == (2, {"finished": 2}, 4)
    kept = [json.loads(line)["messages"][0]["content"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert kept == ["fine", "🙂"]
    dropped = [json.loads(line.replace("\\ud83d", "?").replace("\\udc00", "?")) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert [d["filter"] for d in dropped] == ["finished"] * 2 and "half a character" in dropped[0]["reason"]


def test_only_whole_answers_vote():
    yes = answering.majority([made("Yes", "length"), made("Yes"), made("yes"), made("No")], 0.5)
    assert (yes.answer, yes.finish, yes.why) == ("Yes", "stop", None)
    cut = answering.majority([made("No", "content_filter")] * 3 + [made("Yes")], 0.5)
    assert cut.answer == "Yes" and "no majority" in cut.why


def test_an_answer_that_a_filter_cut_is_in_no_pair():
    ends = ["content_filter", "stop", "length", "stop"]
    answers = [Answer({"role": "assistant", "content": f"a{i}"}, end, {"input": 1, "output": 1}) for i, end in enumerate(ends)]
    job = SimpleNamespace(config=SimpleNamespace(n=4), schema=None, asked=lambda prompt: [], request=lambda messages, sample, **_: sample,
                          found=lambda sample: (answers[sample], ""), said=lambda answer: (answer.text, {}))  # fmt: skip
    found, why = preference._group(job, None)
    assert found == ["a1", "a3"] and "cut" in why


def test_a_refusal_is_no_answer():
    """OpenAI leaves the content out then; as an empty answer nobody would know why."""
    found = answer({"choices": [{"message": {"content": None, "refusal": "I cannot help with that."}, "finish_reason": "stop"}]})
    assert (found.text, found.finish) == ("I cannot help with that.", "refusal")


def test_validation_does_not_take_all_rows(tmp_path):
    written = dataset.write(tmp_path, [made("a"), made("b")], Filters([]), 0.999, 0)
    assert written.held_out == 2
    with pytest.raises(StepFailed, match="all 2 rows were drawn into `validation`"):
        dataset.enough(written, 1)


def test_a_password_in_an_address_is_refused_and_not_shown(cli):
    cli.write("r.yaml", "recipe: r\nsteps:\n  teach: {kind: distill, prompts: p.jsonl, teacher: {model: m, base_url: 'http://me:sekret99@localhost/v1'}}\n")
    done = cli("plan", "r.yaml")
    assert done.returncode == 2 and "r.yaml:3:" in done.stderr and "a literal secret" in done.stderr and "sekret99" not in done.stderr
