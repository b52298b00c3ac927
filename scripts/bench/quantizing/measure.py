"""One process of the quantize bench: writes rows by sampling, or reads one folder and measures it. Prints one JSON object."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from slmkit.data import read, rows
from slmkit.ml import answers, chat, gptq, models
from slmkit.ml import blocks as walking
from slmkit.ml.blocks import Blocks
from slmkit.ml.gptq import Grid
from slmkit.steps._step import Given

CPU, LENGTH, TOKENS, ROWS = torch.device("cpu"), 512, 64, 200


def given(place: str, kind: str = "model") -> Given:
    return Given(kind, Path(place).name, kind, place, Path(place))


def write(model: str, file: str, count: str, seed: str) -> None:
    """Plain text that the model writes at temperature 1, from its first token on."""
    source = given(model)
    tokenizer, loaded = models.tokenizer(source), models.load(source, CPU, dtype=torch.float32)
    first = tokenizer("")["input_ids"] or [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else 1]
    seeds = [int(seed) * 100_000 + i for i in range(int(count))]
    ends = models.end_ids(source, tokenizer)
    made = answers.sampled(loaded, tokenizer, [first] * len(seeds), frozenset(ends), 192, 1.0, seeds, CPU)
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in made]
    Path(file).write_text("".join(json.dumps({"text": t}) + "\n" for t in texts if len(t) > 20), encoding="utf-8")


def encoded(model: str, file: str, most: int, loss_on: str = "assistant") -> list:
    source = given(model)
    tokenizer = models.tokenizer(source)
    data = read.read(given(file, "dataset"))
    part = rows.of("rows", data.form, list(data)[:most])
    ends = models.end_ids(source, tokenizer)
    return chat.encode(part, tokenizer, loss_on=loss_on, max_length=LENGTH, ends=ends, too_long="cut_end", allow_truncation=True).examples


class Dense:
    """A model in torch."""

    def __init__(self, model: torch.nn.Module):
        self.model = model

    @torch.no_grad()
    def logits(self, ids: list[int]) -> torch.Tensor:
        return self.model(torch.tensor([ids])).logits[0].float()

    @torch.no_grad()
    def rate(self, prompt: list[int], batch: int) -> float:
        ids = torch.tensor([prompt] * batch)
        self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
        started = time.process_time()
        self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
        return batch * TOKENS / (time.process_time() - started)


def together(llama, prompt: list[int], count: int) -> float:
    """Tokens a CPU-second of so many equal requests that llama.cpp decodes greedily at once, one thread."""
    lib, run = llama.lib, llama.lib.llama_context_default_params()
    run.n_ctx, run.n_batch, run.n_ubatch, run.n_seq_max = count * (len(prompt) + TOKENS + 32), count * len(prompt), count * len(prompt), count
    run.n_threads = run.n_threads_batch = 1
    context, batch = lib.llama_init_from_model(llama.model, run), lib.llama_batch_init(count * len(prompt), 0, 1)

    def step(rows: list[list[int]], at: int) -> list[int]:
        batch.n_tokens, asked = 0, []
        for request, ids in enumerate(rows):
            for k, token in enumerate(ids):
                i = batch.n_tokens
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, at + k, 1, k == len(ids) - 1
                batch.seq_id[i][0] = request
                batch.n_tokens += 1
            asked.append(batch.n_tokens - 1)
        assert lib.llama_decode(context, batch) == 0, "llama.cpp could not decode"
        return [int(np.ctypeslib.as_array(lib.llama_get_logits_ith(context, i), (llama.size,)).argmax()) for i in asked]

    def write(most: int) -> list[list[int]]:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        rows = [[token] for token in step([prompt] * count, 0)]
        for at in range(len(prompt), len(prompt) + most - 1):
            for row, token in zip(rows, step([r[-1:] for r in rows], at), strict=True):
                row.append(token)
        return rows

    write(4)
    started = time.process_time()
    rows = write(TOKENS)
    took = time.process_time() - started
    alone = llama.greedy([prompt], TOKENS, frozenset())[0]
    assert all(row == alone[:TOKENS] for row in rows), "decoded together, requests answer otherwise than alone"
    lib.llama_batch_free(batch)
    lib.llama_free(context)
    return count * TOKENS / took


def in_memory(model: str, way: str, calibration: list[list[int]], group: int) -> torch.nn.Module:
    """gptq* and rtn*: the same algebra as the step's, put back into a dense model."""
    kind, _, bits = way.partition("*-")
    opened = Blocks(Path(model), CPU, torch.float32, torch.float32)
    dense = models.load(given(model), CPU, dtype=torch.float32)
    batches = opened.enter(calibration)
    for i in range(len(opened.list)):
        with opened.block(i):
            for names in walking.groups(opened, i, batches[0]):
                factor = gptq.factor(walking.hessian(opened, i, names[0], batches), damping=0.01, act_order=True)
                for name in names:
                    module = opened.linear(i)[name]
                    weight = module.weight.data
                    grid = Grid(int(bits), group if group == -1 or weight.shape[1] % group == 0 else -1, True)
                    made = gptq.gptq(weight, factor, grid) if kind == "gptq" else gptq.rtn(weight, grid)
                    module.weight.data = made.dense()
                    dense.get_submodule(name).weight.data = made.dense()
            for batch in batches:
                batch.hidden = opened.run(i, batch)
    return dense


def measure(model: str, place: str, way: str, held_out: str, calibration: str, samples: str, group: str) -> None:
    examples = encoded(model, held_out, ROWS)
    size = sum(f.stat().st_size for pattern in ("*.safetensors", "*.gguf") for f in Path(place).glob(pattern)) / 1e6
    if way.startswith("gguf"):
        from slmkit.ml.export.llama import Llama

        runtime = Llama(next(Path(place).glob("*.gguf")), LENGTH + TOKENS, 1)
        speeds = {"tok/s at 1": together(runtime, examples[0].input_ids[:32], 1), "at 8": together(runtime, examples[0].input_ids[:32], 8)}
    else:
        if "*" in way:
            loaded = in_memory(model, way, [e.input_ids for e in encoded(model, calibration, int(samples), "all")], int(group))
        else:
            loaded = models.load(given(place), CPU, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}.get(way))
        runtime = Dense(loaded)
        speeds = {"tok/s at 1": runtime.rate(examples[0].input_ids[:32], 1), "at 8": runtime.rate(examples[0].input_ids[:32], 8)}
    nats = tokens = 0.0
    for example in examples:
        logs = runtime.logits(example.input_ids).log_softmax(-1)
        for start, end in example.spans:
            for at in range(max(start, 1), end):
                nats, tokens = nats - logs[at - 1, example.ids[at]].item(), tokens + 1
    mean = nats / tokens
    print(json.dumps({"MB": size, "perplexity": float(torch.tensor(mean, dtype=torch.float64).exp()), "nats": mean} | speeds))


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    {"write": write, "measure": measure}[sys.argv[1]](*sys.argv[2:])
