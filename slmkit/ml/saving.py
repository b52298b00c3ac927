"""A safetensors file written one tensor at a time: its header first, from shapes alone, then the bytes of each as it is read.

What is quantized lies in the step's state already, and what is not in the model's files: neither has to be in memory whole. The file is, byte for
byte, what `safetensors.torch.save_file` writes of the same tensors (sorted by dtype, then by name; the header padded to eight bytes).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

ORDER = (
    torch.int64, torch.float64, torch.float32, torch.int32, torch.bfloat16, torch.float16, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip
CODES = dict(zip(ORDER, ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL"), strict=True))
DTYPES = {code: dtype for dtype, code in CODES.items()}


@dataclass(frozen=True)
class Stored:
    """A tensor that is read when its turn comes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def save(tensors: dict[str, Stored], file: Path, metadata: dict[str, str]) -> None:
    """Write the file."""
    names = sorted(tensors, key=lambda name: (ORDER.index(tensors[name].dtype), name))
    header: dict[str, dict] = {"__metadata__": metadata}
    place = 0
    for name in names:
        one = tensors[name]
        header[name] = {"dtype": CODES[one.dtype], "shape": list(one.shape), "data_offsets": [place, place + one.bytes]}
        place += one.bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            one = tensors[name]
            value = one.read().to(one.dtype).contiguous().cpu()
            if tuple(value.shape) != tuple(one.shape):
                raise ValueError(f"{name} was said to be {one.shape} and is {tuple(value.shape)}")
            out.write(memoryview(value.reshape(-1).view(torch.uint8).numpy()))
