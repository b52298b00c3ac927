"""Attention over packed rows, row by row: sdpa, but only the blocks on the diagonal of the mask are computed.

A mask over a pack of 900 tokens has 810,000 entries, of which its rows need a tenth; on a CPU the others cost as much as the linear
layers of a small model. The mask itself stays the model's own (causal, sliding window), cut to the row.
"""

from __future__ import annotations

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "slmkit_rows"


def forward(module, query, key, value, attention_mask, **rest) -> tuple[torch.Tensor, None]:
    """As transformers calls attention: query, key, value of shape [batch, heads, tokens, head size]."""
    positions = rest.get("position_ids")
    if attention_mask is None or positions is None or positions.shape != (1, key.shape[2]) or query.shape[2] != key.shape[2]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **rest)
    begins = (positions[0] == 0).nonzero().flatten().tolist()
    sizes = [end - start for start, end in zip(begins, [*begins[1:], query.shape[2]], strict=True)]
    rows = zip(begins, *(x.split(sizes, 2) for x in (query, key, value)), strict=True)  # split: a slice's gradient is a whole tensor of zeros
    parts = []
    for start, q, k, v in rows:
        end = start + q.shape[2]
        parts.append(sdpa_attention_forward(module, q, k, v, attention_mask[:, :, start:end, start:end], **rest)[0])
    return torch.cat(parts, 1), None


def use(model: torch.nn.Module, on: bool = True) -> None:
    """Let a model that runs on sdpa attend so, or no longer."""
    AttentionInterface.register(NAME, forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    _whole(model).set_attn_implementation(NAME if on else "sdpa")


def fits(model: torch.nn.Module) -> bool:
    return _whole(model).config._attn_implementation in ("sdpa", NAME)


def _whole(model: torch.nn.Module) -> torch.nn.Module:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
