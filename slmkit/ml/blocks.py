"""A model gone through one decoder block at a time: the block's weights are read from the files when its turn comes, and let go after it.

Only what stands outside the blocks (embedding, final norm, output layer) and one block are in memory, whatever the model's size. Rows of like
length run together, padded on the right: a causal model's real tokens never see what follows them. What each block is called with (masks and
rotary angles differ between kinds of layers) is noted by a pass in which the blocks do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from slmkit.errors import StepFailed
from slmkit.ml import models, saving
from slmkit.ml.lora import decoder
from slmkit.ml.saving import Stored

BATCH = 8


@dataclass
class Batch:
    """hidden: what enters the next block; real: bool [batch, width], False on padding; ids [batch, width]; rest: what else each block is given."""

    hidden: torch.Tensor
    real: torch.Tensor
    ids: torch.Tensor
    rest: list[tuple[tuple, dict]]


class Blocks:
    """An open model. stored: the number format its values are cut to; compute: the one it runs in."""

    def __init__(self, folder: Path, where: torch.device, stored: torch.dtype, compute: torch.dtype):
        self.folder, self.where, self.stored, self.compute = folder, where, stored, compute
        models.read_config(folder)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with init_empty_weights(include_buffers=False):  # buffers that no file holds (rotary angles) are computed as ever
            self.model = AutoModelForCausalLM.from_config(config, dtype=compute)
        self.model.eval()
        self.prefix, self.list = decoder(self.model)
        self.files = self._files()
        wanted = {n for n, _ in self.model.named_parameters(remove_duplicate=False)}
        self.whole = None if wanted - self._tied() <= set(self.files) else self._other_names()
        self._fill(self.model, "", lambda n: not n.startswith(self.prefix + "."))
        self.model.tie_weights()
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(where))

    def _files(self) -> dict[str, Path]:
        found = {}
        for file in sorted(self.folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                found |= dict.fromkeys(opened.keys(), file)
        return found

    def _tied(self) -> set[str]:
        return set(self.model._tied_weights_keys or ()) if self.model.config.get_text_config().tie_word_embeddings else set()

    def _other_names(self) -> dict[str, torch.Tensor]:
        """A checkpoint in other names than the model's: transformers knows how to read it, whole."""
        kwargs = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True, "dtype": self.stored}
        return AutoModelForCausalLM.from_pretrained(self.folder, **kwargs).state_dict()

    @property
    def names(self) -> list[str]:
        """Every stored weight, in the model's names."""
        return sorted((self.whole or self.files).keys() - self._tied())

    def read(self, name: str) -> torch.Tensor:
        """A weight as it is stored, on the CPU."""
        if self.whole is not None:
            return self.whole[name]
        with safe_open(self.files[name], framework="pt") as opened:
            value = opened.get_tensor(name)
        return value.to(self.stored) if value.is_floating_point() else value

    def stored_as(self, name: str) -> Stored:
        """What `read` gives, unread."""
        if self.whole is not None:
            value = self.whole[name]
            return Stored(value.dtype, tuple(value.shape), lambda: value)
        with safe_open(self.files[name], framework="pt") as opened:
            part = opened.get_slice(name)
            dtype, shape = saving.DTYPES[part.get_dtype()], tuple(part.get_shape())
        return Stored(self.stored if dtype.is_floating_point else dtype, shape, lambda: self.read(name))

    def _fill(self, module: torch.nn.Module, prefix: str, wanted: Callable[[str], bool] = lambda _: True) -> None:
        for name, _ in list(module.named_parameters()):
            if wanted(prefix + name) and prefix + name not in self._tied():
                owner, _, last = name.rpartition(".")
                value = self.read(prefix + name).to(self.where, self.compute)
                setattr(module.get_submodule(owner), last, torch.nn.Parameter(value, requires_grad=False))

    @contextmanager
    def block(self, i: int) -> Iterator[torch.nn.Module]:
        """Block i with its weights."""
        block = self.list[i]
        self._fill(block, f"{self.prefix}.{i}.")
        try:
            yield block
        finally:
            for name, value in list(block.named_parameters()):
                owner, _, last = name.rpartition(".")
                setattr(block.get_submodule(owner), last, torch.nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=False))

    def linear(self, i: int) -> dict[str, torch.nn.Linear]:
        """The linear layers of block i, by full name."""
        return {f"{self.prefix}.{i}.{n}": m for n, m in self.list[i].named_modules() if isinstance(m, torch.nn.Linear)}

    @torch.no_grad()
    def enter(self, rows: list[list[int]]) -> list[Batch]:
        """Rows up to the first block, the longest first."""
        found = []
        ordered = sorted(rows, key=len, reverse=True)
        for start in range(0, len(ordered), BATCH):
            part = ordered[start : start + BATCH]
            width = len(part[0])
            ids = torch.tensor([r + [0] * (width - len(r)) for r in part], device=self.where)
            real = torch.tensor([[True] * len(r) + [False] * (width - len(r)) for r in part], device=self.where)
            calls, _ = self._idle(ids)
            rest = [(args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"}) for args, kwargs in calls]
            found.append(Batch(_hidden(*calls[0]).cpu(), real, ids, rest))
        return found

    @torch.no_grad()
    def leave(self, batch: Batch) -> torch.Tensor:
        """fp32 logits [batch, width, vocabulary] of what came out of the last block."""
        return self._idle(batch.ids, batch.hidden.to(self.where))[1].float()

    def _idle(self, ids: torch.Tensor, last: torch.Tensor | None = None) -> tuple[list[tuple[tuple, dict]], torch.Tensor]:
        """The arguments of every block, and the logits, of a pass in which blocks do nothing; the last one gives `last`."""
        calls: list[tuple[tuple, dict]] = []

        def stand_in(*args, **kwargs):
            calls.append((args, kwargs))
            return last if last is not None and len(calls) == len(self.list) else _hidden(args, kwargs)

        for block in self.list:
            block.forward = stand_in
        try:
            logits = self.model(input_ids=ids, use_cache=False).logits
        finally:
            for block in self.list:
                del block.forward
        if len(calls) != len(self.list) or any(_hidden(*c).shape != _hidden(*calls[0]).shape for c in calls):
            raise StepFailed(f"{type(self.model).__name__} does not call its blocks one after another", mend="try `backend: gptqmodel`")
        return calls, logits

    @torch.no_grad()
    def run(self, i: int, batch: Batch) -> torch.Tensor:
        """What leaves block i, on the CPU."""
        args, kwargs = batch.rest[i]
        out = self.list[i](batch.hidden.to(self.where), *args, **kwargs)
        return (out[0] if isinstance(out, tuple) else out).cpu()


def _hidden(args: tuple, kwargs: dict) -> torch.Tensor:
    return args[0] if args else kwargs["hidden_states"]


@torch.no_grad()
def groups(blocks: Blocks, i: int, batch: Batch) -> list[list[str]]:
    """Names of block i's linear layers in order of execution, those with the very same input together."""
    found: list[tuple[torch.Tensor, list[str]]] = []

    def note(name: str):
        def hook(_module, args):
            if found and found[-1][0] is args[0]:
                found[-1][1].append(name)
            else:
                found.append((args[0], [name]))

        return hook

    hooks = [m.register_forward_pre_hook(note(n)) for n, m in blocks.linear(i).items()]
    blocks.run(i, batch)
    for hook in hooks:
        hook.remove()
    return [names for _, names in found]


class _Seen(Exception):
    """The input that was waited for has come: what is behind it in the block need not run."""


@torch.no_grad()
def hessian(blocks: Blocks, i: int, name: str, batches: list[Batch]) -> torch.Tensor:
    """Mean of x xᵀ over all real tokens that enter a layer of block i, fp32 [in, in].

    The first batch goes through the whole block, which tells whether the layer is called once. If so, the others go no further than to it:
    of four inputs in a block, all but the last come long before its end.
    """
    module = blocks.linear(i)[name]
    total = torch.zeros(module.in_features, module.in_features, device=module.weight.device)
    count = calls = 0
    stops = False
    current: Batch | None = None

    def add(_module, args):
        nonlocal count, calls
        x = args[0][current.real].float() if args[0].dim() == 3 else args[0].float()
        total.addmm_(x.T, x)
        count, calls = count + len(x), calls + 1
        if stops:
            raise _Seen

    hook = module.register_forward_pre_hook(add)
    try:
        for current in batches:
            with suppress(_Seen):
                blocks.run(i, current)
            stops = calls == 1 or stops
    finally:
        hook.remove()
    return total / max(count, 1)
