"""The merge step: an adapter into its base, weight by weight and shard by shard, and measured against the adapter as it was trained.

An adapter trained on a 4-bit base has learned to make up for that base's rounding. Added to the full-precision base it meets other weights
than it was trained on; added to the 4-bit weights unpacked it meets the very same. Both are tried and the closer one is kept: it is a
matter of the model which one that is once the sum is rounded to 16 bits. The 4-bit weights themselves are never merged into.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from slmkit.errors import StepFailed
from slmkit.ml import cards, fidelity, models
from slmkit.ml.algebra import Adapter
from slmkit.steps import _fidelity, _shapes
from slmkit.steps._step import Context, Given, Result

INDEX = "model.safetensors.index.json"


def merge(ctx: Context, config: Any) -> Result:
    """Entry of the step."""
    given: Given = ctx.inputs["model"]
    if given.base is None:
        raise StepFailed("this adapter's base is not known", where=given.path)
    base, where = Path(given.base.path), models.device(ctx.execution.device)
    if models.quantized(base):
        raise StepFailed("the adapter's base is quantized: merging into it would lose what was trained", where=base)
    adapter = Adapter(Path(given.path))
    if adapter.idle:
        raise StepFailed("this adapter changes nothing: all its B matrices are zero", where=given.path, mend="train it, or use the base as it is")
    ways = _ways(config.into, models.training(Path(given.path)).get("base_quantization") == "nf4", given)
    dtype = models.own_dtype(base) if config.dtype == "auto" else models.DTYPES[config.dtype]

    def work(asked, before) -> Result:
        return _merge(ctx, given, adapter, ways, dtype, where, asked, before)

    return fidelity.certified(
        ctx, config.fidelity, _fidelity.MERGE, given, lambda: fidelity.Transformers(given, where, "transformers, the adapter as trained"), work,
        lambda folder: fidelity.Transformers(_made(given, folder), where),
    )  # fmt: skip


def _ways(into: str, four_bit: bool, given: Given) -> tuple[str, ...]:
    if into == "dequantized" and not four_bit:
        raise StepFailed("`into: dequantized`, but this adapter was not trained on a 4-bit base", where=given.path, mend="write `into: auto`")
    return ("full", "dequantized") if into == "auto" and four_bit else ("full" if into == "auto" else into,)


def _merge(ctx: Context, given: Given, adapter: Adapter, ways, dtype: torch.dtype, where: torch.device, asked, before) -> Result:
    tried: dict[str, float] = {}
    total = len(ways) * (2 if len(ways) > 1 else 1)
    for way in ways:
        ctx.progress(len(tried), total, f"merging ({way})")
        folder = ctx.out if len(ways) == 1 else ctx.state / "made" / way
        shutil.rmtree(folder, ignore_errors=folder != ctx.out)
        folder.mkdir(parents=True, exist_ok=True)
        write(given, adapter, way, folder, dtype, where)
        if len(ways) > 1:
            runtime = fidelity.Transformers(_made(given, folder), where)
            tried[way] = fidelity.compare(before, fidelity.take(runtime, asked), asked)["mean_kl"]
            del runtime
            models.free()
            ctx.log("merged", into=way, mean_kl=tried[way])
    best = min(tried, key=tried.get) if tried else ways[0]
    if tried:
        shutil.copytree(ctx.state / "made" / best, ctx.out, dirs_exist_ok=True)
        shutil.rmtree(ctx.state / "made")
    ctx.progress(total, total, "merging")
    values = {
        "dtype": models.NAMES.get(dtype, str(dtype)), "into": best, "parameters": sum(map(math.prod, _shapes.headers(ctx.out).values())),
        "bytes": sum(f.stat().st_size for f in ctx.out.glob("*.safetensors")),
    } | ({"tried_mean_kl": tried} if tried else {})  # fmt: skip
    return Result(values, card=cards.merged(given, values), cost={"peak_memory_bytes": models.peak_memory(where)})


def _made(given: Given, folder: Path) -> Given:
    return Given("model", given.name, "model", given.uri, folder)


def write(given: Given, adapter: Adapter, way: str, out: Path, dtype: torch.dtype, where: torch.device) -> None:
    """Write the merged folder. way: full or dequantized. At most one shard of it is in memory, beside the base in 4 bits for `dequantized`."""
    base = Path(given.base.path)
    shards = _shards(base)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    added = _added(adapter, sorted(adapter.names - {n for names in shards.values() for n in names}), config, given)
    four_bit = _unpacked(given) if way == "dequantized" else None
    places = {}
    for file, names in shards.items():
        state = {}
        for name, weight in _weights(base / file, names, four_bit):
            state[name] = adapter.apply(name, weight.to(where)).to(dtype).cpu() if name in adapter.names or weight.is_floating_point() else weight
        state |= {n: w.to(dtype) for n, w in added.items()} if file == list(shards)[-1] else {}
        save_file({k: v.contiguous() for k, v in sorted(state.items())}, out / file, metadata={"format": "pt"})
        places |= {n: file for n in state}
        rows = next((len(v) for k, v in state.items() if k.endswith(("embed_tokens.weight", "wte.weight"))), None)
        if rows is not None and "vocab_size" in config:
            config["vocab_size"] = rows
    if len(shards) > 1:
        size = sum((out / f).stat().st_size for f in shards)
        models.write_json(out / INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))})
    for key in ("_name_or_path", "torch_dtype"):
        config.pop(key, None)
    models.write_json(out / "config.json", config | {"dtype": str(dtype).removeprefix("torch.")})
    models.copy_generation_config(base, out)
    models.copy_tokenizer(given, out)


def _added(adapter: Adapter, new: list[str], config: dict, given: Given) -> dict[str, torch.Tensor]:
    """Weights that the base's files do not hold: an output layer that was tied to the embedding, and may have been learned apart from it."""
    text = config.get("text_config") or config
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))
    if strange := [n for n in new if n != "lm_head.weight" or not tied]:
        what = f"the adapter changes `{strange[0]}`, which its base {given.base.name} does not have"
        raise StepFailed(what, where=given.path, mend="give the base that it was trained on")
    if not new:
        return {}
    if "lm_head" in adapter.lora:
        tie = next((m for m in adapter.lora if m.endswith("embed_tokens")), None)
        if tie and torch.allclose(adapter.delta(tie), adapter.delta("lm_head"), atol=1e-6):
            return {}
        raise StepFailed("the adapter changes the output layer apart from the embedding it is tied to: one matrix cannot be both", where=given.path,
                         mend="serve it unmerged")
    head = adapter.read(adapter.whole["lm_head.weight"])
    embedding = next((adapter.read(k) for n, k in adapter.whole.items() if n.endswith("embed_tokens.weight")), None)
    if embedding is not None and torch.equal(embedding, head):
        return {}
    for part in (config, config.get("text_config")):
        if part is not None:
            part["tie_word_embeddings"] = False
    return {"lm_head.weight": head}


def _shards(base: Path) -> dict[str, list[str]]:
    """File → names of its weights, in the base's own layout."""
    found = {}
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found[file.name] = sorted(opened.keys())
    return found


def _weights(file: Path, names: list[str], four_bit: dict[str, Any] | None) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(file, framework="pt") as opened:
        for name in names:
            if four_bit is None:
                yield name, opened.get_tensor(name)
            else:
                yield name, _dense(four_bit[name]) if name in four_bit else opened.get_tensor(name)


def _unpacked(given: Given) -> dict[str, Any]:
    """The base as it was in training, by name: 4-bit parameters, to be unpacked one by one, and the rest as it was cast. From a fresh load, since
    bitsandbytes may repack weights once they have run."""
    numerics = models.training(Path(given.path))
    model = models.load(given.base, torch.device("cpu"), dtype=models.DTYPES.get(numerics.get("base_dtype")), nf4=True)
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _dense(parameter: Any) -> torch.Tensor:
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return parameter.data
    import bitsandbytes.functional as bnb

    return bnb.dequantize_4bit(parameter.data, state)
