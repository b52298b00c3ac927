"""What a step will take, said by `plan` before anything heavy is imported: parameters are counted in the safetensors headers.

Every figure is rough on purpose (a factor, not a percent) and is left out where its ground is unknown, never invented.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmkit.steps import _candidates, _shapes
from slmkit.steps._step import Columns

BYTES_PER_TOKEN = 4  # of UTF-8 text, as a rule of thumb for English and large vocabularies


@dataclass(frozen=True)
class Size:
    """What is known of an input: its weights' parameter count and bytes on disk; of data, the bytes of its files; path where they lie.

    sides: inputs plus outputs of all its linear layers, so that adapters of rank r hold r × sides weights. files: what a glob matched.
    columns: the mapping given with data.
    """

    parameters: int | None = None
    bytes: int | None = None
    sides: int | None = None
    path: Path | None = None
    files: tuple[Path, ...] | None = None
    columns: Columns | None = None


def weights(folder: Path) -> Size:
    """Parameters and bytes of a folder's safetensors, from their headers alone. A torn file is the step's to refuse; a guess needs none."""
    stored = _shapes.headers(folder)
    inner = [shape for name, shape in stored.items() if len(shape) == 2 and "embed" not in name and "lm_head" not in name]
    total = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    return Size(sum(map(math.prod, stored.values())), total, sum(map(sum, inner)), folder) if stored else Size()


@dataclass(frozen=True)
class Lengths:
    """Of the rows that will be trained: how many, the mean tokens of a row, those of each row that was looked at, and the part of them that an
    assistant wrote."""

    rows: int
    mean: int
    seen: tuple[int, ...]
    answers: tuple[int, ...]


def lengths(seen: list[tuple[float, tuple[str, ...], tuple[int, ...], float]], model: Size, markup: int) -> Lengths:
    """By some rows of each source: (its rows, texts, characters of answers, messages a row). markup: tokens around a message."""
    said = "\n".join(text for _, texts, _, _ in seen for text in texts[:200])
    each = bytes_per_token(said.encode("utf-8", "surrogatepass")[: 1 << 15], model)
    found = [(rows, [len(t.encode("utf-8", "surrogatepass")) / each + turns * markup for t in texts]) for rows, texts, _, turns in seen]
    shares = [answer / max(1, len(text)) for _, texts, answers, _ in seen for text, answer in zip(texts, answers, strict=True)]
    total = sum(rows for rows, _ in found)
    mean = sum(rows * sum(tokens) / len(tokens) for rows, tokens in found) / total
    tokens = tuple(max(1, round(n)) for _, some in found for n in some)
    answers = tuple(max(1, round(n * share)) for n, share in zip(tokens, shares, strict=True))
    return Lengths(max(1, round(total)), max(1, round(mean)), tokens, answers)


def bytes_per_token(text: bytes, model: Size) -> float:
    """By the model's own tokenizer where it is one file that the tokenizers library reads; else a rule of thumb."""
    file = model.path / "tokenizer.json" if model.path else None
    if file is None or not file.is_file() or file.stat().st_size > 8 << 20:  # a large vocabulary takes a second to read, and is near the rule
        return BYTES_PER_TOKEN
    from tokenizers import Tokenizer

    count = len(Tokenizer.from_file(str(file)).encode(text.decode("utf-8", "ignore")).ids)
    return len(text) / max(count, 1)


def quantizing(config: Any, model: Size) -> dict[str, int]:
    """Bytes on disk, to within a percent, and memory: what stays whole, and the largest block in fp32 a few times over."""
    shapes = _shapes.of(model.path) if model.path else None
    if shapes is None:
        return {}
    if config.target == "llama.cpp":
        disk = int(config.max_bits_per_weight * shapes.parameters / 8)
    elif config.method == "auto":
        tried = _candidates.candidates(config.target, config.max_bits_per_weight, shapes)
        if not tried:
            return {}
        disk = max(c.bytes for c in tried)
    elif config.method in ("nf4", "int8"):
        disk = _shapes.bitsandbytes_bytes(shapes, config.method)
    else:
        disk = _shapes.packed_bytes(shapes, config.bits, config.group_size)
    return {"memory_bytes": shapes.parameters * 4, "disk_bytes": disk}


def shown(estimate: dict[str, int | str | list[str]]) -> str:
    """`~120 k tokens, ~1.2 GB memory, ~0.4 GB disk`. A list is sentences, which have lines of their own."""
    parts = []
    for key, value in estimate.items():
        if isinstance(value, list):
            continue
        if key == "memory_parts":
            parts[[p.endswith(" memory") for p in parts].index(True)] += f" ({value})"
        elif key == "micro_batch":
            parts.append(f"micro batch {value}")
        elif isinstance(value, str):
            parts.append(value)
        elif key.endswith("_bytes"):
            size = f"{value / 1e9:.2g} GB" if value >= 1e8 else f"{value / 1e6:.2g} MB"
            parts.append(f"~{size} {key.removesuffix('_bytes')}")
        else:
            parts.append(f"~{value / 1e6:.2g} M {key}" if value >= 1e6 else f"~{value / 1e3:.3g} k {key}" if value >= 1e3 else f"~{value} {key}")
    return ", ".join(parts)
