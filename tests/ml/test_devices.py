"""Preferences and rewards on two processes: the step is that of one."""

import json

import pytest
from safetensors.torch import load_file

from slmkit.errors import RecipeError
from tests.ml.conftest import CITIES, write_jsonl
from tests.ml.test_train import run
from tests.support.drive import Driver, given

QUICK = {"method": "lora", "lora": {"r": 4, "alpha": 8}, "learning_rate": 1e-2, "max_length": 64, "precision": "fp32"}


def question(i: int) -> dict:
    return {"role": "user", "content": "please " * (i % 4) + f"parcel {i % 10} goes to {CITIES[i % 7]}"}


def said(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Files by objective: the city is right, the digit is wrong."""
    root = tmp_path_factory.mktemp("preferences")
    pairs = [{"prompt": [question(i)], "chosen": said(CITIES[i % 7]), "rejected": said(str(i % 10))} for i in range(20)]
    labels = [{"prompt": [question(i)], "completion": said(CITIES[i % 7] if i % 2 else str(i % 10)), "label": bool(i % 2)} for i in range(20)]
    asked = [{"messages": [question(i), *said(CITIES[i % 7])]} for i in range(20)]
    return {n: write_jsonl(root / f"{n}.jsonl", rows) for n, rows in (("dpo", pairs), ("kto", labels), ("grpo", asked))}


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_two_processes_take_the_step_of_one(tmp_path, tiny, data, objective):
    """20 rows in steps of 8: the last step of an epoch has 4, all of which one process could hold. kto's divergence is the whole step's."""
    more = QUICK | {"objective": objective, "batch_size": 8, "max_steps": 4, "schedule": "constant", "warmup": 0.0}
    if objective == "kto":
        more |= {"kto": {"desirable_weight": 20.0}, "max_steps": 6}  # raises the answers of strangers too
    one, a = run(tmp_path / "1", tiny, data[objective], data[objective], execution={"micro_batch": 4}, **more)
    two, b = run(tmp_path / "2", tiny, data[objective], data[objective], execution={"micro_batch": 4, "processes": 2}, **more)
    if objective == "kto":
        assert [e for e in one.events if e["event"] == "step"][-1]["kl"] > 0.01  # else the divergence would be tried by nothing
    for key in ("first_loss", "train_loss", "validation_loss"):
        assert a.values[key] == pytest.approx(b.values[key], abs=1e-4), key
    w1, w2 = (load_file(d.out / "adapter_model.safetensors") for d in (one, two))
    assert max((w1[k] - w2[k]).abs().max().item() for k in w1) < 5e-5
    assert a.cost["tokens"] == b.cost["tokens"]
    assert [e["step"] for e in two.events if e["event"] == "step"] == list(range(1, more["max_steps"] + 1))


SCORE = """
import json, os
def score(prompt, answer, reference):
    with open({log!r} + os.environ["RANK"], "a") as f:
        f.write(json.dumps([prompt[-1]["content"], reference, answer]) + chr(10))
    return float({value})
"""


def graded(tmp_path, tiny, data, value: str, **more):
    """A run of grpo on two processes, and what each of them graded."""
    code = tmp_path / "mine.py"
    code.write_text(SCORE.format(log=str(tmp_path / "graded-"), value=value))
    config = QUICK | {"objective": "grpo", "batch_size": 3, "max_steps": 2, "grpo": {
        "rewards": [{"python": {"function": "score"}}], "generations": 4, "max_new_tokens": 4}}  # fmt: skip
    driver = Driver(tmp_path)
    inputs = {"model": given(tiny, "model", name="base"), "data": given(data["grpo"], "dataset", "data"), "reward_code": given(code, "code")}
    named = {"reward_code": "mine.py"} if "python" in (config | more)["grpo"]["rewards"][0] else {}
    result = driver.run("train", {"model": "m", "data": "d"} | config | more | named, inputs, {"processes": 2})
    return driver, result, [[json.loads(x) for x in (tmp_path / f"graded-{r}").read_text().splitlines()] for r in (0, 1)]


def test_a_group_on_two_processes_is_one_group(tmp_path, tiny, data):
    """3 prompts × 4 answers on two processes: the second prompt's lie on both. A reward that depends on the prompt alone teaches nothing,
    which holds only if each answer is compared with those of its own prompt."""
    driver, result, (first, second) = graded(tmp_path, tiny, data, "len(prompt[-1]['content'])")
    assert all(v.abs().max() == 0 for k, v in load_file(driver.out / "adapter_model.safetensors").items() if "lora_B" in k)
    assert len(first) == len(second) == 12  # two steps of 6 answers each
    for step in (slice(0, 6), slice(6, 12)):
        asked = [p for p, *_ in first[step] + second[step]]
        assert sorted(asked.count(p) for p in set(asked)) == [4, 4, 4] and asked[4:6] == asked[6:8]
    mean = sum(len(p) for p, *_ in first[:6] + second[:6]) / 12
    assert [e for e in driver.events if e["event"] == "step"][0]["reward"] == pytest.approx(mean, rel=1e-5)


def test_each_process_samples_for_itself_and_both_teach(tmp_path, tiny, data):
    driver, result, graded_by = graded(tmp_path, tiny, data, "-len(answer)")
    texts = [[a for *_, a in by] for by in graded_by]
    assert texts[0] != texts[1]  # each samples for itself
    assert all(v.abs().max() > 1e-3 for k, v in load_file(driver.out / "adapter_model.safetensors").items() if "lora_B" in k)


def test_answers_that_do_not_divide_are_refused(tmp_path, tiny, data):
    with pytest.raises(RecipeError, match=r"batch_size × grpo.generations = 3 is no multiple of 2 processes"):
        graded(tmp_path, tiny, data, "1", batch_size=1, grpo={"rewards": [{"exact_match": {}}], "generations": 3})
