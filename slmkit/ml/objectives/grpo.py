"""grpo: the model samples several answers to a prompt, each earns a reward, and those above their group's mean become likelier.

TRL's trainer with prompts rendered here, one sampling per optimizer step (so that answers always come from the model being
trained), plain static generation (TRL's continuous batching takes 20 times the CPU), and its own order of prompts, which resumes exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from slmkit.data import faults
from slmkit.data.rows import SHOWN, Rows
from slmkit.errors import DataError, Problem, RecipeError, StepFailed
from slmkit.ml import answers, batches, counted, judge, look, memory, models, pairs, preference, rewards, watch, writable
from slmkit.ml.packing import PADDED_ROWS
from slmkit.ml.training import Prepared, Run, arguments, steps

ALIKE = 20  # steps in a row in which every group's rewards are the same
KINDS = ("content", "format")


class Groups(Sampler):
    """For each micro batch of a step, this process's rows of the whole step: every prompt `generations` times. A last, short step is
    filled from the front.

    Each of several processes samples an equal run of the answers; TRL gathers their rewards in that order before it compares within
    groups, so a group may lie on two processes.
    """

    def __init__(self, count: int, prompts: int, generations: int, accumulation: int, seed: int, rank: int = 0, world: int = 1):
        self.count, self.prompts, self.generations, self.accumulation, self.seed, self.epoch = count, prompts, generations, accumulation, seed, 0
        share = prompts * generations // world
        self.mine = slice(rank * share, (rank + 1) * share)

    def __len__(self) -> int:
        return -(-self.count // self.prompts) * self.accumulation

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = batches.order(self.count, self.seed, self.epoch)
        for start in range(0, self.count, self.prompts):
            drawn = [order[i % self.count] for i in range(start, start + self.prompts)]
            for _ in range(self.accumulation):
                yield [i for i in drawn for _ in range(self.generations)][self.mine]


class _Trainer(GRPOTrainer):
    """TRL's trainer on prompts of this package."""

    def __init__(
        self, *args: Any, prompts: list[pairs.Prompt], earns: list[rewards.Reward], ends: set[int], batch_size: int, counted: dict[str, dict],
        **kwargs: Any,
    ):  # fmt: skip
        super().__init__(*args, **kwargs)
        self.prompts, self.earns, self.batch_size, self.counted = prompts, earns, batch_size, counted
        self.ids = {p.text: p.prompt_ids for p in prompts}
        self.eos_token_ids = sorted(ends)
        self.generation_config.eos_token_id = self.generation_kwargs["eos_token_id"] = self.eos_token_ids

    @property
    def content(self) -> float:
        return self.state.num_input_tokens_seen / self.args.world_size  # prompts and answers; TRL counts those of all processes

    def get_train_dataloader(self) -> DataLoader:
        args = self.args
        place = (args.process_index, args.world_size)
        sampler = Groups(len(self.prompts), self.batch_size, args.num_generations, args.gradient_accumulation_steps, args.seed, *place)
        return batches.Loader(self.train_dataset, batch_sampler=sampler, collate_fn=list, num_workers=args.dataloader_num_workers)

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list, None, dict]:
        return [self.ids[text] for text in prompts], None, {}

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list) -> torch.Tensor:
        table = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        for kind in KINDS:
            of_kind = [i for i, r in enumerate(self.earns) if r.kind == kind]
            if of_kind:
                weighted = (table[:, of_kind] * self.reward_weights[of_kind].to(table.device)).sum(1)
                self._metrics["train"][f"reward_{kind}"].append(weighted.mean().item())
        for name, counts in self.counted.items():
            of_all = self.accelerator.gather(torch.tensor([[counts[k] for k in judge.COUNTS]], device=self.args.device)).sum(0).tolist()
            for key, count in zip(judge.COUNTS, of_all, strict=True):
                self._metrics["train"][f"judge/{name}/{key}"].append(count)
        return table

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        pass

    def floating_point_ops(self, inputs: Any) -> int:
        return 0


class Alike(TrainerCallback):
    """Ends a training in which there is nothing to learn: with a reason if every answer earns all there is, else with an error, which tells
    rewards that are the same from verdicts that a judge did not give."""

    def __init__(self, most: float | None, stop: Any, judges: dict[str, judge.Judge]):
        self.most, self.stop, self.judges = most, stop, judges

    def on_log(self, args, state, control, logs=None, **_) -> None:
        last = [h for h in state.log_history if "frac_reward_zero_std" in h][-ALIKE:]
        if len(last) < ALIKE or any(h["frac_reward_zero_std"] < 1 for h in last):
            return
        reward = sum(h["reward"] for h in last) / ALIKE
        if self.most is not None and min(h["reward"] for h in last) >= self.most - 1e-6:
            self.stop(f"every answer earned all there is ({self.most:g}) for {ALIKE} steps")
            control.should_training_stop = True
            return
        for name, one in self.judges.items():
            lost, asked = judge.dropped(_sums(last, name))
            if lost > asked / 2:
                raise one.mute(f"{lost} of {asked} groups of answers in {ALIKE} steps, and all other rewards were the same within every group")
        raise StepFailed(
            f"all rewards were the same within every group for {ALIKE} steps (mean {reward:.3g}): nothing to learn from",
            mend="raise `grpo.temperature` or `grpo.generations`, give easier prompts, train with `objective: sft` first, "
            "or add a reward for what is partly right",
        )


def prepare(run: Run, data: Rows, validation: Rows | None) -> Prepared:
    """Prompts to sample from, and what answers earn. Raises DataError, RecipeError."""
    config, said = run.config, run.config.grpo
    code = run.ctx.inputs.get("reward_code")
    earns = rewards.build(said.rewards, Path(code.path) if code else None)
    found = _prompts(run, data, earns)
    held = _prompts(run, validation, earns) if validation else None
    if run.rank == 0:
        look.check(run.ctx, config.max_length, data, found, validation, held)
    held_out, tokens = held.prompts if held else None, found.tokens
    run.ctx.log("data", rows=len(found.prompts), tokens=tokens, form=data.form, rewards=[r.name for r in earns], **found.notes)
    values = counted.said(run.ctx, data, found, len(found.prompts)) | counted.held_out(run.ctx, validation, held, len(held_out or ()))
    values |= {"tokens": tokens, "form": data.form} | found.notes
    ends = models.end_ids(run.given, run.tokenizer)

    def measure(model: torch.nn.Module) -> float:
        """The mean reward of greedy answers, negative: lower is better."""
        pad = run.tokenizer.pad_token_id if run.tokenizer.pad_token_id is not None else min(ends)
        with torch.autocast(run.where.type, torch.bfloat16, enabled=run.dtype == torch.bfloat16):
            written = answers.greedy(model, [p.prompt_ids for p in held_out], ends, pad, said.max_new_tokens, run.where)
        texts = run.tokenizer.batch_decode(written, skip_special_tokens=True)
        given = [rewards.Answer(p.messages, t, p.answer, len(w), p.row) for p, t, w in zip(held_out, texts, written, strict=True)]
        alone = [r for r in earns if r.score]  # a judge compares answers to one prompt, and here each has one
        each = {r.name: sum(r.score(a) for a in given) / len(given) for r in alone}
        reward = sum(r.weight * each[r.name] for r in alone)
        values.update({"validation_reward": reward} | {f"validation_reward_{name}": mean for name, mean in each.items()})
        run.ctx.log("validation_reward", reward=reward, **each)
        return -reward

    micro = micro_batch(run, found.prompts)
    judges = _judges(run, earns)

    def finish(_: torch.nn.Module) -> dict:
        return {k: v for name, one in judges.items() for k, v in one.told(name).items()}

    return Prepared(
        (found.prompts, earns, ends, judges), steps(config, len(found.prompts)), values, measure if held_out else None,
        course=lambda history: _course(run, history, earns, judges), micro=micro, finish=finish, repeats=not judges,
    )  # fmt: skip


def _judges(run: Run, earns: list[rewards.Reward]) -> dict[str, judge.Judge]:
    """The judges by the names of their rewards. Raises RecipeError for what several processes cannot share."""
    asked = [r for r in earns if r.judge]
    if asked and run.config.batch_size % run.world:
        what = f"batch_size: {run.config.batch_size} is no multiple of {run.world} processes, and a judge must see all answers to a prompt"
        raise RecipeError([Problem(what, mend="change `batch_size`")])
    if run.world > 1 and any(r.judge.budget for r in asked):
        raise RecipeError([Problem("a judge's `budget` is held by one process, and several train here", mend="write `execution.processes: 1`")])
    places = {r.name: f"grpo.rewards.{i}.judge" for i, r in enumerate(earns)}
    return {r.name: judge.Judge(run.ctx, r.judge, r.name, run.config.seed, places[r.name]) for r in asked}


def _prompts(run: Run, data: Rows, earns: list[rewards.Reward]) -> pairs.Prompts:
    """Those that fit; too much that is too long is look.check's to refuse, with the key."""
    preference.wanted(run, data)
    given = {"max_length": run.config.max_length, "thinking": run.config.thinking}
    found = pairs.prompts(data, run.tokenizer, **given, allow_truncation=True)
    bare = [p for p in found.prompts if p.answer is None]
    needy = [r.name for r in earns if r.needs_reference]
    if bare and needy:
        problems = [faults.of_row(f"no answer for the reward `{needy[0]}` to compare with", p, data.name) for p in bare[:SHOWN]]
        mend = "end each row with an `assistant` message (`completion`), or choose other rewards"
        raise DataError(problems, f"{len(bare)} of {len(data)} rows have no answer of their own; {mend}")
    return found


def micro_batch(run: Run, found: list[pairs.Prompt]) -> int:
    """Answers per forward pass: so many as were asked for, or fit. Raises RecipeError when they do not make up batch_size × generations."""
    asked, said = run.ctx.execution.micro_batch, run.config.grpo
    total = run.config.batch_size * said.generations
    if total % run.world:
        raise RecipeError([Problem(f"batch_size × grpo.generations = {total} is no multiple of {run.world} processes", mend="change `batch_size`")])
    share = total // run.world
    if asked != "auto" and share % asked:
        fits = ", ".join(str(n) for n in range(1, share + 1) if share % n == 0)
        product = f"batch_size × grpo.generations = {run.config.batch_size} × {said.generations} = {total}"
        what = f"execution.micro_batch: {asked} does not divide {product}"
        raise RecipeError([Problem(what, mend=f"write one of {fits}")])
    choices = [n for n in range(1, PADDED_ROWS + 1) if share % n == 0]
    longest = max(len(p) for p in found) + said.max_new_tokens
    return memory.settle(run, longest, said.max_new_tokens, choices, None if asked == "auto" else asked)


def _sums(history: list[dict], name: str) -> dict[str, float]:
    """What a judge's COUNTS came to."""
    return {k: sum(h.get(f"judge/{name}/{k}", 0) for h in history) for k in judge.COUNTS}


def _course(run: Run, history: list[dict], earns: list[rewards.Reward], judges: dict[str, judge.Judge]) -> dict[str, float]:
    """Raises StepFailed for a judge that gave no verdict from the first step to the last."""
    said = {"reward": "reward", "completion_tokens": "completions/mean_length", "kl": "kl"}
    said |= {f"reward_{kind}": f"reward_{kind}" for kind in KINDS}
    said |= {f"reward_of_{r.name}": f"rewards/{r.name}/mean" for r in earns}
    values = {k: v for name, key in said.items() for k, v in preference.tenths(history, key, name).items()}
    for name, one in judges.items():
        sums = _sums(history, name)
        values |= judge.summary(name, sums)
        lost, asked = judge.dropped(sums)
        if asked and lost == asked:
            raise one.mute(f"any of the {asked} groups of answers")
        if lost > asked / 2 and run.rank == 0:
            what = f"the judge gave no verdict that can be read on {lost} of {asked} groups of answers, which taught nothing; the last: {one.why}"
            run.ctx.log("warning", what=what)
    cut_off = preference.tenths(history, "completions/clipped_ratio", "ended")
    return values | {name: 1 - share for name, share in cut_off.items()}


def trainer(run: Run, model, prepared: Prepared) -> _Trainer:
    config, said = run.config, run.config.grpo
    prompts, earns, ends, judges = prepared.examples
    counted: dict[str, dict] = {}
    writable.check(run, model, [[end] for end in sorted(ends)], share=1 - 1e-9, of="ends of turn")  # one of them must be within reach
    args = arguments(
        run, GRPOConfig, prepared.steps, prepared.micro, rows=config.batch_size * said.generations,
        num_generations=said.generations, max_completion_length=said.max_new_tokens,
        temperature=said.temperature, beta=said.beta, loss_type=said.loss, epsilon=said.epsilon, reward_weights=[r.weight for r in earns],
        use_vllm=False, use_transformers_continuous_batching=False, disable_dropout=True, remove_unused_columns=False,
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": p.text, "row": i} for i, p in enumerate(prompts)])
    made = _Trainer(
        model=model, args=args, train_dataset=rows, processing_class=run.tokenizer,
        reward_funcs=[_compared(judges[r.name], r.name, prompts, said.generations, counted) if r.judge else _function(r, prompts) for r in earns],
        prompts=prompts, earns=earns, ends=ends, batch_size=config.batch_size, counted=counted,
    )  # fmt: skip
    most = None if any(r.top is None for r in earns) else sum(r.weight * r.top for r in earns)
    made.add_callback(Alike(most, lambda why: _stop(made, why), judges))
    return made


def _stop(made: _Trainer, why: str) -> None:
    next(c for c in made.callback_handler.callbacks if isinstance(c, watch.Watch)).stopped = why


def _function(reward: rewards.Reward, prompts: list[pairs.Prompt]):
    """A reward as TRL calls it."""

    def score(completions: list[str], completion_ids: list[list[int]], row: list[int], **_: Any) -> list[float]:
        given = zip(completions, completion_ids, row, strict=True)
        return [reward.score(rewards.Answer(prompts[i].messages, text, prompts[i].answer, len(ids), prompts[i].row)) for text, ids, i in given]

    score.__name__ = reward.name
    return score


def _compared(one: judge.Judge, name: str, prompts: list[pairs.Prompt], generations: int, counted: dict[str, dict]):
    """A judge as TRL calls a reward: the answers come prompt by prompt, `generations` of each. counted: where it notes what happened."""

    def score(completions: list[str], row: list[int], **_: Any) -> list[float]:
        groups = []
        for start in range(0, len(completions), generations):
            prompt = prompts[row[start]]
            groups.append(judge.Group(prompt.messages, tuple(completions[start : start + generations]), prompt.answer, prompt.row))
        found, counted[name] = one.scores(groups)
        return [value for scores in found for value in scores]

    score.__name__ = name
    return score
