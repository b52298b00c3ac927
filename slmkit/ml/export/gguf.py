"""The GGUF export: written, quantized by llama.cpp, read back, its tokenizer compared, its answers certified; an Ollama Modelfile beside it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from slmkit.ml import cards, fidelity, models
from slmkit.ml.export import gguf_tokens, gguf_write
from slmkit.ml.export.llama import Llama, check_tokens, quantize
from slmkit.ml.probes import LONGEST
from slmkit.steps import _fidelity
from slmkit.steps._step import Card, Context, Given, Result

BOUNDS = {"f32": 16, "f16": 16, "bf16": 16, "q8_0": 8, "q6_k": 8, "q5_k_m": 4, "q4_k_m": 4, "q4_0": 4}


def export(ctx: Context, config: Any) -> Result:
    """Entry of the step."""
    given: Given = ctx.inputs["model"]
    folder = Path(given.path)
    sizes = gguf_write.check(folder)
    tokenizer, cpu = models.tokenizer(given), torch.device("cpu")
    gguf_tokens.read(tokenizer, sizes["vocab_size"])
    length = min(LONGEST + fidelity.WRITTEN, sizes["max_position_embeddings"])
    file = f"model-{config.type}.gguf"

    def work(asked, _before) -> Result:
        values = _write(ctx, config, given, tokenizer, file)
        llama = Llama(ctx.out / file, length, ctx.execution.threads)
        values["texts_tokenized_alike"] = check_tokens(llama, tokenizer, [tokenizer.decode(p.ids) for p in asked.probes])
        return Result(values, card=_card(given, config, values, file), cost={"peak_memory_bytes": models.peak_memory(cpu)})

    return fidelity.certified(
        ctx, config.fidelity, _fidelity.BY_BITS[BOUNDS[config.type]], given,
        lambda: fidelity.Transformers(given, cpu, "transformers in fp32", torch.float32), work,  # what llama.cpp computes in, too
        lambda out: Llama(out / file, length, ctx.execution.threads),
    )  # fmt: skip


def _write(ctx: Context, config: Any, given: Given, tokenizer: Any, file: str) -> dict[str, Any]:
    import gguf

    own = {torch.bfloat16: "bf16", torch.float16: "f16"}.get(models.own_dtype(Path(given.path)), "f32")
    first = config.type if config.type in gguf_write.STORED else own
    ends = models.end_ids(given, tokenizer)
    ordered = sorted(ends, key=lambda i: (i != tokenizer.eos_token_id, i))
    ctx.progress(0, 3, "writing")
    source = ctx.out / file if first == config.type else ctx.state / "whole.gguf"
    gguf_write.write(Path(given.path), source, first, given.name, tokenizer, ordered)
    ctx.progress(1, 3, "quantizing")
    if source.parent == ctx.state:
        quantize(source, ctx.out / file, config.type, ctx.execution.threads)
        source.unlink()
    ctx.progress(2, 3, "running")
    stops = [tokenizer.decode([i]) for i in ordered]
    (ctx.out / "Modelfile").write_text(f"FROM ./{file}\n" + "".join(f'PARAMETER stop "{s}"\n' for s in stops if s and '"' not in s), encoding="utf-8")
    tensors = gguf.GGUFReader(str(ctx.out / file)).tensors
    parameters = sum(int(t.n_elements) for t in tensors)
    size = (ctx.out / file).stat().st_size
    return {
        "type": config.type, "bytes": size, "bytes_before": models.weight_bytes(given), "parameters": parameters,
        "bits_per_weight": size * 8 / parameters,
        "tensor_types": dict(sorted(Counter(t.tensor_type.name.lower() for t in tensors).items())), "stops": stops,
    }  # fmt: skip


def _card(given: Given, config: Any, values: dict, file: str) -> Card:
    metadata = {"tags": ["slmkit", "gguf", config.type], "pipeline_tag": "text-generation"} | cards.base_metadata(given, "quantized")
    types = ", ".join(f"{n} × {t}" for t, n in values["tensor_types"].items())
    text = (
        f"# {given.name} as GGUF, {config.type}\n\n{cards.origin(given)}: {values['bytes']} bytes, {values['bits_per_weight']:.2f} bits per weight "
        f"({types}). Chat template and stop tokens are in the file.\n\n## Use\n\n```sh\nllama-cli -m {file}          # llama.cpp\n"
        "ollama create NAME -f Modelfile && ollama run NAME\n```\n"
    )
    return Card(metadata, text)
