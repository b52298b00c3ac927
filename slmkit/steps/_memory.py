"""What a training takes at its peak, by part, before anything heavy is imported: from the shapes in config.json and the safetensors headers.

The factors were fitted to measured peaks of Llama shapes from 0.4M to 75M parameters on a CPU. On a GPU the same sums are taken without the
libraries' own share; there they are not measured yet.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIBRARIES = 640e6  # torch, transformers, peft, trl: 560 MB resident once imported, and their work space, 80 MB with a model of 1M weights
LOGIT = 12  # bytes a logit: itself, its float copy, its gradient
TAUGHT = 28  # where a teacher's distribution stands beside it: its log-probability, the student's, and what their divergence holds for its gradient
ADAMW = {"full": 12, "adapter": 12}  # bytes a trained weight beside itself: gradient and two moments
TILE = (4096, 8192)  # tokens and vocabulary of the tile in which TRL's fused head makes logits
TILED = 32  # bytes a logit of that tile where torch's own operations work on it: itself, its floats, exponentials, products, masks
HEADS = 5.5  # × the output layer in fp32, for grpo on a CPU: what sampling and the fused head by turns hold of it beside itself
SAMPLED = 12  # bytes a logit of the token that is drawn: itself, sorted or scaled, its probability
TOTALS = ("peak", "others", "all")
SPARING, HOLES = 80e6, 0.8  # of libraries and of fp32 activations: what does not stand idle in the processes of fsdp on a CPU (steps/_world.sparing)
KERNEL, CACHED, EACH = 0.75e6, 128, 32  # bytes of a compiled bf16 product; how many are kept (ml/__init__), and made for one length
ATTENTION, TILES = (0.25e6, 0.9e6), 512  # bytes of the attention kernels that torch keeps for every length up to so many tokens, and beyond
TRANSIENT = 5  # × the MLP's width: what the backward pass of one layer holds at once


@dataclass(frozen=True)
class Shape:
    """Of a decoder: parameters in all and in linear layers, bytes on disk, the sum of those layers' sides, and its widths."""

    parameters: int
    linear: int
    bytes: int
    sides: int
    layers: int
    hidden: int
    mlp: int
    vocabulary: int
    cached: int = 0  # numbers that generation keeps per token and layer: keys and values


def shape(folder: Path) -> Shape | None:
    """The shape of a model folder, or None where its files do not tell."""
    from slmkit.steps._estimate import weights

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        inner = config.get("text_config") or config
        hidden, layers = inner["hidden_size"], inner["num_hidden_layers"]
        vocabulary = inner["vocab_size"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    size = weights(folder)
    if not size.parameters:
        return None
    heads = inner.get("num_attention_heads") or 1
    cached = 2 * (inner.get("head_dim") or hidden // heads) * (inner.get("num_key_value_heads") or heads)
    linear = size.parameters - vocabulary * hidden * (1 if inner.get("tie_word_embeddings", True) else 2)
    mlp = inner.get("intermediate_size") or 4 * hidden
    return Shape(size.parameters, max(linear, 0), size.bytes, size.sides, layers, hidden, mlp, vocabulary, cached)


@dataclass(frozen=True)
class Load:
    """What runs: method, LoRA rank, bytes of the forward pass's numbers (4 or 2), rows per forward pass, their longest in tokens, how many
    of those tokens are learned, whether activations are recomputed, whether on a GPU.

    sequences: per row (2 for pairs). fused: the head's logits are made a tile at a time, as TRL does for preferences and rewards; heads: copies
    of the output layer beside it.
    sampled: answers generated at once, for rewards. copies: further models of the same weights (a reference of full training).
    logit: bytes a logit of a trained token. teacher: bytes of another model's weights that stand beside this one.
    tokens, learned: of the largest micro batch, where that is known better than as `micro` of the longest rows. lengths: how many there are.
    processes: of this machine. shares: processes among which one model is shared (fsdp); 1 where each holds it whole.
    """

    method: str
    rank: int
    width: int
    micro: int
    length: int
    trained: int
    recompute: bool = False
    gpu: bool = False
    sequences: int = 1
    fused: bool = False
    heads: float = 0
    sampled: int = 0
    copies: int = 0
    logit: int = LOGIT
    teacher: int = 0
    tokens: int = 0
    learned: int = 0
    lengths: int = 1
    processes: int = 1
    shares: int = 1


def objective(config: Any, world: int = 1, teacher: int = 0) -> dict:
    """What an objective changes of a Load. teacher: bytes of the weights of one that is run here."""
    if config.objective == "sft":
        return {}
    if config.objective == "gkd":  # its own answers are written in parts of this many, without a gradient
        return {"logit": TAUGHT, "teacher": teacher, "sampled": min(config.batch_size // world, 32) if config.gkd.on_policy else 0}
    if config.objective == "grpo":
        said, full = config.grpo, config.method == "full"
        sampled, copies = config.batch_size * said.generations // world, int(full and said.beta > 0)
        return {"fused": True, "heads": HEADS, "sampled": sampled, "copies": copies}
    return {"fused": True, "sequences": 2 if config.objective == "dpo" else 1}


def parts(model: Shape, load: Load) -> dict[str, int]:
    """Bytes by part of the process that takes most, and `peak`: the larger of loading and training. Of several processes on a CPU also
    `others`, the peak of each that is not the first, and `all`, what they take together."""
    full, four_bit = load.method == "full", load.method == "qlora"
    held = 4 if full else load.width
    adapter = 0 if full else load.rank * model.sides
    rest = model.parameters - model.linear
    same = 0.9 * model.parameters * held <= model.bytes < 1.5 * model.parameters * held  # the file's number format is the model's
    # what is not packed stays a view of the file, and so all of it mapped, unless its number format is changed
    mapped = model.bytes if not load.gpu and same else 0
    cast = 2 if full and load.width == 2 else 0  # bytes a weight: autocast keeps a bf16 copy of each until the backward pass has used it
    weights = model.linear * 0.53 + rest * held + mapped if four_bit else model.parameters * (held + cast)
    tokens = (load.tokens or load.micro * load.length) * load.sequences
    per_layer = 8 * model.hidden + 4.6 * model.mlp if full else 14 * model.hidden + 7.3 * model.mlp
    number = 4 if load.width == 4 else 3 if full else 2.25  # some of the numbers stay fp32
    again = 1 if load.shares > 1 and not load.gpu else 3  # layers whose numbers stand at once, or leave holes
    kept = 2 * model.hidden * model.layers + again * per_layer if load.recompute else per_layer * model.layers
    found = {
        "libraries": 0 if load.gpu else LIBRARIES,
        "weights": weights / load.shares,
        "adapters": adapter * 4 / load.shares,
        "optimizer": (model.parameters * ADAMW["full"] if full else adapter * ADAMW["adapter"]) / load.shares,
        "activations": tokens * number * (kept + TRANSIENT * model.mlp),
        "logits": _logits(model, load, tokens),
    }
    if load.width == 2 and not load.gpu:
        found["kernels"] = _kernels(load)
    if load.teacher:
        found["teacher"] = load.teacher
    if load.copies:
        found["reference"] = model.parameters * held * load.copies
    if load.sampled:  # sampling and learning take turns: what counts is the larger
        kept_whole = load.sampled * (load.length * model.cached * model.layers * load.width + model.vocabulary * SAMPLED)
        found["sampling"] = max(0, kept_whole - found["activations"] - found["logits"])
    if load.shares > 1:
        found["gathered"] = _gathered(model, full, held)
        if not load.gpu:
            found["libraries"] -= SPARING
            found |= {k: found[k] * (HOLES if load.width == 4 else 1) for k in ("activations", "logits")}
    file = 0 if load.gpu else model.bytes
    loading = found["libraries"] + (file * 3 if four_bit and mapped else file + model.parameters * held)
    if load.gpu and load.shares > 1:
        loading = 0  # on the CPU
    others = max(loading, sum(found.values()))
    if load.shares > 1 and not load.gpu:  # the first process gathers what was trained, and puts it into a model made anew
        small = () if full or same else ("activations", "logits")  # adapters' numbers come in small pieces, and their place is not given back
        stays = sum(found[k] for k in ("libraries", "weights", "adapters", "optimizer", *small))
        fresh = model.parameters * held * full if same else model.bytes + model.parameters * held
        trained = 4 * model.parameters if full else 4 * adapter
        found["saving"] = max(0, stays + max(trained + fresh, 2 * trained) - sum(found.values()))  # 2: both moments, for a checkpoint
    peak, others = int(max(loading, sum(found.values()))), int(others)
    several = {"others": others, "all": peak + (load.processes - 1) * others} if load.processes > 1 and not load.gpu else {}
    return {k: int(v) for k, v in (found | {"peak": peak} | several).items()}


def _kernels(load: Load) -> float:
    """What is compiled for bf16 on a CPU, for each length anew: matrix products, of which so many are kept, and attention, which is kept for good."""
    beyond = max(0.0, 1 - TILES / load.length)
    products = max(0, min(CACHED, EACH * load.lengths) - EACH) * KERNEL  # those of one length are in the libraries' share
    return products + (load.lengths - 1) * (ATTENTION[0] * (1 - beyond) + ATTENTION[1] * beyond)


def _gathered(model: Shape, full: bool, held: int) -> float:
    """What one process holds whole for a while under fsdp: embeddings and head throughout, a block and the next, and their gradients on the way."""
    block, rest = model.linear / max(1, model.layers), model.parameters - model.linear
    return (rest + 2 * block) * held + ((rest + 2 * block) * 4 if full else 0)


def needed(model: Shape, load: Load) -> int:
    """Bytes to be free: of the GPU that a process has to itself, or of the memory that all of them share."""
    found = parts(model, load)
    return found.get("all", found["peak"])


def _logits(model: Shape, load: Load, tokens: int) -> int:
    if not load.fused:
        return (load.learned or load.micro * load.trained) * model.vocabulary * load.logit
    tile = min(tokens, TILE[0]) * min(model.vocabulary, TILE[1]) * (4 if load.gpu else TILED)
    heads = int(load.method == "full") + (0 if load.gpu else load.heads)
    return tile + tokens * model.hidden * 4 * 3 + model.vocabulary * model.hidden * 4 * heads


def advice(model: Shape, load: Load, choices: list[int], free: int, step: str) -> str:
    """What would fit into `free` bytes: a `--set` for the first of the mends that does."""
    from dataclasses import replace

    where = f"steps.{step}"
    tries = [(f"{where}.execution.micro_batch={n}", {"micro": n}) for n in sorted(choices, reverse=True) if n < load.micro]
    least = min(choices)
    tries += [(f"{where}.execution.micro_batch={least} --set {where}.execution.gradient_checkpointing=true", {"micro": least, "recompute": True})]
    if load.method != "qlora" and load.shares == 1:  # 4-bit weights are not shared
        tries += [(f"{where}.method=qlora --set {where}.execution.micro_batch={least}", {"micro": least, "method": "qlora", "rank": load.rank or 16})]
    for length in (2048, 1024, 512, 256):
        if length < load.length:
            change = {"micro": least, "recompute": True, "length": length, "trained": min(load.trained, length)}
            said = f"{where}.max_length={length} --set {where}.execution.micro_batch={least} --set {where}.execution.gradient_checkpointing=true"
            tries.append((said, change))
    for said, change in tries:
        if needed(model, replace(load, **{"tokens": 0, "learned": 0} | change)) <= free:
            return f"--set {said}"
    return "a smaller base model, or a machine with more memory"


def told(found: dict[str, int]) -> str:
    """`1.7 GB in the first process, 1.5 GB in the other`, or `2 GB`."""
    if "others" not in found:
        return _size(found["peak"])
    count = round((found["all"] - found["peak"]) / found["others"])
    others = "the other" if count == 1 else f"each of the other {count}"
    if found["peak"] == found["others"]:
        return f"{_size(found['all'])} in all, {_size(found['peak'])} in each of {count + 1} processes"
    return f"{_size(found['all'])} in all, {_size(found['peak'])} in the first process and {_size(found['others'])} in {others}"


def free_memory() -> int:
    """Bytes that a process may still take: the system's available memory, or what its control group leaves if that is less."""
    import psutil

    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / f).read_text().strip() for f in ("memory.max", "memory.current"))
        if limit != "max":
            free = min(free, int(limit) - int(used))
    except (OSError, ValueError):
        pass  # no control groups of version 2 here: the system's own number holds
    return free


def shown(found: dict[str, int]) -> str:
    """`weights 0.31 GB, activations 1.2 GB, …`, largest first: of one process, the one that takes most."""
    by_size = sorted(((k, v) for k, v in found.items() if k not in TOTALS and v >= 1e6), key=lambda kv: -kv[1])
    return ", ".join(f"{k} {_size(v)}" for k, v in by_size)


def _size(count: float) -> str:
    return f"{count / 1e9:.2g} GB" if count >= 1e8 else f"{count / 1e6:.2g} MB"
