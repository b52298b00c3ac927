"""The GGUF export: written, quantized by llama.cpp, read back, its tokenizer compared, its answers certified; an Ollama Modelfile beside it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from slmkit.errors import StepFailed
from slmkit.ml import cards, fidelity, models
from slmkit.ml.export import gguf_tokens, gguf_write, ollama, readings
from slmkit.ml.export.llama import Llama, quantize
from slmkit.ml.probes import LONGEST, WRITTEN
from slmkit.steps import _fidelity
from slmkit.steps._step import Card, Context, Given, Result

BOUNDS = {
    "f32": 16, "f16": 16, "bf16": 16, "q8_0": 8, "q6_k": 8, "q5_k_m": 4, "q5_k_s": 4, "q4_k_m": 4, "q4_k_s": 4, "q4_0": 4, "q3_k_m": 3, "q2_k": 2,
}  # fmt: skip


def export(ctx: Context, config: Any) -> Result:
    """Entry of the step."""
    given: Given = ctx.inputs["model"]
    folder = Path(given.path)
    sizes = gguf_write.check(folder)
    tokenizer, cpu = models.tokenizer(given), torch.device("cpu")
    ends = models.end_ids(given, tokenizer)
    tokens, _ = gguf_tokens.read(tokenizer, sizes["vocab_size"]), gguf_tokens.special(tokenizer, ends)
    room = gguf_write.room(sizes)
    length = min(LONGEST + WRITTEN, room)
    file = f"model-{config.type}.gguf"

    def work(asked, _before) -> Result:
        values = _write(ctx, config, given, tokenizer, file) | {"context": room}
        text = ollama.modelfile(file, tokenizer, ends, room, ollama.sampling(folder))
        (ctx.out / "Modelfile").write_text(text, encoding="utf-8")
        values |= _read_back(Llama(ctx.out / file, length, ctx.execution.threads), tokenizer, ends, [tokenizer.decode(p.ids) for p in asked.probes])
        notes = [*tokens.notes, *_cut(sizes), *_more_ends(values), ollama.said(text)]
        return Result(values, card=_card(given, config, values, file, notes), cost={"peak_memory_bytes": models.peak_memory(cpu)})

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
    ctx.progress(0, 3, "writing")
    source = ctx.out / file if first == config.type else ctx.state / "whole.gguf"
    source.unlink(missing_ok=True)  # of an attempt that was cut off
    gguf_write.write(Path(given.path), source, first, tokenizer, ends)
    ctx.progress(1, 3, "quantizing")
    if source.parent == ctx.state:
        quantize(source, ctx.out / file, config.type, ctx.execution.threads)
        source.unlink()
    ctx.progress(2, 3, "running")
    tensors = gguf.GGUFReader(str(ctx.out / file)).tensors
    parameters = sum(int(t.n_elements) for t in tensors)
    size = (ctx.out / file).stat().st_size
    return {
        "type": config.type, "bytes": size, "bytes_before": models.weight_bytes(given), "parameters": parameters,
        "bits_per_weight": size * 8 / parameters,
        "tensor_types": dict(sorted(Counter(t.tensor_type.name.lower() for t in tensors).items())),
        "stops": tokenizer.convert_ids_to_tokens(sorted(ends)),
    }  # fmt: skip


def _read_back(llama: Llama, tokenizer: Any, ends: set[int], more: list[str]) -> dict[str, Any]:
    """What llama.cpp makes of the file's tokenizer, template and ends. Raises StepFailed where that is not what the model has."""
    missing = sorted(ends - llama.ends)
    if missing:
        names = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(missing)))
        mend = "leave the three that matter in eos_token_id of the model's generation_config.json"
        raise StepFailed(f"llama.cpp would not end an answer at {names}: a GGUF file names three ends at most", mend=mend)
    return {
        "texts_tokenized_alike": readings.same_ids(tokenizer, llama.ids, llama.name, more),
        "conversations_alike": readings.same_talks(tokenizer, llama.render, llama.name),
        "ends_also_at": tokenizer.convert_ids_to_tokens(sorted(llama.ends - ends)),
    }


def _cut(config: dict) -> list[str]:
    room = gguf_write.room(config)
    if room == config["max_position_embeddings"]:
        return []
    return [f"The context is cut to {room} tokens, the model's sliding window, which llama.cpp does not have for it."]


def _more_ends(values: dict) -> list[str]:
    also = ", ".join(f"`{t}`" for t in values["ends_also_at"])
    return [f"llama.cpp also ends an answer at {also}, which it knows by its text."] if also else []


def _card(given: Given, config: Any, values: dict, file: str, notes: list[str]) -> Card:
    metadata = {"library_name": "gguf", "tags": ["slmkit", "gguf", config.type], "pipeline_tag": "text-generation"}
    metadata |= cards.base_metadata(given, "finetune" if config.type in gguf_write.STORED else "quantized")
    types = ", ".join(f"{n} × {t}" for t, n in values["tensor_types"].items())
    text = (
        f"# {given.name} as GGUF, {config.type}\n\n{cards.origin(given)}: {values['bytes']} bytes, {values['bits_per_weight']:.2f} bits per weight "
        f"({types}). Chat template and stop tokens are in the file. "
        f"llama.cpp's tokenizer gave the same ids on {values['texts_tokenized_alike']} texts.\n\n"
        f"## Use\n\n```sh\nllama-cli -m {file} --jinja          # llama.cpp\nllama-server -m {file} --jinja\n"
        "ollama create NAME -f Modelfile && ollama run NAME\n```\n" + "".join(f"\n{note}\n" for note in notes)
    )
    return Card(metadata, text)
