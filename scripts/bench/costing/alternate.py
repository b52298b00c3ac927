"""One process of the cost bench: measures as an eval with `speed:` does, and loads the server, in turns of about a second. Prints one JSON object.

    alternate.py MODEL CLIENTS NEW fixed|own TURNS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil
import torch
from load import NOTES, SKIPPED, load

from slmkit.evidence import cost, timing
from slmkit.evidence.figures import exactly
from slmkit.evidence.oneoff import OneOff
from slmkit.ml import models, speed, speed_http
from slmkit.ml.speed import Ids
from slmkit.ml.writer import Writer
from slmkit.steps._speed import Cost
from slmkit.steps._step import Given

CPU, PRICE, EACH = torch.device("cpu"), 1.0, 2  # batches of a turn's load


def main(model: str, clients: int, new: int, own: bool, turns: int) -> None:
    given = Given("model", "m", "model", model, Path(model))
    tokenizer, loaded = models.tokenizer(given), models.load(given, CPU)
    inside = speed.InProcess(Writer(loaded, tokenizer, CPU), frozenset(models.end_ids(given, tokenizer)) if own else frozenset())
    prompts = asked(tokenizer)
    with speed_http.served(given, own, clients, "cpu") as client:
        (server,) = psutil.Process().children()
        found: dict[str, list[timing.Batch]] = {"http": [], "process": []}
        loads, used = [], {"http": 0.0, "load": 0.0}
        for turn in range(turns + 1):
            if turn == 1:  # the first one is not counted
                found, loads, used = {"http": [], "process": []}, [], {"http": 0.0, "load": 0.0}
            some = [prompts[(turn * clients + i) % len(prompts)] for i in range(clients)]
            for name in ("http", "process", "load") if turn % 2 else ("load", "process", "http"):
                before = sum(server.cpu_times()[:2])
                if name == "load":
                    loads.append(load(client.url.geturl(), "measured", clients, EACH * clients, new, own, turn * EACH * clients))
                else:
                    found[name].append((client if name == "http" else inside)(some, new))
                if name in used:
                    used[name] += sum(server.cpu_times()[:2]) - before
    print(json.dumps(compared(found, loads, used, clients, own)))


def asked(tokenizer) -> list[Ids]:
    notes = [json.loads(line)["note"] for line in NOTES.read_text(encoding="utf-8").splitlines()[:SKIPPED]]
    texts = [tokenizer.apply_chat_template([{"role": "user", "content": n}], tokenize=False, add_generation_prompt=True) for n in notes]
    return [tuple(i) for i in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def compared(found: dict[str, list[timing.Batch]], loads: list[dict], used: dict[str, float], clients: int, own: bool) -> dict:
    """US dollars a million tokens of the load, as measured and as reckoned from each runtime's speed; and the server's CPU seconds a token."""
    read, wrote = (sum(one[k] for one in loads) / len(loads) / EACH / clients for k in ("read", "wrote"))
    out: dict = {"answers": wrote}
    out["measured"] = timing.quantile([one["seconds"] * PRICE / 3600 / (one["read"] + one["wrote"]) * 1e6 for one in loads])
    for name, batches in found.items():
        record = {"asked": {"own_ends": own}, "curve": timing.curve({clients: batches})}
        said = Cost(usd_per_hour=PRICE, input_tokens=read, output_tokens=wrote)
        out[name] = cost.reckon(record, said, OneOff(exactly(0.0))).figures["usd_per_million_tokens"].record()
    tokens = {"http": sum(sum(b.read) + sum(b.wrote) for b in found["http"]), "load": sum(one["read"] + one["wrote"] for one in loads)}
    return out | {"cpu ratio": used["http"] / tokens["http"] / (used["load"] / tokens["load"])}


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, clients, new, own, turns = sys.argv[1:]
    main(name, int(clients), int(new), own == "own", int(turns))
