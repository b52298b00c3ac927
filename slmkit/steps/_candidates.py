"""What `method: auto` tries: the formats that its target loads, as many bits as the bound on the size leaves, told from shapes before any work.

What each target loads (docs/quantize.md says which of it was tried): transformers reads all that quantize writes; vLLM has kernels for symmetric
GPTQ of 4 and 8 bits in groups of 32, 64, 128 or all, and reads NF4; on a CPU slmkit runs NF4 and INT8 as they are, and unpacks GPTQ's format into
full weights, which saves disk and no memory. llama.cpp reads none of these; its own types are tried in ml/choosing_types.py.
Sizes are predicted from headers, to a hundredth, so that nothing is built that could not be kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmkit.errors import Problem, StepFailed
from slmkit.steps import _shapes

LOADS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[str, ...]]] = {
    "transformers": ((8, 4, 3, 2), (32, 64, 128, -1), ("int8", "nf4")),
    "vllm": ((8, 4), (32, 64, 128, -1), ("nf4",)),
    "cpu": ((), (), ("int8", "nf4")),
}
"""Target → bits and group sizes of GPTQ's format, the finest first, and what else."""
WIDTHS = 2  # numbers of bits that are tried: the most that fit under the bound, and the next, whose groups may be finer


@dataclass(frozen=True)
class Candidate:
    """A setting of one of the methods. bytes: of its weights, predicted."""

    method: str
    bits: int | None
    group_size: int | None
    act_order: bool | None
    bytes: int

    @property
    def name(self) -> str:
        """`gptq-4-g32-act`, `rtn-4-g32`, `nf4`."""
        if self.bits is None:
            return self.method
        return f"{self.method}-{self.bits}-g{'all' if self.group_size == -1 else self.group_size}{'-act' if self.act_order else ''}"

    @property
    def grid(self) -> tuple[int | None, int | None]:
        """Those of one grid are as large as each other: rounding to nearest is what the others of it must not be worse than."""
        return self.bits, self.group_size


def candidates(target: str, bound: float, shapes: _shapes.Shapes) -> list[Candidate]:
    """What is tried, the most bits first, rounding before GPTQ on each grid. bound: bits per weight of the whole folder."""
    most = bound * shapes.parameters / 8
    widths, sizes, others = LOADS[target]
    grids = []
    for bits in widths:
        fit = [g for g in sizes if _shapes.refused(shapes, bits, g) is None and _shapes.packed_bytes(shapes, bits, g) <= most]
        if fit and len(grids) < WIDTHS:
            grids.append((bits, fit[0], _shapes.packed_bytes(shapes, bits, fit[0])))
    ways = (("rtn", None), ("gptq", False), ("gptq", True))
    found = [Candidate(method, bits, group, act, size) for bits, group, size in grids for method, act in ways]
    bare = [Candidate(m, None, None, None, _shapes.bitsandbytes_bytes(shapes, m)) for m in others]
    return found + [c for c in bare if c.bytes <= most]


def problem(config: Any, folder: Path) -> Problem | None:
    """Why a config of the quantize step cannot be applied to a model, told from its headers; of `auto`, why there is nothing to try."""
    found, shapes = _shapes.problem(config, folder), _shapes.of(folder)
    if found or config.method != "auto" or shapes is None or candidates(config.target, config.max_bits_per_weight, shapes):
        return found
    least = _least(config.target, shapes)
    what = f"nothing that {config.target} loads fits into max_bits_per_weight: {config.max_bits_per_weight:g} of this model"
    if least is None:
        return Problem(what, mend="give another `target`")
    more = "" if config.target == "transformers" else "; or `target: transformers`, which loads more formats"
    return Problem(what + ", whose embeddings stay 16-bit", mend=f"the smallest takes {least:.2f} bits per weight{more}")


def _least(target: str, shapes: _shapes.Shapes) -> float | None:
    widths, sizes, others = LOADS[target]
    packed = [_shapes.packed_bytes(shapes, b, g) for b in widths for g in sizes if _shapes.refused(shapes, b, g) is None]
    found = packed + [_shapes.bitsandbytes_bytes(shapes, m) for m in others]
    return min(found) * 8 / shapes.parameters if found else None


def of(config: Any, folder: Path) -> list[Candidate]:
    """Of a model folder that `problem` says nothing against. Raises StepFailed where its blocks cannot be told."""
    shapes = _shapes.of(folder)
    if shapes is None:
        raise StepFailed("the blocks of this model cannot be told by the names in its files, so `auto` cannot tell what would fit", where=folder,
                         mend="name the method yourself: gptq, rtn, nf4 or int8")
    return candidates(config.target, config.max_bits_per_weight, shapes)
