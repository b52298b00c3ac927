"""Small tokenizers of the families whose stock templates are tried: their special tokens, BOS and EOS, and what adds a BOS by itself.

Texts come from TRL where it ships the original; templates/README.md says where each of the others comes from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

OWN = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Family:
    """ends: tokens at which generation stops. rstrip: special tokens eat the whitespace after them. spaces: SentencePiece-like ("▁")."""

    eos: str
    ends: tuple[str, ...]
    others: tuple[str, ...] = ()
    bos: str | None = None
    adds_bos: bool = False
    rstrip: bool = False
    spaces: str | None = None


LLAMA = Family(
    "<|eot_id|>", ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"), ("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>"),
    bos="<|begin_of_text|>", adds_bos=True,
)  # fmt: skip
CHATML = Family("<|im_end|>", ("<|im_end|>", "<|endoftext|>"), ("<|im_start|>",))
QWEN3 = Family("<|im_end|>", ("<|im_end|>", "<|endoftext|>"), ("<|im_start|>", "<think>", "</think>", "<tool_call>", "</tool_call>"))
GEMMA = Family("<eos>", ("<eos>", "<end_of_turn>"), ("<start_of_turn>",), bos="<bos>", adds_bos=True, spaces="never")
PHI3 = Family("<|endoftext|>", ("<|endoftext|>", "<|end|>"), ("<|system|>", "<|user|>", "<|assistant|>"), bos="<s>", rstrip=True, spaces="first")
FAMILIES = {
    "llama3": LLAMA, "llama3_1": LLAMA, "llama3_2": LLAMA, "llama3_3": LLAMA,
    "qwen2_5": CHATML, "qwen3": QWEN3, "qwen3_instruct_2507": QWEN3,
    "gemma": GEMMA, "gemma2": GEMMA, "gemma3": GEMMA,
    "phi3": PHI3, "phi3_5": PHI3,
    "gptoss": Family("<|return|>", ("<|return|>", "<|endoftext|>", "<|call|>"), ("<|start|>", "<|end|>", "<|message|>", "<|channel|>")),
    "mistral_v03": Family(
        "</s>", ("</s>",), ("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        bos="<s>", adds_bos=True, spaces="first",
    ),
    "phi4": Family("<|im_end|>", ("<|im_end|>", "<|endoftext|>"), ("<|im_start|>", "<|im_sep|>"), bos="<|endoftext|>"),
    "phi4_mini": Family(
        "<|endoftext|>", ("<|endoftext|>", "<|end|>"),
        ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>", "<|tool_response|>"),
        bos="<|endoftext|>",
    ),
    "mistral_nemo": Family(
        "</s>", ("</s>",), ("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        bos="<s>", adds_bos=True,
    ),
    "smollm2": CHATML, "smollm3": QWEN3,
}  # fmt: skip
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Llama 3, Qwen and gpt-oss cut a text into words; newlines stay together, so a prompt's last ones do not merge with the answer."""
TEXTS = ("where does parcel 7 go? it goes to Graz, and the weather in Graz is 21 degrees. ", "assistant user system function Answer briefly\n\n")


def text_of(name: str) -> str:
    """The template's text, the stock one where TRL has it."""
    own = OWN / f"{name}.jinja"
    return own.read_text(encoding="utf-8") if own.exists() else (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@cache
def tokenizer_of(name: str):
    """A tokenizer of some hundred tokens with the family's template; not to be changed."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    family = FAMILIES[name]
    tokens = [*dict.fromkeys(t for t in (family.bos, family.eos, *family.ends, *family.others) if t)]
    core = _core(family.spaces)
    core.add_special_tokens([AddedToken(t, special=True, normalized=False, rstrip=family.rstrip and t != family.bos) for t in tokens])
    if family.adds_bos:
        from tokenizers.processors import TemplateProcessing

        bos = family.bos
        core.post_processor = TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, core.token_to_id(bos))])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=family.bos, eos_token=family.eos, clean_up_tokenization_spaces=False)
    tokenizer.chat_template = text_of(name)
    return tokenizer


def ends_of(name: str) -> set[int]:
    return set(tokenizer_of(name).convert_tokens_to_ids(list(FAMILIES[name].ends)))


def _core(spaces: str | None):
    """A byte-level BPE, or one with "▁" for spaces and bytes for what it does not know."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    if spaces is None:
        core = Tokenizer(models.BPE())
        words = pre_tokenizers.Split(Regex(WORDS), "isolated")
        core.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        core.decoder = decoders.ByteLevel()
        core.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
        return core
    core = Tokenizer(models.BPE(byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=spaces, split=False)
    core.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=120))
    written = json.loads(core.to_str())
    vocab = written["model"]["vocab"]
    for byte in range(256):
        vocab.setdefault(f"<0x{byte:02X}>", len(vocab))
    core = Tokenizer.from_str(json.dumps(written))
    strip = [decoders.Strip(" ", 1, 0)] if spaces == "first" else []
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return core
