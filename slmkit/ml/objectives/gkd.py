"""gkd: at every trained token the student is drawn to the teacher's distribution, on the rows' answers or on answers of its own.

TRL's GKD and DistillationTrainer pad every batch and divide by micro batches; here sft's way is kept: the divergence is summed over the trained
tokens of the whole global batch and divided by their number, so that packed, padded, or in any micro batch the step is the same. In a share of
the steps (`on_policy`, spread evenly) the student writes the last answer of each row of the step itself, before any of it is
learned; each row draws from a generator of its own, seeded by seed, step and row, so that a resumed run writes the same again.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from trl import SFTConfig

from slmkit.data.rows import Rows
from slmkit.errors import DataError, Problem
from slmkit.ml import agreement, answers, batches, divergence, loss, memory, models, packing, preference, teachers, vocabulary, writable
from slmkit.ml.examples import Example
from slmkit.ml.objectives import sft
from slmkit.ml.training import Prepared, Run, arguments, steps

HELD, MOST = 0.05, 200  # without validation rows: the share of the rows that is held out to measure agreement on, and the most of them


@dataclass
class Taught:
    """What `prepare` hands to `trainer`. held: rows for agreement. teacher, before: once the trainer is there."""

    rows: list[Example]
    held: list[Example]
    known: int
    teacher: Any = None
    before: agreement.Agreement | None = None


class _Trainer(sft._Trainer):
    """sft's trainer with the divergence for its loss, and rows that the student may have written."""

    def __init__(self, *args: Any, taught: Taught, **kwargs: Any):
        super().__init__(*args, examples=taught.rows, **kwargs)
        self.taught, self.said = taught, self.run.config.gkd
        self.ends = frozenset(models.end_ids(self.run.given, self.run.tokenizer))

    def get_train_dataloader(self) -> batches.Loader:
        sampler = batches.GlobalBatches([len(e.ids) for e in self.examples], self.cut, self.args.seed)
        return batches.Loader(range(len(self.examples)), batch_sampler=sampler, collate_fn=list, num_workers=self.args.dataloader_num_workers)

    def get_batch_samples(self, epoch_iterator: Iterator[list[int]], num_batches: int, device: torch.device) -> tuple[list[dict], torch.Tensor]:
        """A global batch: its rows as they are, or with answers that the student writes now."""
        parts = [part for _, part in zip(range(num_batches), epoch_iterator, strict=False)]
        step, rows = self.state.global_step, {i: self.examples[i] for part in parts for i in part}
        own = turns(step, self.said.on_policy)
        if own and rows:
            rows = self._write(rows, step)
        collate = batches.pack if self.cut.packed else batches.pad
        made = [collate(some) | {"rows": some, "keep": not own} for some in ([rows[i] for i in part] for part in parts)]
        count = torch.tensor(sum(e.trained for e in rows.values()), device=device)
        return made, self.accelerator.gather(count).sum() if self.cut.world > 1 else count

    def _write(self, rows: dict[int, Example], step: int) -> dict[int, Example]:
        """The rows with the student's own last answers, which alone are trained then."""
        begins = {i: e.spans[-1][0] for i, e in rows.items()}
        asked = [e.ids[: begins[i]].tolist() for i, e in rows.items()]
        seeds = [hash_of(self.args.seed, step, i) for i in rows]
        with torch.autocast(self.run.where.type, torch.bfloat16, enabled=self.run.dtype == torch.bfloat16):
            wrote = answers.sampled(
                self.model, self.run.tokenizer, asked, self.ends, self.said.max_new_tokens, self.said.temperature, seeds, self.run.where
            )
        made = {i: _with_answer(rows[i], begins[i], one, self.taught.known) for i, one in zip(rows, wrote, strict=True)}
        self._metrics["train"]["completions/mean_length"].append(sum(map(len, wrote)) / len(wrote))
        self._metrics["train"]["completions/ended"].append(sum(bool(one) and one[-1] in self.ends for one in wrote) / len(wrote))
        return made

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> torch.Tensor:
        rows, batch = inputs["rows"], {k: v for k, v in inputs.items() if k not in ("rows", "keep")}
        self.content += sum(len(e.ids) for e in rows)
        logits, zero = loss.logits_of(model, batch, self.some)
        if not len(logits):
            return zero
        target = self.taught.teacher(rows, keep=inputs["keep"])
        return divergence.summed(logits, target, self.taught.known, self.said) * self.cut.world / num_items_in_batch


def turns(step: int, share: float) -> bool:
    """Is this step, counted from 0, one of the share? They are spread evenly: of 0.5 every second one."""
    return int((step + 1) * share + 1e-9) > int(step * share + 1e-9)


def hash_of(seed: int, step: int, row: int) -> int:
    return (seed * 1_000_003 + step) * 1_000_003 + row


def _with_answer(example: Example, begin: int, wrote: list[int], known: int) -> Example:
    """The row with another answer from `begin` on, as far as it is made of tokens. At least one place is trained: a student that writes a row
    of padding at once is taught what should have been there."""
    end = next((k for k, one in enumerate(wrote) if one >= known), len(wrote))
    ids = example.ids[:begin] + array("i", wrote[:end] or [example.ids[begin]])
    return Example(example.line, ids, ((begin, len(ids)),), example.file, example.begins)


def prepare(run: Run, data: Rows, validation: Rows | None) -> Prepared:
    """Token ids and labels of all rows, and a teacher that numbers tokens alike. Raises DataError, RecipeError."""
    encoded, held_out, values = sft.encode(run, data, validation)
    said = run.config.gkd
    if said.on_policy and data.form == "text":
        mend = "write `gkd: {on_policy: 0}`, or give `messages` (or `prompt` and `completion`)"
        raise DataError([Problem("plain text has no prompt that the student could answer", data.name, mend=mend)])
    rows, held = (encoded.examples, held_out.examples) if held_out else hold_out(encoded.examples, run.config.seed)
    values |= {"agreement_on": "validation" if held_out else "held out of the data" if held is not rows else "the training rows"}
    values |= {"rows": len(rows), "trained_tokens": sum(e.trained for e in rows)}
    if run.rank == 0:
        run.ctx.log("agreement_rows", rows=len(held), of=values["agreement_on"])
    teachers.check(run, rows)
    taught = Taught(rows, held, vocabulary.known(run.tokenizer))

    def measure(model: torch.nn.Module) -> float:
        return mean(model, taught, run)

    micro = _settle(run, rows)
    return Prepared(
        taught, steps(run.config, len(rows)), values, measure if held_out else None, partial(sft.inputs, rows), micro=micro,
        course=_course, finish=lambda model: _finish(model, taught, run), repeats=run.ctx.inputs.get("teacher") is not None,
    )  # fmt: skip


def _course(history: list[dict]) -> dict[str, float]:
    """Of the answers that the student wrote: their length, and how many ended by themselves."""
    said = {"completion_tokens": "completions/mean_length", "ended": "completions/ended"}
    return {k: v for name, key in said.items() for k, v in preference.tenths(history, key, name).items()}


def hold_out(rows: list[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """(rows to learn from, rows to measure agreement on): drawn by seed. A single row is both."""
    count = min(MOST, max(1, round(HELD * len(rows))))
    if len(rows) < 2:
        return rows, rows
    drawn = set(batches.order(len(rows), seed, -1)[:count])
    return [e for i, e in enumerate(rows) if i not in drawn], [rows[i] for i in sorted(drawn)]


def _settle(run: Run, rows: list[Example]) -> int:
    """As for sft, for rows that may end in an answer of the student's."""
    most, (longest, trained) = packing.micro_batch(run.ctx.execution.micro_batch, run.config.batch_size, run.world), memory.longest(rows)
    if run.config.gkd.on_policy:
        new = run.config.gkd.max_new_tokens
        longest, trained = max(longest, max(e.spans[-1][0] for e in rows) + new), max(trained, new)
    asked = None if run.ctx.execution.micro_batch == "auto" else most
    return memory.settle(run, longest, trained, packing.choices(run.config.batch_size, run.world), asked)


@torch.no_grad()
def mean(model: torch.nn.Module, taught: Taught, run: Run, at_once: int = 8) -> float:
    """Mean divergence per trained token of the held-out rows, nats. Draws no random numbers."""
    was_training = model.training
    model.eval()
    rows, total, some = sorted(taught.held, key=lambda e: len(e.ids)), 0.0, loss.keeps_logits(model)
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once]
        batch = {k: v.to(run.where) for k, v in batches.pad(part).items()}
        with torch.autocast(run.where.type, torch.bfloat16, enabled=run.dtype == torch.bfloat16):
            logits, _ = loss.logits_of(model, batch, some)
        total += divergence.summed(logits, taught.teacher(part, keep=True), taught.known, run.config.gkd).item()
    model.train(was_training)
    return total / sum(e.trained for e in rows)


def _finish(model: torch.nn.Module, taught: Taught, run: Run) -> dict:
    after = agreement.measure(model, taught.teacher, taught.held, run.where, run.dtype, taught.known)
    found = agreement.told(taught.before, after, run.config.seed)
    if run.rank == 0:
        run.ctx.log("agreement", **found)
    return found


def trainer(run: Run, model, prepared: Prepared) -> _Trainer:
    taught = prepared.examples
    writable.check(run, model, ([i for start, end in e.spans for i in e.ids[max(start, 1) : end]] for e in taught.rows))
    taught.teacher = teachers.load(run)
    taught.before = agreement.measure(model, taught.teacher, taught.held, run.where, run.dtype, taught.known)
    cut = packing.cut(run, model, taught.rows, prepared.micro)
    args = arguments(
        run, SFTConfig, prepared.steps, cut.micro_batch, packing=False, max_length=None, shuffle_dataset=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    # TRL wants to see a dataset; what it trains on comes from get_train_dataloader.
    one = Dataset.from_list([{"input_ids": list(taught.rows[0].input_ids), "labels": list(taught.rows[0].labels)}])
    return _Trainer(model=model, args=args, train_dataset=one, processing_class=run.tokenizer, run=run, taught=taught, cut=cut)
