"""What dpo and kto share: batches of preferences, what the model thought of them before it was trained, and their measurement.

The reference is the model as it stands before its first step, asked once: its log-probabilities are kept, instead of a second
model or a second forward pass in every step. A row's weight in a step is 1 / rows of the step, however the step is cut up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import gather, pad_across_processes
from torch.utils.data import Dataset

from slmkit.data.rows import Rows
from slmkit.errors import Problem, RecipeError
from slmkit.ml import batches, counted, look, memory, models
from slmkit.ml.examples import Example
from slmkit.ml.packing import choices, micro_batch
from slmkit.ml.pairs import Pair, encode_pairs, refuse_form
from slmkit.ml.training import Prepared, Run, steps

WEIGHT = "slmkit_weight"


@dataclass
class Table(Dataset):
    """Rows to learn from, and for each what the collator makes of it beside the ids: the reference's log-probabilities, say."""

    pairs: list[Pair]
    extra: list[dict] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, drawn: tuple[int, int]) -> tuple[dict, int]:
        index, total = drawn
        return self.row(index), total

    def row(self, index: int) -> dict:
        return columns(self.pairs[index]) | (self.extra[index] if self.extra else {})


def columns(pair: Pair) -> dict:
    """A row as TRL's collators take it."""
    if pair.label is None:
        return {"prompt_ids": pair.prompt_ids, "chosen_ids": pair.chosen_ids, "rejected_ids": pair.rejected_ids}
    return {"prompt_ids": pair.prompt_ids, "completion_ids": pair.completion_ids, "label": pair.label}


class Drawn(batches.GlobalBatches):
    """Micro batches of (row, rows in the step). One to which nothing was dealt holds a row of a step of none: its weight is 0."""

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rows = batches.order(len(self.lengths), self.seed, self.epoch)
        for start in range(0, len(rows), self.cut.batch_size):
            step = rows[start : start + self.cut.batch_size]
            for part in batches.deal(step, self.lengths, self.cut)[self.cut.rank :: self.cut.world]:
                yield [(i, len(step)) for i in part] or [(step[0], 0)]


def loader(table: Table, cut: batches.Cut, seed: int, workers: int, collate: Callable) -> batches.Loader:
    def together(drawn: list[tuple[dict, int]]) -> dict:
        total = drawn[0][1]
        # the trainer divides by the accumulation, DDP by the world: what remains is the mean over the rows of the step
        share = len(drawn) * cut.accumulation * cut.world / total if total else 0.0
        return collate([row for row, _ in drawn]) | {WEIGHT: torch.tensor(share)}

    sampler = Drawn([len(p) for p in table.pairs], cut, seed)
    return batches.Loader(table, batch_sampler=sampler, collate_fn=together, num_workers=workers)


class Preferring:
    """Over a trainer of TRL's: its loss, on rows and reference values from here. Set `table`, `cut` and `content` after its own __init__."""

    table: Table
    cut: batches.Cut
    content: float

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset  # token ids already

    def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
        return dataset  # `refer` does it, and writes nothing to disk

    def get_train_dataloader(self) -> batches.Loader:
        return loader(self.table, self.cut, self.args.seed, self.args.dataloader_num_workers, self.data_collator)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> torch.Tensor:
        inputs = dict(inputs)
        weight = inputs.pop(WEIGHT)
        if not weight and self.cut.world == 1:  # of several processes all must take part: TRL gathers in here
            return next(p for p in model.parameters() if p.requires_grad).sum() * 0.0
        if weight:
            self.content += float(inputs["attention_mask"].sum())
        return super().compute_loss(model, inputs) * weight

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        pass

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    @torch.no_grad()
    def logps(self, rows: list[dict], key: str = "") -> torch.Tensor:
        """Log-probability of each continuation of the rows' batch under the model as it is, summed over its tokens. key: `KL_` or none."""
        batch = {k: v.to(self.args.device) for k, v in self.data_collator(rows).items()}
        labels = batch[f"{key}input_ids"].masked_fill(batch[f"{key}completion_mask"] == 0, -100)
        given = {"input_ids": batch[f"{key}input_ids"], "attention_mask": batch[f"{key}attention_mask"], "use_cache": False}
        was_training = self.model.training
        self.model.eval()
        with self.compute_loss_context_manager():
            found = self.model(**given, labels=labels, fused_lm_head=True).log_probs.sum(-1)
        self.model.train(was_training)
        return found.float().cpu()

    @torch.no_grad()
    def measured(self, table: Table) -> tuple[float, dict[str, float]]:
        """Mean loss over rows, and the means of what TRL measures beside it. Draws no random numbers."""
        was_training = self.model.training
        self.model.eval()
        total, seen = 0.0, {}
        for start in range(0, len(table), 8):
            rows = [table.row(i) for i in range(start, min(start + 8, len(table)))]
            batch = {k: v.to(self.args.device) for k, v in self.data_collator(rows).items()}
            with self.compute_loss_context_manager():
                total += len(rows) * super().compute_loss(self.model, batch).item()
            for name, values in self._metrics["eval"].items():
                seen.setdefault(name, []).append((len(rows), values[-1]))
            self._metrics["eval"].clear()
        self.model.train(was_training)
        means = {name: sum(n * v for n, v in some) / sum(n for n, _ in some) for name, some in seen.items()}
        return total / len(table), means


@dataclass
class Examples:
    """What `prepare` hands to `trainer`. trainer: once it is there."""

    train: Table
    held_out: Table | None
    trainer: Any = None


def prepare(run: Run, data: Rows, validation: Rows | None) -> Prepared:
    """Token ids of all rows. Raises DataError, RecipeError."""
    for rows in (data, validation):
        if rows is not None:
            wanted(run, rows)
    config = run.config
    kwargs = {"max_length": config.max_length, "ends": models.end_ids(run.given, run.tokenizer), "thinking": config.thinking}
    encoded = encode_pairs(data, run.tokenizer, **kwargs, allow_truncation=True)  # too much of it is look.check's to refuse, with the key
    held = encode_pairs(validation, run.tokenizer, **kwargs, allow_truncation=True) if validation else None
    if run.rank == 0:
        look.check(run.ctx, config.max_length, data, encoded, validation, held)
    pairs, held_out = encoded.pairs, Table(held.pairs) if held else None
    tokens, trained = encoded.tokens, encoded.trained
    run.ctx.log("data", rows=len(pairs), tokens=tokens, trained_tokens=trained, form=data.form, **encoded.notes)
    values = counted.said(run.ctx, data, encoded, len(pairs)) | counted.held_out(run.ctx, validation, held, len(held.pairs) if held else 0)
    values |= {"tokens": tokens, "trained_tokens": trained, "form": data.form} | encoded.notes
    examples = Examples(Table(pairs), held_out)

    def measure(_: torch.nn.Module) -> float:
        found, means = examples.trainer.measured(held_out)
        said = {"validation_accuracy": means.get("rewards/accuracies"), "validation_margin": means.get("rewards/margins")}
        values.update({k: v for k, v in said.items() if v is not None})
        return found

    def inputs(where: torch.device) -> list[dict]:
        longest = [batches.pad([_as_example(p) for p in pairs[i : i + 4]]) for i in range(0, min(len(pairs), 256), 4)]
        return [{k: v.to(where) for k, v in batch.items() if k != "labels"} for batch in longest]

    return Prepared(examples, steps(config, len(pairs)), values, measure if held_out else None, inputs, course, settle(run, pairs))


def _as_example(pair: Pair) -> Example:
    whole = pair.prompt + pair.chosen
    return Example(pair.line, whole, ((len(pair.prompt), len(whole)),))


def course(history: list[dict]) -> dict[str, float]:
    """First and last tenth of what preference training is judged by."""
    said = {"rewards_accuracy": "rewards/accuracies", "rewards_margin": "rewards/margins"}
    return {k: v for name, key in said.items() for k, v in tenths(history, key, name).items()}


def tenths(history: list[dict], key: str, name: str) -> dict[str, float]:
    """{name_first, name}: means of the first and the last tenth of the steps, where they were logged."""
    values = [entry[key] for entry in history if entry.get(key) is not None]
    some = max(1, len(values) // 10)
    return {f"{name}_first": sum(values[:some]) / some, name: sum(values[-some:]) / some} if values else {}


def wanted(run: Run, data: Rows) -> None:
    """Refuse rows of a form that the objective does not learn from, and execution settings that it does not read."""
    objective = run.config.objective
    refuse_form(data, objective)
    if run.ctx.execution.packing == "on":
        what = f"execution.packing: on is not read by objective {objective}"
        raise RecipeError([Problem(what, mend="remove it: the rows of a micro batch are padded")])


def settle(run: Run, pairs: list[Pair]) -> int:
    """The most rows per forward pass, by what was asked and what fits. Raises RecipeError, or CannotRun when nothing fits."""
    asked = run.ctx.execution.micro_batch
    most = micro_batch(asked, run.config.batch_size, run.world)
    answers = max(max(len(p.chosen), len(p.rejected or ())) for p in pairs)
    longest = max(len(p.prompt) + max(len(p.chosen), len(p.rejected or ())) for p in pairs)
    return memory.settle(run, longest, answers, choices(run.config.batch_size, run.world), None if asked == "auto" else most)


def cut(run: Run, micro: int) -> batches.Cut:
    return batches.Cut(run.config.batch_size, micro, False, run.rank, run.world)


def start(trainer: Preferring, prepared: Prepared, cut_: batches.Cut, ask: Callable[[Preferring, Table, list[int]], list[dict]]) -> None:
    """Give a new trainer its rows, and ask the model, untrained, what it makes of them (`ask`: some rows of a table → what to keep of each)."""
    examples = prepared.examples
    trainer.table, trainer.cut, trainer.content, examples.trainer = examples.train, cut_, 0.0, trainer
    if cut_.world > 1:
        trainer.accelerator.gather = _gather
    peft = getattr(trainer.model, "peft_config", {})
    if "ref" in peft:  # TRL's copy of the adapter as it began, which the values kept here make needless
        trainer.model.delete_adapter("ref")
    for table in (examples.train, examples.held_out):
        if table is not None:
            _refer(trainer, table, ask)


def _gather(values: torch.Tensor) -> torch.Tensor:
    """The rows of all processes, who need not have equally many; accelerate's own wants that, and TRL gathers each row's rewards with it."""
    if values.ndim == 0:
        return gather(values)
    counts = gather(torch.tensor([len(values)], device=values.device)).tolist()
    padded = gather(pad_across_processes(values, dim=0))
    return torch.cat([part[:n] for part, n in zip(padded.split(max(counts)), counts, strict=True)])


def _refer(trainer: Preferring, table: Table, ask: Callable[[Preferring, Table, list[int]], list[dict]]) -> None:
    """Fill `table.extra`. Several processes share the work; each asks equally often, since the model itself may be shared among them."""
    longest = sorted(range(len(table)), key=lambda i: -len(table.pairs[i]))
    parts = [longest[i : i + trainer.cut.micro_batch] for i in range(0, len(longest), trainer.cut.micro_batch)]
    found: dict[int, dict] = {}
    for at in range(0, len(parts), trainer.cut.world):
        part = parts[min(at + trainer.cut.rank, len(parts) - 1)]
        found |= dict(zip(part, ask(trainer, table, part), strict=True))
    if trainer.cut.world > 1:
        of_all: list = [None] * trainer.cut.world
        dist.all_gather_object(of_all, found)
        found = {i: extra for one in of_all for i, extra in one.items()}
    table.extra = [(table.extra[i] if table.extra else {}) | found[i] for i in range(len(table))]
