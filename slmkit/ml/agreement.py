"""How often a student's likeliest next token is the teacher's, along the answers of rows; with intervals by bootstrap over rows.

Tokens of one answer are not independent: rows are drawn, not tokens. The gain is that of the same rows before and after, drawn together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from slmkit.ml import batches, loss
from slmkit.ml.examples import Example
from slmkit.ml.teachers import Teacher

DRAWS, AT_ONCE = 2000, 8
EDGES = torch.tensor([0.025, 0.975], dtype=torch.float64)


@dataclass(frozen=True)
class Agreement:
    """Of each row: places where both have the same likeliest token, and places."""

    same: torch.Tensor
    places: torch.Tensor

    @property
    def share(self) -> float:
        return (self.same.sum() / self.places.sum()).item()


@torch.no_grad()
def measure(model: torch.nn.Module, teacher: Teacher, rows: list[Example], where: torch.device, dtype: torch.dtype, known: int) -> Agreement:
    """Draws no random numbers, and leaves the model as it was."""
    was_training = model.training
    model.eval()
    longest = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    some, same = loss.keeps_logits(model), torch.zeros(len(rows), dtype=torch.float64)
    places = torch.tensor([e.trained for e in rows], dtype=torch.float64)
    for start in range(0, len(rows), AT_ONCE):
        part = longest[start : start + AT_ONCE]
        some_rows = [rows[i] for i in part]
        batch = {k: v.to(where) for k, v in batches.pad(some_rows).items()}
        with torch.autocast(where.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            mine = loss.logits_of(model, batch, some)[0][:, :known].argmax(1)
        hits = (mine == teacher(some_rows, keep=True).best).cpu().split([e.trained for e in some_rows])
        for i, hit in zip(part, hits, strict=True):
            same[i] = hit.sum()
    model.train(was_training)
    return Agreement(same, places)


def told(before: Agreement, after: Agreement, seed: int) -> dict[str, float | int]:
    """Shares before and after, and the gain, each with its 95 % interval."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(after.places), (DRAWS, len(after.places)), generator=generator)
    places = after.places[drawn].sum(1)
    values: dict[str, float | int] = {"agreement_rows": len(after.places), "agreement_tokens": int(after.places.sum())}
    shares = {"agreement_before": (before.share, before.same), "agreement": (after.share, after.same)}
    shares["agreement_gain"] = (after.share - before.share, after.same - before.same)
    for name, (share, same) in shares.items():
        low, high = torch.quantile(same[drawn].sum(1) / places, EDGES).tolist()
        values |= {name: share, f"{name}_low": low, f"{name}_high": high}
    return values
