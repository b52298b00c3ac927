"""The linear layers of a model folder, read from config.json and the headers of its safetensors: what quantizing would do is known without torch.

The decoder blocks are the numbered names that are as many as the config says; what is a matrix in them is a linear layer, [out, in], or it cannot
be quantized here (experts stacked into one tensor). The rest stays in 16 bits.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmkit.errors import Problem

USUAL = (16, 32, 64, 128, 256, 512, 1024)
WORD = 32


@dataclass(frozen=True)
class Shapes:
    """linear: name → (inputs, outputs), of those in the blocks. rest: name → shape of all other weights that are stored. strange: a weight in the
    blocks that is no matrix, if there is one. quantized: by what, if the folder is."""

    linear: dict[str, tuple[int, int]]
    rest: dict[str, tuple[int, ...]]
    strange: str | None
    quantized: str | None

    @property
    def parameters(self) -> int:
        return sum(i * o for i, o in self.linear.values()) + sum(map(math.prod, self.rest.values()))


def headers(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor in a folder's safetensors. {} where a header cannot be read: that is told when the model is loaded."""
    found: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            header, _ = header_of(file)
        except (OSError, ValueError, struct.error):
            return {}
        found |= {name: tuple(t["shape"]) for name, t in header.items()}
    return found


def header_of(file: Path) -> tuple[dict[str, dict], int]:
    """(name → {dtype, shape, data_offsets}, where the data begins) of a safetensors file. Raises OSError, ValueError, struct.error."""
    with open(file, "rb") as f:
        length = struct.unpack("<Q", f.read(8))[0]
        header = json.loads(f.read(min(length, 1 << 27)))
    return {name: t for name, t in header.items() if name != "__metadata__"}, 8 + length


def of(folder: Path) -> Shapes | None:
    """None where the folder is no model whose blocks can be told by their names."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    text = config.get("text_config") or config
    stored, count = headers(folder), text.get("num_hidden_layers") or text.get("n_layer") or 0
    prefix = _blocks(stored, count)
    if prefix is None:
        return None
    if text.get("tie_word_embeddings", config.get("tie_word_embeddings", False)):
        stored.pop("lm_head.weight", None)
    linear, strange = {}, None
    for name, shape in stored.items():
        if name.startswith(prefix + ".") and len(shape) > 1:
            if len(shape) == 2 and name.endswith(".weight"):
                linear[name.removesuffix(".weight")] = (shape[1], shape[0])
            else:
                strange = strange or name
    rest = {n: s for n, s in stored.items() if n.removesuffix(".weight") not in linear}
    return Shapes(linear, rest, strange, (config.get("quantization_config") or {}).get("quant_method"))


def _blocks(names: dict, count: int) -> str | None:
    numbers: dict[str, set[int]] = defaultdict(set)
    for name in names:
        for found in re.finditer(r"\.(\d+)\.", name):
            numbers[name[: found.start()]].add(int(found[1]))
    return next((p for p, seen in sorted(numbers.items()) if count and seen == set(range(count))), None)


def factor(bits: int) -> int:
    """Both sides of a layer must be a multiple of this many features, so that rows of codes end on a word."""
    return WORD if bits == 3 else WORD // bits


def problem(config: Any, folder: Path) -> Problem | None:
    """Why a config of the quantize step cannot be applied to a model, told from its headers."""
    shapes = of(folder)
    if shapes is None:
        return None  # other names than ours, or nothing that can be read: the work itself says what is wrong
    if shapes.quantized:
        return Problem(f"this model is already quantized ({shapes.quantized})", mend="give the full-precision model")
    if config.method in ("nf4", "int8", "auto") or config.backend != "slmkit":
        return None
    return refused(shapes, config.bits, config.group_size)


def refused(shapes: Shapes, bits: int, group_size: int) -> Problem | None:
    """Why these layers cannot be cut into groups or packed into words, and which sizes would fit all."""
    if shapes.strange:
        what = f"{shapes.strange} is no linear layer: its experts are stacked in one tensor, which is not quantized here"
        return Problem(what, mend="try `backend: gptqmodel`")
    if not shapes.linear:
        return Problem("this model has no linear layers in its decoder blocks", mend="try method nf4 or int8")
    name = next((n for n, (i, _) in shapes.linear.items() if group_size != -1 and i % group_size), None)
    if name:
        common = math.gcd(*(i for i, _ in shapes.linear.values()))
        fits = ", ".join([str(g) for g in USUAL if common % g == 0] + ["-1"])
        what = f"group_size: {group_size} does not divide the {shapes.linear[name][0]} inputs of {name} {_arrow(shapes.linear[name])}"
        return Problem(what, mend=f"group sizes that divide every layer of this model: {fits}{_also(shapes.linear, bits)}")
    name = _unpacked(shapes.linear, bits)
    if name:
        fits = [b for b in (2, 3, 4, 8) if not _unpacked(shapes.linear, b)]
        what = f"bits: {bits} cannot be packed: {name} is {_arrow(shapes.linear[name])}, and both sides must be multiples of {factor(bits)}"
        mend = f"bits that fit every layer of this model: {', '.join(map(str, fits))}" if fits else "no number of bits fits"
        return Problem(what, mend=mend + "; methods nf4 and int8 take any shape")
    return None


def _unpacked(linear: dict, bits: int) -> str | None:
    return next((n for n, (i, o) in linear.items() if i % factor(bits) or o % factor(bits)), None)


def _also(linear: dict, bits: int) -> str:
    if not _unpacked(linear, bits):
        return ""
    fits = ", ".join(str(b) for b in (2, 3, 4, 8) if not _unpacked(linear, b)) or "none"
    return f"; and {bits} bits need both sides to be multiples of {factor(bits)}, bits that fit: {fits}; methods nf4 and int8 take any shape"


def _arrow(shape: tuple[int, int]) -> str:
    return f"({shape[0]} → {shape[1]})"


def packed_bytes(shapes: Shapes, bits: int, group_size: int) -> int:
    """Bytes of the safetensors that gptq and rtn write: codes, zeros, fp16 scales and group numbers; 16 bits for the rest; the header."""
    tensors = [(name, "F16", shape) for name, shape in shapes.rest.items()]
    for name, (i, o) in shapes.linear.items():
        groups = 1 if group_size == -1 else i // group_size
        tensors += [(f"{name}.qweight", "I32", (i * bits // WORD, o)), (f"{name}.qzeros", "I32", (groups, o * bits // WORD)),
                    (f"{name}.scales", "F16", (groups, o)), (f"{name}.g_idx", "I32", (i,))]
    header, place = {"__metadata__": {"format": "pt"}}, 0
    for name, kind, shape in tensors:
        size = math.prod(shape) * (2 if kind == "F16" else 4)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": (place, place + size)}
        place += size
    return 8 + len(json.dumps(header, separators=(",", ":"))) + place


def bitsandbytes_bytes(shapes: Shapes, method: str) -> int:
    """Bytes of the safetensors of nf4 (double quantization) and int8; what is no linear layer stays 16-bit."""
    total = 0
    for name, (i, o) in shapes.linear.items():
        if method == "int8":
            total += i * o + o * 4 + 1 + 3 * (len(name) + 75)
        else:
            blocks = -(-i * o // 64)
            total += -(-i * o // 2) + blocks + -(-blocks // 256) * 4 + 64 + 1024 + 100 + 6 * (len(name) + 95)
    return total + sum(math.prod(s) * 2 + len(n) + 75 for n, s in shapes.rest.items())
