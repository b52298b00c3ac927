"""A DeepSpeed config is done, or held against the recipe, or says nothing, or is refused with its place: key by key, when the recipe is read."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import yaml

from slmkit.errors import RecipeError
from slmkit.ml import launch
from slmkit.recipe.load import load
from slmkit.steps import _deepspeed_keys, _world, train
from tests.support.cli import Cli

FULL = {"method": "full", "schedule": "constant", "max_steps": 2}
ZERO3 = {  # as people hand it to the Hugging Face trainer
    "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2, "min_loss_scale": 1},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}},
    "zero_optimization": {
        "stage": 3, "offload_optimizer": {"device": "none", "pin_memory": True}, "offload_param": {"device": "none", "pin_memory": True},
        "overlap_comm": True, "contiguous_gradients": True, "sub_group_size": 1e9, "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto", "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9, "stage3_gather_16bit_weights_on_model_save": True,
    },
    "gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "steps_per_print": 2000, "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto", "wall_clock_breakdown": False,
}  # fmt: skip
ZERO2 = {  # the same people's, with numbers
    "bf16": {"enabled": True},
    "optimizer": {"type": "Adam", "params": {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1}},
    "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_max_lr": 1e-3, "warmup_num_steps": "auto", "total_num_steps": "auto"}},
    "zero_optimization": {
        "stage": 2, "allgather_partitions": True, "allgather_bucket_size": 2e8, "overlap_comm": True, "reduce_scatter": True,
        "reduce_bucket_size": 2e8, "contiguous_gradients": True, "round_robin_gradients": True,
    },
    "gradient_accumulation_steps": 2, "gradient_clipping": 1.0, "train_batch_size": 32, "train_micro_batch_size_per_gpu": 4,
    "tensorboard": {"enabled": False}, "activation_checkpointing": {"partition_activations": False, "number_checkpoints": None},
}  # fmt: skip
AS_ZERO2 = FULL | {"schedule": "linear", "precision": "bf16", "batch_size": 32, "learning_rate": 1e-3, "weight_decay": 0.1}
ACCELERATE = {  # what `accelerate config` writes
    "compute_environment": "LOCAL_MACHINE", "debug": False, "distributed_type": "DEEPSPEED", "mixed_precision": "bf16", "num_machines": 1,
    "num_processes": 8, "use_cpu": False, "deepspeed_config": {
        "deepspeed_multinode_launcher": "standard", "gradient_accumulation_steps": 2, "gradient_clipping": 1.0, "offload_optimizer_device": "none",
        "offload_param_device": "none", "zero3_init_flag": True, "zero3_save_16bit_model": True, "zero_stage": 3},
}  # fmt: skip
AS_ACCELERATE = FULL | {"precision": "bf16", "batch_size": 64}


def execution(folder: Path, said: dict | str, step: dict, **beside: object) -> train.Execution:
    """The execution of a step that names a file which says this."""
    (folder / "ds.json").write_text(said if isinstance(said, str) else json.dumps(said, indent=2))
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    body = {"kind": "train", "data": "rows.jsonl", **step, "execution": {"accelerate": "ds.json"} | beside}
    (folder / "r.yaml").write_text(yaml.safe_dump({"recipe": "r", "base": "demo:student", "steps": {"sft": body}}, sort_keys=False))
    return load(folder / "r.yaml").steps["sft"].execution


def with_(said: dict, path: str, value: object) -> dict:
    """The same with one key said differently."""
    said = copy.deepcopy(said)
    *parents, last = path.split(".")
    node = said
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    return said


def test_a_file_that_leaves_all_to_the_recipe(tmp_path: Path) -> None:
    found = execution(tmp_path, ZERO3, FULL, processes=2)
    assert (found.sharding, found.processes, found.micro_batch, found.device) == ("fsdp", 2, "auto", "auto")
    assert found.accelerate.file == "ds.json" and found.accelerate.processes is None
    leaves = {f"{k}.{n}" for k in ("fp16", "bf16", "zero_optimization") for n in ZERO3[k]} - {"zero_optimization.stage"}
    leaves |= {f"{k}.params.{n}" for k in ("optimizer", "scheduler") for n in ZERO3[k]["params"]}
    leaves |= {k for k, v in ZERO3.items() if not isinstance(v, dict)}
    assert set(found.accelerate.unread) == leaves  # what says nothing is listed, not passed over


def test_a_file_whose_numbers_are_the_recipes(tmp_path: Path) -> None:
    found = execution(tmp_path, ZERO2, AS_ZERO2, processes=4)
    assert (found.sharding, found.processes, found.micro_batch) == ("fsdp", 4, 4)
    assert "tensorboard" in found.accelerate.unread and "gradient_clipping" not in found.accelerate.unread


@pytest.mark.parametrize(("said", "processes", "micro"), [
    ({"train_micro_batch_size_per_gpu": 4}, 2, 4), ({"gradient_accumulation_steps": 4}, 2, 2), ({"train_batch_size": 16}, 2, "auto"),
    ({"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": "auto"}, "auto", 4),
])  # fmt: skip
def test_a_batch_is_cut_up_as_the_file_says(tmp_path: Path, said: dict, processes: object, micro: object) -> None:
    found = execution(tmp_path, said, {}, processes=processes)
    assert (found.micro_batch, found.sharding, found.processes) == (micro, "none", processes)


def test_an_accelerate_config_of_deepspeed(tmp_path: Path) -> None:
    found = execution(tmp_path, ACCELERATE, AS_ACCELERATE)
    assert (found.sharding, found.processes, found.micro_batch, found.device) == ("fsdp", 8, 4, "cuda")
    assert "deepspeed_config.zero3_init_flag" in found.accelerate.unread and found.accelerate.processes == 8


WRONG = {  # (key, its value, what is wrong, the mend, where if not at the key)
    "an unknown key": ("zero_optimisation", {}, "unknown key `zero_optimisation`", "did you mean `zero_optimization`?"),
    "an unknown key of zero": ("zero_optimization.overlap_com", True, "unknown key `overlap_com`", "did you mean `overlap_comm`?"),
    "an unknown key of fp16": ("fp16.los_scale", 0, "unknown key `los_scale`", "did you mean `loss_scale`?"),
    "an unknown key of the optimizer": ("optimizer.params.beta", 0, "unknown key `beta`", "did you mean `betas`?"),
    "no stage": ("zero_optimization.stage", 4, "`stage` is 0, 1, 2 or 3, not 4", None),
    "a stage in words": ("zero_optimization.stage", "auto", "`stage` is 0, 1, 2 or 3, not auto", None),
    "a block that is none": ("zero_optimization", True, "`zero_optimization` is a mapping", None),
    "offloading": ("zero_optimization.offload_param", {"device": "cpu"}, "`offload_param` asks for", "write none"),
    "quantized weights": ("zero_optimization.zero_quantized_weights", True, "`zero_quantized_weights` asks for", "remove it"),
    "another batch": ("train_batch_size", 32, "`train_batch_size: 32`, and the step's batch_size is 16", "`batch_size: 32` in the step"),
    "no batch": ("train_micro_batch_size_per_gpu", 0, "a number of 1 at least", None),
    "a batch that does not add up": ("train_micro_batch_size_per_gpu", 3, "`train_micro_batch_size_per_gpu: 3` × 2 processes is 6", "batch_size"),
    "steps that do not add up": ("gradient_accumulation_steps", 16, "`gradient_accumulation_steps: 16` × 2 processes is 32", "auto"),
    "another norm": ("gradient_clipping", 0.5, "`gradient_clipping: 0.5`, and the step's max_grad_norm is 1", "`max_grad_norm: 0.5`"),
    "fp16": ("fp16.enabled", True, "fp16 is not done here", "precision: bf16", "fp16.enabled"),
    "another precision": ("bf16.enabled", True, "`bf16` is on, and the step's precision is auto", "`precision: bf16`", "bf16.enabled"),
    "no bf16": ("bf16.enabled", False, "`bf16` is off, and the step's precision is auto", "`precision: fp32`", "bf16.enabled"),
    "another optimizer": ("optimizer.type", "OneBitAdam", "the optimizer `OneBitAdam` is not done", "Adam or AdamW"),
    "another rate": ("optimizer.params.lr", 1e-3, "`lr: 0.001`, and the step's learning_rate is 0.0002", "`learning_rate: 0.001`"),
    "other betas": ("optimizer.params.betas", [0.8, 0.9], "`betas` asks for", "auto"),
    "another schedule": ("scheduler.type", "WarmupDecayLR", "schedule linear, and the step's schedule is constant", "`schedule: linear`"),
    "a warmup of its own": ("scheduler.params.warmup_num_steps", 9, "`warmup_num_steps` asks for", "auto"),
    "a tracker": ("wandb", {"enabled": True}, "`wandb` asks for", "`trackers`"),
    "recomputing": ("activation_checkpointing", {"partition_activations": True}, "asks for something", "gradient_checkpointing: true"),
    "16 bits between processes": ("communication_data_type", "fp16", "`communication_data_type` asks for", "remove it"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_done_is_refused_at_its_place(tmp_path: Path, name: str) -> None:
    path, value, what, mend, *_ = WRONG[name]
    with pytest.raises(RecipeError) as e:
        execution(tmp_path, with_(ZERO3, path, value), FULL, processes=2)
    (problem,) = e.value.problems
    assert what in problem.what and (mend is None or mend in problem.mend) and problem.file.endswith("ds.json")
    assert (tmp_path / "ds.json").read_text().splitlines()[problem.line - 1].lstrip().startswith(f'"{path.rpartition(".")[2]}":')


IN_ACCELERATE = {
    "a file of its own": ("deepspeed_config", {"deepspeed_config_file": "zero3.json"}, "zero3.json is not read by", "`accelerate: zero3.json`"),
    "no block": ("deepspeed_config", {}, "needs `deepspeed_config: {zero_stage: …}`", "accelerate config"),
    "offloading": ("deepspeed_config.offload_param_device", "cpu", "`offload_param_device` asks for", "write none"),
    "an unknown key": ("deepspeed_config.zero_stag", 3, "unknown key `zero_stag`", "did you mean `zero_stage`?"),
    "another norm": ("deepspeed_config.gradient_clipping", 2.0, "`gradient_clipping: 2.0`", "`max_grad_norm: 2.0`"),
    "steps that do not add up": ("deepspeed_config.gradient_accumulation_steps", 3, "× 8 processes is 24", "auto"),
    "alone": ("num_processes", 1, "one process shares nothing", "distributed_type: NO"),
    "another kind": ("distributed_type", "MULTI_GPU", "`deepspeed_config` asks for", "`distributed_type: DEEPSPEED`"),
}


@pytest.mark.parametrize("name", IN_ACCELERATE)
def test_what_is_not_done_in_an_accelerate_config(tmp_path: Path, name: str) -> None:
    path, value, what, mend = IN_ACCELERATE[name]
    with pytest.raises(RecipeError) as e:
        execution(tmp_path, with_(ACCELERATE, path, value), AS_ACCELERATE)
    (problem,) = e.value.problems
    assert what in problem.what and mend in problem.mend and problem.file.endswith("ds.json") and problem.line > 1


BESIDE = {
    "one process": (ZERO3, {}, {}, "ds.json shares the model among processes, and one process shares nothing", "processes: 2", "r.yaml"),
    "one, said so": (ZERO3, {}, {"processes": 1}, "one process shares nothing", "processes: 2", "r.yaml"),
    "sharding": (ZERO3, {}, {"processes": 2, "sharding": "fsdp"}, "`sharding` is set by ds.json, too", "remove it", "r.yaml"),
    "micro_batch": (ZERO2, AS_ZERO2, {"processes": 4, "micro_batch": 2}, "`micro_batch: 2`, and ds.json asks for 4", "remove it here", "r.yaml"),
    "a count of the machine's": (ZERO2, AS_ZERO2, {"processes": "auto"}, "`gradient_accumulation_steps: 2` cannot be held", "how many", "ds.json"),
    "4-bit weights": (ZERO3, {"method": "qlora"}, {"processes": 2}, "`stage: 3` shares the model", "`method: lora`", "ds.json"),
    "preferences": (ZERO3, {"objective": "dpo"}, {"processes": 2}, "not done for objective dpo", "objective: sft", "ds.json"),
    "answers": ({"train_batch_size": 16}, {"objective": "grpo", "grpo": {"rewards": [{"exact_match": {}}]}}, {}, "grpo counts prompts", "auto",
                "ds.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
def test_the_step_it_is_named_in(tmp_path: Path, name: str) -> None:
    said, step, beside, what, mend, file = BESIDE[name]
    with pytest.raises(RecipeError) as e:
        execution(tmp_path, said, FULL | step, **beside)
    (problem,) = e.value.problems
    assert what in problem.what and mend in problem.mend and problem.file.endswith(file) and problem.line >= 1


def test_json_keeps_its_places(tmp_path: Path) -> None:
    """A key said twice, between tabs, and a comma too few."""
    for text, what, line in (
        ('{"zero_optimization": {\n\t"stage": 3,\n\t"stage": 2}}', "`stage`", 3),
        ('{\n  "bf16": {"enabled": "auto"}\n  "fp16": {}\n}', "(noticed at line 3)", 1),
    ):
        with pytest.raises(RecipeError) as e:
            execution(tmp_path, text, FULL, processes=2)
        (problem,) = e.value.problems
        assert what in problem.what and problem.file.endswith("ds.json") and problem.line == line, problem


def test_a_step_that_says_nothing_is_held_to_its_defaults() -> None:
    assert {key: train.Config.model_fields[key].default for key in _deepspeed_keys.DEFAULTS} == _deepspeed_keys.DEFAULTS


def test_processes_that_were_started_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torchrun: `processes` is left out, and those that there are count."""
    for name in (*_world.ENV, "SLURM_STEP_NUM_TASKS", "SLMKIT_LAUNCH"):
        monkeypatch.delenv(name, raising=False)
    for key, value in zip(_world.ENV, ("0", "4", "0", "10.0.0.1", "29501"), strict=True):
        monkeypatch.setenv(key, value)
    found = execution(tmp_path, ZERO2, AS_ZERO2)
    assert (found.sharding, found.micro_batch) == ("fsdp", 4)
    monkeypatch.setattr(_world._here, "leader", _world.Leader(_world.Member(0, 4, 0, "10.0.0.1", 29501), None))
    assert launch.wanted(found) == 4


def test_it_moves_no_fingerprint(cli: Cli) -> None:
    cli.write("rows.jsonl", '{"prompt": "a", "completion": "b"}\n')
    cli.write("ds.json", json.dumps(ZERO3))
    recipe = "recipe: r\nbase: demo:student\nsteps:\n  sft:\n    kind: train\n    data: rows.jsonl\n    method: full\n    schedule: constant\n"
    prints = []
    for more in ("", "    execution: {processes: 2, accelerate: ds.json}\n"):
        cli.write("r.yaml", recipe + more)
        done = cli("plan", "r.yaml", "--json")
        assert done.returncode == 0, done.stderr
        prints.append([row["fingerprint"] for row in json.loads(done.stdout)["steps"]])
    assert prints[0] == prints[1]
