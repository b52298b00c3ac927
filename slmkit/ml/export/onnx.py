"""The ONNX export: built by onnxruntime-genai's own builder, read back, its tokenizer compared, its answers certified in onnxruntime.

Logits of all places come from onnxruntime, on the same file; answers, ids and the rendered chat template from onnxruntime-genai, which will serve it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slmkit.errors import Problem, RecipeError, StepFailed
from slmkit.ml import cards, fidelity, models
from slmkit.ml.export import readings
from slmkit.ml.probes import LONGEST, WRITTEN
from slmkit.steps import _architectures, _fidelity
from slmkit.steps._step import Card, Context, Given, Result

KNOWN = ("llama", "mistral", "qwen2", "qwen3", "gemma", "smollm3")
"""Architectures whose small models the builder of 0.18 was seen to build rightly; at phi3, gemma2 and gemma3_text it broke."""
BOUNDS = {"fp32": 16, "int4": 4}


def export(ctx: Context, config: Any) -> Result:
    """Entry of the format."""
    given: Given = ctx.inputs["model"]
    said = models.read_config(Path(given.path))
    if said.get("quantization_config") or said.get("model_type") not in KNOWN:
        what = "this model is quantized" if said.get("quantization_config") else f"`{said.get('model_type')}` is not exported to ONNX"
        raise StepFailed(what, where=given.path, mend=f"give a model in full precision, of {', '.join(KNOWN)}")
    width = said.get("head_dim") or said["hidden_size"] // said["num_attention_heads"]
    if width % 16:
        raise StepFailed(f"heads of {width} are not run by onnxruntime, only multiples of 16", where=given.path)
    if problem := _architectures.turned(Path(given.path)):
        raise RecipeError([problem])
    tokenizer, cpu = models.tokenizer(given), torch.device("cpu")
    ends = models.end_ids(given, tokenizer)
    if not ends:
        raise RecipeError([Problem("model: it names no token that ends an answer", mend="set eos_token_id in its generation_config.json")])
    length = min(LONGEST + WRITTEN, said["max_position_embeddings"])

    def work(asked, _before) -> Result:
        ctx.progress(0, 2, "building")
        _build(ctx, given, config.type)
        ctx.progress(1, 2, "running")
        _name_ends(ctx.out, ends)
        written = Onnx(ctx.out, length, ctx.execution.threads)
        tried = readings.same_ids(tokenizer, written.ids, written.name, [tokenizer.decode(p.ids) for p in asked.probes], around=False)
        talks = readings.same_talks(tokenizer, written.render, written.name)
        size = sum(f.stat().st_size for f in ctx.out.glob("model.onnx*"))
        values = {"type": config.type, "bytes": size, "bytes_before": models.weight_bytes(given), "texts_tokenized_alike": tried,
                  "conversations_alike": talks}
        return Result(values, card=_card(given, config, values), cost={"peak_memory_bytes": models.peak_memory(cpu)})

    usual = _fidelity.BY_BITS[BOUNDS[config.type]] | ({"top1": 0.999} if config.type == "fp32" else {})
    return fidelity.certified(
        ctx, config.fidelity, usual, given, lambda: fidelity.Transformers(given, cpu, "transformers in fp32", torch.float32), work,
        lambda out: Onnx(out, length, ctx.execution.threads),
    )  # fmt: skip


def _build(ctx: Context, given: Given, kind: str) -> None:
    """The builder as a process of its own: it prints, and keeps what it fetched in a folder that is told to it."""
    argv = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(given.path), "-o", str(ctx.out), "-p", kind, "-e", "cpu",
            "-c", str(ctx.state / "cache")]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}, check=False)
    print(done.stdout, done.stderr, sep="\n", file=sys.stderr)  # into the attempt's log
    if done.returncode or not (ctx.out / "model.onnx").is_file():
        raise StepFailed(f"onnxruntime-genai's builder failed: {(done.stderr.strip().splitlines() or ['without a word'])[-1]}", where=given.path)


def _name_ends(out: Path, ends: set[int]) -> None:
    """The builder names the ends of config.json; here are those of the generation config and the tokenizer, too."""
    file = out / "genai_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["model"]["eos_token_id"] = min(ends) if len(ends) == 1 else sorted(ends)
    models.write_json(file, config)


class Onnx:
    """A folder as onnxruntime and onnxruntime-genai run it on the CPU."""

    def __init__(self, folder: Path, length: int, threads: int | None = None):
        import onnxruntime
        import onnxruntime_genai

        self.genai, self.length = onnxruntime_genai, length
        self.name = f"onnxruntime {onnxruntime.__version__} (onnxruntime-genai {onnxruntime_genai.__version__})"
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads or 0
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads must not keep others from the cores
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), settings, providers=["CPUExecutionProvider"])
        self.model = onnxruntime_genai.Model(str(folder))
        self.tokenizer = onnxruntime_genai.Tokenizer(self.model)
        self.folder, self.config = folder, json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
        self.width = self.config["model"]["decoder"]["head_size"]
        template = folder / "chat_template.jinja"
        self.template = template.read_text(encoding="utf-8") if template.is_file() else None

    def logits(self, ids: list[int]) -> torch.Tensor:
        feed = {"input_ids": np.array([ids], dtype=np.int64), "attention_mask": np.ones((1, len(ids)), dtype=np.int64)}
        for one in self.session.get_inputs():
            if one.name.startswith("past_key_values"):
                feed[one.name] = np.zeros((1, one.shape[1], 0, self.width), dtype=np.float32)
            elif one.name == "position_ids":
                feed[one.name] = np.arange(len(ids), dtype=np.int64)[None]
        return torch.from_numpy(self.session.run(["logits"], feed)[0][0])

    def greedy(self, prompts: list[list[int]], most: int, ends: frozenset[int]) -> list[list[int]]:
        return [self.written(p, most, ends) for p in prompts]

    def written(self, prompt: list[int], most: int, ends: frozenset[int], enough: Callable[[list[int]], bool] = lambda ids: False) -> list[int]:
        """The greedy answer: to an end (with no `ends`, past the model's own, which are not written then), to `enough`, to `most` tokens."""
        settings = self.genai.GeneratorParams(self.model)
        longest = min(self.length, len(prompt) + most)
        settings.set_search_options(max_length=longest, min_length=0 if ends else longest, do_sample=False)  # genai ends at the model's own ends
        try:
            generator = self.genai.Generator(self.model, settings)
            generator.append_tokens(prompt)
        except RuntimeError as e:
            raise StepFailed(f"onnxruntime-genai cannot run what was written: {e}", mend="write `format: gguf`, if llama.cpp runs it") from None
        written: list[int] = []
        while len(written) < most and not generator.is_done():
            generator.generate_next_token()
            written.append(int(generator.get_next_tokens()[0]))
            if written[-1] in ends or enough(written):
                break
        return written

    def render(self, messages: list[dict]) -> str | None:
        return self.tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=True) if self.template is not None else None

    def ids(self, text: str, special: bool = False) -> list[int]:
        """Special tokens in the text are read as such. special: with the BOS that the model's own tokenizer puts before a text (genai puts none)."""
        return [*(self.before if special else ()), *map(int, self.tokenizer.encode(text))]

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids) if ids else ""

    @cached_property
    def before(self) -> list[int]:
        from tokenizers import Tokenizer

        read = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        plain, whole = (read.encode("a", add_special_tokens=special).ids for special in (False, True))
        return whole[: next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)]

    @cached_property
    def ends(self) -> set[int]:
        said = self.config["model"]["eos_token_id"]
        return {said} if isinstance(said, int) else set(said)


def _card(given: Given, config: Any, values: dict) -> Card:
    metadata = {"tags": ["slmkit", "onnx", config.type], "library_name": "onnxruntime-genai", "pipeline_tag": "text-generation"}
    text = (
        f"# {given.name} as ONNX, {config.type}\n\n{cards.origin(given)}: {values['bytes']} bytes, for the CPU.\n\n## Use\n\n```python\n"
        "import onnxruntime_genai as og\n\nmodel = og.Model(FOLDER)\ntokenizer = og.Tokenizer(model)\n```\n"
    )
    return Card(metadata | cards.base_metadata(given, "quantized"), text)
