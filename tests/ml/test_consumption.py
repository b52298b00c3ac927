"""Every key of train's config is read: another value changes something that can be seen, or is refused. A new key without an entry here fails.

Seen is: the trainer's arguments, the adapter's config, the token ids and what of them is learned, the weights after a step, or the result.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from slmkit.steps import eval as eval_step
from slmkit.steps import merge, quantize, train
from slmkit.steps._objectives import NOT_READ

INPUTS = {"model", "data", "validation", "reward_code", "teacher"}
"""What these hold is what is trained: any training test would fail without them."""
SFT, ALL = ("sft",), ("sft", "dpo", "kto", "grpo")
TRIED: dict[str, tuple[tuple[str, ...], dict, str]] = {
    # field: the objectives that read it, a config with another value, where it is seen
    "on_bad_row": (ALL, {"on_bad_row": "skip"}, "tests/data/test_read.py"),
    "validate_every": (ALL, {"validate_every": 2}, "run"),
    "early_stopping.patience": (ALL, {
        "early_stopping": {"patience": 1, "min_delta": 9.0}, "validate_every": 1, "max_steps": 4, "keep": "last"}, "run"),
    "early_stopping.min_delta": (ALL, {
        "early_stopping": {"patience": 2, "min_delta": 9.0}, "validate_every": 1, "max_steps": 4, "keep": "last"}, "run"),
    "keep": (ALL, {"keep": "best", "learning_rate": 1.0, "validate_every": 1}, "run"),
    "objective": (ALL, {}, "run"),
    "method": (ALL, {"method": "qlora"}, "run"),
    "lora.r": (ALL, {"lora": {"r": 2}}, "run"),
    "lora.alpha": (ALL, {"lora": {"r": 4, "alpha": 64}}, "run"),
    "lora.dropout": (("sft", "dpo", "kto"), {"lora": {"r": 4, "alpha": 8, "dropout": 0.5}}, "run"),
    "lora.target": (ALL, {"lora": {"r": 4, "alpha": 8, "target": "attention"}}, "run"),
    "lora.variant": (ALL, {"lora": {"r": 4, "alpha": 8, "variant": "rslora"}}, "run"),
    "lora.rank_pattern": (ALL, {"lora": {"r": 4, "alpha": 8, "rank_pattern": {"q_proj": 2}}}, "run"),
    "lora.alpha_pattern": (ALL, {"lora": {"r": 4, "alpha": 8, "alpha_pattern": {"q_proj": 64}}}, "run"),
    "lora.modules_to_save": (ALL, {"lora": {"r": 4, "alpha": 8, "modules_to_save": ["norm"]}}, "run"),
    "dpo.beta": (("dpo",), {"dpo": {"beta": 0.9}}, "run"),
    "dpo.loss": (("dpo",), {"dpo": {"loss": "ipo"}}, "run"),
    "dpo.label_smoothing": (("dpo",), {"dpo": {"loss": "robust", "label_smoothing": 0.4}}, "run"),
    "kto.beta": (("kto",), {"kto": {"beta": 0.9}}, "run"),
    "kto.desirable_weight": (("kto",), {"kto": {"desirable_weight": 5.0}}, "run"),
    "kto.undesirable_weight": (("kto",), {"kto": {"undesirable_weight": 5.0}}, "run"),
    "grpo.rewards": (("grpo",), {"grpo": {"rewards": [{"length": {"max": 1}}]}}, "run"),
    "grpo.generations": (("grpo",), {"grpo": {"generations": 2}}, "run"),
    "grpo.max_new_tokens": (("grpo",), {"grpo": {"max_new_tokens": 2}}, "run"),
    "grpo.temperature": (("grpo",), {"grpo": {"temperature": 0.2}}, "run"),
    "grpo.beta": (("grpo",), {"grpo": {"beta": 1.0}, "max_steps": 4}, "run"),
    "grpo.loss": (("grpo",), {"grpo": {"loss": "dr_grpo"}}, "arguments"),
    "grpo.epsilon": (("grpo",), {"grpo": {"epsilon": 0.5}}, "arguments"),
    "gkd.divergence": (("gkd",), {"gkd": {"divergence": "reverse_kl"}}, "run"),
    "gkd.beta": (("gkd",), {"gkd": {"divergence": "jsd", "beta": 0.9}}, "run"),
    "gkd.on_policy": (("gkd",), {"gkd": {"on_policy": 1.0}}, "run"),
    "gkd.temperature": (("gkd",), {"gkd": {"temperature": 0.1}}, "run"),
    "gkd.max_new_tokens": (("gkd",), {"gkd": {"max_new_tokens": 2}}, "run"),
    "gkd.top_k": (("gkd",), {"gkd": {"top_k": 5}}, "tests/ml/test_gkd.py"),
    "learning_rate": (ALL, {"learning_rate": 1e-3}, "run"),
    "schedule": (ALL, {"schedule": "constant", "max_steps": 4}, "run"),
    "warmup": (ALL, {"warmup": 0.9}, "run"),
    "weight_decay": (ALL, {"weight_decay": 1.0}, "run"),
    "max_grad_norm": (ALL, {"max_grad_norm": 1e-6}, "run"),
    "max_steps": (ALL, {"max_steps": 1}, "run"),
    "epochs": (ALL, {"max_steps": None, "epochs": 0.2}, "run"),
    "batch_size": (ALL, {"batch_size": 2}, "run"),
    "max_length": (ALL, {"max_length": 8}, "refused"),
    "too_long": (SFT, {"too_long": "cut_end", "max_length": 24}, "run"),
    "loss_on": (SFT, {"loss_on": "all"}, "run"),
    "thinking": (ALL, {"thinking": "strip"}, "tests/ml/test_templates.py"),
    "chat_template": (ALL, {"chat_template": "plain"}, "run"),
    "seed": (ALL, {"seed": 5}, "run"),
    "precision": (ALL, {"precision": "bf16"}, "run"),
}


REWARDS: dict[str, tuple[dict, dict, str]] = {
    # field: what is asked without it, another value of it, an answer that tells them apart (the reference is `Graz 7`)
    **{f"{kind}.weight": (base, {"weight": 2.0}, "7" if kind == "json_schema" else "Graz 7") for kind, base in (
        ("exact_match", {}), ("numeric", {}), ("regex", {"pattern": "G.*"}), ("json_schema", {"json_schema": {}}), ("length", {"max": 1}))},
    **{f"{kind}.kind": (base, {"kind": other}, "Graz 7") for kind, base, other in (
        ("exact_match", {}, "format"), ("numeric", {}, "format"), ("regex", {"pattern": "G.*"}, "content"),
        ("json_schema", {"json_schema": {}}, "content"), ("length", {"max": 1}, "content"))},
    "exact_match.strip": ({}, {"strip": False}, " Graz 7"), "exact_match.lower": ({}, {"lower": True}, "graz 7"),
    "numeric.tolerance": ({}, {"tolerance": 2.0}, "8"), "regex.pattern": ({"pattern": "a"}, {"pattern": "G.*"}, "Graz"),
    "regex.match": ({"pattern": "G"}, {"match": "search"}, "Graz"),
    "json_schema.json_schema": ({"json_schema": {}}, {"json_schema": {"type": "string"}}, "7"),
    "length.min": ({"max": 9}, {"min": 5}, "G"), "length.max": ({"max": 9}, {"max": 1}, "Graz 7"),
    "length.unit": ({"max": 4}, {"unit": "characters"}, "Graz 7"),
    "python.function": ({}, {"function": "other"}, "x"), "python.weight": ({}, {"weight": 2.0}, "x"), "python.kind": ({}, {"kind": "format"}, "x"),
}  # fmt: skip


@pytest.mark.parametrize("field", REWARDS)
def test_every_key_of_a_reward_changes_what_is_earned(tmp_path: Path, field: str) -> None:
    from slmkit.ml import rewards

    code = tmp_path / "code.py"
    code.write_text("def score(p, a, r):\n    return 1\n\ndef other(p, a, r):\n    return 2\n")
    base, more, text = REWARDS[field]
    answer = rewards.Answer(({"role": "user", "content": "?"},), text, "Graz 7", 3)

    def earned(said: dict) -> tuple:
        (made,) = rewards.build(train.Grpo(rewards=[{field.partition(".")[0]: said}]).rewards, code)
        return made.kind, made.weight * made.score(answer)

    assert earned(base | more) != earned(base)


def leaves(model: type[BaseModel], above: str = "") -> set[str]:
    """Every field of a Config, those of its blocks by dotted name."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        blocks = [t for t in _types(field.annotation) if isinstance(t, type) and issubclass(t, BaseModel)]
        of_block = [leaf for block in blocks for leaf in leaves(block, f"{above}{name}.")]
        found |= set(of_block) if of_block and name not in INPUTS else {above + name}
    return found


def _types(annotation: Any) -> list:
    return [annotation, *(t for part in get_args(annotation) for t in _types(part))]


def test_every_field_has_an_entry() -> None:
    assert {f for f in leaves(train.Config) if not f.startswith("grpo.rewards.")} - INPUTS == set(TRIED) - {"grpo.rewards"}
    rewards = {f.removeprefix("grpo.rewards.") for f in leaves(train.Config) if f.startswith("grpo.rewards.")}
    assert {f for f in rewards if not f.startswith("judge.")} == set(REWARDS)  # a judge's are tried in tests/ml/test_judge.py
    # read by methods, tried where they are read: tests/ml/test_merge.py, test_gptq.py, test_choosing.py, test_eval.py, test_subjects.py
    assert set(merge.Config.model_fields) == {"model", "dtype", "into", "fidelity"}
    assert set(quantize.Config.model_fields) == {"model", "method", "backend", "fidelity", *quantize.READ_BY}
    assert set(eval_step.Config.model_fields) == {"models", "tasks", "fewshot", "limit", "chat", "seed", "expect", "inconclusive", "speed", "cost",
                                                  "apis", "judge", "tasks_dir"}


BASE = {"max_steps": 2, "batch_size": 4, "max_length": 64, "method": "lora", "lora": {"r": 4, "alpha": 8}, "learning_rate": 1e-2}
GRPO = {"rewards": [{"length": {"max": 2, "unit": "characters"}}], "generations": 4, "max_new_tokens": 4}


def merged(objective: str, more: dict) -> dict:
    """The config of a run: `grpo` keys are laid over what it cannot do without."""
    more = dict(more)
    if objective == "grpo":
        more["grpo"] = GRPO | more.get("grpo", {})
    if objective == "gkd":
        more["gkd"] = {"max_new_tokens": 6} | more.get("gkd", {})
    return BASE | more


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, tiny: Path, other: Path):
    """(objective, config) → all that can be seen of its run; each run once."""
    from tests.ml.test_objectives import FORMS, Tried, data
    from tests.ml.test_train import run

    def _files(root: Path) -> list[Path]:
        files = []
        for name, rows in (("data.jsonl", data("messages", 12)), ("validation.jsonl", data("messages", 6))):
            (root / name).write_text("".join(json.dumps({"messages": row.messages}) + "\n" for row in rows))
            files.append(root / name)
        return files

    known: dict[str, Any] = {}

    def look(objective: str, more: dict) -> Any:
        key = json.dumps([objective, more], sort_keys=True)
        if key not in known:
            root: Path = tmp_path_factory.mktemp("run")
            form = FORMS.get(objective, "messages")
            execution = {"allow": ["leaks", "duplicates", "truncation", "untrained"]}
            given = {k: v for k, v in merged(objective, more).items() if v is not None or k == "max_steps"}
            if objective == "sft":
                tried, result = run(root, tiny, *_files(root), execution, **given)
                tried.values, tried.named = result.values, lambda name: [e for e in tried.events if e["event"] == name]
            else:
                teacher = {"teacher": other} if objective == "gkd" else {}
                tried = Tried(root, tiny, objective, execution, validation=data(form, 6), given_rows=data(form, 12), **given, **teacher)
            measured = [e["loss"] for e in tried.named("validation")]
            files = {p.name: p.read_bytes() for p in tried.out.glob("*") if p.suffix in (".safetensors", ".json", ".jinja")}
            known[key] = (files, measured, tried.values["steps"], tried.values["trained_tokens"] if objective != "grpo" else 0)
        return known[key]

    return look


RUN = [(o, f) for f, (objectives, more, where) in TRIED.items() for o in objectives if where == "run" and more and o in (*ALL, "gkd")]


@pytest.mark.parametrize(("objective", "field"), RUN)
def test_another_value_is_another_training(seen, objective: str, field: str) -> None:
    more = TRIED[field][1]
    if (objective, field) in (("grpo", "early_stopping.min_delta"), ("grpo", "keep"), ("sft", "keep")):
        pytest.skip("on this tiny run the last weights are the best, or answers earn the same; other objectives show it, and it is read in one place")
    before = {k: v for k, v in more.items() if k in ("max_length", "validate_every", "max_steps", "keep", "learning_rate") and k != field}
    if field == "early_stopping.min_delta":
        before["early_stopping"] = {"patience": 2, "min_delta": 0.0}
    if field == "dpo.label_smoothing":
        before = {"dpo": {"loss": "robust"}}
    if field == "gkd.beta":
        before = {"gkd": {"divergence": "jsd"}}
    if field == "too_long":
        before = {"too_long": "cut_start", "max_length": 24}
    assert seen(objective, more) != seen(objective, before), "nothing that can be seen depends on it"


@pytest.mark.parametrize(("objective", "field"), [(o, f) for f, (read, _, _) in TRIED.items() for o in ALL if o not in read])
def test_what_an_objective_does_not_read_it_refuses(objective: str, field: str) -> None:
    block = field.partition(".")[0]
    given = dict(TRIED[field][1])
    if field == "too_long":
        given.pop("max_length")
    with pytest.raises(ValidationError, match=f"`{field.rpartition('.')[2]}` is not read by|`{block}` is not read by"):
        train.Config(**{"model": "m", "data": "d", "objective": objective} | merged(objective, given))
    assert block in NOT_READ.get(objective, ()) or block in ("dpo", "kto", "grpo", "gkd", "lora")


@pytest.mark.parametrize(("said", "argument", "value"), [({"loss": "dr_grpo"}, "loss_type", "dr_grpo"), ({"epsilon": 0.5}, "epsilon", 0.5)])
def test_what_two_steps_on_a_tiny_model_cannot_show_reaches_the_trainer(tmp_path: Path, tiny: Path, monkeypatch, said, argument, value) -> None:
    """Adam does not see a loss in another scale, and a ratio of 1 is never clipped: the arguments TRL's trainer is made with are looked at."""
    from slmkit.ml.objectives import grpo
    from tests.ml.test_objectives import Tried

    made: list = []
    real = grpo._Trainer.__init__
    monkeypatch.setattr(grpo._Trainer, "__init__", lambda self, **kwargs: (made.append(kwargs["args"]), real(self, **kwargs))[1])
    Tried(tmp_path, tiny, "grpo", **merged("grpo", {"grpo": said, "max_steps": 1}))
    assert getattr(made[0], argument) == value


def test_full_training_refuses_adapters() -> None:
    with pytest.raises(ValidationError, match="`lora` is read by methods lora and qlora only"):
        train.Config(model="m", data="d", method="full", lora={"r": 4})
