"""A tokenizer as GGUF has it. llama.cpp has tokenizers of its own and is told by a name which one to be: the name is right or there is none.

Two kinds are written. Byte-level BPE, where the rule that cuts a text into words ("pre-tokenizer") must be, part by part, one that llama.cpp
has under a known name. And SentencePiece's BPE with bytes for what it does not know, where llama.cpp merges by scores and not by a list of
pairs: scores are made from the list, and only a list that scores can stand for is taken. Everything else is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from slmkit.errors import Problem, RecipeError

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's types of tokens
SPACE = "▁"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE = {
    (("bytes", True),): {False: "gpt-2"},
    (("split", _GPT2), ("bytes", False)): {False: "gpt-2"},
    (("digits",), ("bytes", True)): {False: "smollm"},
    (("split", _WORDS % ""), ("bytes", False)): {False: "qwen2"},
    (("split", _WORDS % "{1,3}"), ("bytes", False)): {False: "smaug-bpe", True: "llama-bpe"},
}
"""The parts of a pre-tokenizer → whether whole words skip the merges → llama.cpp's name for both together."""
MEND = "export another format; or train with a base whose tokenizer llama.cpp knows (Llama 2 and 3, Qwen 2.5 and 3, SmolLM2)"


@dataclass(frozen=True)
class Tokens:
    """model: `gpt2` or `llama` (SentencePiece), in llama.cpp's words; pre: name of the pre-tokenizer; texts, kinds, scores by id; merges of `gpt2`.

    space_first: is a space put before every text? None of `gpt2`, where it is not. notes: said on the card.
    """

    model: str
    pre: str
    texts: list[str]
    kinds: list[int]
    scores: list[float] | None = None
    merges: list[str] = field(default_factory=list)
    space_first: bool | None = None
    notes: tuple[str, ...] = ()


def read(tokenizer: Any, vocabulary: int) -> Tokens:
    """A fast tokenizer as transformers runs it (which for some families is not what tokenizer.json says), filled up to `vocabulary` ids. Raises
    RecipeError for one that llama.cpp would read otherwise."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        _refuse(f"{type(tokenizer).__name__} is no fast tokenizer", "save the model with one (tokenizer.json)")
    return of(json.loads(backend.to_str()), vocabulary)


def of(said: dict, vocabulary: int) -> Tokens:
    """The same from the tokenizer's JSON."""
    model = said["model"]
    if model["type"] != "BPE" or model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        _refuse(f"a tokenizer of type {model['type']}" + (" with dropout or marked subwords" if model["type"] == "BPE" else ""))
    for added in said["added_tokens"]:
        odd = [k for k in ("lstrip", "rstrip", "single_word") if added[k]]
        if odd:
            _refuse(f"the token {added['content']!r} with {' and '.join(odd)}")
    pairs = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    pieces = bool(model.get("byte_fallback"))
    texts, kinds = _texts(said, vocabulary, model.get("unk_token"), pieces)
    if pieces:
        plain = {t for t, kind in zip(texts, kinds, strict=True) if kind == NORMAL}
        return Tokens("llama", "default", texts, kinds, _scores(texts, plain, pairs), space_first=_space_first(said))
    notes, pre = _normalized(said["normalizer"]), _pre(said)
    return Tokens("gpt2", pre, texts, kinds, merges=[" ".join(p) for p in pairs], notes=notes)


def _refuse(what: str, mend: str | None = None) -> NoReturn:
    raise RecipeError([Problem(f"model: llama.cpp is not known to read its tokenizer rightly: {what}", mend=mend or MEND)])


def _texts(raw: dict, rows: int, unknown: str | None, spaces: bool) -> tuple[list[str], list[int]]:
    """Tokens and their types by id; what the embedding has beyond them is padding."""
    by_id = {i: t for t, i in raw["model"]["vocab"].items()}
    types = dict.fromkeys(by_id, NORMAL)
    for added in raw["added_tokens"]:
        by_id[added["id"]], types[added["id"]] = added["content"], CONTROL if added["special"] else USER
    if max(by_id) >= rows:
        _refuse(f"it has ids up to {max(by_id)}, and the model's embedding has {rows} rows")
    have = set(by_id.values())
    if spaces:
        missing = [b for b in range(256) if f"<0x{b:02X}>" not in have]
        types |= {i: BYTE for i, t in by_id.items() if types[i] == NORMAL and re.fullmatch(r"<0x[0-9A-F]{2}>", t)}
        types |= {i: UNKNOWN for i, t in by_id.items() if t == unknown}
    else:
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        missing = [b for b, letter in bytes_to_unicode().items() if letter not in have]
    if missing:
        _refuse(f"it has no token for {len(missing)} of the 256 bytes")
    return [by_id.get(i, f"[PAD{i}]") for i in range(rows)], [types.get(i, UNUSED) for i in range(rows)]


def _pre(said: dict) -> str:
    """llama.cpp's name of a byte-level pre-tokenizer."""
    parts, whole_words = tuple(_parts(said["pre_tokenizer"])), bool(said["model"].get("ignore_merges"))
    name = PRE.get(parts, {}).get(whole_words)
    if name is None:
        shown = ", ".join(" ".join(map(str, p)) for p in parts)
        _refuse(f"its pre-tokenizer ({shown}{', with ignore_merges' if whole_words else ''}) is none that is known by name")
    return name


def _parts(pre: dict | None) -> Iterable[tuple]:
    """A pre-tokenizer's parts, as PRE names them; anything else by its JSON, which PRE does not have."""
    known: Any = None
    if pre and pre["type"] == "Sequence":
        for part in pre["pretokenizers"]:
            yield from _parts(part)
        return
    if pre and pre["type"] == "ByteLevel" and not pre["add_prefix_space"]:
        known = ("bytes", pre["use_regex"])
    elif pre and pre["type"] == "Digits" and pre["individual_digits"]:
        known = ("digits",)
    elif pre and pre["type"] == "Split" and pre["behavior"] == "Isolated" and not pre["invert"] and "Regex" in pre["pattern"]:
        known = ("split", pre["pattern"]["Regex"])
    yield known or (json.dumps(pre, ensure_ascii=False),)


def _normalized(normalizer: dict | None) -> tuple[str, ...]:
    """NFC is what most texts are in already; llama.cpp does not make it, which the card says."""
    if normalizer is None:
        return ()
    if normalizer["type"] != "NFC":
        _refuse(f"its normalizer {normalizer['type']}")
    return ("llama.cpp does not compose Unicode (NFC) as the tokenizer does: give it texts that are composed already, as nearly all are.",)


def _space_first(raw: dict) -> bool:
    """Does a SentencePiece tokenizer put a space before every text? Raises RecipeError for other normalizers and word rules."""
    normalizer, pre = raw["normalizer"], raw["pre_tokenizer"]
    steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer] if normalizer else []
    prepend = [n for n in steps if n["type"] == "Prepend" and n["prepend"] == SPACE]
    replace = [n for n in steps if n["type"] == "Replace" and n["pattern"] == {"String": " "} and n["content"] == SPACE]
    cut = pre is None or (pre["type"] == "Split" and pre["pattern"] == {"String": " "} and replace)  # no space is left to cut at
    never = pre is not None and pre["type"] == "Metaspace" and pre["replacement"] == SPACE and pre["prepend_scheme"] == "never" and not pre["split"]
    if len(steps) != len(prepend) + len(replace) or not (cut and replace or never and not prepend):
        _refuse(f"its rules for spaces ({json.dumps([normalizer, pre], ensure_ascii=False)})")
    return bool(prepend)


def _scores(texts: list[str], plain: set[str], pairs: list[tuple[str, str]]) -> list[float]:
    """A score a token, so that merging by the best score is merging by the list. Raises RecipeError where no scores do that.

    llama.cpp joins any two neighbours that make a token, the best score first. The list says the same iff it has every such pair, and
    all pairs that make one token stand together.
    """
    rank: dict[str, int] = {}
    last = None
    for place, (left, right) in enumerate(pairs):
        token = left + right
        if token != last and token in rank:
            _refuse(f"its merges make {token!r} in two places")
        rank.setdefault(token, place)
        last = token
    listed = set(pairs)
    for token in plain:
        for cut in range(1, len(token)):
            pair = (token[:cut], token[cut:])
            if pair[0] in plain and pair[1] in plain and pair not in listed:
                _refuse(f"its merges lack {pair[0]!r} + {pair[1]!r}, which SentencePiece would join")
    return [-float(rank.get(t, len(pairs))) for t in texts]


def special(tokenizer: Any, ends: set[int]) -> dict[str, int | bool]:
    """Ids of special tokens and what is put before and after a text, by GGUF's names. ends: ids at which an answer ends."""
    whole, bare = (tokenizer("a", add_special_tokens=s)["input_ids"] for s in (True, False))
    at = next((i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare), None)
    if at is None or whole[:at] not in ([], [tokenizer.bos_token_id]) or whole[at + len(bare) :] not in ([], [tokenizer.eos_token_id]):
        _refuse("it puts more around a text than one BOS and one EOS")
    if not ends:
        _refuse("the model names no token that ends an answer", "set eos_token_id in its generation_config.json")
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else min(ends)
    # llama.cpp takes some id for BOS where none is named: the end, which is never put before a text
    keys = {"bos_token_id": eos if tokenizer.bos_token_id is None else tokenizer.bos_token_id, "eos_token_id": eos}
    keys |= dict(zip(("eot_token_id", "eom_token_id"), sorted(ends - {eos}), strict=False))
    for key, token in (("unknown_token_id", tokenizer.unk_token_id), ("padding_token_id", tokenizer.pad_token_id)):
        keys |= {key: token} if token is not None else {}
    return keys | {"add_bos_token": at > 0, "add_eos_token": len(whole) > at + len(bare)}


def templates(tokenizer: Any) -> dict[str, str]:
    """Chat templates by name. llama.cpp gives a template bos_token and eos_token alone, and never nothing: other names are set in it."""
    template = tokenizer.chat_template
    named = template if isinstance(template, dict) else {"default": template} if template else {}
    return {name: _bound(tokenizer, text) for name, text in named.items()}


def _bound(tokenizer: Any, text: str) -> str:
    known = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    values = {name: "" for name, value in known.items() if value is None}
    values |= {n: v for n, v in tokenizer.special_tokens_map.items() if n not in known and isinstance(v, str)}
    used = {n: v for n, v in values.items() if re.search(rf"\b{n}\b", text)}
    return "".join(f"{{%- set {n} = {json.dumps(v, ensure_ascii=False)} -%}}" for n, v in sorted(used.items())) + text
