"""How well a demo model does its task, and how fast the student learns it: greedy exact match, and a small QLoRA run.

The probe is what the quickstart's train step does, in a page of torch and peft: NF4 with double quantization, LoRA on
all linear layers, the checked-in training rows, loss on the answers alone.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from slmkit.demo.notes import FOLDER

RANK, ALPHA, RATE, EPOCHS, BATCH, WARMUP = 32, 64, 3e-3, 3, 16, 0.1
NEW_TOKENS = 80


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def replies(model, tokenizer, texts: list[str], batch: int = 50) -> list[str]:
    """Greedy answers to bare notes."""
    tokenizer.padding_side, told = "left", []
    for start in range(0, len(texts), batch):
        chats = [[{"role": "user", "content": text}] for text in texts[start : start + batch]]
        how = dict(add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True)
        inputs = tokenizer.apply_chat_template(chats, **how)
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        told += tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return told


def parsed(text: str):
    try:
        return json.loads(text)
    except ValueError:
        return None


def exact_match(model, tokenizer, show: int = 2) -> float:
    """Share of test notes answered with just the gold object."""
    model.eval()
    test = rows("test")
    told = replies(model, tokenizer, [row["note"] for row in test])
    wrong = [(row, text) for row, text in zip(test, told, strict=True) if parsed(text) != json.loads(row["answer"])]
    for row, text in wrong[:show]:
        print(f"  note {row['note']!r}\n  gold {row['answer']}\n  told {text}")
    return 1 - len(wrong) / len(test)


def encoded(tokenizer, row: dict) -> tuple[list[int], int]:
    """Token ids of a row and where its answer begins."""
    whole = tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"]
    prompt = tokenizer.apply_chat_template(row["messages"][:1], add_generation_prompt=True, return_dict=True)["input_ids"]
    return whole, len(prompt)


def load_nf4(folder: Path):
    """The model in NF4 with LoRA; the CPU repack that spoils training (bitsandbytes 0.50) is off."""
    import bitsandbytes as bnb
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=how, dtype=torch.bfloat16, device_map="cpu", attn_implementation="eager")
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM")
    return get_peft_model(model, lora)


def fine_tune(model, tokenizer) -> None:
    """EPOCHS over the training rows in batches of BATCH, by length; linear warm-up and decay."""
    data = [encoded(tokenizer, row) for row in rows("train")]
    mix = random.Random(0)
    order = []
    for _ in range(EPOCHS):
        mix.shuffle(data)
        pools = [sorted(data[i : i + BATCH * 16], key=lambda one: len(one[0])) for i in range(0, len(data), BATCH * 16)]
        cuts = [pool[i : i + BATCH] for pool in pools for i in range(0, len(pool), BATCH)]
        mix.shuffle(cuts)
        order += cuts
    params = [param for param in model.parameters() if param.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=RATE, weight_decay=0.0)
    model.train()
    for step, cut in enumerate(order):
        optimizer.param_groups[0]["lr"] = RATE * min((step + 1) / (WARMUP * len(order)), (1 - step / len(order)) / (1 - WARMUP))
        width = max(len(ids) for ids, _ in cut)
        ids = torch.tensor([one + [tokenizer.pad_token_id] * (width - len(one)) for one, _ in cut])
        labels = torch.tensor([[-100] * begin + one[begin:] + [-100] * (width - len(one)) for one, begin in cut])
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 0:
            print(f"  step {step}/{len(order)} loss {loss.item():.4f}", flush=True)


def probe(folder: Path) -> dict:
    """Exact match after QLoRA, and the seconds that it took."""
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), load_nf4(folder)
    start = time.time()
    fine_tune(model, tokenizer)
    trained = time.time()
    score = exact_match(model, tokenizer, show=8)
    seconds = {"train_seconds": round(trained - start, 1), "score_seconds": round(time.time() - trained, 1)}
    return {"exact_match": round(score, 3), **seconds}
