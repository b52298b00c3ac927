"""AutoRound (https://arxiv.org/abs/2309.05516) by the auto-round package, an extra: roundings learned by signed gradients, block by block.

Written in AutoGPTQ's format, as gptq and rtn are. Its 200 steps a block take a GPU: on two CPU cores a block of a 4.5M model took minutes.
`written` is what it shares with AWQ, which the package does too.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from slmkit.errors import CannotRun, StepFailed
from slmkit.ml import gptq_format, models
from slmkit.ml.quantizers import packed
from slmkit.steps import _shapes
from slmkit.steps._step import Context, Given

BATCH = 8
SHORTEST = 32  # tokens: the package passes over shorter pieces without a word
TAKEN = ("config.json", "model*.safetensors", "model.safetensors.index.json")


def quantize(ctx: Context, config: Any, given: Given, where: torch.device, rows: list[list[int]]) -> dict:
    """Write the folder. Raises CannotRun on a CPU, or when the package is missing."""
    needs(config.method, where)
    from auto_round.algorithms.quantization.sign_round.config import SignRoundConfig

    return written(ctx, config, given, where, rows, SignRoundConfig())


def needs(method: str, where: torch.device) -> None:
    """Raise CannotRun where the method cannot work, before anything is loaded."""
    if where.type != "cuda":
        raise CannotRun(f"method {method} needs a GPU, and this is {where.type}", mend="`method: gptq` works here, and rtn")
    try:
        import auto_round  # noqa: F401
    except ImportError as e:
        raise CannotRun(f"method {method} needs auto-round, which cannot be imported: {e}", mend="pip install 'slmkit[autoround]'") from None


def written(ctx: Context, config: Any, given: Given, where: torch.device, rows: list[list[int]], algorithm: Any) -> dict:
    """Fill ctx.out by one of the package's algorithms. Rows are laid end to end and cut into pieces of one length, which is all that it takes."""
    from auto_round import AutoRound

    own = models.own_dtype(Path(given.path))
    model = models.load(given, torch.device("cpu"), dtype=torch.float16 if own == torch.float32 else own)
    parameters = sum(p.numel() for p in model.parameters())
    pieces = _pieces(rows, config.max_length)
    ctx.progress(0, 2, "quantizing")
    made = ctx.state / config.method
    shutil.rmtree(made, ignore_errors=True)
    tuner = AutoRound(
        model, models.tokenizer(given), scheme=f"W{config.bits}A16", group_size=config.group_size, sym=config.symmetric, dataset=pieces,
        seqlen=len(pieces[0]["input_ids"][0]), nsamples=len(pieces), batch_size=min(BATCH, len(pieces)), device_map=str(where), seed=config.seed,
        enable_torch_compile=False, alg_configs=algorithm,
    )  # fmt: skip
    tuner.quantize_and_save(str(made), format="auto_gptq")
    ctx.progress(1, 2, "saving")
    layers = _take(made, ctx.out, config)
    shutil.rmtree(made)
    whole = sorted(_shapes.of(Path(given.path)).linear.keys() - layers)
    if whole:
        raise StepFailed(f"auto-round left {whole[0]} as it was", where=given.path, mend="try another `group_size`, or method gptq")
    return {"bits": config.bits, "layers": len(layers), "parameters": parameters, "samples": len(rows), "calibration_tokens": sum(map(len, rows))}


def _pieces(rows: list[list[int]], longest: int) -> list[dict[str, torch.Tensor]]:
    stream = [token for row in rows for token in row]
    length = min(longest, len(stream) // BATCH)
    if length < SHORTEST:
        raise StepFailed(f"{len(stream)} tokens of calibration are too few", mend=f"give {SHORTEST * BATCH} or more: more rows, or longer ones")
    return [{"input_ids": torch.tensor([stream[i : i + length]])} for i in range(0, len(stream) - length + 1, length)]


def _take(made: Path, out: Path, config: Any) -> set[str]:
    """Move weights and configs out of the folder that the package names itself. Returns the names of the packed layers."""
    (inner,) = {file.parent for file in made.rglob("config.json")}
    for pattern in TAKEN:
        for file in inner.glob(pattern):
            shutil.move(file, out / file.name)
    document = models.read_config(out)
    document.pop("_name_or_path", None)
    said = document["quantization_config"]
    said |= gptq_format.settings(packed.grid(config)) | {"desc_act": False}
    models.write_json(out / "config.json", document)
    models.write_json(out / "quantize_config.json", said)
    return {name.removesuffix(".qweight") for name in _shapes.headers(out) if name.endswith(".qweight")}
