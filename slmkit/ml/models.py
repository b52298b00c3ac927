"""Models in and out of memory: devices, number formats, plain, 4-bit, 8-bit and GPTQ folders, adapters on their base.

Only safetensors and JSON are read, remote code is never run, and nothing is fetched: an input is a local folder.
"""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from slmkit.errors import CannotRun, StepFailed
from slmkit.ml.templates import template_hash
from slmkit.steps._step import Given

if TYPE_CHECKING:  # transformers' models cost seconds to import, and `slmkit data` wants a tokenizer alone
    from transformers import BitsAndBytesConfig, PreTrainedModel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
WEIGHTS = ("*.safetensors", "*.gguf", "*.onnx", "*.onnx.data")
TRAINING = "slmkit_training.json"
"""Beside what was trained: the hash of the chat template it learned, and of an adapter the numerics of the base under it, which nothing else
in the folder tells. It travels with the tokenizer through merge and quantize."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip


def device(name: str) -> torch.device:
    """`auto`, `cpu`, `mps`, `cuda`, `cuda:N` → a device. Raises CannotRun when it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    found = torch.device(name)
    mend = "write `device: auto`, or see `slmkit doctor`"
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise CannotRun(f"there is no {name} here ({torch.cuda.device_count()} CUDA devices)", mend=mend)
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise CannotRun("there is no mps device here", mend=mend)
    return found


def fast_bf16(where: torch.device) -> bool:
    """Has this device arithmetic for bf16, rather than an emulation?"""
    if where.type == "cuda":
        return torch.cuda.get_device_capability(where)[0] >= 8
    if where.type != "cpu":
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def precision(name: str, where: torch.device) -> torch.dtype:
    """`auto`, `fp32`, `bf16` → the number format of the forward pass."""
    if name == "auto":
        return torch.bfloat16 if fast_bf16(where) else torch.float32
    return DTYPES[name]


def read_config(folder: Path) -> dict:
    """config.json of a model folder. Raises StepFailed when it is no model that may be loaded."""
    file = folder / "config.json"
    if not file.is_file():
        raise StepFailed("this is no model folder: it has no config.json", where=folder)
    config = json.loads(file.read_text(encoding="utf-8"))
    if not any(folder.glob("*.safetensors")):
        pickles = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        what = "its weights are pickles, which can run code" if pickles else "it holds no safetensors"
        raise StepFailed(f"cannot load this model: {what}", where=folder, mend="convert it with `save_pretrained`, which writes safetensors")
    if config.get("model_type") not in CONFIG_MAPPING:
        raise CannotRun(
            f"the architecture `{config.get('model_type')}` is not part of transformers, and remote code is never run",
            where=folder,
            mend="choose a model whose architecture transformers knows",
        )
    return config


def own_dtype(folder: Path) -> torch.dtype:
    """The number format a folder's weights are in, as its config says."""
    config = read_config(folder)
    name = config.get("dtype") or config.get("torch_dtype") or (config.get("text_config") or {}).get("dtype") or "float32"
    return getattr(torch, name)


def quantized(folder: Path) -> str | None:
    """`gptq`, `bitsandbytes`, … or None."""
    return (read_config(folder).get("quantization_config") or {}).get("quant_method")


def load(given: Given, where: torch.device, *, dtype: torch.dtype | None = None, nf4: bool = False, attention: str = "auto") -> PreTrainedModel:
    """A model, or an adapter on its base. dtype None: the folder's own; nf4: quantize to 4 bits while loading.

    GPTQ folders are unpacked into dense layers (exactly the values that were written).
    """
    if given.type == "adapter":
        return _load_adapter(given, where, attention)
    from transformers import AutoModelForCausalLM

    folder = Path(given.path)
    kind = quantized(folder)
    if kind == "gptq":
        from slmkit.ml import gptq_format

        return gptq_format.load(folder, dtype or _gptq_dtype(folder, where)).to(where).eval()
    if kind not in (None, "bitsandbytes"):
        raise CannotRun(f"weights quantized by `{kind}` cannot be read here", where=folder, mend="give the unquantized model")
    kwargs: dict = {"dtype": dtype or own_dtype(folder)}
    if nf4:
        if kind:
            raise StepFailed("this model is already quantized; method qlora quantizes it itself", where=folder, mend="give the full-precision model")
        kwargs["quantization_config"] = nf4_config(kwargs["dtype"])
    if nf4 or kind or where.type != "cpu":
        kwargs["device_map"] = {"": where}
    if attention != "auto":
        kwargs["attn_implementation"] = attention
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, **kwargs)
    mend_bitsandbytes(model)
    return model.eval()


def _gptq_dtype(folder: Path, where: torch.device) -> torch.dtype:
    """The folder's own, but fp32 for fp16 on a CPU, which is slow at fp16 and loses nothing by the wider format."""
    own = own_dtype(folder)
    return torch.float32 if own == torch.float16 and where.type == "cpu" else own


def nf4_config(compute: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantization, as in QLoRA (https://arxiv.org/abs/2305.14314)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute)


def mend_bitsandbytes(model: torch.nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights at the first evaluation on a CPU (seen in 0.50.2).

    The repacked weights save to a worse model, merge to garbage, and give wrong gradients afterwards, all without a word.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _load_adapter(given: Given, where: torch.device, attention: str) -> PreTrainedModel:
    from peft import PeftModel

    if given.base is None:
        raise StepFailed("this adapter's base is not known", where=given.path, mend="give the adapter as a recipe's step, or merge it first")
    numerics = training(Path(given.path))
    dtype = DTYPES.get(numerics.get("base_dtype"))
    base = load(given.base, where, dtype=dtype, nf4=numerics.get("base_quantization") == "nf4", attention=attention)
    return PeftModel.from_pretrained(base, given.path, is_trainable=False).eval()


def training(adapter: Path) -> dict:
    """What the adapter's folder says of how it was trained; {} for adapters from elsewhere."""
    file = adapter / TRAINING
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def tokenizer(given: Given):
    """The tokenizer of a model, or of an adapter (its own, else its base's)."""
    folder = Path(given.path)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        if given.base is not None:
            return tokenizer(given.base)
        raise StepFailed("this model has no tokenizer", where=folder)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def check_template(given: Given, tok) -> str | None:
    """The chat template's sha256. Raises StepFailed when it is not the one that the model was trained with."""
    now = template_hash(tok)
    said = training(Path(given.path)).get("chat_template_sha256")
    if said and now != said:
        raise StepFailed(
            f"{given.name} was trained with another chat template ({said[:12]}) than the one beside it ({now and now[:12]})", where=given.path,
            mend="put back the tokenizer files that training wrote, or train again",
        )
    return now


def end_ids(given: Given, tok) -> set[int]:
    """Ids that end a turn: the tokenizer's EOS and those of the generation config."""
    ends = set() if tok.eos_token_id is None else {tok.eos_token_id}
    for name in ("generation_config.json", "config.json"):
        file = Path(given.path) / name
        if file.is_file():
            value = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
            ends |= {value} if isinstance(value, int) else set(value or ())
    return ends


def copy_tokenizer(source: Given, out: Path, template: str | None = None) -> None:
    """Copy tokenizer files byte for byte (saving them again renames classes that older releases know), and set a template."""
    folders = [Path(g.path) for g in (source, source.base) if g is not None]
    folder = next((f for f in folders if any((f / n).is_file() for n in TOKENIZER_FILES)), folders[0])
    for name in (*TOKENIZER_FILES, TRAINING):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    if template is not None:
        (out / "chat_template.jinja").write_text(template, encoding="utf-8")


def copy_generation_config(folder: Path, out: Path) -> None:
    file = folder / "generation_config.json"
    if file.is_file():
        shutil.copyfile(file, out / file.name)


def sha256(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def weight_bytes(given: Given) -> int:
    """Bytes of the weights; an adapter counts its base too, since both are needed."""
    path = Path(given.path)
    own = path.stat().st_size if path.is_file() else sum(f.stat().st_size for p in WEIGHTS for f in path.glob(p))
    return own + (weight_bytes(given.base) if given.base is not None else 0)


def write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def free() -> None:
    """Give back the memory of models that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def memory_now(where: torch.device) -> int:
    """Bytes in use: allocated on the device on CUDA, resident in this process elsewhere."""
    if where.type == "cuda":
        return torch.cuda.memory_allocated(where)
    import psutil

    return psutil.Process().memory_info().rss


def peak_memory(where: torch.device) -> int:
    """Bytes: of the device on CUDA, of this process so far elsewhere."""
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
