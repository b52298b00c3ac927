"""A judge among grpo's rewards: answers are matched by id in any order, bad verdicts are asked for twice, nothing is paid twice, and a
noisy one teaches."""

import dataclasses
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerControl, TrainerState

from slmkit.cli.verbs import load_and_plan
from slmkit.data import rows
from slmkit.errors import CannotRun, StepFailed
from slmkit.ml import answers, judge, models, pairs
from slmkit.ml.objectives import grpo as objective
from slmkit.steps import train as step
from slmkit.steps._objectives import Judge
from slmkit.steps._step import Context
from slmkit.teach import verdicts
from slmkit.teach.desk import OverBudget
from tests.ml.test_objectives import QUICK, Tried, data
from tests.support import judges, teacher
from tests.support.drive import given

ASKED = ({"role": "user", "content": "Say something in small letters."},)
TEXTS = ("ABCD", "abCD", "abcd", "abcD")


@pytest.fixture
def serve(tmp_path):
    """Start a judge by the name of its rule."""
    running = []

    def start(rule: str) -> teacher.Teacher:
        running.append(teacher.start(tmp_path / "calls", mind=rule))
        return running[-1]

    yield start
    for one in running:
        one.stop()


def block(url: str, **more) -> dict:
    return {"rubric": "Small letters are good.", "teacher": {"model": "t", "base_url": url}, "consistency": 0.0} | more


def asked(root: Path, url: str, seed: int = 0, name: str = "judge", **more) -> judge.Judge:
    (root / "state").mkdir(exist_ok=True)
    nothing = lambda *a, **k: None  # noqa: E731
    ctx = Context(root, root / "state", {}, step.Execution(), nothing, nothing, lambda name: "", ledgers=root / "ledgers")
    return judge.Judge(ctx, Judge(**block(url, **more)), name, seed, "grpo.rewards.0.judge")


def group(*texts: str, say: str = "") -> judge.Group:
    return judge.Group(({"role": "user", "content": ASKED[0]["content"] + say},), texts)


def test_scores_go_to_the_answers_they_are_for(tmp_path, serve):
    running = serve("fair")
    one = asked(tmp_path, running.url)
    groups = [group(*TEXTS, say=str(i)) for i in range(12)]
    found, counts = one.scores(groups)
    assert all(scores == pytest.approx([judges.quality(t) for t in TEXTS], abs=1e-3) for scores in found)
    assert counts["judged"] == 12 and running.calls() == {"ok": 12}
    orders = {tuple(one._request(judge._digest(g), g, sorted(TEXTS), judge.FIRST)[1]) for g in groups}
    assert len(orders) > 4  # shown in many orders


def test_answers_that_read_the_same_are_shown_once_and_alike_groups_cost_nothing(tmp_path, serve):
    running = serve("fair")
    one = asked(tmp_path, running.url)
    found, counts = one.scores([group("abcd", "ABCD", "abcd"), group("x", "x")])
    assert found == [[1.0, 0.0, 1.0], [0.0, 0.0]] and counts["alike"] == 1 and running.calls() == {"ok": 1}
    again, _ = one.scores([group("ABCD", "abcd", "abcd")])  # the same answers in another arrangement
    assert again == [[0.0, 1.0, 1.0]] and running.calls() == {"ok": 1}
    other = asked(tmp_path, running.url, name="other")
    assert other.scores([group("abcd", "ABCD")])[0] == [[1.0, 0.0]] and running.calls() == {"ok": 1}
    assert other.told("other")["other_from_ledger"] == 1 and other.told("other")["other_requests"] == 0


def test_a_short_verdict_is_asked_for_again_once(tmp_path, serve):
    running = serve("short_at_first")
    found, counts = asked(tmp_path, running.url).scores([group(*TEXTS)])
    assert found[0] == pytest.approx([judges.quality(t) for t in TEXTS], abs=1e-3)
    assert counts["retried"] == 1 and counts["dropped"] == 0 and running.calls() == {"ok": 2} and len(running.answered()) == 2


def test_a_group_without_a_verdict_is_dropped_and_teaches_nothing(tmp_path, serve):
    running = serve("garbled")
    found, counts = asked(tmp_path, running.url).scores([group(*TEXTS)])
    assert len(set(found[0])) == 1 and counts["dropped"] == counts["retried"] == 1 and running.calls() == {"ok": 2}
    assert verdicts.asked(step.Grpo(rewards=[{"judge": block(running.url)}]), 1, 9)["verdicts_at_most"] == 2, "plan counts on it"


def test_a_judge_who_gives_no_verdict_is_left_after_eight_groups(tmp_path, serve):
    groups = [group(*TEXTS, say=str(i)) for i in range(40)]
    running = serve("garbled")
    with pytest.raises(StepFailed, match="judge t gave no verdict that can be read on any of the first 8 groups.*the reply holds no JSON") as caught:
        asked(tmp_path, running.url, consistency=1.0).scores(groups)
    assert caught.value.key == "grpo.rewards.0.judge" and "no_verdict" in caught.value.mend and running.calls() == {"ok": 16}, "each of 8 twice, the other 32 never"
    slowly = asked(tmp_path, running.url, name="slowly")
    slowly.scores(groups[:5])
    with pytest.raises(StepFailed, match="first 8 groups"):
        slowly.scores(groups[5:20])
    assert running.calls() == {"ok": 16} and slowly.told("slowly")["slowly_from_ledger"] == 16, "what was paid is kept"


def test_a_judge_who_refuses_everything_is_left_with_its_reason(tmp_path):
    running = teacher.start(tmp_path / "calls", refuse="ABCD")
    try:
        with pytest.raises(StepFailed, match="first 8 groups of answers; the last reason: 400: no$") as caught:
            asked(tmp_path, running.url).scores([group(*TEXTS, say=str(i)) for i in range(40)])
        assert "no_verdict" not in caught.value.mend and not running.calls().get("ok")
    finally:
        running.stop()


def test_a_judge_who_gave_one_verdict_may_fail_at_others(tmp_path, serve):
    running = serve("tires")
    found, counts = asked(tmp_path, running.url).scores([group(*TEXTS, say=str(i)) for i in range(20)])
    assert (counts["judged"], counts["dropped"]) == (3, 17) and running.calls() == {"ok": 3 + 2 * 17} and len(found) == 20


def test_what_has_no_verdict_is_not_judged_in_two_orders(tmp_path, serve):
    """Of the eight that are asked about first, three have one: a second order of these, and of the other twelve, which are asked about at once."""
    running = serve("tires")
    asked(tmp_path, running.url, consistency=1.0).scores([group(*TEXTS, say=str(i)) for i in range(20)])
    assert running.calls() == {"ok": (8 + 5) + (12 + 3 + 12) + 12}


@pytest.mark.parametrize(("rule", "consistent", "earned"), [("fair", 1.0, [0.0, 0.5, 1.0, 0.75]), ("likes_the_first", 0.0, [0.75] * 4)])
def test_two_orders_tell_how_far_a_judge_goes_by_place(tmp_path, serve, rule, consistent, earned):
    running = serve(rule)
    found, counts = asked(tmp_path, running.url, consistency=1.0).scores([group(*TEXTS)])
    assert found[0] == pytest.approx(earned, abs=1e-3)  # the mean of both: nobody wins by place
    assert counts["twice"] == 1 and counts["pairs"] == 6 and running.calls() == {"ok": 2}
    assert judge.summary("judge", counts)["judge_consistency"] == consistent


def test_a_share_of_the_groups_is_judged_twice(tmp_path, serve):
    _, counts = asked(tmp_path, serve("fair").url, consistency=0.3).scores([group(*TEXTS, say=str(i)) for i in range(100)])
    assert 18 <= counts["twice"] <= 42 and counts["judged"] == 100


def test_the_budget_holds_and_what_was_judged_is_kept(tmp_path, serve):
    running = serve("fair")
    groups = [group(*TEXTS, say=str(i)) for i in range(5)]
    with pytest.raises(OverBudget, match="the budget"):
        asked(tmp_path, running.url, budget={"requests": 3}).scores(groups)
    assert running.calls() == {"ok": 3}
    asked(tmp_path, running.url, budget={"requests": 5}).scores(groups)
    assert running.calls() == {"ok": 5}


def test_a_judge_that_is_not_there_is_told(tmp_path):
    with pytest.raises(CannotRun, match="cannot connect"):
        asked(tmp_path, "http://127.0.0.1:9/v1").scores([group(*TEXTS)])


def bare(n: int) -> rows.Rows:
    """Prompts without a reference."""
    return rows.of("rows.jsonl", "messages", [dataclasses.replace(r, messages=r.messages[:1]) for r in data("messages", n)])


def test_training_with_a_judge_says_what_it_cost_and_pays_once(tmp_path, tiny, serve):
    running = serve("fair")
    grpo = {"rewards": [{"judge": block(running.url, consistency=0.5, prices={"input": 1.0, "output": 1.0})}], "generations": 4, "max_new_tokens": 4}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = Tried(tmp_path / "a", tiny, "grpo", given_rows=bare(20), grpo=grpo, max_steps=3)
    values, calls = one.values, running.calls()["ok"]
    assert values["judge_judged"] + values["judge_alike"] == 12 and values["judge_dropped"] == 0
    assert 0 < values["judge_twice"] < 12 and values["judge_consistency"] == 1 and 0 < values["reward_of_judge"] <= 1
    assert values["judge_requests"] == calls and values["judge_tokens"] > 0 and values["judge_usd"] > 0
    assert one.result.determinism == "none"
    said = verdicts.asked(step.Grpo(**grpo), 12, 40)
    assert said["verdicts"] == 18 and values["judge_judged"] + values["judge_twice"] <= said["verdicts_at_most"] == 36
    assert calls <= 36 and values["judge_tokens"] < said["verdict_tokens_at_most"]
    assert values["judge_usd"] < float(said["verdict_cost"].removeprefix("at most ~").removesuffix(" USD for verdicts"))
    (tmp_path / "b/ledgers").symlink_to(tmp_path / "a/ledgers")
    two = Tried(tmp_path / "b", tiny, "grpo", given_rows=bare(20), grpo=grpo, max_steps=3)
    assert two.bytes == one.bytes and running.calls()["ok"] == calls and two.values["judge_requests"] == 0


def test_training_with_a_judge_who_tires_is_warned_of(tmp_path, tiny, serve):
    grpo = {"rewards": [{"judge": block(serve("tires").url)}], "generations": 4, "max_new_tokens": 4}
    tried = Tried(tmp_path, tiny, "grpo", given_rows=bare(20), grpo=grpo, max_steps=3)
    lost = tried.values["judge_dropped"]
    assert tried.values["judge_judged"] == 3 and lost > 3
    assert f"no verdict that can be read on {lost} of {lost + 3} groups of answers" in str(tried.named("warning"))
    assert [e["reply"] for e in tried.named("no_verdict")] == ["They are all good in their own way."] * 3


def test_rewards_that_are_the_same_are_told_from_verdicts_that_are_not_there(tmp_path):
    """What the trainer logged of twenty steps in which nothing was to learn: with a judge that tired, and with one that finds all alike."""
    one = asked(tmp_path, "http://127.0.0.1:9/v1")

    def ended(judged: int, dropped: int) -> str:
        counts = {f"judge/judge/{k}": 0 for k in judge.COUNTS} | {"judge/judge/judged": judged, "judge/judge/dropped": dropped}
        history = [{"frac_reward_zero_std": 1.0, "reward": 0.0, **counts} for _ in range(objective.ALIKE)]
        with pytest.raises(StepFailed) as caught:
            objective.Alike(None, None, {"judge": one}).on_log(None, TrainerState(log_history=history), TrainerControl())
        return f"{caught.value.key}: {caught.value}"

    assert "judge: the judge t gave no verdict that can be read on 60 of 80 groups of answers in 20 steps" in ended(1, 3)
    assert "None: all rewards were the same within every group" in ended(3, 1)


def test_a_short_training_without_a_verdict_is_no_training(tmp_path, tiny, serve):
    said = {"rewards": [{"exact_match": {}}, {"judge": block(serve("garbled").url)}], "generations": 4, "max_new_tokens": 4}
    with pytest.raises(StepFailed, match="no verdict that can be read on any of the .* groups") as caught:
        Tried(tmp_path, tiny, "grpo", grpo=said, max_steps=1)
    assert caught.value.key == "grpo.rewards.1.judge"


def passed(folder: Path, prompts: rows.Rows) -> float:
    """The share of greedy answers that are mostly small letters."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = pairs.prompts(prompts, tokenizer, max_length=64).prompts
    written = answers.greedy(model, [p.prompt_ids for p in found], models.end_ids(given(folder, "model"), tokenizer), 3, 4, torch.device("cpu"))
    texts = tokenizer.batch_decode(written, skip_special_tokens=True)
    return sum(judges.quality(t) >= 0.9 for t in texts) / len(texts)


def test_a_judge_who_errs_in_every_fifth_reply_still_teaches(tmp_path, tiny, serve):
    grpo = {"rewards": [{"judge": block(serve("flips").url)}], "generations": 8, "max_new_tokens": 4}
    more = {"method": "full", "lora": None, "learning_rate": 1e-3, "schedule": "constant", "batch_size": 8, "max_steps": 60}
    tried = Tried(tmp_path, tiny, "grpo", given_rows=bare(40), grpo=grpo, **more)
    before, after = passed(tiny, bare(40)), passed(tried.out, bare(40))
    assert before < 0.5 and after >= 0.8, (before, after)


@pytest.mark.parametrize(("more", "told"), [
    ({"budget": {}}, "names none of"), ({"budget": {"usd": 1.0}}, "needs `prices`"), ({"rubric": ""}, "at least 1"),
    ({"consistency": 2.0}, "less than or"),
])  # fmt: skip
def test_what_a_judge_cannot_be_told(more, told):
    with pytest.raises(ValidationError, match=told):
        step.Config(**QUICK | {"objective": "grpo", "grpo": {"rewards": [{"judge": block("http://x/v1", **more)}]}})


PLANNED = """
recipe: r
steps:
  sft: {kind: train, model: "demo:student", data: rows.jsonl, objective: grpo, max_steps: 10, batch_size: 8, grpo: {
    generations: 4, max_new_tokens: 16, rewards: [{judge: {rubric: short, teacher: {model: t}, max_tokens: 100, prices: {input: 1, output: 10}}}]}}
"""


def test_plan_says_what_a_judge_may_be_asked(cli):
    """80 groups, a tenth of them twice, each verdict at most twice; 4 x 16 tokens of answers and 100 of a verdict each, at most."""
    (cli.folder / "rows.jsonl").write_text('{"prompt": "please say it", "completion": "it"}\n' * 20)
    cli.write("r.yaml", PLANNED)
    home = cli.folder / "artifacts"

    def planned(more: str = "", answers: int = 16) -> dict:
        cli.write("r.yaml", PLANNED.replace("max_tokens: 100", f"max_tokens: 100{more}").replace("tokens: 16", f"tokens: {answers}"))
        return load_and_plan(cli.folder / "r.yaml", None, None, [], [], home, False)[0].rows[0].estimate

    said = planned()
    assert (said["steps"], said["verdicts"], said["verdicts_at_most"]) == (10, 88, 240) and "beyond" not in said
    most = said["verdict_tokens_at_most"]
    assert 240 * (64 + 100 + 150) < most < 240 * (64 + 100 + 400) and planned(answers=20)["verdict_tokens_at_most"] == most + 240 * 4 * 4
    usd = float(said["verdict_cost"].removeprefix("at most ~").removesuffix(" USD for verdicts"))
    assert usd == pytest.approx((most - 24000) / 1e6 + 24000 * 10 / 1e6, rel=0.02)
    tried = {"requests: 240": None, "requests: 239": "perhaps more than the judge's budget of 239 requests", "requests: 80": "more than the judge's",
             f"tokens: {most}": None, f"tokens: {most - 1}": "perhaps more than the judge's budget of", "usd: 0.1": "perhaps more than"}  # fmt: skip
    for budget, told in tried.items():
        beyond = planned(f", budget: {{{budget}}}").get("beyond")
        assert beyond.startswith(told) if told else beyond is None, (budget, beyond)
    assert (planned(", consistency: 0")["verdicts"], planned(", consistency: 0")["verdicts_at_most"]) == (80, 160)


def test_a_judge_measures_no_answer_alone():
    config = QUICK | {"objective": "grpo", "validation": "v", "grpo": {"rewards": [{"judge": block("http://x/v1")}]}}
    with pytest.raises(ValidationError, match="needs a reward besides `judge`"):
        step.Config(**config)
    assert step.Config(**config | {"grpo": {"rewards": [*config["grpo"]["rewards"], {"exact_match": {}}]}})
    judge = block("http://x/v1", teacher={"model": "t", "api_key_env": "NO_KEY"})
    one = step.Config(**config | {"validation": None, "grpo": {"rewards": [{"judge": judge}]}})
    assert "NO_KEY is not set" in step.blocked(one, step.Execution())
