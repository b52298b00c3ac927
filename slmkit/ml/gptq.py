"""GPTQ (Frantar et al., https://arxiv.org/abs/2210.17323) and rounding to nearest, for one weight matrix at a time.

GPTQ rounds a matrix column after column and lets the columns not yet rounded make up for the error, weighed by the
inverse Hessian of the layer's inputs, H = mean of x xᵀ. Scales are rounded to fp16 *before* anything is rounded to them,
since fp16 is what the file holds: what is measured here is bit for bit what is read back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from slmkit.errors import StepFailed

BLOCK = 128  # columns whose errors are applied to the rest at once; the result is the same, larger is less traffic
TINY = 2.0**-24  # the smallest positive fp16


@dataclass(frozen=True)
class Grid:
    """Which values a weight may take: `bits` per weight, one scale and zero per output and `group_size` inputs (-1: all)."""

    bits: int
    group_size: int
    symmetric: bool

    def width(self, inputs: int) -> int:
        return inputs if self.group_size == -1 else self.group_size

    @property
    def top(self) -> int:
        return 2**self.bits - 1


@dataclass(frozen=True)
class Quantized:
    """codes: uint8 [out, in]; scales: fp16 [groups, out]; zeros: int32 [groups, out], 1…top; g_idx: int32 [in], the group of each input."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    g_idx: torch.Tensor

    def dense(self) -> torch.Tensor:
        """fp32 [out, in]: (code - zero) × scale, exact in fp32 (8 + 11 bits of mantissa)."""
        index = self.g_idx.long()
        return (self.codes.float() - self.zeros[index].T.float()) * self.scales[index].T.float()


def grid_of(weight: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale (fp32 holding fp16 values) and zero, both [out], of weights [out, n]. Raises StepFailed for weights fp16 cannot scale."""
    if grid.symmetric:
        zero = torch.full(weight.shape[:1], (grid.top + 1) / 2, device=weight.device)
        scale = weight.abs().amax(1) * 2 / grid.top
    else:
        low, high = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
        scale = (high - low) / grid.top
        zero = torch.round(-low / scale.clamp(min=TINY))
        # Format 1 stores zero - 1: a zero of 0 would wrap around, and readers disagree on what that means.
        above = zero < 1
        scale, zero = torch.where(above, high / (grid.top - 1), scale), zero.clamp(1, grid.top)
    scale = scale.half().float()
    if not torch.isfinite(scale).all():
        raise StepFailed("a weight is not finite, or too large for fp16 scales")
    return scale.clamp(min=TINY), zero


def _codes(column: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, grid: Grid) -> torch.Tensor:
    return torch.clamp(torch.round(column / scale) + zero, 0, grid.top)


def rtn(weight: torch.Tensor, grid: Grid) -> Quantized:
    """Round every weight [out, in] to the nearest value of its group's grid."""
    inputs = weight.shape[1]
    width = grid.width(inputs)
    groups = weight.float().split(width, 1)
    pairs = [grid_of(g, grid) for g in groups]
    codes = [_codes(g, s[:, None], z[:, None], grid) for g, (s, z) in zip(groups, pairs, strict=True)]
    g_idx = torch.arange(inputs, device=weight.device, dtype=torch.int32) // width
    return _quantized(torch.cat(codes, 1), [s for s, _ in pairs], [z for _, z in pairs], g_idx)


def _quantized(codes: torch.Tensor, scales: list, zeros: list, g_idx: torch.Tensor) -> Quantized:
    return Quantized(codes.to(torch.uint8), torch.stack(scales).half(), torch.stack(zeros).to(torch.int32), g_idx)


@dataclass(frozen=True)
class Factor:
    """What rounding needs of a Hessian, the same for all layers that share an input: columns in the order they are rounded in, those whose input
    is always 0, and the upper Cholesky factor of the inverse, in that order."""

    order: torch.Tensor
    dead: torch.Tensor
    inverse: torch.Tensor


def factor(hessian: torch.Tensor, *, damping: float, act_order: bool) -> Factor:
    moment = hessian.float().clone()
    dead = moment.diagonal() == 0
    moment.diagonal()[dead] = 1
    order = torch.argsort(moment.diagonal(), descending=True, stable=True) if act_order else torch.arange(len(moment), device=moment.device)
    return Factor(order, dead, _inverse(moment[order][:, order], damping))


def gptq(weight: torch.Tensor, of: Factor, grid: Grid) -> Quantized:
    """Quantize `weight` [out, in] for inputs whose second moment [in, in] has this factor."""
    work = weight.float().clone()
    work[:, of.dead] = 0
    codes, scales, zeros = _sweep(work[:, of.order], of.inverse, grid)
    back = torch.argsort(of.order)
    g_idx = (torch.arange(work.shape[1], device=work.device, dtype=torch.int32) // grid.width(work.shape[1]))[back]
    return _quantized(codes[:, back], scales, zeros, g_idx)


def _inverse(moment: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of the damped Hessian; damping grows tenfold until it exists."""
    mean = moment.diagonal().mean()
    for _ in range(6):
        damped = moment + torch.eye(len(moment), device=moment.device) * (damping * mean)
        lower, fault = torch.linalg.cholesky_ex(damped)
        if not fault:
            upper, fault = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not fault and torch.isfinite(upper).all():
                return upper
        damping *= 10
    raise StepFailed("the calibration's Hessian cannot be inverted", mend="raise `damping`, or give more calibration rows")


def _sweep(work: torch.Tensor, inverse: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, list, list]:
    """The paper's algorithm 1. `work` is used up."""
    inputs = work.shape[1]
    width = grid.width(inputs)
    codes, scales, zeros = torch.empty_like(work), [], []
    for start in range(0, inputs, BLOCK):
        end = min(start + BLOCK, inputs)
        block, inner = work[:, start:end].clone(), inverse[start:end, start:end]
        errors = torch.zeros_like(block)
        for i in range(end - start):
            if (start + i) % width == 0:
                # The group's grid is fixed once the errors of all columns before it have been applied to it.
                group = work[:, start + i : start + i + width].clone()
                inside = min(width, end - start - i)
                group[:, :inside] = block[:, i : i + inside]
                if inside < width:
                    group[:, inside:] -= errors[:, :i] @ inverse[start : start + i, end : start + i + width]
                scale, zero = grid_of(group, grid)
                scales.append(scale)
                zeros.append(zero)
            column = block[:, i]
            codes[:, start + i] = _codes(column, scale, zero, grid)
            rounded = (codes[:, start + i] - zero) * scale
            error = (column - rounded) / inner[i, i]
            block[:, i:] -= error[:, None] * inner[i, i:][None]
            errors[:, i] = error
        work[:, end:] -= errors @ inverse[start:end, end:]
    return codes, scales, zeros


def relative_error(weight: torch.Tensor, dense: torch.Tensor, hessian: torch.Tensor | None) -> float:
    """‖(W - Q)X‖² / ‖WX‖² by the Hessian, or of the weights alone without one."""
    off = weight.float() - dense.float()
    if hessian is None:
        return (off.square().sum() / weight.float().square().sum().clamp(min=1e-30)).item()
    top = torch.einsum("oi,ij,oj->", off, hessian, off)
    return (top / torch.einsum("oi,ij,oj->", weight.float(), hessian, weight.float()).clamp(min=1e-30)).item()
