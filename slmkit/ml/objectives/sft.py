"""sft: next-token cross-entropy on the answers, with TRL's trainer on rows that are tokenised here.

TRL gets token ids and labels and prepares nothing itself, so its own traps (all-zero masks, EOS cut off, messages trained
on user tokens) cannot be met. Which rows make a batch and how a batch is cut up is `slmkit.ml.batches`'s, the loss `slmkit.ml.loss`'s.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from slmkit.data.rows import Rows
from slmkit.ml import batches, chat, counted, look, loss, memory, models, packing, pairs, writable
from slmkit.ml.shards import Sharding
from slmkit.ml.training import Prepared, Run, arguments, steps


class _Trainer(Sharding, SFTTrainer):
    """TRL's trainer with the batches and the loss of this package, and without what is measured at every step for nobody."""

    def __init__(self, *args: Any, run: Run, examples: list[chat.Example], cut: batches.Cut, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.run, self.examples, self.cut, self.content = run, examples, cut, 0.0
        self.some = loss.keeps_logits(self.model)
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = True  # the loss is divided by the global batch's trained tokens

    def train(self, *args: Any, **kwargs: Any):
        fits = packing.choices(self.cut.batch_size, self.cut.world)
        with memory.told(self.run, self.examples, fits, self.cut.micro_batch):
            return super().train(*args, **kwargs)

    def get_train_dataloader(self) -> batches.Loader:
        return batches.loader(self.examples, self.cut, self.args.seed, self.args.dataloader_num_workers)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> torch.Tensor:
        self.content += float(inputs["attention_mask"].sum()) if "attention_mask" in inputs else inputs["input_ids"].numel()
        if inputs["input_ids"].is_cuda:  # TRL's fused head: no logits are held
            total = -model(**inputs, fused_lm_head=True).log_probs.sum()
        else:
            total = loss.summed(model, inputs, self.some)
        # DDP averages gradients over the processes, and num_items_in_batch counts the tokens of all
        return total * self.cut.world / num_items_in_batch

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        pass

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # walks all modules for a number that nothing here reads: 8 % of the time of a small model


def encode(run: Run, data: Rows, validation: Rows | None) -> tuple[chat.Encoded, chat.Encoded | None, dict]:
    """Token ids and labels of all rows and of the held-out ones, and what of it goes into the result. Raises DataError."""
    config = run.config
    for rows in (data, validation):
        if rows is not None:
            pairs.refuse_form(rows, config.objective)
    kwargs = {"loss_on": config.loss_on, "max_length": config.max_length, "ends": models.end_ids(run.given, run.tokenizer)}
    kwargs |= {"thinking": config.thinking, "too_long": config.too_long}
    encoded = chat.encode(data, run.tokenizer, **kwargs, allow_truncation=True)  # too much of it is look.check's to refuse, with the key
    held_out = chat.encode(validation, run.tokenizer, **kwargs, allow_truncation=True) if validation else None
    if run.rank == 0:
        look.check(run.ctx, config.max_length, data, encoded, validation, held_out)
    run.ctx.log("data", rows=len(encoded.examples), tokens=encoded.tokens, trained_tokens=encoded.trained, form=data.form, **encoded.notes)
    values = counted.said(run.ctx, data, encoded, len(encoded.examples))
    values |= counted.held_out(run.ctx, validation, held_out, len(held_out.examples) if held_out else 0)
    values |= {"tokens": encoded.tokens, "trained_tokens": encoded.trained, "form": data.form} | encoded.notes
    return encoded, held_out, values


def inputs(examples: list[chat.Example], where: torch.device) -> list[dict]:
    """Some batches as the model takes them."""
    some = [batches.pad(examples[i : i + 4]) for i in range(0, min(len(examples), 256), 4)]
    return [{k: v.to(where) for k, v in batch.items() if k != "labels"} for batch in some]


def prepare(run: Run, data: Rows, validation: Rows | None) -> Prepared:
    """Token ids and labels of all rows. Raises DataError."""
    encoded, held_out, values = encode(run, data, validation)

    def measure(model: torch.nn.Module) -> float:
        return loss.mean(model, held_out.examples, run.where, run.dtype)

    some, micro = partial(inputs, encoded.examples), packing.settle(run, encoded.examples)
    return Prepared(encoded.examples, steps(run.config, len(encoded.examples)), values, measure if held_out else None, some, micro=micro)


def trainer(run: Run, model, prepared: Prepared) -> _Trainer:
    writable.check(run, model, ([i for start, end in e.spans for i in e.ids[max(start, 1) : end]] for e in prepared.examples))
    cut = packing.cut(run, model, prepared.examples, prepared.micro)
    args = arguments(
        run, SFTConfig, prepared.steps, cut.micro_batch, packing=False, max_length=None, shuffle_dataset=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    # TRL wants to see a dataset; what it trains on comes from get_train_dataloader.
    one = Dataset.from_list([{"input_ids": list(prepared.examples[0].input_ids), "labels": list(prepared.examples[0].labels)}])
    return _Trainer(model=model, args=args, train_dataset=one, processing_class=run.tokenizer, run=run, examples=prepared.examples, cut=cut)
