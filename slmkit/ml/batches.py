"""Global batches, and how each is cut into micro batches.

A global batch is `batch_size` rows, drawn by seed and epoch: that is what is asked. How it is cut up is how it runs: rows of
like length side by side (padded), or laid end to end in one sequence (packed), on one process or several. The loss is summed
over the trained tokens of the whole global batch and divided by their number, so no cut changes the step.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from slmkit.ml.chat import IGNORED, Example
from slmkit.steps._cuts import Cut, deal


class Rows(Dataset):
    """Encoded examples by index."""

    def __init__(self, examples: list[Example]):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


def order(count: int, seed: int, epoch: int) -> list[int]:
    """The order of the rows in one pass; another in every epoch, the same on every process."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (1 << 63))
    return torch.randperm(count, generator=generator).tolist()


class GlobalBatches(Sampler):
    """Micro batches of this process, global batch after global batch: always `accumulation` of them, the last batch's too."""

    def __init__(self, lengths: list[int], cut: Cut, seed: int):
        self.lengths, self.cut, self.seed, self.epoch = lengths, cut, seed, 0

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.cut.batch_size) * self.cut.accumulation

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        rows = order(len(self.lengths), self.seed, self.epoch)
        for start in range(0, len(rows), self.cut.batch_size):
            dealt = deal(rows[start : start + self.cut.batch_size], self.lengths, self.cut)
            yield from dealt[self.cut.rank :: self.cut.world]


class Loader(DataLoader):
    """Passes the epoch on to the sampler, which the trainer asks the loader to do."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


def loader(examples: list[Example], cut: Cut, seed: int, workers: int) -> Loader:
    sampler = GlobalBatches([len(e.ids) for e in examples], cut, seed)
    collate = pack if cut.packed else pad
    return Loader(Rows(examples), batch_sampler=sampler, collate_fn=collate, num_workers=workers)


def pad(part: list[Example]) -> dict[str, torch.Tensor]:
    """Rows side by side: input_ids, labels, attention_mask of shape [rows, longest]. Labels of padding are -100 by place, so the
    token that pads is of no account (it may be the EOS)."""
    width = max((len(e.ids) for e in part), default=2)
    shape = (max(len(part), 1), width)
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for i, e in enumerate(part):
        n = len(e.ids)
        ids[i, :n], labels[i, :n], mask[i, :n] = tensor(e), targets(e), 1
    if not part:
        mask[:] = 1  # nothing was dealt: a row without a trained token keeps the processes in step
    labels[:, 0] = IGNORED
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def pack(part: list[Example]) -> dict[str, torch.Tensor]:
    """Rows end to end: input_ids, labels, position_ids of shape [1, tokens]. Positions begin anew at each row, which is what tells
    every attention backend to keep rows apart; a row's first token is nobody's target."""
    if not part:
        return {"input_ids": torch.zeros(1, 2, dtype=torch.long), "labels": torch.full((1, 2), IGNORED), "position_ids": torch.arange(2)[None]}
    labels = [targets(e) for e in part]
    for one in labels:
        one[0] = IGNORED
    return {
        "input_ids": torch.cat([tensor(e) for e in part])[None].long(),
        "labels": torch.cat(labels)[None].long(),
        "position_ids": torch.cat([torch.arange(len(e.ids)) for e in part])[None],
    }


def tensor(example: Example) -> torch.Tensor:
    """Its ids, int32 [tokens]; shares their memory."""
    return torch.frombuffer(example.ids, dtype=torch.int32)


def targets(example: Example) -> torch.Tensor:
    """The ids where they are learned, -100 elsewhere, int32 [tokens]."""
    labels = torch.full((len(example.ids),), IGNORED, dtype=torch.int32)
    ids = tensor(example)
    for start, end in example.spans:
        labels[start:end] = ids[start:end]
    return labels


def trained(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mask [rows, width - 1] of positions whose next token is learned."""
    return batch["labels"][:, 1:] != IGNORED
