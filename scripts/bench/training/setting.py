"""What every contender trains: a Llama of 4 million random weights with a tokenizer trained on the spot, and chats of skewed lengths.

Made by seed, so that two machines measure the same thing. The template marks what the assistant says (`{% generation %}`), because
TRL needs it; the text it renders is ChatML.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

ROWS, HELD_OUT, BATCH, VOCABULARY = 500, 100, 8, 4096
LENGTH = 2048  # no row is longer
SPREAD = float(os.environ.get("BENCH_SPREAD", "1.0"))  # sigma of the log-normal lengths; 0.2: nearly alike
SEED = 0
RATE, WARMUP, RANK, ALPHA = 2e-3, 0.03, 16, 32
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SYLLABLES = ["ka", "lo", "mi", "ner", "tus", "vel", "ro", "shi", "pan", "dor", "el", "qui", "bas", "tem", "gra", "on", "fi", "zu"]


def words(rng: random.Random, count: int) -> list[str]:
    return ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(count)]


def chats(count: int, seed: int) -> list[dict]:
    """Lengths are log-normal: the median row has 70 tokens, the longest (of SPREAD 1) about 1,000. The answer names words of the question."""
    lexicon, rng = words(random.Random(1), 3000), random.Random(seed)
    rows = []
    for _ in range(count):
        size = int(min(900, max(4, rng.lognormvariate(3.87, SPREAD))))
        asked = [lexicon[int(len(lexicon) * rng.random() ** 3)] for _ in range(size)]
        answer = [w for w in asked if w.startswith(("k", "l"))][:200] + [asked[-1]]
        messages = [{"role": "user", "content": " ".join(asked)}, {"role": "assistant", "content": " ".join(answer)}]
        rows.append({"messages": messages})
    return rows


def make(folder: Path) -> None:
    """model/, train.jsonl and held_out.jsonl in `folder`; what is there already is kept."""
    if (folder / "held_out.jsonl").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    train = chats(ROWS, SEED + 1)
    _model(folder / "model", [m["content"] for row in train for m in row["messages"]])
    for name, rows in (("train", train), ("held_out", chats(HELD_OUT, SEED + 2))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def _model(folder: Path, texts: list[str]) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=LENGTH)
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4,
        max_position_embeddings=LENGTH, tie_word_embeddings=True, bos_token_id=None, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def encoded(tokenizer, file: Path) -> list[tuple[list[int], list[int]]]:
    """Token ids and labels of all rows; labels are -100 but for what the assistant says, and its <|im_end|>."""
    out = []
    for line in file.read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        a, b = tokenizer([prompt, messages[-1]["content"] + "<|im_end|>"], add_special_tokens=False)["input_ids"]
        newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
        out.append((a + b + newline, [-100] * len(a) + b + [-100] * len(newline)))
    return out
