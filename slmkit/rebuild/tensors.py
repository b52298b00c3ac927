"""Two safetensors files, tensor by tensor and a piece at a time: how many differ, which is the first by layer, and by how much.

Floats are compared by ‖a − b‖ / ‖a‖, packed codes by the share of them that differ. It takes numpy and a few megabytes, however large a tensor is.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmkit.errors import StoreError
from slmkit.steps._shapes import header_of

PIECE = 1 << 20  # numbers read at a time: 8 MB once they are float64
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
CODES = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "u1",
         "F8_E4M3": "u1", "F8_E5M2": "u1"}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """One tensor that differs. relative: ‖a − b‖ / ‖a‖, of floats. differing: share of its numbers that are others."""

    name: str
    max_abs: float | None
    relative: float | None
    differing: float

    def told(self) -> str:
        by = f"max |Δ| {self.max_abs:.3g}, relative {self.relative:.3g}, " if self.max_abs is not None else ""
        return f"tensor {self.name}: {by}{self.differing:.3g} of its numbers differ"


@dataclass(frozen=True)
class Tensors:
    """What a pair of files comes to. shape: of a tensor that is missing or has another shape or type, in words. relative: of all floats together.
    codes: share of all packed codes that differ."""

    count: int
    differing: int
    first: Tensor | None
    worst: Tensor | None
    relative: float
    codes: float
    shape: str | None = None

    def told(self) -> str:
        if self.shape:
            return self.shape
        if self.first is None:
            return "its tensors are the same, its header is not"
        worst = "" if self.worst is None or self.worst.name == self.first.name else f"; the worst is {self.worst.told()}"
        return f"{self.differing} of {self.count} tensors; the first is {self.first.told()}{worst}"


@dataclass
class _Sums:
    """square: of the old values; off: of the differences; other: how many numbers differ."""

    square: float = 0.0
    off: float = 0.0
    most: float = 0.0
    other: int = 0
    size: int = 0
    strange: bool = field(default=False)

    def relative(self) -> float:
        if self.strange:
            return math.inf
        return math.sqrt(self.off / self.square) if self.square else (math.inf if self.off else 0.0)


def by_layer(name: str) -> tuple:
    """Sort key: what comes before the layers, the layers by number, what comes after them."""
    layer = re.search(r"\.(\d+)\.", name)
    early = "embed" in name or "wte" in name
    return (0 if early else 1 if layer else 2, int(layer[1]) if layer and not early else 0, name)


def compare(old: Path, new: Path) -> Tensors:
    """Compare two safetensors files. Raises StoreError for one that cannot be read."""
    (was, was_at), (now, now_at) = _header(old), _header(new)
    names = sorted(was.keys() | now.keys(), key=by_layer)
    for name in names:
        here, there = was.get(name), now.get(name)
        if here is None or there is None:
            shape = f"tensor {name} is in the {'rebuilt' if here is None else 'recorded'} file alone"
            return Tensors(len(names), 1, None, None, math.inf, 1.0, shape)
        if (here["dtype"], here["shape"]) != (there["dtype"], there["shape"]):
            shape = f"tensor {name} is {here['dtype']} {here['shape']} in the recorded file and {there['dtype']} {there['shape']} in the rebuilt one"
            return Tensors(len(names), 1, None, None, math.inf, 1.0, shape)
    found, floats, codes = [], _Sums(), _Sums()
    with open(old, "rb") as one, open(new, "rb") as two:
        for name in names:
            of_codes = was[name]["dtype"] not in (*FLOATS, "BF16")
            sums = _tensor(one, was_at, was[name], two, now_at, now[name])
            total = codes if of_codes else floats
            total.square, total.off, total.size = total.square + sums.square, total.off + sums.off, total.size + sums.size
            total.other, total.strange = total.other + sums.other, total.strange or sums.strange
            if sums.other:
                found.append(Tensor(name, None if of_codes else sums.most, None if of_codes else sums.relative(), sums.other / sums.size))
    worst = max(found, key=lambda t: (t.relative or 0.0, t.differing), default=None)
    return Tensors(len(names), len(found), found[0] if found else None, worst, floats.relative(), codes.other / codes.size if codes.size else 0.0)


def _header(path: Path) -> tuple[dict[str, dict], int]:
    try:
        return header_of(path)
    except (OSError, ValueError, struct.error) as e:
        raise StoreError(f"its header cannot be read: {e}", where=path) from None


def _tensor(one: Any, one_at: int, was: dict, two: Any, two_at: int, now: dict) -> _Sums:
    import numpy as np

    kind = was["dtype"]
    wide = np.dtype("<u2" if kind == "BF16" else FLOATS.get(kind) or CODES.get(kind) or "u1")
    left, sums = was["data_offsets"][1] - was["data_offsets"][0], _Sums()
    one.seek(one_at + was["data_offsets"][0])
    two.seek(two_at + now["data_offsets"][0])
    while left > 0:
        size = min(left, PIECE * wide.itemsize)
        a, b = (np.frombuffer(f.read(size), wide) for f in (one, two))
        left -= size
        sums.size += len(a)
        other = int((a != b).sum()) if kind not in FLOATS else int((a.view(f"u{wide.itemsize}") != b.view(f"u{wide.itemsize}")).sum())
        sums.other += other
        if kind in FLOATS or kind == "BF16":
            a, b = (_floats(x, kind) for x in (a, b))
            sums.square += float(np.square(a).sum())
            if other:
                with np.errstate(invalid="ignore"):
                    off = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, a - b)
                sums.strange |= not bool(np.isfinite(off).all())
                sums.off += float(np.square(off).sum())
                sums.most = max(sums.most, float(np.abs(off).max()))
    return sums


def _floats(values: Any, kind: str) -> Any:
    if kind == "BF16":  # the upper half of a float32
        values = (values.astype("<u4") << 16).view("<f4")
    return values.astype("<f8")
