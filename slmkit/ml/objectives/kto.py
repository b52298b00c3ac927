"""kto: raise answers marked good and lower those marked bad, against the divergence from where the model began.

The divergence is estimated, as KTO has it, on prompts with the answers of other rows. Here it is that of the whole step, not of
each micro batch, so that cutting a step up does not change it; each row's stranger is the row before it in a shuffled order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from slmkit.data.rows import Rows
from slmkit.errors import DataError, Problem
from slmkit.ml import batches, preference, writable
from slmkit.ml.preference import Preferring, Table
from slmkit.ml.training import Prepared, Run, arguments


class _Trainer(Preferring, KTOTrainer):
    """TRL's trainer with the batches, the reference and the divergence of this package."""

    divergence = 0.0

    def get_batch_samples(self, epoch_iterator, num_batches, device) -> tuple[list, Any]:
        """The micro batches of a step, and first the divergence over all of them."""
        found, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        sums = torch.zeros(2)
        for batch in found:
            if batch[preference.WEIGHT] or self.cut.world > 1:  # several processes ask equally often
                gap = (self._strangers(batch) - batch["ref_KL_logps"]) * (batch[preference.WEIGHT] > 0)
                sums += torch.tensor([gap.sum().item(), len(gap) * (batch[preference.WEIGHT] > 0)])
        if self.cut.world > 1:  # of the rows of all, so that the step is the same as in one process
            sums = sums.to(self.args.device)
            dist.all_reduce(sums)
        self.divergence = (sums[0] / sums[1].clamp(min=1)).item()
        return found, items

    def _compute_kl_logps(self, model, batch) -> torch.Tensor:
        """Such that TRL, which takes the mean of this less the reference's, gets the divergence of the step (of the batch, when measuring)."""
        if not self.model.training:
            return super()._compute_kl_logps(model, batch)
        return batch["ref_KL_logps"] + self.divergence

    def _strangers(self, batch: dict) -> torch.Tensor:
        was_training = self.model.training
        self.model.eval()
        on_device = {k: v.to(self.args.device) for k, v in batch.items() if k != preference.WEIGHT}
        with torch.no_grad(), self.compute_loss_context_manager():
            found = super()._compute_kl_logps(self.model, on_device)
        self.model.train(was_training)
        return found.float().cpu()


def prepare(run: Run, data: Rows, validation: Rows | None) -> Prepared:
    """Token ids of all rows. Raises DataError."""
    prepared = preference.prepare(run, data, validation)
    labels = [p.label for p in prepared.examples.train.pairs]
    if len(labels) < 2 or len(set(labels)) < 2:
        what = f"all {len(labels)} rows are marked {'good' if labels[0] else 'bad'}"
        raise DataError([Problem(what, data.name, mend="give rows of both labels; for good rows alone write `objective: sft`")])
    good, said = sum(labels), run.config.kto
    heavy = good * said.desirable_weight / ((len(labels) - good) * said.undesirable_weight)
    if not 0.5 <= heavy <= 2:
        run.ctx.log("warning", what=f"good rows weigh {heavy:.2g} times what bad ones do; mend it by `desirable_weight` or `undesirable_weight`")
    prepared.values.update({"rows_good": good, "rows_bad": len(labels) - good})
    return prepared


def trainer(run: Run, model, prepared: Prepared) -> _Trainer:
    said, cut = run.config.kto, preference.cut(run, prepared.micro)
    writable.check(run, model, (p.chosen for p in prepared.examples.train.pairs if p.label))
    args = arguments(
        run, KTOConfig, prepared.steps, cut.micro_batch, beta=said.beta, desirable_weight=said.desirable_weight,
        undesirable_weight=said.undesirable_weight, max_length=None, precompute_ref_log_probs=True, disable_dropout=False,
    )  # fmt: skip
    args.per_device_train_batch_size = max(2, cut.micro_batch)  # TRL refuses 1: it would pair an answer with its own prompt
    one = Dataset.from_list([prepared.examples.train.row(0)])
    made = _Trainer(model=model, args=args, train_dataset=one, processing_class=run.tokenizer)
    for table in (prepared.examples.train, prepared.examples.held_out):
        if table is not None:
            _deal_strangers(table, args.seed)
    preference.start(made, prepared, cut, _ask)
    return made


def _deal_strangers(table: Table, seed: int) -> None:
    """Give each row the answer of the row before it in a shuffled order."""
    order = batches.order(len(table), seed, 0)
    stranger = {i: order[k - 1] for k, i in enumerate(order)}
    table.extra = [{"KL_completion_ids": table.pairs[stranger[i]].completion_ids} for i in range(len(table))]


def _ask(made: Preferring, table: Table, part: list[int]) -> list[dict]:
    """Log-probabilities of some rows' own answers and of the strangers', before training."""
    rows = [table.row(i) for i in part]
    own, others = made.logps(rows).tolist(), made.logps(rows, "KL_").tolist()
    return [{"ref_logps": a, "ref_KL_logps": b} for a, b in zip(own, others, strict=True)]
