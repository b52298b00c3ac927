"""dpo: raise the chosen answer above the rejected one, held to where the model began. TRL's loss on rows tokenised here."""

from __future__ import annotations

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from slmkit.data.rows import Rows
from slmkit.ml import preference, writable
from slmkit.ml.preference import Preferring, Table
from slmkit.ml.training import Prepared, Run, arguments


class _Trainer(Preferring, DPOTrainer):
    """TRL's trainer with the batches and the reference of this package."""


def prepare(run: Run, data: Rows, validation: Rows | None) -> Prepared:
    """Token ids of all pairs. Raises DataError."""
    return preference.prepare(run, data, validation)


def trainer(run: Run, model, prepared: Prepared) -> _Trainer:
    said, cut = run.config.dpo, preference.cut(run, prepared.micro)
    writable.check(run, model, (p.chosen for p in prepared.examples.train.pairs))
    args = arguments(
        run, DPOConfig, prepared.steps, cut.micro_batch, beta=said.beta, loss_type=[said.loss], label_smoothing=said.label_smoothing,
        max_length=None, precompute_ref_log_probs=True, disable_dropout=False,
    )  # fmt: skip
    # TRL wants to see a dataset; what it trains on comes from get_train_dataloader.
    one = Dataset.from_list([prepared.examples.train.row(0)])
    made = _Trainer(model=model, args=args, train_dataset=one, processing_class=run.tokenizer)
    preference.start(made, prepared, cut, _ask)
    return made


def _ask(made: Preferring, table: Table, part: list[int]) -> list[dict]:
    """Log-probabilities of both answers of some pairs, before training."""
    chosen, rejected = (half.tolist() for half in made.logps([table.row(i) for i in part]).chunk(2))
    return [{"ref_chosen_logps": c, "ref_rejected_logps": r} for c, r in zip(chosen, rejected, strict=True)]
