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
    return published(ctx, config.type, config.fidelity, ctx.execution.threads)


def published(ctx: Context, kind: str, said: Any, threads: int | None, chosen: dict[str, Any] | None = None) -> Result:
    """A certified file of one type. said: the recipe's bounds. chosen: how the type was chosen, for the result and the card."""
    given: Given = ctx.inputs["model"]
    folder = Path(given.path)
    sizes = gguf_write.check(folder)
    tokenizer, cpu = models.tokenizer(given), torch.device("cpu")
    ends = models.end_ids(given, tokenizer)
    tokens, _ = gguf_tokens.read(tokenizer, sizes["vocab_size"]), gguf_tokens.special(tokenizer, ends)
    room, most = gguf_write.room(sizes), length(folder)
    file = f"model-{kind}.gguf"

    def work(asked, _before) -> Result:
        values = _write(ctx, kind, given, tokenizer, file, threads) | {"context": room} | (chosen or {})
        text = ollama.modelfile(file, tokenizer, ends, room, ollama.sampling(folder))
        (ctx.out / "Modelfile").write_text(text, encoding="utf-8")
        values |= _read_back(Llama(ctx.out / file, most, threads), tokenizer, ends, [tokenizer.decode(p.ids) for p in asked.probes])
        notes = [*tokens.notes, *_cut(sizes), *_more_ends(values), ollama.said(text)]
        return Result(values, card=_card(given, kind, values, file, notes), cost={"peak_memory_bytes": models.peak_memory(cpu)})

    return fidelity.certified(
        ctx, said, _fidelity.BY_BITS[BOUNDS[kind]], given,
        lambda: original(given), work, lambda out: Llama(out / file, most, threads),
    )  # fmt: skip


def original(given: Given) -> fidelity.Runtime:
    """The model as it was, in what llama.cpp computes in, too."""
    return fidelity.Transformers(given, torch.device("cpu"), "transformers in fp32", torch.float32)


def length(folder: Path) -> int:
    """Tokens that probes need of a runtime."""
    return min(LONGEST + WRITTEN, gguf_write.room(gguf_write.check(folder)))


def make(given: Given, kind: str, file: Path, state: Path, threads: int | None) -> list:
    """Write the model in a type; a quantized one by way of a whole file, which stays in `state`. Returns the file's tensors, as gguf reads them."""
    import gguf

    own = {torch.bfloat16: "bf16", torch.float16: "f16"}.get(models.own_dtype(Path(given.path)), "f32")
    whole = file if kind in gguf_write.STORED else state / "whole.gguf"
    if not whole.is_file():
        part, tokenizer = whole.with_suffix(".part"), models.tokenizer(given)
        gguf_write.write(Path(given.path), part, kind if whole == file else own, tokenizer, models.end_ids(given, tokenizer))
        part.rename(whole)
    if whole != file:
        quantize(whole, file, kind, threads)
    return gguf.GGUFReader(str(file)).tensors


def _write(ctx: Context, kind: str, given: Given, tokenizer: Any, file: str, threads: int | None) -> dict[str, Any]:
    ctx.progress(0, 2, "writing")
    tensors = make(given, kind, ctx.out / file, ctx.state, threads)
    (ctx.state / "whole.gguf").unlink(missing_ok=True)
    ctx.progress(1, 2, "running")
    ends = models.end_ids(given, tokenizer)
    parameters = sum(int(t.n_elements) for t in tensors)
    size = (ctx.out / file).stat().st_size
    return {
        "type": kind, "bytes": size, "bytes_before": models.weight_bytes(given), "parameters": parameters,
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


def _card(given: Given, kind: str, values: dict, file: str, notes: list[str]) -> Card:
    metadata = {"library_name": "gguf", "tags": ["slmkit", "gguf", kind], "pipeline_tag": "text-generation"}
    metadata |= cards.base_metadata(given, "finetune" if kind in gguf_write.STORED else "quantized")
    types = ", ".join(f"{n} × {t}" for t, n in values["tensor_types"].items())
    text = (
        f"# {given.name} as GGUF, {kind}\n\n{cards.origin(given)}: {values['bytes']} bytes, {values['bits_per_weight']:.2f} bits per weight "
        f"({types}). Chat template and stop tokens are in the file. "
        f"llama.cpp's tokenizer gave the same ids on {values['texts_tokenized_alike']} texts.\n\n"
        f"## Use\n\n```sh\nllama-cli -m {file} --jinja          # llama.cpp\nllama-server -m {file} --jinja\n"
        "ollama create NAME -f Modelfile && ollama run NAME\n```\n" + "".join(f"\n{note}\n" for note in notes)
    )
    return Card(metadata, text + (cards.tried(values) if "candidates" in values else ""))
