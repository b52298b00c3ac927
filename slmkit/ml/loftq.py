"""LoftQ (https://arxiv.org/abs/2310.08659): an adapter that begins by making good what the 4 bits lost.

With W the weight of a layer as the files have it, Q = dequantize(nf4(W)) what the model computes with, r the rank and s the adapter's scale, B and
A begin as the best approximation of rank r of (W − Q) / s, so that Q + s·B·A is as near to W as rank r allows. This is the paper's first
iteration. Its further ones change Q itself, and so would need another base beside the adapter; here the base stays the one everybody has.
"""

from __future__ import annotations

from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import PeftModel

from slmkit.ml import models
from slmkit.ml.blocks import Blocks

NOTHING = 1e-7  # of the largest singular value: below it a direction is rounding, and its A stays as it was drawn, with a B of 0


@torch.no_grad()
def begin(model: PeftModel, folder: Path) -> dict[str, float]:
    """Set every adapter on a 4-bit layer. folder: the base's files, read a layer at a time. Returns ‖W − Q − s·B·A‖ / ‖W − Q‖ of each layer."""
    own = models.own_dtype(folder)
    files = Blocks(folder, torch.device("cpu"), own, own)
    left = {}
    for name, module in model.get_base_model().named_modules():
        layer = getattr(module, "base_layer", None)
        if not isinstance(layer, Linear4bit) or "default" not in getattr(module, "lora_A", ()):
            continue
        lost = files.read(f"{name}.weight").to(layer.weight.device, torch.float32) - quantized(layer)
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        scale = module.scaling["default"]
        first, second = factors(lost / scale, len(a))
        kept = second.norm(dim=0) > 0  # directions that say something
        b.copy_(second)
        a[kept] = first[kept].to(a.dtype)
        rest = lost - scale * (b.float() @ a.float())
        left[name] = (rest.norm() / lost.norm()).item() if lost.any() else 0.0
    return left


def quantized(layer: Linear4bit) -> torch.Tensor:
    """What a 4-bit layer computes with, fp32 [out, in]."""
    return dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(torch.float32)


def factors(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A [rank, in] and B [out, rank] of the best approximation B·A of a matrix [out, in], each holding the square roots of the singular values.

    By the eigenvectors of its smaller Gram matrix, in fp64: exact to 1e-7 of the largest singular value, and faster than a full SVD. Signs are
    such that the largest number of each eigenvector is positive, so that machines agree.
    """
    wide = matrix.shape[1] >= matrix.shape[0]
    tall = (matrix if wide else matrix.T).double()
    vectors = torch.linalg.eigh(tall @ tall.T).eigenvectors.flip(1)[:, :rank]
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    across = vectors.T @ tall
    sizes = across.norm(dim=1)
    root = torch.where(sizes > NOTHING * sizes.max(), sizes, 0).sqrt()
    over = torch.where(root > 0, 1 / root.clamp(min=1e-300), 0)
    one, other = vectors * root, across * over[:, None]
    first, second = (other, one) if wide else (one.T, other.T)
    short = rank - len(root)  # a rank above what the matrix can have
    first, second = torch.nn.functional.pad(first, (0, 0, 0, short)), torch.nn.functional.pad(second, (0, short))
    return first.float().contiguous(), second.float().contiguous()
