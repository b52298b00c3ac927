"""A DeepSpeed config is done, or held against the recipe, or says nothing, or is refused with its place: key by key, when the recipe is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from slmkit.errors import RecipeError
from slmkit.recipe.load import load
from slmkit.steps import train

COMMON = {  # as the integrations' guides have them, for use as they stand
    "fp16": {"enabled": False}, "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}},
    "gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "steps_per_print": 2000, "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto", "wall_clock_breakdown": False,
}  # fmt: skip
ZERO2 = COMMON | {"zero_optimization": {
    "stage": 2, "offload_optimizer": {"device": "none", "pin_memory": True}, "allgather_partitions": True, "allgather_bucket_size": 2e8,
    "overlap_comm": True, "reduce_scatter": True, "reduce_bucket_size": 2e8, "contiguous_gradients": True, "round_robin_gradients": True,
}}  # fmt: skip
ZERO3 = COMMON | {"zero_optimization": {
    "stage": 3, "offload_param": {"device": "none"}, "overlap_comm": True, "contiguous_gradients": True, "sub_group_size": 1e9,
    "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto",
    "stage3_max_live_parameters": 1e9, "stage3_max_reuse_distance": 1e9, "stage3_gather_16bit_weights_on_model_save": True,
}}  # fmt: skip


def execution(folder: Path, said: dict, step: dict | None = None, **beside: object) -> train.Execution:
    """The execution of a step that names a file which says this."""
    (folder / "ds.json").write_text(json.dumps(said, indent="\t"))
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    how = {k: v for k, v in ({"processes": 2, "accelerate": "ds.json"} | beside).items() if v is not None}
    body = {"kind": "train", "data": "rows.jsonl", "method": "full"} | (step or {}) | {"execution": how}
    (folder / "r.yaml").write_text(yaml.safe_dump({"recipe": "r", "base": "demo:student", "steps": {"sft": body}}, sort_keys=False))
    return load(folder / "r.yaml").steps["sft"].execution


@pytest.mark.parametrize("said", [ZERO2, ZERO3])
def test_what_users_have_is_shared_by_fsdp(tmp_path: Path, said: dict) -> None:
    found = execution(tmp_path, said)
    assert (found.sharding, found.processes, found.micro_batch) == ("fsdp", 2, "auto")
    inside = {f"zero_optimization.{k}" for k in said["zero_optimization"] if k != "stage"}
    assert set(found.accelerate.unread) == inside | (said.keys() - {"zero_optimization"}), "what says nothing is listed, not passed over"
    assert found.accelerate.machines == 1 and found.accelerate.file == "ds.json"


def test_what_the_recipe_says_too_is_held_against_it(tmp_path: Path) -> None:
    said = {"zero_optimization": {"stage": 0}, "train_batch_size": 32, "gradient_accumulation_steps": 4, "gradient_clipping": 0.5}
    said |= {"bf16": {"enabled": True}}
    step = {"batch_size": 32, "max_grad_norm": 0.5, "precision": "bf16"}
    found = execution(tmp_path, said, step)
    assert (found.sharding, found.micro_batch) == ("none", 4), "32 rows are 4 passes of 4 on each of 2 processes"
    assert execution(tmp_path, {"train_micro_batch_size_per_gpu": 8}, processes=None).micro_batch == 8
    assert execution(tmp_path, ZERO3, processes="auto").sharding == "fsdp"


WRONG = [
    (ZERO3, {}, {"processes": None}, "does not say how many", "processes: 2", '"stage"'),
    (ZERO3, {}, {"sharding": "fsdp"}, "`sharding` is set by ds.json, too", "remove it", "sharding"),
    (ZERO3 | {"zero_optimisation": {}}, {}, {}, "unknown key `zero_optimisation`", "did you mean `zero_optimization`?", '"zero_optimisation"'),
    ({"zero_optimization": {"stage": 3, "stage3_prefetch_bucket": 1}}, {}, {}, "unknown key `stage3_prefetch_bucket`", "bucket_size", "stage3"),
    ({"zero_optimization": {"stage": 4}}, {}, {}, "no `stage` from 0 to 3", "stage: 3", '"zero_optimization"'),
    ({"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}, {}, {}, "`offload_param`: weights", "device: none", '"offload_param"'),
    (ZERO3 | {"train_batch_size": 32}, {}, {}, "batch_size is left out", "batch_size: 32", '"train_batch_size"'),
    (ZERO3 | {"train_batch_size": "many"}, {}, {}, "is a number of rows, or auto", None, '"train_batch_size"'),
    (ZERO3 | {"gradient_accumulation_steps": 3}, {"batch_size": 32}, {}, "does not follow from the recipe", "divide so", "accumulation"),
    (ZERO3 | {"gradient_accumulation_steps": 4, "train_micro_batch_size_per_gpu": 2}, {"batch_size": 32}, {}, "are no batch of 32", "auto", "micro"),
    (ZERO3 | {"train_micro_batch_size_per_gpu": 2}, {}, {"micro_batch": 4}, "`micro_batch: 4`, and the file asks for 2", "remove it", "micro_batch"),
    (ZERO3 | {"gradient_clipping": 0.5}, {}, {}, "max_grad_norm is left out", "max_grad_norm: 0.5", '"gradient_clipping"'),
    (ZERO3 | {"bf16": {"enabled": True}}, {}, {}, "`bf16` is on, and the step's precision is auto", "precision: bf16", '"bf16"'),
    (ZERO3 | {"fp16": {"enabled": True}}, {"precision": "fp32"}, {}, "`fp16` is on", "write bf16", '"fp16"'),
    (ZERO3 | {"optimizer": {"type": "Lamb", "params": {"lr": "auto"}}}, {}, {}, "`optimizer` is the recipe's", "learning_rate", '"optimizer"'),
    (ZERO3 | {"scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 1e-4}}}, {}, {}, "`scheduler` is the recipe's", "warmup", '"scheduler"'),
    (ZERO3 | {"amp": {"enabled": True}}, {}, {}, "`amp` asks for something", "remove it", '"amp"'),
]  # fmt: skip


@pytest.mark.parametrize(("said", "step", "beside", "what", "mend", "line"), WRONG)
def test_what_is_not_done_is_refused_with_its_line(tmp_path: Path, said, step, beside, what, mend, line) -> None:
    with pytest.raises(RecipeError) as e:
        execution(tmp_path, said, step, **beside)
    told = e.value.render()
    assert what in told and (mend or "") in told and line in e.value.problems[0].source, told
