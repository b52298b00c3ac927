"""llama.cpp, through llama-cpp-python: quantizes a GGUF file, reads it back and runs it."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from slmkit.errors import StepFailed

TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0", "q6_k": "MOSTLY_Q6_K", "q5_k_m": "MOSTLY_Q5_K_M",
         "q4_k_m": "MOSTLY_Q4_K_M", "q4_0": "MOSTLY_Q4_0"}  # fmt: skip
TEXTS = (
    "Where is my parcel 48213?", "  two  spaces, a tab\tand\n\na blank line", "Grüße aus Łódź, naïve café, 東京 and 🙂🙃", "x = {'a': [1, 2.50], \"b\": None}\n    return",
    "I'm sure they'll say we've 1,234,567.89 EUR", "ALLCAPS camelCase snake_case kebab-case", "https://example.org/?q=1&r=%20#top", "", " ", "a",
)  # fmt: skip


def quantize(source: Path, target: Path, kind: str, threads: int | None) -> None:
    """Write `target` in another type, by llama.cpp's own rules."""
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_{TYPES[kind]}")
    if threads:
        settings.nthread = threads
    with _quiet():
        failed = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings))
    if failed or not target.is_file():
        raise StepFailed(f"llama.cpp could not quantize to {kind} (it returned {failed})", where=source)


class Llama:
    """A GGUF file as llama.cpp runs it on the CPU."""

    def __init__(self, file: Path, length: int, threads: int | None = None):
        import llama_cpp

        self.name = f"llama.cpp (llama-cpp-python {llama_cpp.__version__})"
        with _quiet():
            self.llama = llama_cpp.Llama(str(file), n_ctx=length, n_batch=length, logits_all=True, n_threads=threads, verbose=False)
        self.length = length

    def logits(self, ids: list[int]) -> torch.Tensor:
        self.llama.reset()
        self.llama.eval(ids)
        return torch.from_numpy(self.llama.scores[: len(ids)].copy())

    def greedy(self, prompts: list[list[int]], most: int, ends: frozenset[int]) -> list[list[int]]:
        return [self._answer(p, min(most, self.length - len(p)), ends) for p in prompts]

    def _answer(self, prompt: list[int], most: int, ends: frozenset[int]) -> list[int]:
        written: list[int] = []
        self.llama.reset()
        new = list(prompt)
        for _ in range(most):
            self.llama.eval(new)
            new = [int(self.llama.scores[self.llama.n_tokens - 1].argmax())]
            written += new
            if new[0] in ends:
                break
        return written

    def render(self, messages: list[dict]) -> str | None:
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        template = self.llama.metadata.get("tokenizer.chat_template")
        if template is None:
            return None
        bos, eos = (self._text(i) for i in (self.llama.token_bos(), self.llama.token_eos()))
        return Jinja2ChatFormatter(template, eos, bos)(messages=messages).prompt

    def _text(self, token: int) -> str:
        return self.llama._model.token_get_text(token) if token >= 0 else ""

    def ids(self, text: str) -> list[int]:
        return self.llama.tokenize(text.encode(), add_bos=False, special=True)


def check_tokens(llama: Llama, tokenizer: Any, more: list[str]) -> int:
    """Do both read texts alike? Raises StepFailed with the first that they do not; returns how many were tried."""
    texts = [t for t in dict.fromkeys((*TEXTS, *more)) if t]
    for text in texts:
        ours, theirs = tokenizer(text, add_special_tokens=False)["input_ids"], llama.ids(text)
        if ours != theirs:
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
            raise StepFailed(
                f"llama.cpp reads {text[:60]!r} otherwise than the tokenizer: at token {at} {theirs[at : at + 3]}, and not {ours[at : at + 3]}",
                mend="this tokenizer cannot be exported: what the model would be given is not what it learned",
            )
    return len(texts)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """llama.cpp writes to the process's own stdout and stderr."""
    with open(os.devnull, "w") as nothing:
        kept = [os.dup(1), os.dup(2)]
        try:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
            yield
        finally:
            for number, handle in zip((1, 2), kept, strict=True):
                os.dup2(handle, number)
                os.close(handle)
