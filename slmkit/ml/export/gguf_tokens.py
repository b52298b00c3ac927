"""A tokenizer as llama.cpp knows tokenizers: byte-level BPE with a pre-tokenizer that it has a name for, or SentencePiece's BPE.

llama.cpp splits text by rules that it holds under a name; the name is told here from how the tokenizer splits, and what has no name there is refused.
Whether it was told right is seen when the file is read back: its ids must be the tokenizer's own (`llama.py`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from slmkit.errors import StepFailed

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BY_PATTERN = {LLAMA3: "llama-bpe", QWEN2: "qwen2"}


@dataclass(frozen=True)
class Tokens:
    """model: `gpt2` or `llama`, in llama.cpp's words; pre: name of the pre-tokenizer; texts, kinds, scores by id; merges of `gpt2`."""

    model: str
    pre: str
    texts: list[str]
    kinds: list[int]
    scores: list[float]
    merges: list[str]
    space_first: bool


def read(tokenizer: Any, vocabulary: int) -> Tokens:
    """A fast tokenizer as transformers runs it (which for some families is not what tokenizer.json says), filled up to `vocabulary` ids. Raises
    StepFailed for one that llama.cpp does not know."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise StepFailed(f"{type(tokenizer).__name__} is no fast tokenizer", mend="save the model with one (tokenizer.json)")
    return of(json.loads(backend.to_str()), vocabulary)


def of(said: dict, vocabulary: int) -> Tokens:
    """The same from the tokenizer's JSON."""
    model = said["model"]
    if model["type"] != "BPE":
        raise StepFailed(f"a tokenizer of type {model['type']} is not exported, only BPE")
    texts = [f"[PAD{i}]" for i in range(vocabulary)]
    kinds = [UNUSED] * vocabulary
    pieces = bool(model.get("byte_fallback"))
    for text, i in model["vocab"].items():
        texts[i], kinds[i] = text, _kind(text, pieces, model.get("unk_token"))
    for token in said.get("added_tokens", ()):
        i = token["id"]
        texts[i], kinds[i] = token["content"], UNKNOWN if kinds[i] == UNKNOWN else CONTROL if token["special"] else USER
    pairs = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    if pieces:
        return Tokens("llama", "default", texts, kinds, _scores(texts, pairs), [], _space_first(said))
    return Tokens("gpt2", _pre(said), texts, kinds, [], pairs, False)


def _kind(text: str, pieces: bool, unknown: str | None) -> int:
    if pieces and len(text) == 6 and text.startswith("<0x"):
        return BYTE
    return UNKNOWN if text == unknown else NORMAL


def _scores(texts: list[str], pairs: list[str]) -> list[float]:
    """SentencePiece joins the pair of the highest score first: the order of the merges, as scores."""
    rank = {pair.replace(" ", "", 1): -float(i) for i, pair in reversed(list(enumerate(pairs)))}
    return [rank.get(text, -1e6) for text in texts]


def _space_first(said: dict) -> bool:
    return "Prepend" in json.dumps(said.get("normalizer")) or (said.get("pre_tokenizer") or {}).get("prepend_scheme") in ("first", "always")


def _pre(said: dict) -> str:
    parts = said.get("pre_tokenizer") or {}
    parts = parts.get("pretokenizers") or [parts]
    kinds = [p.get("type") for p in parts]
    if said.get("normalizer") not in (None, {"type": "NFC"}):
        raise StepFailed(f"a tokenizer with the normalizer {said['normalizer'].get('type')} is not exported")
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits") and parts[1].get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not parts[1].get("use_regex", True):
        found = BY_PATTERN.get(parts[0].get("pattern", {}).get("Regex"))
        if found:
            return found
    raise StepFailed("llama.cpp has no name that is known here for how this tokenizer splits text", mend=f"it splits by {_shown(parts)}")


def _shown(parts: Any) -> str:
    return json.dumps(parts, ensure_ascii=False)[:200]
