"""What must hold of training on this machine, tried on the embedded student: `slmkit doctor --deep` runs this in a process of its own.

Each row says what was compared, how far apart it came out, and how far apart it may be.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from slmkit.data import read
from slmkit.ml import batches, chat, loss, models
from slmkit.steps import _registry
from slmkit.steps._step import Context, Given

CONFIG = {
    "model": "m", "data": "d", "method": "lora", "lora": {"r": 8}, "max_steps": 3, "batch_size": 8, "max_length": 256, "precision": "fp32",
    "learning_rate": 1e-3,
}  # fmt: skip


class _Killed(Exception):
    """Stands for a kill in mid-run."""


class Trials:
    """Trains the student a few steps in folders below `root`."""

    def __init__(self, root: Path, model: Path, rows: Path):
        self.root, self.count = root, 0
        self.model = Given("model", "student", "model", "demo:student", model)
        self.data = Given("data", "train", "dataset", "demo:train", rows)

    def train(self, config: dict | None = None, execution: dict | None = None, home: Path | None = None, kill_at: int | None = None):
        """(adapter tensors, adapter bytes, result values) of one training."""
        self.count += 1
        home = home or self.root / str(self.count)
        for folder in ("out", "state"):
            (home / folder).mkdir(parents=True, exist_ok=True)

        def log(event: str, **fields) -> None:
            if event == "step" and fields["step"] == kill_at:
                raise _Killed

        module = _registry.load("train").module
        inputs = {"model": self.model, "data": (self.data,), "validation": None, "tasks": ()}
        ctx = Context(home / "out", home / "state", inputs, module.Execution(device="cpu", **(execution or {})), log, lambda *a, **k: None, str)
        result = module.run(ctx, module.Config(**CONFIG | (config or {})))
        file = home / "out" / "adapter_model.safetensors"
        return load_file(file), file.read_bytes(), result.values


def apart(one: dict, other: dict) -> float:
    return max((one[k] - other[k]).abs().max().item() for k in one)


def packed(trials: Trials) -> float:
    """Largest difference of a row's mean loss between alone and in a pack with two others, nats."""
    tokenizer, where = models.tokenizer(trials.model), torch.device("cpu")
    ends = models.end_ids(trials.model, tokenizer)
    rows = chat.encode(read.read(trials.data), tokenizer, loss_on="assistant", max_length=256, ends=ends).examples[:12]
    model = models.load(trials.model, where, dtype=torch.float32)
    alone = [loss.mean(model, [r], where, torch.float32) * r.trained for r in rows]
    worst = 0.0
    with torch.no_grad():
        for i in range(0, len(rows), 3):
            together = loss.summed(model, batches.pack(rows[i : i + 3]), loss.keeps_logits(model)).item()
            worst = max(worst, abs(together - sum(alone[i : i + 3])) / sum(r.trained for r in rows[i : i + 3]))
    return worst


def measure(trials: Trials):
    """Rows (what, how far apart, bound)."""
    yield "packed rows have the loss they have alone (nats)", packed(trials), 1e-5
    whole, first_bytes, values = trials.train(execution={"micro_batch": 8})
    halves, *_ = trials.train(execution={"micro_batch": 4})
    single, *_ = trials.train(execution={"micro_batch": 1})
    one_pack, *_ = trials.train(execution={"micro_batch": 8, "packing": "on"})
    yield "batch 8 = 2 × 4 = 8 × 1, on weights after 3 steps", max(apart(whole, halves), apart(whole, single)), 1e-5
    yield "packed = padded, on weights after 3 steps", apart(whole, one_pack), 1e-5
    torch.manual_seed(999)
    _, again, _ = trials.train(execution={"micro_batch": 8})
    yield "the same seed gives the same bytes", float(again != first_bytes), 0.0
    home, longer = trials.root / "killed", {"max_steps": 6}
    try:
        trials.train(longer, {"checkpoint_every": 2}, home, kill_at=5)
    except _Killed:
        pass
    _, resumed, _ = trials.train(longer, {"checkpoint_every": 2}, home)
    _, straight, _ = trials.train(longer, {"checkpoint_every": 2})
    yield "stopped and resumed = uninterrupted, in bytes", float(resumed != straight), 0.0
    two, _, shared = trials.train(execution={"micro_batch": 4, "processes": 2})
    yield "2 processes = 1, in loss", abs(shared["train_loss"] - values["train_loss"]), 1e-4


def main(model: str, rows: str) -> None:
    """Print a JSON list of {what, apart, bound, ok}."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="slmkit-deep-") as root:
        found = [{"what": w, "apart": a, "bound": b, "ok": a <= b} for w, a, b in measure(Trials(Path(root), Path(model), Path(rows)))]
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
