"""Tokens that are a part of a character, as logprobs tell of them, for both families of tokenizers that have such.

The models here are real ones whose weights recite: each token is followed by the next one of TEXT, whatever came before.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from slmkit.ml.completions import Speaker, chat_asks, plain_asks
from slmkit.ml.pieces import Pieces, Spelling
from slmkit.ml.responses import plain_logprobs
from slmkit.ml.writer import Token, Writer
from slmkit.serve.bench import Bench
from tests.ml.conftest import CHATML, make_tokenizer
from tests.serve.conftest import CPU, listening, post

TEXT = "go ä中😀by"  # no token twice: each decides the next
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def byte_fallback(folder: Path) -> None:
    """A tokenizer as SentencePiece makes them: a space is ▁ and put before a text, what has no token of its own is told by its bytes."""
    letters = sorted(set("▁\nabcdefghijklmnopqrstuvwxyz.0123456789"))
    words = [*SPECIAL, *(f"<0x{b:02X}>" for b in range(256)), *letters, "▁g", "▁go", "▁▁", "re", "▁▁▁"]
    merges = [("▁", "g"), ("▁g", "o"), ("▁", "▁"), ("r", "e"), ("▁▁", "▁")]
    core = Tokenizer(BPE({w: i for i, w in enumerate(words)}, merges, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="<|im_end|>", pad_token="</s>",
                                        additional_special_tokens=SPECIAL)  # fmt: skip
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class Reciter:
    """ids: those of TEXT, where a text goes on."""

    writer: Writer
    speaker: Speaker
    ids: list[int]


@pytest.fixture(scope="module", params=["byte-level", "byte-fallback"])
def reciter(request, tmp_path_factory) -> Reciter:
    folder = tmp_path_factory.mktemp(request.param)
    (make_tokenizer if request.param == "byte-level" else byte_fallback)(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("\n" + TEXT, add_special_tokens=False)["input_ids"]
    ids = ids[[tokenizer.decode([i]) for i in ids].index("\n") + 1 :]
    if request.param == "byte-fallback":
        ids = [tokenizer.convert_tokens_to_ids("▁go"), *ids[2:]]  # with a space before it: what an answer loses where it begins a text
    assert len(set(ids)) == len(ids) > 11
    size, first = len(tokenizer), ids[0]
    config = LlamaConfig(vocab_size=size, hidden_size=size + size % 2, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
                         max_position_embeddings=512, tie_word_embeddings=False)  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        model.get_input_embeddings().weight[:, :size] = torch.eye(size)
        for one in range(size):
            after = ids[ids.index(one) + 1] if one in ids[:-1] else tokenizer.eos_token_id if one == ids[-1] else first
            model.lm_head.weight[after, one] = 1.0
    speaker = Speaker(tokenizer, frozenset([tokenizer.eos_token_id]), 512, "f")
    return Reciter(Writer(model, tokenizer, CPU), speaker, ids)


def events(raw: str) -> list[dict]:
    return [c for line in raw.split("\n\n") if line and "[DONE]" not in line for c in json.loads(line.removeprefix("data: "))["choices"]]


def offsets_hold(text: str, logs: dict) -> None:
    """Each token that is a text stands where it is said to; the others are at the character that they are a part of.

    What the tokenizer put before the client's text is among the tokens, and in no text; nor is the end's, which stands behind it.
    """
    at = logs["text_offset"]
    assert logs["tokens"][-1] == "<|im_end|>" and at[-1] == len(text)
    assert at == sorted(at) and len(at) == len(logs["tokens"]) == len(logs["token_logprobs"]) == len(logs["top_logprobs"])
    for token, start in zip(logs["tokens"][:-1], at, strict=False):
        if token.startswith("bytes:"):
            assert text[start] in "äß中😀", (text, token, start)
        elif token == "<s>":
            assert start == 0 and logs["tokens"].index("<s>") == 0 and text[0] == "ß"
        else:
            assert text[start : start + len(token)] == token, (text, token, start)
    assert [sum(t.startswith("bytes:") and a == text.index(c) for t, a in zip(logs["tokens"], at, strict=True)) for c in "ä中😀"] == [2, 3, 4]


@pytest.mark.parametrize("echo", [False, True])
def test_the_tokens_of_a_completion_stand_where_it_says(reciter, echo):
    body = {"model": "m", "prompt": "ß  one", "max_tokens": 30, "temperature": 0, "logprobs": 3, "echo": echo}
    with listening(reciter.speaker, Bench(lambda _, asks, each: reciter.writer.write(asks, each), 8)) as url:
        whole = json.loads(post(f"{url}/completions", body)[1])["choices"][0]
        pieces = events(post(f"{url}/completions", body | {"stream": True})[1])
        numbered = json.loads(post(f"{url}/completions", body | {"return_tokens_as_token_ids": True})[1])["choices"][0]["logprobs"]
    lead = " " if reciter.speaker.pieces.single else ""
    assert whole["text"] == ("ß  one" if echo else "") + lead + TEXT and whole["finish_reason"] == "stop"
    offsets_hold(whole["text"], whole["logprobs"])
    assert [t for t in whole["logprobs"]["tokens"] if t[:5] == "bytes"][-9:] == [f"bytes:\\x{b:02x}" for b in "ä中😀".encode()]
    assert all(name in top for name, top in zip(whole["logprobs"]["tokens"], whole["logprobs"]["top_logprobs"], strict=True) if top)
    assert "".join(p["text"] for p in pieces) == whole["text"]
    told = [p["logprobs"] for p in pieces if p["logprobs"]]
    assert {key: [one for logs in told for one in logs[key]] for key in told[0]} == whole["logprobs"]
    assert numbered["text_offset"] == whole["logprobs"]["text_offset"]
    assert numbered["tokens"][-2:] == [f"token_id:{i}" for i in (reciter.ids[-1], *reciter.speaker.ends)]


def test_the_bytes_of_an_answers_tokens_are_its_text(reciter):
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 30, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    with listening(reciter.speaker, Bench(lambda _, asks, each: reciter.writer.write(asks, each), 8)) as url:
        whole = json.loads(post(f"{url}/chat/completions", body)[1])["choices"][0]
        pieces = events(post(f"{url}/chat/completions", body | {"stream": True})[1])
        left_out = json.loads(post(f"{url}/chat/completions", body | {"ignore_eos": True, "max_tokens": len(reciter.ids) + 3})[1])["choices"][0]
        cut = json.loads(post(f"{url}/chat/completions", body | {"max_tokens": len(reciter.ids) - 4})[1])["choices"][0]
    content = whole["logprobs"]["content"]
    assert whole["message"]["content"] == TEXT and b"".join(bytes(t["bytes"]) for t in content).decode() == TEXT
    assert [t["token"] for t in content if not t["bytes"][0] < 128] == [f"\\x{b:02x}" for b in "ä中😀".encode()]
    assert all(t["top_logprobs"][0] == {k: t[k] for k in ("token", "logprob", "bytes", "token_id")} for t in content)
    assert [t for p in pieces if p["logprobs"] for t in p["logprobs"]["content"]] == content
    tokens = left_out["logprobs"]["content"]  # the end of a turn is in no text: it has a name and no bytes
    assert [t["token"] for t in tokens if t["bytes"] is None] == ["<|im_end|>"]
    assert b"".join(bytes(t["bytes"] or b"") for t in tokens).decode() == left_out["message"]["content"] and len(tokens) == len(reciter.ids) + 3
    assert cut["message"]["content"] == "go ä中\ufffd", "cut within a character: those before it are whole"
    assert b"".join(bytes(t["bytes"]) for t in cut["logprobs"]["content"]).decode("utf-8", "replace") == cut["message"]["content"]


def test_whatever_a_model_writes_has_its_bytes_and_its_places(reciter):
    """Noise, parts of characters above all: the text is the bytes', with marks for what is none, and what the tokenizer says where all is whole."""
    tokenizer, pieces, rng = reciter.speaker.tokenizer, Pieces(reciter.speaker.tokenizer), random.Random(0)
    parts = [i for i in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([i])]
    spaces = [i for i in range(len(tokenizer)) if not tokenizer.decode([i, i]).strip()]
    wholes, kinds = 0, (parts, spaces, range(len(tokenizer)), reciter.ids)
    for _ in range(1500):
        goes_on, ids = rng.random() < 0.5, [rng.choice(rng.choice(kinds)) for _ in range(rng.randrange(1, 9))]
        text, spelt, said, last = pieces.text(ids, goes_on), Spelling(pieces, 0, goes_on), b"", 0
        for i in ids:
            name, own, is_text, at = spelt.name(i), spelt.bytes_of(i), spelt.is_text(i), spelt.add(i)
            assert at >= last and (not own or not is_text or text[at : at + len(name)] == name), (ids, goes_on, name, at, text)
            said, last = said + (own or b""), at
        assert said.decode("utf-8", "replace") == text and spelt.end() == len(text), (ids, goes_on)
        plain = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if "\ufffd" not in plain or not pieces.single:
            assert pieces.text(ids) == plain, ids
            wholes += 1
    assert wholes > 100


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_tokens_that_read_the_same_the_likelier_is_told(tmp_path, first):
    """Likelihood by lm-eval asks whether a token was the best of all."""
    byte_fallback(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    same = [(i, -1.0 - k) for k, i in enumerate(tokenizer.convert_tokens_to_ids(["<0x61>", "a"]))]
    logs = plain_logprobs([Token(*same[first], tuple(same))], Spelling(Pieces(tokenizer)), False)
    assert logs["tokens"] == ["a"] and logs["token_logprobs"] == [-1.0 - first] and logs["top_logprobs"] == [{"a": -1.0}]


def test_a_space_that_begins_an_answer_is_kept_where_it_goes_on_from_a_text(reciter):
    """By SentencePiece's tokenizers: `Once upon a` and ` time`. A turn of a chat begins a text, and so does what follows special tokens alone."""
    chat = chat_asks({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "temperature": 0}, reciter.speaker)
    body = {"prompt": ["one", [reciter.speaker.tokenizer.eos_token_id]], "max_tokens": 1, "temperature": 0}
    found = [one.text for one in reciter.writer.write([*plain_asks(body, reciter.speaker), *chat])]
    assert found == [" go" if reciter.speaker.pieces.single else "go", "go", "go"]
