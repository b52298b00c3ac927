"""llama.cpp, through llama-cpp-python: quantizes a GGUF file, reads it back and runs it."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slmkit.errors import StepFailed

TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0", "q6_k": "MOSTLY_Q6_K", "q5_k_m": "MOSTLY_Q5_K_M",
         "q4_k_m": "MOSTLY_Q4_K_M", "q4_0": "MOSTLY_Q4_0"}  # fmt: skip
TEXTS = (
    "Where is my parcel 48213?", "  two  spaces, a tab\tand\n\na blank line", "Grüße aus Łódź, naïve café, 東京 and 🙂🙃",
    "x = {'a': [1, 2.50], \"b\": None}\n    return",
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
    """A GGUF file as llama.cpp runs it on the CPU.

    Without its "extra buffers", in which weights are packed anew for AMX: those kernels crash on some shapes (seen in 0.3.36), and nothing but speed
    hangs on them. The bindings' own class cannot be told so, hence the calls one by one.
    """

    def __init__(self, file: Path, length: int, threads: int | None = None):
        import llama_cpp

        self.lib, self.length, self.name = llama_cpp, length, f"llama.cpp (llama-cpp-python {llama_cpp.__version__})"
        settings, run = llama_cpp.llama_model_default_params(), llama_cpp.llama_context_default_params()
        settings.use_extra_bufts, settings.n_gpu_layers = False, 0
        run.n_ctx = run.n_batch = run.n_ubatch = length
        if threads:
            run.n_threads = run.n_threads_batch = threads
        with _quiet():
            self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), settings)
            self.context = llama_cpp.llama_init_from_model(self.model, run) if self.model else None
        if not self.context:
            raise StepFailed("llama.cpp cannot read what was written", where=file)
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.size = llama_cpp.llama_vocab_n_tokens(self.vocabulary)
        self.batch = llama_cpp.llama_batch_init(length, 0, 1)
        self.at = 0

    def __del__(self) -> None:
        if getattr(self, "batch", None) is not None:
            self.lib.llama_batch_free(self.batch)
        if getattr(self, "context", None):
            self.lib.llama_free(self.context)
        if getattr(self, "model", None):
            self.lib.llama_model_free(self.model)

    def _reset(self) -> None:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        self.at = 0

    def _eval(self, ids: list[int]) -> torch.Tensor:
        """fp32 [len, vocabulary] after each of `ids`, which follow what was evaluated before."""
        self.batch.n_tokens = len(ids)
        for k, token in enumerate(ids):
            self.batch.token[k], self.batch.pos[k], self.batch.n_seq_id[k], self.batch.logits[k] = token, self.at + k, 1, 1
            self.batch.seq_id[k][0] = 0
        failed = self.lib.llama_decode(self.context, self.batch)
        if failed:
            raise StepFailed(f"llama.cpp could not run the model (it returned {failed})")
        self.at += len(ids)
        rows = [np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, k), (self.size,)) for k in range(len(ids))]
        return torch.from_numpy(np.stack(rows))

    def logits(self, ids: list[int]) -> torch.Tensor:
        self._reset()
        return self._eval(ids)

    def greedy(self, prompts: list[list[int]], most: int, ends: frozenset[int]) -> list[list[int]]:
        return [self._answer(p, min(most, self.length - len(p)), ends) for p in prompts]

    def _answer(self, prompt: list[int], most: int, ends: frozenset[int]) -> list[int]:
        written: list[int] = []
        self._reset()
        new = list(prompt)
        for _ in range(most):
            new = [int(self._eval(new)[-1].argmax())]
            written += new
            if new[0] in ends:
                break
        return written

    def render(self, messages: list[dict]) -> str | None:
        """By the template that is in the file, as llama-cpp-python renders it."""
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        template = self.lib.llama_model_chat_template(self.model, None)
        if template is None:
            return None
        bos, eos = (self._text(i) for i in (self.lib.llama_vocab_bos(self.vocabulary), self.lib.llama_vocab_eos(self.vocabulary)))
        return Jinja2ChatFormatter(template.decode(), eos, bos)(messages=messages).prompt

    def _text(self, token: int) -> str:
        return self.lib.llama_vocab_get_text(self.vocabulary, token).decode() if token >= 0 else ""

    def ids(self, text: str) -> list[int]:
        raw = text.encode()
        room = (self.lib.llama_token * (len(raw) + 16))()
        count = self.lib.llama_tokenize(self.vocabulary, raw, len(raw), room, len(room), False, True)
        return list(room[:count])


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
