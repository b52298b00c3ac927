"""The contenders that are short enough to write down, each one process: `contenders.py NAME SETTING OUT`.

imports   what a QLoRA training has to import, and nothing else
bucketed  a hand-written loop: rows of like length side by side in one forward pass a step
packed    the same, with the rows of a step end to end
trl       TRL's SFTTrainer as its documentation has it
evaluate  the common evaluator: mean loss per assistant token of the held-out rows, printed
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import setting as s


def imports() -> None:
    import bitsandbytes  # noqa: F401
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401
    import trl  # noqa: F401


def hand_written(home: Path, out: Path, packed: bool) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(s.SEED)
    rows = s.encoded(AutoTokenizer.from_pretrained(home / "model"), home / "train.jsonl")
    model = AutoModelForCausalLM.from_pretrained(home / "model", dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=s.RANK, lora_alpha=s.ALPHA, target_modules=s.TARGETS, task_type="CAUSAL_LM")).train()
    order = torch.randperm(len(rows)).tolist()
    if not packed:
        order = sorted(order, key=lambda i: len(rows[i][0]))
    batches = [order[i : i + s.BATCH] for i in range(0, len(order), s.BATCH)]
    batches = [batches[i] for i in torch.randperm(len(batches)).tolist()]
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=s.RATE, weight_decay=0.0)
    warm = math.ceil(s.WARMUP * len(batches))
    for step, batch in enumerate(batches):
        rate = step / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (len(batches) - warm)))
        for group in optimizer.param_groups:
            group["lr"] = s.RATE * rate
        inputs, labels = (end_to_end if packed else side_by_side)([rows[i] for i in batch])
        wanted = labels[:, 1:] != -100
        hidden = model.base_model.model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
        logits = model.base_model.model.lm_head(hidden[wanted])
        torch.nn.functional.cross_entropy(logits, labels[:, 1:][wanted]).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(out)


def side_by_side(part):
    import torch

    width = max(len(ids) for ids, _ in part)
    inputs = {
        "input_ids": torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in part]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in part]),
    }
    return inputs, torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in part])


def end_to_end(part):
    import torch

    inputs = {
        "input_ids": torch.tensor([[i for ids, _ in part for i in ids]]),
        "position_ids": torch.tensor([[n for ids, _ in part for n in range(len(ids))]]),
    }
    return inputs, torch.tensor([[label for _, labels in part for label in [-100, *labels[1:]]]])


def bucketed(home: Path, out: Path) -> None:
    hand_written(home, out, packed=False)


def packed(home: Path, out: Path) -> None:
    hand_written(home, out, packed=True)


def trl(home: Path, out: Path) -> None:
    from datasets import load_dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    SFTTrainer(
        model=str(home / "model"),
        train_dataset=load_dataset("json", data_files=str(home / "train.jsonl"), split="train"),
        peft_config=LoraConfig(r=s.RANK, lora_alpha=s.ALPHA, target_modules=s.TARGETS, task_type="CAUSAL_LM"),
        args=SFTConfig(
            output_dir=str(out), per_device_train_batch_size=s.BATCH, num_train_epochs=1, learning_rate=s.RATE, lr_scheduler_type="cosine",
            warmup_steps=s.WARMUP, max_length=s.LENGTH, assistant_only_loss=True, use_cpu=True, bf16=False, report_to="none", seed=s.SEED,
        ),
    ).train()  # fmt: skip


def evaluate(home: Path, out: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = sorted(s.encoded(AutoTokenizer.from_pretrained(home / "model"), home / "held_out.jsonl"), key=lambda row: len(row[0]))
    model = AutoModelForCausalLM.from_pretrained(home / "model", dtype=torch.float32)
    model = PeftModel.from_pretrained(model, out).eval()
    total = count = 0
    with torch.no_grad():
        for start in range(0, len(rows), s.BATCH):
            inputs, labels = side_by_side(rows[start : start + s.BATCH])
            logits = model(**inputs).logits[:, :-1].flatten(0, 1)
            total += torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum").item()
            count += (labels[:, 1:] != -100).sum().item()
    print(total / count)


def tokens(home: Path, out: Path) -> None:
    """Content tokens of the training rows, printed."""
    from transformers import AutoTokenizer

    print(sum(len(ids) for ids, _ in s.encoded(AutoTokenizer.from_pretrained(home / "model"), home / "train.jsonl")))


def setting(home: Path, out: Path) -> None:
    s.make(home)


if __name__ == "__main__":
    name, *places = sys.argv[1:]
    {f.__name__: f for f in (bucketed, packed, trl, evaluate, tokens, setting)}[name](*map(Path, places)) if places else imports()
