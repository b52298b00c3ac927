"""How fast a model answers: its own generation with its cache, over real prompts, alone and in batches of several sizes.

What is measured is anything that answers a batch of prompts and says when each request's first and last token came (a Runtime): a model in this
process here (the same writer that `slmkit serve` has), an endpoint in slmkit/ml/speed_http.py. The sizes take turns within a round and the rounds go
through them to and fro, so that what the machine does beside falls on all of them alike; a first batch of every size is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from slmkit.errors import UsageError
from slmkit.evidence import samples, timing
from slmkit.evidence.timing import Batch
from slmkit.ml import models, speed_http
from slmkit.ml.writer import Ask, Token, Writer, Wrote
from slmkit.steps import _speed
from slmkit.steps._speed import Speed
from slmkit.steps._step import Context, Given

Ids = tuple[int, ...]
FEWEST_ROUNDS = 3
WARM_TOKENS = 8  # of the batches that are not counted
POOL = 256  # distinct prompts that are used, spread over all


class Runtime(Protocol):
    def __call__(self, prompts: list[Ids], new: int) -> Batch:
        """Answer all at once, with `new` tokens each (or fewer, where answers may end)."""
        ...


@dataclass(frozen=True)
class InProcess:
    """A model in this process. ends: ids that end an answer; none, so that all are of one length."""

    writer: Writer
    ends: frozenset[int] = frozenset()

    def __call__(self, prompts: list[Ids], new: int) -> Batch:
        rows = len(prompts)
        first, last, wrote = [0.0] * rows, [0.0] * rows, [0] * rows
        started = time.perf_counter()

        def each(row: int, token: Token | Wrote) -> bool:  # a token is known here only when the device has it: nothing is left running
            if isinstance(token, Token):
                now = time.perf_counter() - started
                first[row] = first[row] or now
                last[row], wrote[row] = now, wrote[row] + 1
            return True

        self.writer.write([Ask(ids, new, self.ends) for ids in prompts], each)
        whole = time.perf_counter() - started
        for row in range(rows):  # an answer that ended at once: its end came with the prompt's pass
            first[row], last[row], wrote[row] = first[row] or whole, last[row] or whole, wrote[row] or 1
        return Batch(tuple(first), tuple(last), tuple(map(len, prompts)), tuple(wrote))


def measure(
    answer: Runtime, prompts: list[Ids], asked: Speed, peak: Callable[[], int | None] = lambda: None, told: Callable[[int], None] = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:  # fmt: skip
    """Latency at batch 1 and throughput by size of batch, each figure a median with its interval; peak memory by size.

    peak: bytes at most since it was last called, None where that cannot be known. told: hears of each round.
    """
    found: dict[int, list[Batch]] = {size: [] for size in asked.batch_sizes}
    memory: dict[int, int] = {}
    at = 0
    for size in asked.batch_sizes:
        answer(_take(prompts, at, size), min(WARM_TOKENS, asked.new_tokens))
    alone = -(-asked.requests // asked.repeats)
    started, rounds = clock(), 0
    while rounds < asked.repeats and (rounds < FEWEST_ROUNDS or clock() - started < asked.seconds):
        for size in asked.batch_sizes if rounds % 2 == 0 else reversed(asked.batch_sizes):
            peak()
            for _ in range(alone if size == 1 else 1):
                found[size].append(answer(_take(prompts, at, size), asked.new_tokens))
                at += size
            if (most := peak()) is not None:
                memory[size] = max(memory.get(size, 0), most)
        rounds += 1
        told(rounds)
    out = {"asked": _speed.asked(asked), "rounds": rounds, "prompts": len(prompts), "latency": timing.latency(found[1]), "curve": timing.curve(found)}
    for size, most in memory.items():
        out["curve"][str(size)]["peak_memory_bytes"] = most
    return out | ({"peak_memory_bytes": max(memory.values())} if memory else {})


def _take(prompts: list[Ids], at: int, size: int) -> list[Ids]:
    """The next so many prompts, from the beginning again after the last."""
    return [prompts[(at + i) % len(prompts)] for i in range(size)]


def in_eval(ctx: Context, asked: Speed, subject: Any, given: Given, where: torch.device) -> dict[str, Any]:
    """The speed of a model whose scores an eval has just made, told as it goes. subject: as lm-eval ran it."""

    def told(rounds: int) -> None:
        ctx.progress(rounds, asked.repeats, f"timing {given.name}")

    answers = ctx.out / "samples" / given.name
    if hasattr(subject, "engine"):
        measured = of_engine(asked, subject.engine, given, answers, told)
    else:
        measured = of_model(asked, subject.model, given, where, answers, told)
    ctx.log("speed", name=given.name, said=timing.line(measured))
    return measured


def of_model(asked: Speed, model: torch.nn.Module, given: Given, where: torch.device, answers: Path, told: Callable[[int], None]) -> dict[str, Any]:
    """The speed of a loaded model on the prompts that an eval kept (`answers`: its folder of samples), and how long those and its answers are.

    Raises UsageError when no prompt leaves room for the tokens asked for.
    """
    tokenizer = models.tokenizer(given)
    writer = Writer(model, tokenizer, where)
    prompts, replies = samples.asked(answers)
    read = lambda text: tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # noqa: E731
    # as lm-eval gives them to the model: what special tokens there are stand in the text
    ids = [tuple(i) for i in tokenizer(prompts, add_special_tokens=False, verbose=False)["input_ids"]]
    before, chosen = models.peak_memory(where), fitting(ids, writer.longest, asked, given)
    if asked.over == "http":
        with speed_http.served(given, asked.own_ends, max(asked.batch_sizes), str(where)) as client:
            measured = measure(client, chosen, asked, told=told)
    else:
        ends = frozenset(models.end_ids(given, tokenizer)) if asked.own_ends else frozenset()
        measured = measure(InProcess(writer, ends), chosen, asked, Peak(where), told)
    return measured | {"mix": mix(read, ids, replies), "runtime": runtime(model, where, asked.over), "peak_memory_before_bytes": before}


def of_engine(asked: Speed, engine: Any, given: Given, answers: Path, told: Callable[[int], None]) -> dict[str, Any]:
    """The speed of an export in its own runtime (slmkit/ml/subjects/runtime.py), which answers one request after another."""
    if asked.over == "http":
        raise UsageError(f"`speed.over: http` is of models that `slmkit serve` serves, and {given.name} is an export", mend="write `over: process`")
    prompts, replies = samples.asked(answers)
    ids = [tuple(engine.ids(prompt)) for prompt in prompts]
    here = torch.device("cpu")
    before, chosen = models.peak_memory(here), fitting(ids, engine.length, asked, given)
    ends = frozenset(engine.ends) if asked.own_ends else frozenset()
    measured = measure(InEngine(engine, ends), chosen, asked, Peak(here), told)
    said = {"name": engine.name, "device": "cpu", "threads": torch.get_num_threads(), "in_turn": True}
    return measured | {"mix": mix(engine.ids, ids, replies), "runtime": said, "peak_memory_before_bytes": before}


@dataclass(frozen=True)
class InEngine:
    """An export's engine. ends: as of InProcess."""

    engine: Any
    ends: frozenset[int] = frozenset()

    def __call__(self, prompts: list[Ids], new: int) -> Batch:
        started = time.perf_counter()
        first, last, wrote = [], [], []
        for prompt in prompts:
            came: list[float] = []

            def each(_: list[int], came=came) -> bool:
                came.append(time.perf_counter() - started)
                return False

            count = len(self.engine.written(list(prompt), new, self.ends, each))
            came = came or [time.perf_counter() - started]
            first.append(came[0])
            last.append(came[-1])
            wrote.append(count)
        return Batch(tuple(first), tuple(last), tuple(map(len, prompts)), tuple(wrote), in_turn=True)


def check(asked: Speed, subject: Any, given: Given) -> None:
    """Before anything is scored: no prompt at all leaves room for so many tokens. Raises UsageError. subject: as of `in_eval`."""
    text = None if hasattr(subject, "engine") else subject.model.config.get_text_config()
    longest = subject.engine.length if text is None else getattr(text, "max_position_embeddings", None)
    if longest is not None and asked.new_tokens >= longest:
        what = f"`speed.new_tokens` is {asked.new_tokens}, and the whole context of {given.name} has {longest} tokens"
        raise UsageError(what, mend="lower `speed.new_tokens`")


def fitting(ids: list[Ids], longest: int | None, asked: Speed, given: Given) -> list[Ids]:
    """Distinct prompts that leave room for the tokens asked for, spread over all. Raises UsageError where none does."""
    fit = [i for i in dict.fromkeys(ids) if i and (longest is None or len(i) + asked.new_tokens <= longest)]
    if not fit:
        what = f"no prompt of the tasks leaves room for {asked.new_tokens} new tokens in the context of {given.name} ({longest} tokens)"
        raise UsageError(what, mend="lower `speed.new_tokens` and run the same command again: the answers that were scored are kept")
    return spread(fit, POOL)


def spread(prompts: list[Ids], most: int) -> list[Ids]:
    """At most so many, evenly from all."""
    return prompts if len(prompts) <= most else [prompts[i * len(prompts) // most] for i in range(most)]


def mix(read: Callable[[str], list[int]], prompts: list[Ids], replies: list[str]) -> dict[str, float | int]:
    """Mean tokens of the tasks' prompts, and of the answers that were written to them; an answer's end counts as one."""
    out: dict[str, float | int] = {"input_tokens": sum(map(len, prompts)) / len(prompts), "questions": len(prompts)}
    if replies:
        lengths = [len(read(reply)) + 1 for reply in replies]
        out |= {"output_tokens": sum(lengths) / len(lengths), "answers": len(replies)}
    return out


def runtime(model: torch.nn.Module, where: torch.device, over: str) -> dict[str, Any]:
    """What ran it, for people. A server chooses the number format itself."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else where.type
    said = {"name": "transformers", "dtype": str(dtype).removeprefix("torch.")} if over == "process" else {"name": "slmkit serve over HTTP"}
    return said | {"device": name, "threads": torch.get_num_threads()}


class Peak:
    """Bytes at most since the last call: of the device on CUDA, of this process elsewhere (Linux; None where its mark cannot be put back)."""

    def __init__(self, where: torch.device):
        self.where = where

    def __call__(self) -> int | None:
        if self.where.type == "cuda":
            most = torch.cuda.max_memory_allocated(self.where)
            torch.cuda.reset_peak_memory_stats(self.where)
            return most
        with suppress(OSError, StopIteration, ValueError):
            marks = Path("/proc/self/status").read_text().splitlines()
            most = int(next(line for line in marks if line.startswith("VmHWM:")).split()[1]) * 1024
            Path("/proc/self/clear_refs").write_text("5")
            return most
        return None
