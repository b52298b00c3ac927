"""Answers that are kept the moment they come: an eval that was killed goes on at the sample, one that runs out of memory at half the batch.

A line a batch, and only whole batches: what is left is then cut into the batches that an uninterrupted run would have had, and its
scores are the same to the last digit. A torn last line is dropped.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import LM

from slmkit.ml.subjects import lengths


class Kept:
    """The answers in a file. Also lm-eval's cache hook, by which its models tell each answer as it comes."""

    def __init__(self, file: Path):
        self.file = file
        self.known: dict[str, list[Any]] = defaultdict(list)
        self.new: list[tuple[str, Any]] = []
        if file.is_file():
            self._read()
        file.parent.mkdir(parents=True, exist_ok=True)
        self.handle = file.open("ab")

    def _read(self) -> None:
        whole = 0
        with self.file.open("rb") as lines:
            for line in lines:
                try:
                    batch = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    batch = None
                if batch is None:
                    break
                whole += len(line)
                for key, answer in batch:
                    self.known[key].append(answer)
        with self.file.open("r+b") as file:
            file.truncate(whole)

    def take(self, method: str, arguments: Any) -> Any:
        """An answer to a request, once for each time it was given; None where there is none (left)."""
        left = self.known.get(key_of(method, arguments))
        return left.pop(0) if left else None

    def add_partial(self, method: str, arguments: Any, answer: Any) -> None:
        self.new.append((key_of(method, arguments), answer))

    def flush(self) -> None:
        """The batch is through: write it."""
        if self.new:
            self.handle.write(json.dumps(self.new).encode() + b"\n")
            self.handle.flush()
            self.new = []

    def close(self) -> None:
        self.handle.close()


def key_of(method: str, arguments: Any) -> str:
    return hashlib.sha256(json.dumps([method, arguments], sort_keys=True, default=str).encode()).hexdigest()[:24]


class Resumed(LM):
    """A model whose kept answers are not computed again. fit(method, requests): chooses how many requests go at once; None: that is given."""

    def __init__(self, inner: LM, kept: Kept, fit: Callable[[str, list], int] | None = None):
        super().__init__()
        self.inner, self.kept, self.fit, self.cut = inner, kept, fit, 0
        inner.cache_hook = kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def rank(self) -> int:
        return self.inner.rank

    @property
    def world_size(self) -> int:
        return self.inner.world_size

    @property
    def tokenizer_name(self) -> str:
        return self.inner.tokenizer_name

    def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> str:
        return self.inner.apply_chat_template(chat_history, add_generation_prompt=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.inner.chat_template(chat_template)

    def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list:
        return [tuple(answer) for answer in self._answers("loglikelihood", requests)]

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list:
        return self._answers("loglikelihood_rolling", requests)

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list:
        self.cut += lengths.cut(self.inner, requests)
        return self._answers("generate_until", requests)

    def _fit(self, method: str, requests: list) -> None:
        """The batch of the first attempt is that of all: another one could move a score in its last digit."""
        size = self.kept.take("batch", method)
        if size is None:
            size = self.fit(method, requests)
            self.kept.add_partial("batch", method, size)
            self.kept.flush()
        self.inner.batch_size_per_gpu = size

    def _answers(self, method: str, requests: list) -> list:
        if self.fit and requests:
            self._fit(method, requests)
        while True:
            answers = [self.kept.take(method, list(request.args)) for request in requests]
            missing = [i for i, answer in enumerate(answers) if answer is None]
            if not missing:
                return answers
            rest = [requests[i] for i in missing]
            try:
                for i, answer in zip(missing, getattr(self.inner, method)(rest, disable_tqdm=True), strict=True):
                    answers[i] = answer
            except torch.cuda.OutOfMemoryError:
                if self.inner.batch_size <= 1:
                    raise
                self._half()
                continue
            self.kept.flush()
            return answers

    def _half(self) -> None:
        """Too large a batch for the GPU: what was answered stays, the rest is tried at half of it."""
        torch.cuda.empty_cache()
        self.inner.batch_size_per_gpu = self.inner.batch_size // 2
        self.kept.flush()  # batches are whole: memory runs out in the model, before a batch has any answer
        self.kept.close()
        self.kept = self.inner.cache_hook = Kept(self.kept.file)
