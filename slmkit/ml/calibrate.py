"""Runs calibration rows through a model one decoder block at a time, quantizing as it goes.

Each layer's Hessian is taken from inputs that went through the quantized layers before it, so errors are seen and made
up for downstream. Layers with the same input (q, k and v) share one Hessian. Rows of like length run together, padded on
the right: a causal model's real tokens never see what follows them, and padding is left out of the Hessian.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from slmkit.ml.lora import decoder

BATCH = 8


@dataclass
class _Batch:
    """hidden: what enters the next block; real: bool [batch, width], False on padding; rest: what else each block was given."""

    hidden: torch.Tensor
    real: torch.Tensor
    rest: list[tuple[tuple, dict]]


def layers(model: PreTrainedModel) -> dict[str, torch.nn.Linear]:
    """Every linear layer inside the decoder blocks, by full name. Embeddings and lm_head are outside them."""
    prefix, _ = decoder(model)
    return {n: m for n, m in model.named_modules() if n.startswith(prefix + ".") and isinstance(m, torch.nn.Linear)}


@torch.no_grad()
def walk(
    model: PreTrainedModel,
    rows: list[list[int]],
    quantize: Callable[[str, torch.nn.Linear, torch.Tensor], None],
    progress: Callable[[int, int], None],
) -> None:
    """Call `quantize(name, layer, hessian)` for every layer, in order of execution; it changes the layer's weight in place."""
    prefix, blocks = decoder(model)
    names = {module: name for name, module in layers(model).items()}
    batches = _enter(model, blocks, rows)
    for i, block in enumerate(blocks):
        linear = [m for m in block.modules() if m in names]
        for group in _groups(block, i, linear, batches[0]):
            hessian = _hessian(block, i, group[0], batches)
            for module in group:
                quantize(names[module], module, hessian)
        for batch in batches:
            batch.hidden = _run(block, i, batch)
        progress(i + 1, len(blocks))


def _enter(model: PreTrainedModel, blocks, rows: list[list[int]]) -> list[_Batch]:
    """Run the embedding and note what every block is called with (masks and rotary angles differ between kinds of layers)."""
    found = []
    where = model.get_input_embeddings().weight.device
    ordered = sorted(rows, key=len, reverse=True)
    for start in range(0, len(ordered), BATCH):
        part = ordered[start : start + BATCH]
        width = len(part[0])
        ids = torch.tensor([r + [0] * (width - len(r)) for r in part], device=where)
        real = torch.tensor([[True] * len(r) + [False] * (width - len(r)) for r in part], device=where)
        calls = _calls(model, blocks, ids)
        hidden = calls[0][0][0] if calls[0][0] else calls[0][1]["hidden_states"]
        rest = [(args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"}) for args, kwargs in calls]
        found.append(_Batch(hidden, real, rest))
    return found


def _calls(model: PreTrainedModel, blocks, ids: torch.Tensor) -> list[tuple[tuple, dict]]:
    """The arguments of every block in one forward pass."""
    calls: list[tuple[tuple, dict]] = []

    def note(_module, args, kwargs):
        calls.append((args, kwargs))

    hooks = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
    model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return calls


def _run(block: torch.nn.Module, index: int, batch: _Batch) -> torch.Tensor:
    args, kwargs = batch.rest[index]
    out = block(batch.hidden, *args, **kwargs)
    return out[0] if isinstance(out, tuple) else out


def _groups(block, index: int, linear: list[torch.nn.Linear], batch: _Batch) -> list[list[torch.nn.Linear]]:
    """Layers in order of execution, those with the very same input together."""
    groups: list[tuple[torch.Tensor, list[torch.nn.Linear]]] = []

    def note(module, args):
        if groups and groups[-1][0] is args[0]:
            groups[-1][1].append(module)
        else:
            groups.append((args[0], [module]))

    hooks = [m.register_forward_pre_hook(note) for m in linear]
    _run(block, index, batch)
    for hook in hooks:
        hook.remove()
    return [group for _, group in groups]


def _hessian(block, index: int, module: torch.nn.Linear, batches: list[_Batch]) -> torch.Tensor:
    """Mean of x xᵀ over all real tokens that enter `module`, fp32 [in, in]."""
    total = torch.zeros(module.in_features, module.in_features, device=module.weight.device)
    count = 0
    current: _Batch | None = None

    def add(_module, args):
        nonlocal count
        x = args[0][current.real].float() if args[0].dim() == 3 else args[0].float()
        total.addmm_(x.T, x)
        count += len(x)

    hook = module.register_forward_pre_hook(add)
    for current in batches:
        _run(block, index, current)
    hook.remove()
    return total / max(count, 1)
