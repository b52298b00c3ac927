"""dpo, kto, grpo and gkd: what they learn, what they refuse, and that a stopped run ends in the same bytes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from slmkit.data import rows, xray
from slmkit.errors import DataError, RecipeError, StepFailed
from slmkit.ml import checkpoints, training
from slmkit.steps import train as step
from slmkit.steps._step import Context
from tests.ml.conftest import CITIES
from tests.support.drive import given

QUICK = {"model": "m", "data": "d", "max_steps": 6, "batch_size": 4, "max_length": 64, "learning_rate": 3e-3, "precision": "fp32",
         "method": "lora", "lora": {"r": 4, "alpha": 8}}  # fmt: skip
EXACT = {"rewards": [{"exact_match": {}}, {"length": {"max": 2, "unit": "characters"}}], "generations": 4, "max_new_tokens": 4}


def said(text: str) -> tuple[dict, ...]:
    return ({"role": "assistant", "content": text},)


def asked(i: int) -> tuple[dict, ...]:
    return ({"role": "user", "content": "please " * (i % 4) + f"parcel {i % 10} goes to {CITIES[i % 7]}"},)


def data(form: str, n: int = 20) -> rows.Rows:
    """The city is right, the digit is wrong."""
    made = []
    for i in range(n):
        good, bad = said(CITIES[i % 7]), said(f"{i % 10}")
        if form == "preference":
            made.append(rows.Row(i + 1, asked(i), chosen=good, rejected=bad))
        elif form == "label":
            made.append(rows.Row(i + 1, asked(i), chosen=good if i % 2 else bad, label=bool(i % 2)))
        else:
            made.append(rows.Row(i + 1, asked(i) + good))
    return rows.of("rows.jsonl", form, made)


FORMS = {"dpo": "preference", "kto": "label", "grpo": "messages", "gkd": "messages"}


class Tried:
    """One run at the level of training.train."""

    def __init__(self, root: Path, model: Path, objective: str, execution: dict | None = None, validation=None, given_rows=None, code=None,
                 killed_at=None, teacher=None, **more):
        self.out, self.state, self.events = root / "out", root / "state", []
        self.out.mkdir(parents=True, exist_ok=True)
        self.state.mkdir(exist_ok=True)
        if objective == "grpo":
            more = {"grpo": EXACT} | more
        if objective == "gkd":
            more = {"teacher": teacher if isinstance(teacher, dict) else str(teacher), "gkd": {"max_new_tokens": 4}} | more
        if validation is not None:
            more["validation"] = "v"
        if code:
            more["reward_code"] = str(code)
        train_rows = given_rows if given_rows is not None else data(FORMS[objective])
        inputs = {"model": given(model, "model", name="base"), "data": (given("d", "dataset", "data"),)}
        inputs["reward_code"] = given(code, "code") if code else None
        local = objective == "gkd" and not isinstance(teacher, dict)
        inputs["teacher"] = given(teacher, "model", "teacher", digest="0" * 64) if local else None
        execution = {"allow": ["leaks", "duplicates", "empty"]} | (execution or {})  # few cities and digits make few rows
        ctx = Context(
            step="sft", out=self.out, state=self.state, inputs=inputs, execution=step.Execution(**execution),
            log=lambda event, **fields: self.log(killed_at, event, **fields), progress=lambda *a, **k: None, secret=lambda name: "",
            ledgers=root / "ledgers",
        )  # fmt: skip
        xray.check_rows(ctx, train_rows, validation)
        self.result = training.train(ctx, step.Config(**QUICK | {"objective": objective} | more), train_rows, validation)
        self.values = json.loads(json.dumps(self.result.values, allow_nan=False))

    def log(self, killed_at: int | None, event: str, **fields) -> None:
        self.events.append({"event": event, **fields})
        if killed_at and event == "checkpoint" and fields["step"] == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    @property
    def bytes(self) -> bytes:
        return next(self.out.glob("*.safetensors")).read_bytes()

    def named(self, event: str) -> list[dict]:
        return [e for e in self.events if e["event"] == event]


def test_dpo_learns_which_is_preferred(tmp_path, tiny):
    tried = Tried(tmp_path, tiny, "dpo", validation=data("preference", 10), max_steps=20, learning_rate=1e-2)
    values = tried.values
    assert values["first_loss"] == pytest.approx(0.6931, abs=1e-3)  # nothing is preferred yet: log 2
    assert values["rewards_accuracy"] == 1 and values["rewards_margin"] > 0.5 > 0.1 > abs(values["rewards_margin_first"])
    assert values["validation_loss"] < 0.6 and values["validation_accuracy"] > 0.9
    assert tried.result.cost["tokens"] > 0 and {p.name for p in tried.out.iterdir()}.isdisjoint({"README.md", "ref"})


def test_kto_learns_what_is_good(tmp_path, tiny):
    tried = Tried(tmp_path, tiny, "kto", validation=data("label", 10), max_steps=20, learning_rate=1e-2)
    assert tried.values["rewards_margin"] > 0.5 > 0.1 > abs(tried.values["rewards_margin_first"])
    assert tried.values["train_loss"] < tried.values["first_loss"] and tried.values["rows_good"] == tried.values["rows_bad"] == 10
    assert tried.values["validation_loss"] < 0.5


def with_long(form: str, n: int, long: int) -> rows.Rows:
    """Rows whose questions are too long in the first `long`, and two that were broken."""
    asked = {"role": "user", "content": "please " * 80}
    made = [dataclasses.replace(r, messages=(asked, *r.messages)) if r.line <= long else r for r in data(form, n)]
    return dataclasses.replace(rows.of("held.jsonl", form, made), dropped={"not JSON": 2})


@pytest.mark.parametrize("objective", ["dpo", "kto", "grpo"])
def test_rows_that_are_left_out_are_counted_on_both_sides(tmp_path, tiny, objective):
    form = FORMS[objective]
    given_rows = dataclasses.replace(data(form), dropped={"no answer": 1})
    with pytest.raises(DataError, match=r"3 rows of 24 \(12%\) of `validation` are left out") as e:
        Tried(tmp_path / "a", tiny, objective, given_rows=given_rows, validation=with_long(form, 24, 3))
    assert "--set 'steps.sft.execution.allow=[truncation]'" in e.value.render() and e.value.problems[0].line == 1
    tried = Tried(tmp_path / "b", tiny, objective, given_rows=given_rows, validation=with_long(form, 24, 1), max_steps=1)
    assert {k: v for k, v in tried.values.items() if k.startswith(("rows_d", "rows_l", "validation_rows"))} == {
        "rows_dropped": {"no answer": 1}, "rows_left_out": 0,
        "validation_rows": 23, "validation_rows_left_out": 1, "validation_rows_dropped": {"not JSON": 2}}  # fmt: skip
    warned = [e["what"] for e in tried.named("warning")]
    assert any("1 row of 24 (4%) of `validation` is left out" in w for w in warned) and any("2 rows of held.jsonl skipped" in w for w in warned)


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_how_a_step_is_cut_up_does_not_change_it(tmp_path, tiny, objective):
    """20 rows in steps of 8: the last step of an epoch has 4 rows, and micro batches to which nothing is dealt."""
    more = {"batch_size": 8, "max_steps": 4, "learning_rate": 1e-2, "schedule": "constant", "warmup": 0.0}
    if objective == "kto":
        more |= {"kto": {"desirable_weight": 20.0}, "max_steps": 6}  # raises the answers of strangers too
    some = [Tried(tmp_path / str(m), tiny, objective, {"micro_batch": m}, **more) for m in (1, 2, 8)]
    if objective == "kto":
        assert some[0].named("step")[-1]["kl"] > 0.01  # else the divergence would be tried by nothing
    weights = [load_file(next(t.out.glob("*.safetensors"))) for t in some]
    for other in weights[1:]:
        for name, tensor in weights[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("objective", ["dpo", "grpo"])
def test_full_training_has_a_reference_too(tmp_path, tiny, objective):
    more = {"grpo": EXACT | {"beta": 0.1}} if objective == "grpo" else {}
    tried = Tried(tmp_path, tiny, objective, method="full", lora=None, max_steps=2, learning_rate=1e-4, **more)
    assert set(load_file(tried.out / "model.safetensors")) == set(load_file(tiny / "model.safetensors"))
    assert json.loads((tried.out / "config.json").read_text())["pad_token_id"] == 3


def test_grpo_says_what_its_answers_earned(tmp_path, tiny):
    more = {"grpo": EXACT | {"rewards": [{"exact_match": {}}, {"length": {"max": 2, "weight": 0.5}}]}, "max_steps": 3}
    tried = Tried(tmp_path, tiny, "grpo", validation=data("messages", 10), **more)
    values = tried.values
    assert {"reward", "reward_first", "reward_content", "reward_format", "reward_of_length", "completion_tokens", "ended"} <= set(values)
    assert values["reward"] == pytest.approx(values["reward_content"] + values["reward_format"], abs=1e-6)
    assert values["validation_loss"] == -values["validation_reward"] and -0.5 <= values["reward_format"] <= 0
    assert {"reward", "reward_content", "reward_format"} <= set(tried.named("step")[0])
    assert values["completion_tokens"] <= 4 and 0 <= values["ended"] <= 1


def test_grpo_with_a_function_of_ones_own(tmp_path, tiny):
    code = tmp_path / "mine.py"
    code.write_text("def score(prompt, answer, reference):\n    return len(answer) / 100 if prompt[0]['role'] == 'user' else None\n")
    grpo = {"rewards": [{"python": {"function": "score"}}], "generations": 4, "max_new_tokens": 4}
    assert Tried(tmp_path, tiny, "grpo", code=code, grpo=grpo, max_steps=2).values["reward_of_score"] > 0


def test_a_function_that_raises_stops_with_its_row(tmp_path, tiny):
    code = tmp_path / "mine.py"
    code.write_text("def score(prompt, answer, reference):\n    return 1 if 'Linz' not in reference else undefined\n")
    grpo = {"rewards": [{"python": {"function": "score"}}], "generations": 2, "max_new_tokens": 2}
    with pytest.raises(StepFailed, match=r"NameError: name 'undefined' is not defined on row .*rows.jsonl:\d+|on row line \d+") as failed:
        Tried(tmp_path, tiny, "grpo", code=code, grpo=grpo, max_steps=6)
    assert failed.value.where == f"{code}:2"


@pytest.mark.parametrize("objective", ["dpo", "kto", "grpo"])
@pytest.mark.parametrize(("method", "precision"), [("qlora", "fp32"), ("qlora", "bf16"), ("lora", "bf16"), ("full", "bf16")])
def test_every_objective_runs_on_4_bits_and_in_bf16(tmp_path, tiny, objective, method, precision):
    """With a measurement in between, at which bitsandbytes would repack 4-bit weights; the first loss is what the objective says it is."""
    more = {"method": method, "precision": precision, "max_steps": 3, "batch_size": 2, "validate_every": 1}
    more |= {"lora": None, "learning_rate": 1e-4} if method == "full" else {}
    tried = Tried(tmp_path, tiny, objective, validation=data(FORMS[objective], 4), **more)
    assert tried.values["precision"] == precision and tried.values["steps"] == 3 and len(tried.named("validation")) == 3
    if objective == "dpo":
        assert tried.values["first_loss"] == pytest.approx(0.6931, abs=2e-3)
    if objective == "kto":
        assert tried.values["first_loss"] == pytest.approx(0.5, abs=2e-3)
    if method != "full":
        weights = load_file(tried.out / "adapter_model.safetensors")
        assert {v.dtype for v in weights.values()} == {torch.float32}
        assert json.loads((tried.out / "slmkit_training.json").read_text())["base_quantization"] == ("nf4" if method == "qlora" else None)


def test_grpo_stops_when_there_is_nothing_to_learn(tmp_path, tiny):
    never = {"grpo": {"rewards": [{"regex": {"pattern": "never this"}}], "generations": 2, "max_new_tokens": 2}}
    with pytest.raises(StepFailed, match="same within every group for 20 steps") as failed:
        Tried(tmp_path / "a", tiny, "grpo", batch_size=1, max_steps=40, execution={"checkpoint_every": 10}, **never)
    assert "temperature" in failed.value.mend and checkpoints.latest(tmp_path / "a/state/checkpoints")[0].name == "checkpoint-10"
    always = {"grpo": {"rewards": [{"regex": {"pattern": ".*"}}], "generations": 2, "max_new_tokens": 2}}
    tried = Tried(tmp_path / "b", tiny, "grpo", batch_size=1, max_steps=40, **always)
    assert tried.values["steps"] == 20 and "all there is" in tried.values["stopped_early"]


EVERY_STEP = {"checkpoint_every": 1, "allow": ["duplicates", "leaks"]}
CHILD = """
import os, signal, sys; sys.path[:0] = {path!r}
import torch; torch.set_num_threads(1)
from pathlib import Path
from test_objectives import FORMS, Tried
for objective in FORMS:
    child = os.fork()
    if not child:
        Tried(Path({root!r}) / objective, Path({model!r}), objective, {execution!r}, batch_size=8, killed_at=4, teacher=Path({teacher!r}))
    if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
        sys.exit(objective + " was not killed")
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory, tiny, other) -> Path:
    """Folders of runs that were killed right after their fourth step of six."""
    root = tmp_path_factory.mktemp("killed")
    paths = [str(Path(__file__).parent), str(Path.cwd())]
    code = CHILD.format(path=paths, root=str(root), model=str(tiny), teacher=str(other), execution=EVERY_STEP)
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
    return root


@pytest.mark.parametrize("objective", ["dpo", "kto", "grpo", "gkd"])
def test_killed_and_resumed_gives_the_same_bytes(tmp_path, tiny, killed, other, objective):
    """20 rows in steps of 8 make three steps an epoch: the run was killed in its second, whose order is another. gkd's student writes every
    second step."""
    whole = Tried(tmp_path, tiny, objective, EVERY_STEP, batch_size=8, teacher=other)
    resumed = Tried(killed / objective, tiny, objective, EVERY_STEP, batch_size=8, teacher=other)
    assert resumed.named("resumed") == [{"event": "resumed", "step": 4}] and resumed.bytes == whole.bytes
    assert all(v.abs().max() > 1e-4 for k, v in load_file(whole.out / "adapter_model.safetensors").items() if "lora_B" in k)  # it learned


def refused(**more) -> str:
    with pytest.raises(ValidationError) as error:
        step.Config(**QUICK | more)
    return str(error.value)


def test_settings_of_another_objective_are_refused():
    assert "`dpo` is not read by objective sft" in refused(dpo={"beta": 0.2})
    assert "`kto` is not read by objective dpo" in refused(objective="dpo", kto={})
    for objective, more in (("dpo", {}), ("kto", {}), ("grpo", {"grpo": EXACT})):
        assert f"`loss_on` is not read by objective {objective}" in refused(objective=objective, loss_on="all", **more)
        assert f"`too_long` is not read by objective {objective}" in refused(objective=objective, too_long="cut_end", **more)
    assert "not read by objective grpo" in refused(objective="grpo", grpo=EXACT, lora={"dropout": 0.1})
    assert "grpo's are yet to be sampled" in refused(objective="grpo", grpo=EXACT, lora={"variant": "eva"})
    assert "rewards" in refused(objective="grpo") and "holds one of" in refused(objective="grpo", grpo={"rewards": [{}]})
    assert "not read by loss sigmoid" in refused(objective="dpo", dpo={"label_smoothing": 0.1})
    assert "reward_code" in refused(objective="grpo", grpo={"rewards": [{"python": {}}]})
    assert "read by `python` rewards" in refused(reward_code="a.py")
    assert step.Config(**QUICK | {"objective": "dpo"}).dpo.beta == 0.1


@pytest.mark.parametrize(("objective", "form"), [("dpo", "messages"), ("kto", "preference"), ("grpo", "label")])
def test_rows_of_another_form_are_refused(tmp_path, tiny, objective, form):
    with pytest.raises(DataError, match=f"{FORMS[objective]}.*of form {form}"):
        Tried(tmp_path, tiny, objective, given_rows=data(form))


def test_what_cannot_be_cut_up_is_refused(tmp_path, tiny):
    with pytest.raises(RecipeError, match=r"does not divide batch_size × grpo.generations = 4 × 4 = 16"):
        Tried(tmp_path, tiny, "grpo", {"micro_batch": 3})
    with pytest.raises(RecipeError, match="packing: on is not read by objective dpo"):
        Tried(tmp_path, tiny, "dpo", {"packing": "on"})
    bare = rows.of("r.jsonl", "messages", [rows.Row(1, asked(1))])
    with pytest.raises(DataError, match="exact_match"):
        Tried(tmp_path, tiny, "grpo", given_rows=bare)
    with pytest.raises(DataError, match="marked bad"):
        Tried(tmp_path, tiny, "kto", given_rows=rows.of("r.jsonl", "label", [rows.Row(i, asked(i), chosen=said("x"), label=False) for i in (1, 2)]))
