"""A tiny random Llama with a word-level-ish BPE tokenizer and a ChatML template, made once a session; no downloads."""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

torch.set_num_threads(1)  # bytes are compared with those of child processes

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CITIES = ["Graz", "Linz", "Wien", "Enns", "Wels", "Steyr", "Krems"]


def chats(n: int, turns: int = 1) -> list[dict]:
    """Rows with a rule to learn: the answer is the city and a digit named in the question. Lengths differ."""
    rows = []
    for i in range(n):
        messages = [{"role": "system", "content": "Say where."}] if i % 2 else []
        for t in range(turns):
            city, number = CITIES[(i + t) % len(CITIES)], (i * 7 + t) % 10
            filler = "please " * (i % 5)
            messages += [
                {"role": "user", "content": f"{filler}parcel {number} goes to {city}"},
                {"role": "assistant", "content": f"{city} {number}"},
            ]
        rows.append({"messages": messages})
    return rows


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def make_tokenizer(folder: Path, template: str | None = CHATML) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(vocab_size=384, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator([m["content"] for r in chats(50) for m in r["messages"]], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|pad|>", model_max_length=512)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def make_model(folder: Path, *, hidden: int = 64, mlp: int = 128, seed: int = 0, template: str | None = CHATML, vocabulary: int = 384) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocabulary, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, eos_token_id=2, pad_token_id=3,
            bos_token_id=None, initializer_range=0.08,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer(folder, template)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other(tmp_path_factory) -> Path:
    """A teacher for tiny: the same tokens, other weights."""
    return make_model(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture(scope="session")
def untemplated(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "plain", template=None)


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "train.jsonl", chats(120))


@pytest.fixture(scope="session")
def tokenizer(tiny):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny)
