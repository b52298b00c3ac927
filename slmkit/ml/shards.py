"""One model shared among the processes (FSDP2): each holds a part of every weight, of its gradient and of the optimizer's state, and the
whole of one decoder block at a time.

torch's `fully_shard` is applied here and not through accelerate, which on a CPU silently falls back to copies (DDP): so the same code runs
on CPUs, where it is tested, and on GPUs. Checkpoints hold whole tensors, written by the first process: plain files by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from slmkit.errors import CannotRun, Problem, RecipeError, StepFailed
from slmkit.ml.lora import decoder

WEIGHTS, OPTIMIZER, SCHEDULER = "trained.safetensors", "moments.safetensors", "scheduler.pt"


def check(config, execution, world: int, where: str) -> None:
    """Raises RecipeError or CannotRun for what cannot be shared among processes."""
    if execution.sharding == "none":
        return
    if config.objective != "sft":
        what = f"execution.sharding: fsdp is not read by objective {config.objective}, which asks the whole model in between"
        raise RecipeError([Problem(what, mend="remove it, or write `objective: sft`")])
    if config.method == "qlora":
        raise RecipeError([Problem("execution.sharding: fsdp cannot share 4-bit weights", mend="write `method: lora` or `method: full`")])
    if world == 1:
        mend = "write `execution.processes: 2` or more (auto: one per GPU), or start it by torchrun"
        raise RecipeError([Problem("execution.sharding: fsdp with one process shares nothing", mend=mend)])
    if where == "mps":
        mend = "write `execution.sharding: none`"
        raise CannotRun("execution.sharding: fsdp runs on CUDA and CPU, not on mps", mend=mend, key="execution.sharding")


def shard(model: torch.nn.Module, where: torch.device) -> torch.nn.Module:
    """Share a model, loaded whole on the CPU, block by block; each process keeps its part on `where`."""
    PartialState(cpu=where.type == "cpu")  # joins the processes, as the trainer will
    mesh = init_device_mesh(where.type, (dist.get_world_size(),))
    for block in decoder(model)[1]:
        fully_shard(block, mesh=mesh)
    # left to itself the outermost keeps its weights whole after a forward pass, and who asks for weights then misses its shares
    return fully_shard(model, mesh=mesh, reshard_after_forward=True)


def is_sharded(model: torch.nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def prove(model: torch.nn.Module, world: int) -> None:
    """Raises StepFailed unless every weight is shared among all the processes."""
    whole = [n for n, p in model.named_parameters() if not isinstance(p, DTensor) or p.device_mesh.size() != world]
    if not is_sharded(model) or whole:
        what = f"{len(whole)} weights, the first {whole[0]}" if whole else f"the model ({type(model).__name__})"
        raise StepFailed(f"the {world} processes do not share {what}")


@torch.no_grad()
def whole(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Trained weights by name, on the CPU. All processes must ask; of a shared model only the first gets an answer."""
    found = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            full = p.full_tensor() if isinstance(p, DTensor) else p.detach()
            if not isinstance(p, DTensor) or dist.get_rank() == 0:
                found[name] = full.to("cpu").contiguous()
    return found


@torch.no_grad()
def put(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Weights by name into the model, shared or not. Raises StepFailed when one that is trained is missing."""
    for name, p in model.named_parameters():
        if name not in weights:
            if p.requires_grad:
                raise StepFailed(f"the kept weights lack {name}")
        elif isinstance(p, DTensor):
            given = weights[name].to(p.device, p.dtype)
            p.to_local().copy_(distribute_tensor(given, p.device_mesh, p.placements, src_data_rank=None).to_local())
        else:
            p.copy_(weights[name])


class Sharding:
    """Over a trainer of transformers': checkpoints of a shared model hold whole tensors. Nothing else is another for it."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not is_sharded(self.model):
            return super().save_model(output_dir, _internal_call)
        weights = whole(self.model)
        if self.args.should_save:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            save_file(weights, Path(output_dir) / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if not is_sharded(self.model):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        put(self.model, load_file(Path(resume_from_checkpoint) / WEIGHTS))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not is_sharded(self.model):
            return super()._save_optimizer_and_scheduler(output_dir)
        state = moments(self.model, self.optimizer)
        if self.args.should_save:
            save_file(state, Path(output_dir) / OPTIMIZER)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not is_sharded(self.model):
            return super()._load_optimizer_and_scheduler(checkpoint)
        put_moments(self.model, self.optimizer, load_file(Path(checkpoint) / OPTIMIZER))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER, weights_only=True))
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate


def moments(model: torch.nn.Module, optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as `KEY/weight's name`, whole, on the CPU. All processes must ask; only the first gets an answer."""
    found = {}
    for name, p in model.named_parameters():
        for key, value in (optimizer.state.get(p) or {}).items():
            full = value.full_tensor() if isinstance(value, DTensor) else value
            if dist.get_rank() == 0:
                found[f"{key}/{name}"] = full.to("cpu").contiguous()
    return found


def put_moments(model: torch.nn.Module, optimizer, state: Mapping[str, torch.Tensor]) -> None:
    """The state that `moments` gave back into an optimizer; each process takes its part."""
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = state[f"{key}/{name}"]
            part = distribute_tensor(value.to(p.device), p.device_mesh, p.placements, src_data_rank=None) if value.ndim else value
            optimizer.state[p][key] = part
