"""Other toolkits, each in a virtual environment of its own under a cache folder, and the recipe that each is given.

torch is installed first, and the toolkit's wish for another release of it is passed over, as are packages that a LoRA training on a
CPU never imports and that are large or come as source.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import setting as s

TORCH = "2.13.0"
SKIPPED = {  # by pattern, of the toolkit's own requirements
    "oumi": r"torch|torchvision|torchao|skypilot|responses|aioresponses",
    "llamafactory": r"torch|torchvision|torchaudio|gradio",
    "axolotl": r"torch|torchao|triton|xformers|fla-core|flash-linear-attention|modal|s3fs|gcsfs|adlfs|ocifs|gradio|openenv-core|mistral-common|art",
}
PACKS = 25  # of setting.LENGTH tokens, in the training rows
EMPTY = {"llamafactory": ["torchaudio"]}  # imported at the top and used for sound only; no release of it loads beside this torch
PROGRAM = {"oumi": ["-m", "oumi", "train", "-c"], "llamafactory": ["-m", "llamafactory.cli", "train"], "axolotl": ["-m", "axolotl.cli.train"]}


def python(cache: Path, name: str) -> Path:
    return cache / name / "bin/python"


def setup(cache: Path, name: str) -> None:
    """Make the environment of one toolkit; what fails says so in pip's words."""
    home = cache / name
    subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
    pip = [python(cache, name), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, f"torch=={TORCH}", "numpy", "wheel", "setuptools"], check=True)
    subprocess.run([python(cache, name), "-m", "pip", "download", "--quiet", "--no-deps", "--dest", home / "wheel", name], check=True)
    (wheel,) = (home / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as z:
        metadata = z.read(next(n for n in z.namelist() if n.endswith(".dist-info/METADATA"))).decode()
    wanted = re.findall(r"^Requires-Dist: ((?!.*extra ==).+)$", metadata, re.MULTILINE)
    skipped = re.compile(rf"(?:{SKIPPED[name]})(?![\w-])")
    (home / "requirements.txt").write_text("\n".join(w for w in wanted if not skipped.match(w)) + "\n")
    (home / "constraints.txt").write_text(f"torch=={TORCH}\n")
    subprocess.run([*pip, "-c", home / "constraints.txt", "-r", home / "requirements.txt"], check=True)
    subprocess.run([*pip, "--no-deps", wheel], check=True)
    (packages,) = (home / "lib").glob("python*/site-packages")
    for module in EMPTY.get(name, ()):
        (packages / f"{module}.py").touch()


def command(cache: Path, name: str, home: Path, work: Path, out: Path, packed: bool) -> list[str]:
    """Write the toolkit's recipe into `work`; the command that runs it."""
    recipe = {"oumi": _oumi, "llamafactory": _llamafactory, "axolotl": _axolotl}[name](home, work, out, packed)
    file = work / "recipe.yaml"
    file.write_text(json.dumps(recipe, indent=1))  # JSON is YAML
    return [str(python(cache, name)), *PROGRAM[name], str(file)]


def _oumi(home: Path, work: Path, out: Path, packed: bool) -> dict:
    data = {
        "datasets": [{"dataset_name": "text_sft", "dataset_path": str(home / "train.jsonl")}],
        "collator_name": "text_completions_only_with_padding",
        "collator_kwargs": {"response_template": "<|im_start|>assistant\n", "instruction_template": "<|im_start|>user\n"},
    }
    if packed:
        data = {"datasets": data["datasets"], "pack": True}
    training = {
        "trainer_type": "TRL_SFT", "output_dir": str(out), "num_train_epochs": 1, "learning_rate": s.RATE, "lr_scheduler_type": "cosine",
        "warmup_ratio": s.WARMUP, "per_device_train_batch_size": 1 if packed else s.BATCH, "use_peft": True, "seed": s.SEED, "weight_decay": 0.0,
        "logging_steps": 1, "enable_wandb": False, "enable_tensorboard": False, "save_final_model": True, "max_grad_norm": 1.0,
        "optimizer": "adamw_torch",
    }  # fmt: skip
    if packed:  # its packs are a stream, which wants to know its end; and it packs whole chats: all tokens are learned
        training["max_steps"] = PACKS
    return {
        "model": {"model_name": str(home / "model"), "torch_dtype_str": "float32", "model_max_length": s.LENGTH, "device_map": "cpu"},
        "data": {"train": data},
        "training": training,
        "peft": {"lora_r": s.RANK, "lora_alpha": s.ALPHA, "lora_target_modules": s.TARGETS, "lora_dropout": 0.0},
    }


def _llamafactory(home: Path, work: Path, out: Path, packed: bool) -> dict:
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    info = {"rows": {"file_name": str(home / "train.jsonl"), "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}}
    (work / "dataset_info.json").write_text(json.dumps(info))
    return {
        "model_name_or_path": str(home / "model"), "stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_rank": s.RANK,
        "lora_alpha": s.ALPHA, "lora_target": "all", "dataset": "rows", "dataset_dir": str(work), "template": "chatml", "cutoff_len": s.LENGTH,
        "output_dir": str(out), "per_device_train_batch_size": 1 if packed else s.BATCH, "num_train_epochs": 1, "learning_rate": s.RATE,
        "lr_scheduler_type": "cosine", "warmup_steps": s.WARMUP, "use_cpu": True, "bf16": False, "fp16": False, "report_to": "none",
        "seed": s.SEED, "overwrite_cache": True, "packing": packed, "neat_packing": packed, "flash_attn": "sdpa", "logging_steps": 1,
        "max_grad_norm": 1.0,
    }  # fmt: skip


def _axolotl(home: Path, work: Path, out: Path, packed: bool) -> dict:
    return {
        "base_model": str(home / "model"), "adapter": "lora", "lora_r": s.RANK, "lora_alpha": s.ALPHA, "lora_target_linear": True,
        "datasets": [{"path": str(home / "train.jsonl"), "ds_type": "json", "type": "chat_template", "field_messages": "messages"}],
        "dataset_prepared_path": str(work / "prepared"), "output_dir": str(out), "sequence_len": s.LENGTH, "sample_packing": packed,
        "micro_batch_size": 1 if packed else s.BATCH, "gradient_accumulation_steps": 1, "num_epochs": 1, "learning_rate": s.RATE,
        "optimizer": "adamw_torch", "lr_scheduler": "cosine", "warmup_ratio": s.WARMUP, "bf16": False, "fp16": False, "tf32": False, "seed": s.SEED,
        "train_on_inputs": False, "attn_implementation": "sdpa", "device": "cpu", "logging_steps": 1, "chat_template": "tokenizer_default",
        "max_grad_norm": 1.0, "lora_mlp_kernel": False, "lora_qkv_kernel": False, "lora_o_kernel": False,  # on by default, for CUDA only
    }  # fmt: skip
