"""An accelerate config is done, or says nothing, or is refused with its place: key by key, when the recipe is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from slmkit.errors import RecipeError, UsageError
from slmkit.ml import launch
from slmkit.recipe.load import load
from slmkit.steps import _accelerate, _world, train
from tests.support.cli import Cli

CPU = {  # what `accelerate config` of 1.15 writes for two processes on a CPU
    "compute_environment": "LOCAL_MACHINE", "debug": False, "distributed_type": "MULTI_CPU", "downcast_bf16": "no", "enable_cpu_affinity": False,
    "machine_rank": 0, "main_training_function": "main", "mixed_precision": "no", "num_machines": 1, "num_processes": 2, "rdzv_backend": "static",
    "same_network": True, "tpu_env": [], "tpu_use_cluster": False, "tpu_use_sudo": False, "use_cpu": True,
}  # fmt: skip
SHARED = {
    "fsdp_version": 2, "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer",
    "fsdp_reshard_after_forward": True, "fsdp_offload_params": False, "fsdp_cpu_ram_efficient_loading": False,
    "fsdp_state_dict_type": "FULL_STATE_DICT", "fsdp_activation_checkpointing": True,
}  # fmt: skip
FSDP = CPU | {"distributed_type": "FSDP", "use_cpu": False, "num_processes": 4, "mixed_precision": "bf16", "fsdp_config": SHARED}


def execution(folder: Path, said: dict | str, precision: str = "fp32", **beside: object) -> train.Execution:
    """The execution of a step that names a file which says this."""
    (folder / "acc.yaml").write_text(said if isinstance(said, str) else yaml.safe_dump(said, sort_keys=False))
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    step = {"kind": "train", "data": "rows.jsonl", "precision": precision, "execution": {"accelerate": "acc.yaml"} | beside}
    (folder / "r.yaml").write_text(yaml.safe_dump({"recipe": "r", "base": "demo:student", "steps": {"sft": step}}, sort_keys=False))
    return load(folder / "r.yaml").steps["sft"].execution


def test_processes_on_cpus(tmp_path: Path) -> None:
    found = execution(tmp_path, CPU)
    assert (found.processes, found.sharding, found.device, found.gradient_checkpointing) == (2, "none", "cpu", False)
    assert found.accelerate.file == "acc.yaml" and found.accelerate.processes == 2
    read = {"distributed_type", "mixed_precision", "num_machines", "num_processes", "use_cpu"}
    assert set(found.accelerate.unread) == set(CPU) - read  # what says nothing is listed, not passed over


def test_a_shared_model_on_gpus(tmp_path: Path) -> None:
    found = execution(tmp_path, FSDP, "bf16")
    assert (found.processes, found.sharding, found.device, found.gradient_checkpointing) == (4, "fsdp", "cuda", True)
    assert "fsdp_config.fsdp_transformer_layer_cls_to_wrap" in found.accelerate.unread


WRONG = {
    "an unknown key": (CPU | {"num_proceses": 2}, "unknown key `num_proceses`", "did you mean `num_processes`?", "num_proceses:"),
    "an unknown key of fsdp": (FSDP | {"fsdp_config": SHARED | {"fsdp_offload_param": False}}, "unknown key `fsdp_offload_param`",
                               "did you mean `fsdp_offload_params`?", "fsdp_offload_param:"),
    "no kind": ({k: v for k, v in CPU.items() if k != "distributed_type"}, "it says no `distributed_type`", "MULTI_CPU", None),
    "no count": ({k: v for k, v in CPU.items() if k != "num_processes"}, "`num_processes` must be a number", "how many", None),
    "another kind": (CPU | {"distributed_type": "MEGATRON_LM"}, "`distributed_type: MEGATRON_LM` is not done", "MULTI_GPU", "distributed_type:"),
    "alone with two": (CPU | {"distributed_type": "NO"}, "`num_processes` is 2 with `distributed_type: NO`", "MULTI_CPU", "num_processes:"),
    "one that shares": (FSDP | {"num_processes": 1}, "needs 2 processes", "NO", "num_processes:"),
    "GPUs on a CPU": (CPU | {"distributed_type": "MULTI_GPU"}, "`use_cpu: true` with", "MULTI_CPU", "use_cpu:"),
    "uneven machines": (CPU | {"num_machines": 3, "num_processes": 4}, "no multiple of 3 machines", "all machines", "num_processes:"),
    "a rank too high": (CPU | {"machine_rank": 1}, "`machine_rank` is 1, and there are 1", "from 0", "machine_rank:"),
    "fp16": (CPU | {"mixed_precision": "fp16"}, "`mixed_precision: fp16` is not done", "bf16 or no", "mixed_precision:"),
    "another precision": (CPU | {"mixed_precision": "bf16"}, "the step's precision is fp32", "`precision: bf16` in the step", "mixed_precision:"),
    "some GPUs": (CPU | {"gpu_ids": "0,1"}, "`gpu_ids` asks for", "CUDA_VISIBLE_DEVICES", "gpu_ids:"),
    "a compiler": (CPU | {"dynamo_config": {"dynamo_backend": "INDUCTOR"}}, "`dynamo_config` asks for", "remove", "dynamo_config:"),
    "FSDP1": (FSDP | {"fsdp_config": SHARED | {"fsdp_version": 1}}, "`fsdp_version: 1` is not done", "accelerate to-fsdp2", "fsdp_version:"),
    "a key of FSDP1": (FSDP | {"fsdp_config": SHARED | {"fsdp_use_orig_params": True}}, "a key of FSDP1", "to-fsdp2", "fsdp_use_orig_params:"),
    "another sharing": (FSDP | {"fsdp_config": SHARED | {"fsdp_offload_params": True}}, "`fsdp_offload_params: true`", "write false",
                        "fsdp_offload_params:"),
    "FSDP left out": (CPU | {"fsdp_config": SHARED}, "`fsdp_config` is not read with", "distributed_type: FSDP", "fsdp_config:"),
    "a list": ("- a\n", "is a mapping of keys", "accelerate config", None),
    "no YAML": ("distributed_type: [NO\n", "opened here and not closed", "close the bracket", "distributed_type:"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_done_is_refused_at_its_place(tmp_path: Path, name: str) -> None:
    said, what, mend, begins = WRONG[name]
    with pytest.raises(RecipeError) as e:
        execution(tmp_path, said, "bf16" if isinstance(said, dict) and said.get("distributed_type") == "FSDP" else "fp32")
    (problem,) = [p for p in e.value.problems if what in p.what]
    assert mend in problem.mend and problem.file.endswith("acc.yaml") and problem.line >= 1
    lines = (tmp_path / "acc.yaml").read_text().splitlines()
    assert begins is None or lines[problem.line - 1].lstrip().startswith(begins)


def test_every_key_of_accelerate_has_an_answer() -> None:
    """A release that knows other keys fails here, before a user meets them."""
    from accelerate.commands.config.config_args import ClusterConfig

    known = {*_accelerate.READ, *_accelerate.SAYS_NOTHING}
    assert set(ClusterConfig.__dataclass_fields__) <= known


@pytest.mark.parametrize(("beside", "what"), [
    ({"processes": 2}, "`processes` is set by acc.yaml, too"), ({"sharding": "none"}, "`sharding` is set by acc.yaml, too"),
    ({"device": "cuda"}, "`device: cuda`, and acc.yaml asks for cpu"),
])  # fmt: skip
def test_the_recipe_says_nothing_beside_it(tmp_path: Path, beside: dict, what: str) -> None:
    with pytest.raises(RecipeError, match=what) as e:
        execution(tmp_path, CPU, **beside)
    (problem,) = e.value.problems
    assert problem.file.endswith("r.yaml") and next(iter(beside)) in problem.source


def test_what_is_no_file_is_told_when_it_is_planned(cli: Cli) -> None:
    """By the command: exit 2 with file:line, before a model is looked at."""
    cli.write("rows.jsonl", '{"prompt": "a", "completion": "b"}\n')
    recipe = "recipe: r\nbase: demo:student\nsteps:\n  sft:\n    kind: train\n    data: rows.jsonl\n    execution: {accelerate: %s}\n"
    cli.write("acc.yaml", "distributed_type: MULTI_CPU\nnum_processes: two\n")
    for said, words in (
        ("ac.yaml", ("r.yaml:7:29: no such file: ac.yaml", "did you mean acc.yaml?")), ("{file: a}", ("r.yaml:7:29", "the path of a file")),
        ("acc.yaml", ("acc.yaml:2:1: `num_processes` must be a number", "not two")),
    ):  # fmt: skip
        cli.write("r.yaml", recipe % said)
        done = cli("plan", "r.yaml")
        assert done.returncode == 2 and all(w in done.stderr for w in words) and "Traceback" not in done.stderr, done.stderr


def test_several_machines_are_started_on_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone it is blocked, with the command; started by torchrun, there must be as many as the file says."""
    for name in (*_world.ENV, "SLURM_STEP_NUM_TASKS", "SLMKIT_LAUNCH"):
        monkeypatch.delenv(name, raising=False)
    more = {"num_machines": 2, "num_processes": 8, "machine_rank": 1, "main_process_ip": "10.0.0.1", "main_process_port": 29501}
    found = execution(tmp_path, CPU | more)
    said = train.blocked(train.Config(model="m", data="d"), found)
    assert "torchrun --nnodes 2 --node-rank 1 --nproc-per-node 4 --master-addr 10.0.0.1 --master-port 29501 -m slmkit" in said
    for key, value in zip(_world.ENV, ("0", "8", "0", "10.0.0.1", "29501"), strict=True):
        monkeypatch.setenv(key, value)
    assert train.blocked(train.Config(model="m", data="d"), found) is None
    monkeypatch.setattr(_world._here, "leader", _world.Leader(_world.Member(0, 8, 0, "10.0.0.1", 29501), None))
    assert launch.wanted(found) == 8
    monkeypatch.setattr(_world._here, "leader", _world.Leader(_world.Member(0, 4, 0, "10.0.0.1", 29501), None))
    with pytest.raises(UsageError, match="says num_processes: 8, and torchrun or srun started 4"):
        launch.wanted(found)
