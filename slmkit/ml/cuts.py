"""What a forward pass of a model costs on a CPU, for choosing how batches are cut (`slmkit.steps._cuts`)."""

from __future__ import annotations

import torch

from slmkit.steps import _cuts


def costs(model: torch.nn.Module) -> _cuts.Costs:
    """By the model's size."""
    text = model.config.get_text_config(decoder=True)
    head = model.get_output_embeddings()
    # by shape and not by parameters: those of a 4-bit layer are packed. A model without linear layers (GPT-2) has only parameters.
    weights = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head)
    weights = weights or sum(p.numel() for p in model.parameters())
    return _cuts.of_shape(weights, text.hidden_size, text.num_hidden_layers)
