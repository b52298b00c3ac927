"""llama.cpp, through llama-cpp-python: quantizes a GGUF file, reads it back and runs it."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slmkit.errors import StepFailed

TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0", "q6_k": "MOSTLY_Q6_K", "q5_k_m": "MOSTLY_Q5_K_M",
         "q5_k_s": "MOSTLY_Q5_K_S", "q4_k_m": "MOSTLY_Q4_K_M", "q4_k_s": "MOSTLY_Q4_K_S", "q4_0": "MOSTLY_Q4_0", "q3_k_m": "MOSTLY_Q3_K_M",
         "q2_k": "MOSTLY_Q2_K"}  # fmt: skip


def quantize(source: Path, target: Path, kind: str, threads: int | None) -> None:
    """Write `target` in another type, by llama.cpp's own rules."""
    llama_cpp = _library()
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_{TYPES[kind]}")
    if threads:
        settings.nthread = threads
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings))
    if failed and shutil.disk_usage(target.parent).free < 1 << 16:  # it tells no other reason than 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
    if failed or not target.is_file():
        raise StepFailed(f"llama.cpp could not quantize to {kind} (it returned {failed})", where=source, mend="its reason is in the attempt's log")


class Llama:
    """A GGUF file as llama.cpp runs it on the CPU.

    Without its "extra buffers", in which weights are packed anew for AMX: those kernels crash on some shapes (seen in 0.3.36), and nothing but speed
    hangs on them. The bindings' own class cannot be told so, hence the calls one by one.
    """

    def __init__(self, file: Path, length: int, threads: int | None = None):
        llama_cpp = _library()
        self.lib, self.length, self.name = llama_cpp, length, f"llama.cpp (llama-cpp-python {llama_cpp.__version__})"
        settings, run = llama_cpp.llama_model_default_params(), llama_cpp.llama_context_default_params()
        settings.use_extra_bufts, settings.n_gpu_layers = False, 0
        run.n_ctx = run.n_batch = run.n_ubatch = length
        if threads:
            run.n_threads = run.n_threads_batch = threads
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), settings)
        self.context = llama_cpp.llama_init_from_model(self.model, run) if self.model else None
        if not self.context:
            raise StepFailed("llama.cpp cannot read this file", where=file, mend="is it whole? Its own reason is in the attempt's stderr.log")
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
        return [self.written(p, min(most, self.length - len(p)), ends) for p in prompts]

    def written(self, prompt: list[int], most: int, ends: frozenset[int], enough: Callable[[list[int]], bool] = lambda ids: False) -> list[int]:
        """The greedy answer: to an end, to `enough` of what was written so far, to `most` tokens."""
        written: list[int] = []
        self._reset()
        new = list(prompt)
        for _ in range(most):
            new = [int(self._eval(new)[-1].argmax())]
            written += new
            if new[0] in ends or enough(written):
                break
        return written

    def render(self, messages: list[dict]) -> str | None:
        """By the template that is in the file, as llama-cpp-python renders it."""
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        if self.template is None:
            return None
        bos, eos = (self._text(i) for i in (self.lib.llama_vocab_bos(self.vocabulary), self.lib.llama_vocab_eos(self.vocabulary)))
        return Jinja2ChatFormatter(self.template, eos, bos)(messages=messages).prompt

    @cached_property
    def template(self) -> str | None:
        template = self.lib.llama_model_chat_template(self.model, None)
        return template.decode() if template is not None else None

    def _text(self, token: int) -> str:
        return self.lib.llama_vocab_get_text(self.vocabulary, token).decode() if token >= 0 else ""

    @cached_property
    def ends(self) -> set[int]:
        """Ids at which llama.cpp ends an answer: those the file names, and those that it knows by their text."""
        return {i for i in range(self.size) if self.lib.llama_vocab_is_eog(self.vocabulary, i)}

    def ids(self, text: str, special: bool = False) -> list[int]:
        """special: with the BOS and EOS that are put around a text. Special tokens in the text are read as such."""
        raw = text.encode()
        room = (self.lib.llama_token * (len(raw) + 16))()
        count = self.lib.llama_tokenize(self.vocabulary, raw, len(raw), room, len(room), special, True)
        if count < 0:
            raise StepFailed(f"llama.cpp could not tokenize a text of {len(raw)} bytes (it returned {count})")
        return list(room[:count])


    def text(self, ids: list[int]) -> str:
        """What ids say, without special tokens; bytes that are no UTF-8 (a character cut in two) as \ufffd."""
        if not ids:
            return ""
        tokens, room = (self.lib.llama_token * len(ids))(*ids), 64 + 32 * len(ids)
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = self.lib.llama_detokenize(self.vocabulary, tokens, len(ids), buffer, room, False, False)
            if count >= 0:
                return buffer.raw[:count].decode("utf-8", "replace")
            room = -count + 1


def _library() -> Any:
    """The package, told to keep quiet but for warnings and errors (which go to stderr: it counts one level too low)."""
    import llama_cpp

    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    llama_cpp.llama_backend_init()
    return llama_cpp
