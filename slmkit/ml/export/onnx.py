"""ONNX: written by onnxruntime-genai's model builder, in a process of its own, read back and run, and certified."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from slmkit.errors import CannotRun, Problem, RecipeError, StepFailed
from slmkit.ml import cards, fidelity, models
from slmkit.ml.export import readings
from slmkit.ml.export.onnx_runtime import Onnx
from slmkit.ml.probes import LONGEST
from slmkit.steps import _architectures, _fidelity
from slmkit.steps._step import Card, Context, Given, Result

BOUNDS = {"fp32": _fidelity.BY_BITS[16] | {"top1": 0.999}, "int4": _fidelity.BY_BITS[4]}
BUILDER = "onnxruntime_genai.models.builder"


def export(ctx: Context, config: Any) -> Result:
    """Entry of the format."""
    given: Given = ctx.inputs["model"]
    folder = Path(given.path)
    if kind := models.quantized(folder):
        mend = "give the model that was quantized: this step quantizes by itself, by `type`"
        raise RecipeError([Problem(f"model: this one is quantized already ({kind})", mend=mend)])
    if problem := _architectures.turned(folder):
        raise RecipeError([problem])
    tokenizer, cpu = models.tokenizer(given), torch.device("cpu")
    ends = models.end_ids(given, tokenizer)
    if not ends:
        raise RecipeError([Problem("model: it names no token that ends an answer", mend="set eos_token_id in its generation_config.json")])
    room = getattr(models.skeleton(folder).config.get_text_config(), "max_position_embeddings", LONGEST)
    length = min(LONGEST + fidelity.WRITTEN, room)

    def work(asked, _before) -> Result:
        ctx.progress(0, 2, "building")
        build(folder, ctx.out, config.type, ctx.state / "cache")
        _ends(ctx.out, ends)
        ctx.progress(1, 2, "running")
        written = Onnx(ctx.out, length, ctx.execution.threads)
        size = sum(f.stat().st_size for f in ctx.out.glob("model.onnx*"))
        parameters = sum(p.numel() for p in models.skeleton(folder).parameters())
        more = [tokenizer.decode(p.ids) for p in asked.probes]
        values = {
            "format": "onnx", "type": config.type, "bytes": size, "bytes_before": models.weight_bytes(given), "parameters": parameters,
            "bits_per_weight": size * 8 / parameters,
            "texts_tokenized_alike": readings.same_ids(tokenizer, written.ids, written.name, more, around=False),
            "conversations_alike": readings.same_talks(tokenizer, written.render, written.name),
        }  # fmt: skip
        return Result(values, card=_card(given, config, values), cost={"peak_memory_bytes": models.peak_memory(cpu)})

    return fidelity.certified(
        ctx, config.fidelity, BOUNDS[config.type], given, lambda: fidelity.Transformers(given, cpu, "transformers in fp32", torch.float32), work,
        lambda out: Onnx(out, length, ctx.execution.threads),
    )  # fmt: skip


def build(folder: Path, out: Path, kind: str, cache: Path) -> None:
    """Run the builder. Raises CannotRun when it is not installed, RecipeError for an architecture it does not know, StepFailed when it breaks.

    In a process of its own: it keeps settings in globals, writes to stdout, and holds the whole model until it ends.
    """
    command = [sys.executable, "-m", BUILDER, "-m", str(folder), "-o", str(out), "-p", kind, "-e", "cpu", "-c", str(cache)]
    made = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"})
    said = (made.stdout + made.stderr).strip().splitlines()
    print("\n".join(said[-40:]), file=sys.stderr)  # to the attempt's log
    if made.returncode == 0 and (out / "genai_config.json").is_file():
        return
    last = said[-1] if said else f"exit code {made.returncode}"
    if "No module named" in last:
        raise CannotRun(f"the model builder of onnxruntime-genai cannot be run: {last}", mend="pip install 'slmkit[onnx]'")
    if "NotImplementedError" in last:
        raise RecipeError([Problem(f"model: onnxruntime-genai does not build it: {last}", mend="write `format: gguf`, if llama.cpp runs it")])
    raise StepFailed(f"the model builder of onnxruntime-genai failed: {last}", mend="its last lines are in the attempt's log")


def _ends(out: Path, ends: set[int]) -> None:
    """The builder takes the ends of config.json; here they are those of the generation config and the tokenizer, too."""
    file = out / "genai_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["model"]["eos_token_id"] = min(ends) if len(ends) == 1 else sorted(ends)
    models.write_json(file, config)


def _card(given: Given, config: Any, values: dict) -> Card:
    metadata = {"library_name": "onnx", "tags": ["slmkit", "onnx", config.type], "pipeline_tag": "text-generation"}
    metadata |= cards.base_metadata(given, "quantized" if config.type == "int4" else "finetune")
    text = (
        f"# {given.name} as ONNX, {config.type}\n\n{cards.origin(given)}: {values['bytes']} bytes, {values['bits_per_weight']:.2f} bits per weight, "
        f"for onnxruntime-genai on the CPU. Its tokenizer gave the same ids on {values['texts_tokenized_alike']} texts. It puts no BOS "
        "before a text by itself: prompts are written out whole, as the chat template does.\n\n## Use\n\n```python\nimport json\n\nimport onnxruntime_genai as genai\n\n"
        "model = genai.Model(FOLDER)\ntokenizer = genai.Tokenizer(model)\n"
        'prompt = tokenizer.apply_chat_template(json.dumps([{"role": "user", "content": "…"}]), add_generation_prompt=True)\n'
        "settings = genai.GeneratorParams(model)\nsettings.set_search_options(max_length=512, do_sample=False)\n"
        "generator = genai.Generator(model, settings)\ngenerator.append_tokens(tokenizer.encode(prompt))\nwhile not generator.is_done():\n"
        "    generator.generate_next_token()\nprint(tokenizer.decode(generator.get_sequence(0)))\n```\n"
    )
    return Card(metadata, text)
