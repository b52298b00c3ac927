"""Makes the demo's two models: a student that knows the talk of delivery notes, and a teacher that knows the task.

Both are Llamas over one small byte-level BPE whose digits stand alone. The student reads demo_talk's conversations only.
The teacher reads the task's notes too. All text is drawn from seeds as it is needed; notes whose order number is in the
checked-in splits are never drawn, so every figure here is on notes that no model saw. Training is plain torch: bf16
copies of fp32 weights, Muon for the matrices, AdamW for the rest, batches of similar length. Each model has a process and
one thread of its own, which is quicker than two threads on small matrices and gives the same bytes on every run.

    python scripts/demo_models.py                      both models into slmkit/demo/{student,teacher}
    python scripts/demo_models.py --only student --out /tmp/trial --check
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import multiprocessing
import random
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.demo_probe import exact_match, probe  # noqa: E402
from scripts.demo_talk import talk  # noqa: E402
from scripts.demo_tokenizer import make_tokenizer  # noqa: E402
from slmkit.demo.notes import answer, drawn, stream  # noqa: E402

SHAPES = {
    "student": dict(hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4),
    "teacher": dict(hidden_size=256, intermediate_size=640, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4),
}
STAGES = {  # steps, seed, share of the learning rates
    "student": ((1600, 7, 1.0),),
    "teacher": ((1400, 7, 1.0),),
}
BATCH, POOL = 32, 16
RATE_MATRICES, RATE_OTHERS = 0.02, 0.004
USER_WEIGHT = 0.1


def seen_orders() -> frozenset[str]:
    """Order numbers of the checked-in splits, which no model may train on."""
    return frozenset(gold["order"] for pairs in drawn().values() for _, gold in pairs)


def conversations(name: str, seed: int):
    """What a model reads: talk for the student; for the teacher the task and, one time in five, talk with a question."""
    without = seen_orders()
    talked = talk(seed, without)
    if name == "student":
        yield from talked
    dice, source = random.Random(seed), stream(seed + 2, without)
    for turns in talked:
        while dice.random() < 0.8:
            text, gold = next(source)
            yield [(text, answer(gold))]
        yield turns


def encode(tokenizer, turns) -> tuple[list[int], list[float]]:
    """Token ids in the chat template's form and, for each, the weight of predicting it."""
    special = tokenizer.convert_tokens_to_ids
    user, assistant, end = special("<|user|>"), special("<|assistant|>"), special("<|end|>")
    ids, weights = [], []
    for question, reply in turns:
        asked = tokenizer(question, add_special_tokens=False)["input_ids"]
        told = tokenizer(reply, add_special_tokens=False)["input_ids"]
        ids += [user, *asked, end, assistant, *told, end]
        weights += [0.0] + [USER_WEIGHT] * len(asked) + [0.0, 0.0] + [1.0] * (len(told) + 1)
    return ids, weights


def batches(tokenizer, source):
    """Batches of BATCH conversations, padded on the right; a pool of POOL batches is sorted by length, then mixed."""
    mix = random.Random(0)
    while True:
        drawn = itertools.islice(source, BATCH * POOL)
        pool = sorted((encode(tokenizer, turns) for turns in drawn), key=lambda pair: len(pair[0]))
        cuts = [pool[i : i + BATCH] for i in range(0, len(pool), BATCH)]
        mix.shuffle(cuts)
        for cut in cuts:
            width = max(len(ids) for ids, _ in cut)
            ids = torch.full((len(cut), width), tokenizer.pad_token_id)
            weights = torch.zeros(len(cut), width)
            for i, (one, weight) in enumerate(cut):
                ids[i, : len(one)] = torch.tensor(one)
                weights[i, : len(one)] = torch.tensor(weight)
            yield ids, weights


def new_model(name: str, tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=1024, rms_norm_eps=1e-5, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **SHAPES[name],
    )  # fmt: skip
    return LlamaForCausalLM(config)


def be_quick() -> None:
    """About a third less time a step: one kernel for RMSNorm, and a heap that keeps the blocks which each step frees."""
    LlamaRMSNorm.forward = lambda norm, x: F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def train(model: LlamaForCausalLM, name: str, tokenizer, steps: int, seed: int, share: float) -> None:
    """One stage: `steps` batches under learning rates that rise for 50 steps and fall in the second half."""
    model.set_attn_implementation("eager")  # in bf16 on a CPU, twice as fast at these lengths as sdpa's backward
    params = list(model.parameters())
    masters = [param.detach().float().requires_grad_() for param in params]
    inner = {id(param) for part, param in model.named_parameters() if param.ndim == 2 and "embed" not in part}
    matrices = [master for master, param in zip(masters, params, strict=True) if id(param) in inner]
    others = [master for master, param in zip(masters, params, strict=True) if id(param) not in inner]
    optimizers = [
        torch.optim.Muon(matrices, lr=RATE_MATRICES, weight_decay=0.01, momentum=0.95, adjust_lr_fn="original"),
        torch.optim.AdamW(others, lr=RATE_OTHERS, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    rates = (RATE_MATRICES * share, RATE_OTHERS * share)
    start, loss_sum, tokens = time.time(), 0.0, 0
    for step, (ids, weights) in enumerate(itertools.islice(batches(tokenizer, conversations(name, seed)), steps), 1):
        scale = min(step / 50, 1.0, max((steps - step) / (0.5 * steps), 0.0) + 0.01)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * scale
        logits = model(ids[:, :-1], use_cache=False).logits.float()
        losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        weight = weights[:, 1:].flatten()
        loss = (losses * weight).sum() / weight.sum()
        loss.backward()
        with torch.no_grad():
            for master, param in zip(masters, params, strict=True):
                master.grad, param.grad = param.grad.float(), None
            torch.nn.utils.clip_grad_norm_(masters, 1.0)
            for optimizer in optimizers:
                optimizer.step()
            for master, param in zip(masters, params, strict=True):
                param.copy_(master)
        told = weight == 1
        loss_sum, tokens = loss_sum + losses.detach()[told].mean().item(), tokens + ids.numel()
        if step % 50 == 0 or step == steps:
            speed = tokens / (time.time() - start)
            print(f"{name} {step}/{steps} answers {loss_sum / 50:.4f} {speed:.0f} tok/s", file=sys.stderr, flush=True)
            loss_sum = 0.0


def save(model: LlamaForCausalLM, tokenizer, folder: Path) -> None:
    """A folder that transformers loads; the tokenizer's class is named so that release 4 finds it too."""
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": config.pop("extra_special_tokens")}
    config.pop("backend", None)
    file.write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n")
    for one in folder.iterdir():
        one.chmod(0o644)


def make(name: str, out: Path, steps: int | None) -> None:
    """Train, save, measure and report one model; `steps` shortens every stage for a trial."""
    torch.set_num_threads(1)
    be_quick()
    start, tokenizer = time.time(), make_tokenizer()
    model = new_model(name, tokenizer).to(torch.bfloat16)
    for length, *stage in STAGES[name]:
        train(model, name, tokenizer, steps or length, *stage)
    save(model, tokenizer, out / name)
    seconds, score = time.time() - start, exact_match(model.float(), tokenizer)
    print(f"{name}: exact match {score:.3f}, {seconds:.0f} s, {model.num_parameters():,} parameters", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(SHAPES))
    parser.add_argument("--out", type=Path, default=ROOT / "slmkit" / "demo")
    parser.add_argument("--check", action="store_true", help="also fine-tune the student by QLoRA and score it")
    parser.add_argument("--steps", type=int, help="training steps of each stage, for a trial")
    options = parser.parse_args()
    makers = multiprocessing.get_context("spawn")
    names = [options.only] if options.only else list(SHAPES)
    jobs = [makers.Process(target=make, args=(name, options.out, options.steps)) for name in names]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    if any(job.exitcode for job in jobs):
        sys.exit(1)
    if options.check:
        torch.set_num_threads(2)
        print(json.dumps(probe(options.out / "student")))


if __name__ == "__main__":
    main()
