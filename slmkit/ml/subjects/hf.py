"""A model in transformers, as lm-eval runs it, with a clock around the model's own work, and a batch size that it finds by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from lm_eval.models.huggingface import HFLM

from slmkit.ml.subjects import talk

MOST = 64  # requests at once; beyond that nothing was gained on any machine that was measured
SHARE = 0.4  # of the memory that is free, for what a batch takes


class Transformers(HFLM):
    """lm-eval's Hugging Face model. report(tokens, tokens per second): called after each batch."""

    def __init__(self, *args: Any, report: Callable[[float, float], None], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.report, self.seconds, self.tokens = report, 0.0, 0

    def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> str:
        messages, tools = talk.unfolded(chat_history)
        if messages is chat_history:
            return super().apply_chat_template(chat_history, add_generation_prompt=add_generation_prompt)
        return self.tokenizer.apply_chat_template(messages, tools=tools or None, tokenize=False, add_generation_prompt=True)

    def fit(self, method: str, requests: list) -> int:
        """How many requests go at once, by what they take: their length, the cache of keys and values, the logits."""
        texts = sorted(("".join(a for a in r.args if isinstance(a, str)) for r in requests), key=len)[-8:]
        written = max((self._written(r.args[-1]) for r in requests), default=0) if method == "generate_until" else 0
        longest = min(self.max_length, max(len(self.tok_encode(t)) for t in texts) + written)
        config = self.model.config.get_text_config()
        attending = getattr(config, "num_attention_heads", 0)  # a model without attention keeps no keys and values
        heads = getattr(config, "num_key_value_heads", None) or attending
        width = getattr(config, "head_dim", None) or (config.hidden_size // attending if attending else 0)
        size = torch.finfo(self.model.dtype).bits // 8
        each = longest * (2 * config.num_hidden_layers * heads * width + 16 * config.hidden_size) * size
        each += 2 * 4 * config.vocab_size * (longest if method != "generate_until" else 1)
        free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else psutil.virtual_memory().available
        count = max(1, min(MOST, int(SHARE * free / each)))
        return 1 << (count.bit_length() - 1)

    def _written(self, settings: dict) -> int:
        return int(settings.get("max_gen_toks") or settings.get("max_new_tokens") or self.max_gen_toks)

    def _loglikelihood_tokens(self, requests: list, disable_tqdm: bool = False, override_bs: int | None = None) -> list:
        """Batches of windows of long texts (the only ones that come with their size) are kept, too: lm-eval tells of whole texts only."""
        if override_bs is None or not hasattr(self.cache_hook, "take"):
            return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)
        arguments = [[context, continuation] for _, context, continuation in requests]
        found = self.cache_hook.take("windows", arguments)
        if found is None:
            found = super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)
            self.cache_hook.add_partial("windows", arguments, found)
        return [tuple(one) for one in found]

    def _timed(self, call: Callable[[], torch.Tensor], count: Callable[[torch.Tensor], int]) -> torch.Tensor:
        if hasattr(self.cache_hook, "flush"):  # the batch before is through
            self.cache_hook.flush()
        started = time.perf_counter()
        out = call()
        if out.is_cuda:
            torch.cuda.synchronize(out.device)
        self.seconds += time.perf_counter() - started
        self.tokens += count(out)
        self.report(self.tokens, self.tokens / max(self.seconds, 1e-9))
        return out

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        parent = super()._model_call
        return self._timed(lambda: parent(inps, *args, **kwargs), lambda _: inps.numel())

    def _model_generate(self, context: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        parent = super()._model_generate
        written = lambda out: out.shape[0] * (out.shape[1] - context.shape[1])  # noqa: E731
        return self._timed(lambda: parent(context, *args, **kwargs), written)
