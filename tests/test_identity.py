"""What moves a fingerprint and what does not: every identity field does; execution, comments, order and places never do."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from slmkit.artifact.fingerprint import canonical, differences, fingerprint, payload
from slmkit.artifact.store import Store
from slmkit.errors import RecipeError
from slmkit.hashed import of_config
from slmkit.plan import make
from slmkit.recipe.load import load
from slmkit.recipe.lock import Lock
from slmkit.recipe.schema import text as schema_text
from slmkit.steps import _registry
from slmkit.steps._step import Born, StepConfig

ROOT = Path(__file__).resolve().parent.parent

BASE = {
    "recipe": "r", "base": "model",
    "steps": {
        "teach": {
            "kind": "distill", "mode": "answer", "teacher": {"model": "t", "base_url": "http://localhost:1/v1", "extra": {}},
            "prompts": "rows.jsonl", "template": "ask.jinja", "system": "s", "student_system": "u", "n": 3, "majority": 0.5, "temperature": 0.5,
            "top_p": 0.9, "max_tokens": 9, "seed": 1, "json_schema": {"type": "object"}, "structured": True,
            "filters": {
                "regex": "a", "verify": "exact", "min_score": 1.0, "duplicates": True, "near_duplicates": 0.8, "leaks": True, "personal": True,
                "refusals": True,
            }, "min_kept": 1, "validation": 0.1, "on_bad_row": "error", "terms": "a", "budget": {"usd": 1.0}, "prices": {"input": 1, "output": 1},
            "judge": {"rubric": "r"}, "judge_template": "ask.jinja",
            "execution": {"device": "cpu"},
        },
        "sft": {
            "kind": "train", "model": "$base", "data": "rows.jsonl", "validation": "val.jsonl", "objective": "sft", "method": "qlora",
            "lora": {
                "r": 8, "alpha": 16, "dropout": 0.1, "target": "attention", "variant": "lora",
                "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": [],
            }, "learning_rate": 1e-3, "schedule": "linear", "warmup": 0.1,
            "weight_decay": 0.01, "epochs": 2, "batch_size": 8, "max_length": 256, "too_long": "drop", "loss_on": "assistant",
            "thinking": "keep",
            "max_grad_norm": 1.0, "validate_every": 4, "early_stopping": {"patience": 2, "min_delta": 0.1}, "keep": "last",
            "chat_template": "plain", "seed": 1, "precision": "fp32",
            "execution": {
                "micro_batch": 1, "packing": "off", "device": "cpu", "processes": 1, "sharding": "none", "workers": 0, "checkpoint_every": 5,
                "gradient_checkpointing": False,
                "attention": "sdpa", "trackers": [], "allow": [],
            },
        },
        "tuned": {
            "kind": "merge", "model": "$sft", "dtype": "fp32", "into": "full", "fidelity": {"mean_kl": 0.1}, "execution": {"device": "cpu"},
        },
        "int4": {
            "kind": "quantize", "model": "$tuned", "method": "gptq", "backend": "slmkit", "bits": 4, "group_size": 64, "symmetric": True,
            "act_order": False, "damping": 0.01, "calibration": "rows.jsonl", "samples": 16, "max_length": 128, "seed": 1,
            "fidelity": {"mean_kl": 0.1},
            "execution": {"device": "cpu", "allow": []},
        },
        "file": {"kind": "export", "model": "$tuned", "format": "gguf", "type": "f16", "fidelity": {"top1": 0.9}, "execution": {"threads": 1}},
        "score": {
            "kind": "eval", "models": ["$base", "$int4"], "tasks": ["task.yaml"], "fewshot": 0, "limit": 5, "chat": False, "seed": 1,
            "expect": {"int4.t.acc": ">= 0.1"}, "inconclusive": "fail",
            "speed": {"new_tokens": 8}, "cost": {"usd_per_hour": 1.0}, "execution": {"batch_size": 4, "device": "cpu"},
        },
    },
}
OTHER = {  # another valid value for every field
    "teach": {
        "system": "t", "student_system": "v", "n": 4, "majority": 0.6, "temperature": 0.6, "top_p": 0.8, "max_tokens": 8, "seed": 2,
        "json_schema": {"type": "string"}, "structured": False, "filters.regex": "b", "filters.verify": "numeric", "filters.min_score": 2.0,
        "filters.duplicates": False, "filters.near_duplicates": 0.9, "filters.leaks": False, "filters.personal": False,
        "filters.refusals": False, "min_kept": 2, "validation": 0.2, "on_bad_row": "skip", "terms": "b", "teacher.model": "u",
        "teacher.base_url": "http://other/v1", "teacher.extra": {"reasoning_effort": "low"},
        "judge.rubric": "s", "judge.scale": [0, 10], "judge.temperature": 0.5, "judge.max_tokens": 9,
        "how.budget": {"tokens": 5}, "how.prices": {"input": 2, "output": 1}, "how.teacher.api_key_env": "KEY",
        "how.teacher.limit_key": "max_completion_tokens",
        "execution.concurrency": 2, "execution.timeout": 5.0, "execution.retries": 1, "execution.patience": 9.0,
        "execution.requests_per_minute": 5, "execution.tokens_per_minute": 5, "execution.device": "cuda",
        "execution.transport": "serve", "execution.detach": True,
    },
    "sft": {
        "method": "lora", "lora.r": 4, "lora.alpha": 8, "lora.dropout": 0.2, "lora.target": "all-linear",
        "learning_rate": 2e-3, "schedule": "cosine",
        "warmup": 0.2, "weight_decay": 0.0, "epochs": 1, "batch_size": 4, "max_length": 128, "too_long": "cut_end", "loss_on": "all",
        "thinking": "strip",
        "execution.packing": "on", "execution.processes": 2, "execution.sharding": "fsdp", "execution.trackers": ["tensorboard"],
        "execution.accelerate": "accelerate.yaml",
        "lora.variant": "rslora", "lora.rank_pattern": {"q_proj": 2}, "lora.alpha_pattern": {"q_proj": 2}, "lora.modules_to_save": ["lm_head"],
        "max_grad_norm": 0.5, "validate_every": 3, "early_stopping": {"patience": 3, "min_delta": 0.1}, "keep": "best",
        "chat_template": "chatml", "seed": 2, "precision": "bf16", "max_steps": 7, "on_bad_row": "skip",
        "execution.micro_batch": 2, "execution.device": "cuda", "execution.workers": 2, "execution.checkpoint_every": 9,
        "execution.gradient_checkpointing": True, "execution.attention": "eager", "execution.allow": ["leaks"],
    },
    "file": {"format": "onnx", "type": "q8_0", "how.fidelity": {"top1": 0.8}, "execution.threads": 2},
    "tuned": {"dtype": "bf16", "into": "auto", "how.fidelity": {"top1": 0.9}, "execution.device": "cuda"},
    "int4": {
        "method": "rtn", "bits": 3, "group_size": 32, "symmetric": False, "act_order": True, "damping": 0.02,
        "samples": 8, "max_length": 64, "seed": 2, "how.fidelity": {"top1": 0.9},
        "backend": "gptqmodel", "target": "vllm", "max_bits_per_weight": 5.0, "execution.device": "cuda", "execution.allow": ["leaks"],
    },
    "score": {"fewshot": 1, "limit": 4, "chat": True, "seed": 2, "expect": {"int4.t.acc": ">= 0.2"}, "inconclusive": "pass",
              "how.speed": {"new_tokens": 9}, "how.cost": {"usd_per_hour": 2.0}, "execution.batch_size": 2, "execution.device": "cuda"},
}
BLOCKS = {"objective", "dpo", "kto", "grpo", "gkd", "apis", "judge", "tasks_dir"}  # tried by tests of their own
MODE_FIELDS = {"mode", "generate", "rationale", "rewrite", "preference", "tool_choice"}  # tried by test_each_mode_and_its_settings_move_it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("identity")
    (place / "model").mkdir()
    (place / "model/config.json").write_text("{}")
    for name in ("rows.jsonl", "val.jsonl", "t.jsonl"):
        (place / name).write_text(json.dumps({"prompt": name, "completion": "b"}) + "\n")
    (place / "ask.jinja").write_text("{{ prompt }}")
    (place / "accelerate.yaml").write_text("distributed_type: MULTI_CPU\nnum_processes: 2\n")
    (place / "task.yaml").write_text("task: t\ndataset_path: json\ndataset_kwargs: {data_files: {test: t.jsonl}}\n")
    return place


def prints(folder: Path, body: dict | str, name: str = "r.yaml", store: Path | None = None) -> dict[str, str]:
    """Fingerprints by step of a recipe given as data or text."""
    path = folder / name
    path.write_text(body if isinstance(body, str) else yaml.safe_dump(body, sort_keys=False))
    recipe = load(path)
    plan = make(recipe, Store(store or folder / "store"), Lock(recipe.lock_path, frozen=True))
    return {row.name: row.fingerprint for row in plan.rows}


def edited(step: str, path: str, value: Any) -> dict:
    body = copy.deepcopy(BASE)
    node = body["steps"][step]
    path = path.removeprefix("how.")
    *parents, last = path.split(".")
    for parent in parents:
        node = node[parent]
    node[last] = value
    if path == "method" and value == "rtn":  # keys that round-to-nearest does not read are refused
        for key in ("act_order", "damping", "calibration", "samples", "max_length", "seed"):
            node.pop(key, None)
    if path in ("target", "max_bits_per_weight"):  # read by auto, which reads no grid: against each other in test_what_auto_may_choose_…
        for key in ("bits", "group_size", "symmetric", "act_order", "damping", "backend"):
            node.pop(key)
        node |= {"max_bits_per_weight": 6.0, "method": "auto", path: value}
    if path == "max_steps":
        node.pop("epochs")
    if path == "format":
        node.pop("type")
    if last == "accelerate":  # it says these
        node.pop("processes"), node.pop("sharding")
    return body


@pytest.mark.parametrize(("step", "path"), [(s, p) for s, fields in OTHER.items() for p in fields])
def test_identity_moves_it_and_execution_does_not(folder: Path, step: str, path: str) -> None:
    before, after = prints(folder, BASE), prints(folder, edited(step, path, OTHER[step][path]))
    order = list(before)
    moved = {name for name in order if before[name] != after[name]}
    if path.startswith(("execution.", "how.")):
        assert moved == set()
    else:
        assert step in moved and all(order.index(m) >= order.index(step) for m in moved)


def test_what_auto_may_choose_from_moves_it(folder: Path) -> None:
    base = edited("int4", "max_bits_per_weight", 5.0)
    found = set()
    for more in ({}, {"target": "vllm"}, {"target": "cpu"}, {"max_bits_per_weight": 4.5}, {"samples": 17}, {"seed": 9}):
        body = copy.deepcopy(base)
        body["steps"]["int4"] |= more
        found.add(prints(folder, body)["int4"])
    assert len(found) == 6
    base["steps"]["int4"]["target"] = "transformers"
    assert prints(folder, base)["int4"] in found, "a default that is written out is no other choice"


def test_the_ways_to_name_data_are_told_apart(folder: Path) -> None:
    """A list of one is that one; another order, weight, mapping, split or share held out is another training."""
    one = prints(folder, BASE)["sft"]
    assert prints(folder, edited("sft", "data", ["rows.jsonl"]))["sft"] == one
    assert prints(folder, edited("sft", "data", {"path": "rows.jsonl", "weight": 1}))["sft"] == one
    others = [
        ["rows.jsonl", "val.jsonl"], ["val.jsonl", "rows.jsonl"], ["rows.jsonl", {"path": "val.jsonl", "weight": 0.5}],
        {"path": "rows.jsonl", "weight": 2}, {"path": "rows.jsonl", "format": "completion"}, {"path": "rows.jsonl", "prompt": "prompt"},
    ]  # fmt: skip
    found = [prints(folder, edited("sft", "data", other))["sft"] for other in others]
    found += [prints(folder, edited("sft", "validation", share))["sft"] for share in (0.1, 0.2)]
    assert len({one, *found}) == 1 + len(found)


def test_every_field_is_tried() -> None:
    for step, body in BASE["steps"].items():
        kind = _registry.load(body["kind"])
        fields = set(kind.module.Config.model_fields) - set(kind.takes) - BLOCKS - MODE_FIELDS
        tried = {p.removeprefix("how.").partition(".")[0] for p in OTHER[step]}
        assert fields <= tried | {"lora"}, f"{step}: {fields - tried}"
        execution = {p.partition(".")[2] for p in OTHER[step] if p.startswith("execution.")}
        assert set(kind.module.Execution.model_fields) == execution


GRPO = {"rewards": [{"exact_match": {"lower": True}}, {"python": {"function": "score"}}], "generations": 4}
OBJECTIVES = [
    {"objective": "dpo"}, {"objective": "dpo", "dpo": {"beta": 0.2}}, {"objective": "dpo", "dpo": {"loss": "ipo"}},
    {"objective": "dpo", "dpo": {"loss": "robust", "label_smoothing": 0.1}}, {"objective": "dpo", "dpo": {"loss": "robust"}},
    {"objective": "kto"}, {"objective": "kto", "kto": {"beta": 0.2}}, {"objective": "kto", "kto": {"desirable_weight": 2.0}},
    {"objective": "kto", "kto": {"undesirable_weight": 2.0}},
    *({"objective": "grpo", "grpo": GRPO | more, "reward_code": "rewards.py"} for more in (
        {}, {"beta": 0.1}, {"generations": 5}, {"max_new_tokens": 9}, {"temperature": 0.5}, {"loss": "grpo"}, {"epsilon": 0.1},
        {"rewards": [{"exact_match": {}}, {"python": {}}]}, {"rewards": [{"exact_match": {}}, {"python": {"weight": 2.0}}]},
    )),
    *({"objective": "gkd", "teacher": "model"} | more for more in (
        {}, {"gkd": {"divergence": "jsd"}}, {"gkd": {"divergence": "jsd", "beta": 0.1}}, {"gkd": {"on_policy": 1.0}}, {"gkd": {"temperature": 0.5}},
        {"gkd": {"max_new_tokens": 9}}, {"teacher": {"model": "t", "base_url": "http://a/v1"}}, {"teacher": {"model": "u", "base_url": "http://a/v1"}},
        {"teacher": {"model": "t", "base_url": "http://a/v1"}, "gkd": {"top_k": 5}},
    )),
    *({"objective": "grpo", "grpo": {"rewards": [{"judge": {"rubric": "a", "teacher": {"model": "t"}} | more}]}} for more in (
        {}, {"rubric": "b"}, {"teacher": {"model": "u"}}, {"max_tokens": 99}, {"temperature": 0.5}, {"consistency": 0.5},
    )),
]  # fmt: skip


def test_each_objective_and_its_settings_move_it(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    shutil.copytree(folder, place)
    (place / "rewards.py").write_text("def score(prompt, answer, reference):\n    return 1\n")
    bodies = [{"recipe": "r", "base": "model", "steps": {"train": {"data": "rows.jsonl"} | more}} for more in [{}, *OBJECTIVES]]
    found = [prints(place, body)["train"] for body in bodies]
    assert len(set(found)) == len(found)
    written = copy.deepcopy(bodies[1])
    written["steps"]["train"]["dpo"] = {"beta": 0.1, "loss": "sigmoid", "label_smoothing": 0.0}
    assert prints(place, written)["train"] == found[1]
    (place / "rewards.py").write_text("def score(prompt, answer, reference):\n    return 2\n")
    after = [prints(place, body)["train"] for body in bodies]
    assert [a != b for a, b in zip(found, after, strict=True)] == ["reward_code" in b["steps"]["train"] for b in bodies]


GENERATE = {"description": "d", "count": 3}
JUDGED = {"judge": {"rubric": "r"}}
MODES = [
    {}, *({"mode": "generate", "generate": GENERATE | more} for more in (
        {}, {"description": "e"}, {"count": 4}, {"topics": ["a"]}, {"topics": ["b"]}, {"difficulties": ["a"]}, {"examples": 1}, {"per_request": 2},
        {"novelty": 0.5}, {"rounds": 2},
    )),
    *({"mode": "rationale", "rationale": more} for more in (
        {}, {"source": "reasoning"}, {"marker": "So:"}, {"rows": "apart"}, {"rows": "thinking"}, {"prefix": "p"}, {"answer_prefix": "p"},
    )),
    *({"mode": "rewrite", "rewrite": more} for more in ({}, {"what": "prompt"}, {"instruction": "i"}, {"keep": True})),
    {"mode": "judge", **JUDGED}, *({"mode": "preference", "n": 2, "preference": more, **JUDGED} for more in ({}, {"margin": 2.0}, {"orders": 2})),
    {"mode": "tools"}, {"mode": "tools", "tool_choice": "required"}, {"mode": "tools", "tools": "tools.json"},
]  # fmt: skip


def test_each_mode_and_its_settings_move_it(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    shutil.copytree(folder, place)
    (place / "tools.json").write_text("[]")
    step = {"teacher": {"model": "t"}, "prompts": "rows.jsonl", "template": "ask.jinja"}
    bodies = [{"recipe": "r", "steps": {"distill": step | more}} for more in MODES]
    found = [prints(place, body)["distill"] for body in bodies]
    assert len(set(found)) == len(found)
    config = load_one(place, bodies[1])
    written = copy.deepcopy(bodies[1])
    written["steps"]["distill"]["generate"] = config.model_dump(mode="json")["generate"]
    assert prints(place, written)["distill"] == found[1]
    (place / "ask.jinja").write_text("{{ prompt }}!")
    after = [prints(place, body)["distill"] for body in bodies]
    assert not set(after) & set(found), "a template is what it holds"
    (place / "tools.json").write_text("[{}]")
    assert [a != b["distill"] for a, b in zip(after, (prints(place, body) for body in bodies), strict=True)] == ["tools" in m for m in MODES]


def test_text_order_and_places_do_not_move_it(folder: Path, tmp_path: Path) -> None:
    before = prints(folder, BASE)
    text = "# a comment\n" + yaml.safe_dump(BASE, sort_keys=False).replace("steps:", "\n# another\nsteps:   # here")
    assert prints(folder, text) == before
    shuffled = copy.deepcopy(BASE)
    shuffled["steps"] = {n: dict(reversed(list(b.items()))) for n, b in BASE["steps"].items()}
    assert prints(folder, shuffled) == before
    assert prints(folder, BASE, name="another.yaml", store=tmp_path / "elsewhere") == before
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    (moved / "model").rename(moved / "renamed-model")
    (moved / "rows.jsonl").rename(moved / "renamed.jsonl")
    body = json.loads(json.dumps(BASE).replace("rows.jsonl", "renamed.jsonl"))
    body["base"] = "./renamed-model"
    body["recipe"] = "other-name"
    assert prints(moved, body) == before


def test_a_witness_is_planned_and_moves_nothing(folder: Path) -> None:
    """Train looks at the tasks of the recipe's evals; which there are, and what they hold, is no part of what it makes."""
    body = copy.deepcopy(BASE)
    without = {**body, "steps": {k: v for k, v in body["steps"].items() if k != "score"}}
    before = prints(folder, body)
    assert prints(folder, without)["sft"] == before["sft"]
    body["steps"]["more"] = {"kind": "eval", "models": ["$base"], "tasks": ["other.yaml", "hellaswag"]}
    (folder / "other.yaml").write_text((folder / "task.yaml").read_text().replace("task: t", "task: u"))
    assert prints(folder, body)["sft"] == before["sft"]
    recipe = load(folder / "r.yaml")
    (row,) = [r for r in make(recipe, Store(folder / "store"), Lock(recipe.lock_path, frozen=True)).rows if r.name == "sft"]
    seen = [i for i in row.inputs if i.witness]
    assert [(i.role, i.path.name) for i in seen] == [("tasks", "task.yaml"), ("tasks", "other.yaml")]
    assert all(i.digest for i in seen) and "tasks" not in row.payload["inputs"]


def test_each_part_of_a_short_task_and_of_an_endpoint_moves_it(folder: Path) -> None:
    (folder / "t.csv").write_text("q,a\n1,2\n")
    task = {"name": "t", "data": "t.csv", "user": "q", "answer": "a", "metric": ["numeric", "regex", "schema_valid"]}
    task |= {"pattern": "a", "json_schema": {}}
    api = {"model": "m", "base_url": "http://127.0.0.1:1/v1"}
    score = {"kind": "eval", "models": ["$base"], "chat": True, "tasks": [task], "apis": {"g": api}}
    body = {"recipe": "x", "base": "./model", "steps": {"score": score}}
    seen = {prints(folder, body)["score"]}

    def other(task: dict, api: dict) -> str:
        step = body["steps"]["score"] | {"tasks": [task], "apis": {"g": api}}
        return prints(folder, body | {"steps": {"score": step}})["score"]

    changes = {"name": "u", "user": "{{ q }}", "answer": "q", "system": "s", "metric": ["regex", "numeric", "schema_valid"], "extract": "b",
               "max_tokens": 9, "stop": ["x"], "tolerance": 1.0, "pattern": "b", "json_schema": {"type": "object"}}  # fmt: skip
    found = [other(task | {key: value}, api) for key, value in changes.items()]
    found += [other(task, api | {key: value}) for key, value in {"model": "n", "temperature": 1.0, "extra": {"top_k": 1}, "base_url": "http://x"}.items()]
    assert len(seen | set(found)) == 1 + len(found)
    judged = task | {"metric": "judge", "rubric": "r"}
    del judged["pattern"], judged["json_schema"]

    def verdict(judge: dict, task: dict = judged) -> str:
        step = body["steps"]["score"] | {"tasks": [task], "judge": judge}
        return prints(folder, body | {"steps": {"score": step}})["score"]

    judge = {"teacher": {"model": "m"}}
    moved = [verdict(judge), verdict(judge, judged | {"rubric": "s"}), verdict({"teacher": {"model": "n"}})]
    moved += [verdict(judge | {key: value}) for key, value in {"side_by_side": True, "temperature": 1.0, "max_tokens": 9}.items()]
    assert len(set(moved)) == len(moved)
    paid = {"concurrency": 2, "budget": {"requests": 5}, "prices": {"input": 1, "output": 1}}
    assert {verdict(judge | {key: value}) for key, value in paid.items()} == {moved[0]}
    how = {"concurrency": 2, "budget": {"requests": 5}, "prices": {"input": 1, "output": 1}, "api_key_env": "K", "limit_key": "max_completion_tokens"}
    assert {other(task, api | {key: value}) for key, value in how.items()} == seen
    os.rename(folder / "t.csv", folder / "u.csv")
    assert other(task | {"data": "u.csv"}, api) in seen
    (folder / "u.csv").write_text("q,a\n1,3\n")
    assert other(task | {"data": "u.csv"}, api) not in seen


def test_tasks_are_found_by_name_in_a_folder_and_are_the_files_that_they_are(folder: Path) -> None:
    (folder / "tasks").mkdir()
    shutil.copy(folder / "task.yaml", folder / "tasks" / "some.yaml")
    shutil.copy(folder / "t.jsonl", folder / "tasks" / "t.jsonl")
    step = {"kind": "eval", "models": ["$base"]}
    body = {"recipe": "x", "base": "./model", "steps": {"score": step}}

    def of(**more) -> str:
        return prints(folder, body | {"steps": {"score": step | more}})["score"]

    assert of(tasks=["t"], tasks_dir="tasks") == of(tasks=["tasks/some.yaml"]) != of(tasks=["t"])
    with pytest.raises(RecipeError, match=r"tasks defines none of the tasks \(it has t\)"):
        of(tasks=["u"], tasks_dir="tasks")
    with pytest.raises(RecipeError, match="no such folder: nowhere"):
        of(tasks=["t"], tasks_dir="nowhere")


def test_content_moves_it(folder: Path, tmp_path: Path) -> None:
    before = prints(folder, BASE)
    for name, first in (("rows.jsonl", "sft"), ("model/config.json", "sft"), ("t.jsonl", "score"), ("task.yaml", "score"), ("val.jsonl", "sft")):
        place = tmp_path / name.replace("/", "-")
        shutil.copytree(folder, place)
        (place / name).write_text((place / name).read_text().replace("b", "c") + "\n")
        after = prints(place, BASE)
        assert after[first] != before[first], name


def test_defaults_written_out_are_the_same_as_left_out(folder: Path) -> None:
    short = {"recipe": "r", "base": "model", "steps": {"train": {"data": "rows.jsonl"}}}
    config = load_one(folder, short)
    long = copy.deepcopy(short)
    apart = ("model", "data", "validation", "max_steps", "reward_code", *BLOCKS)
    written = {k: v for k, v in config.model_dump(mode="json").items() if k not in apart}
    long["steps"]["train"] |= written
    assert prints(folder, short) == prints(folder, long)


def load_one(folder: Path, body: dict) -> Any:
    (folder / "one.yaml").write_text(yaml.safe_dump(body))
    return next(iter(load(folder / "one.yaml").steps.values())).config


def test_a_field_born_later_keeps_old_fingerprints() -> None:
    class Old(StepConfig):
        a: int = 1

    class New(StepConfig):
        a: int = 1
        b: Annotated[int, Born(0)] = 0

    kind = _registry.load("merge")
    assert of_config(Old(), kind) == of_config(New(), kind) == {"a": 1}
    assert of_config(New(b=2), kind) == {"a": 1, "b": 2}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
@settings(max_examples=200, deadline=None)
def test_canonical_is_one_text_and_reads_back(value: Any) -> None:
    text = canonical(value)
    assert json.loads(text) == value
    assert canonical(json.loads(text)) == text
    assert differences(value, json.loads(text)) == []


@given(st.dictionaries(st.text(), json_values, min_size=2, max_size=5))
@settings(max_examples=100, deadline=None)
def test_key_order_is_nothing(value: dict) -> None:
    assert canonical(value) == canonical(dict(reversed(list(value.items()))))


@pytest.mark.parametrize("bad", [math.nan, math.inf, {1: 2}, {"a": object()}, [b"x"], 1 << 60, {"p": Path("x")}, {"s": {1, 2}}])
def test_what_is_no_json_raises(bad: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        canonical(bad)


def test_golden_fingerprint() -> None:
    body = payload("toy", 1, {"b": 1.0, "a": "é"}, {"data": {"sha256": "0" * 64}}, {"lm_eval": "0.4.13"})
    assert canonical(body) == (
        '{"config":{"a":"é","b":1.0},"inputs":{"data":{"sha256":"' + "0" * 64 + '"}},"kind":"toy","pins":{"lm_eval":"0.4.13"},'
        '"schema":"slmkit.fingerprint/1","version":1}'
    ).encode()
    assert fingerprint(body) == "bdaa5563800abab8aff1d0ed60c6baefd325dc88e3890b0c0b24b5b442f64355"


def test_schema_is_current() -> None:
    assert (ROOT / "recipes/recipe.schema.json").read_text() == schema_text() + "\n"
