"""Answers written by a model that is being trained: greedy, so that measuring draws no random numbers and steers nothing; or sampled."""

from __future__ import annotations

import torch

from slmkit.ml.writer import Ask, Writer

AT_ONCE = 32  # prompts per batch


@torch.no_grad()
def greedy(model: torch.nn.Module, prompts: list[list[int]], ends: set[int], pad: int, most: int, where: torch.device) -> list[list[int]]:
    """The ids that the model writes after each prompt, with the one that ended it; at most `most` of them."""
    was_training = model.training
    model.eval()
    written: dict[int, list[int]] = {}
    longest = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for start in range(0, len(longest), AT_ONCE):
        part = longest[start : start + AT_ONCE]
        width = len(prompts[part[0]])
        ids, mask = torch.full((len(part), width), pad), torch.zeros((len(part), width), dtype=torch.long)
        for row, i in enumerate(part):  # left of the prompt, so that all end where the answer begins
            ids[row, width - len(prompts[i]) :], mask[row, width - len(prompts[i]) :] = torch.as_tensor(prompts[i]), 1
        found = model.generate(
            input_ids=ids.to(where), attention_mask=mask.to(where), max_new_tokens=most, do_sample=False, temperature=None, top_p=None,
            top_k=None, eos_token_id=sorted(ends) or None, pad_token_id=pad,
        )  # fmt: skip
        for row, i in enumerate(part):
            written[i] = until_end(found[row, width:].tolist(), ends)
    model.train(was_training)
    return [written[i] for i in range(len(prompts))]


def until_end(ids: list[int], ends: set[int]) -> list[int]:
    """Up to and with the first id that ends a turn."""
    return next((ids[: k + 1] for k, one in enumerate(ids) if one in ends), ids)


def sampled(
    model: torch.nn.Module, tokenizer, prompts: list[list[int]], ends: frozenset[int], most: int, temperature: float, seeds: list[int],
    where: torch.device,
) -> list[list[int]]:  # fmt: skip
    """As `greedy`, drawn at a temperature: each row from a generator of its own, so that the rows beside it change nothing."""
    was_training, written = model.training, {}
    writer = Writer(model, tokenizer, where)
    longest = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for start in range(0, len(longest), AT_ONCE):
        part = longest[start : start + AT_ONCE]
        asks = [Ask(tuple(prompts[i]), most, ends, temperature, seed=seeds[i] % 2**63) for i in part]
        for i, one in zip(part, writer.write(asks), strict=True):
            written[i] = [t.id for t in one.tokens] + ([one.end.id] if one.end else [])
    model.train(was_training)
    return [written[i] for i in range(len(prompts))]
