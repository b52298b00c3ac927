"""Questions that do not fit into a model's context together with their answers: lm-eval cuts them on the left without a word, here they count."""

from __future__ import annotations

from typing import Any

from slmkit.errors import UsageError


def cut(lm: Any, requests: list) -> int:
    """How many prompts are cut. Raises UsageError where the answers alone leave no room."""
    count = 0
    for request in requests:
        text, settings = request.args[:2]
        most = settings.get("max_gen_toks") or settings.get("max_new_tokens") or getattr(lm, "max_gen_toks", 256)
        room = lm.max_length - most
        if room <= 0:
            what = f"task `{request.task_name}` wants answers of up to {most} tokens, and the model's context is {lm.max_length}"
            raise UsageError(what, mend="lower `max_tokens` (in YAML: generation_kwargs.max_gen_toks)")
        if len(text.encode()) > room and len(lm.tok_encode(text)) > room:
            count += 1
    return count
