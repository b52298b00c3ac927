"""Peers' own scripts as their front pages have them, each run by the Python of its environment: no import of slmkit.

    python jobs.py gptqmodel MODEL ROWS BITS GROUP OUT
    python jobs.py llmcompressor MODEL ROWS BITS GROUP OUT
    python jobs.py nats FOLDER ROWS              # what transformers in that environment makes of a folder, nats a token on the held-out rows

ROWS is the file that `make.py rows` writes. Same bits, groups and damping as slmkit is given, and the most active columns first.
In llm-compressor 0.14 groups stay those of neighbouring columns (its `weight`); "actorder='group' has been removed".
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

DAMPING = 0.01


def gptqmodel(model: str, rows: str, bits: str, group: str, out: str) -> None:
    os.environ["GPTQMODEL_CPU_WORKERS"] = "2"  # read at its import; 7.6 refuses to quantize on two cores without it
    from gptqmodel import GPTQModel, QuantizeConfig

    config = QuantizeConfig(
        bits=int(bits), group_size=int(group), desc_act=True, act_group_aware=False, sym=True, damp_percent=DAMPING, format="gptq", device="cpu"
    )
    loaded = GPTQModel.load(model, config)
    loaded.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in _calibration(rows)], batch_size=1)
    loaded.save(out)


def llmcompressor(model: str, rows: str, bits: str, group: str, out: str) -> None:
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier

    ids = _calibration(rows)
    data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]})
    weights = {"num_bits": int(bits), "type": "int", "symmetric": True, "strategy": "group", "group_size": int(group), "actorder": "weight"}
    recipe = GPTQModifier(config_groups={"group_0": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"], dampening_frac=DAMPING)
    longest = max(map(len, ids))
    oneshot(model=model, dataset=data, recipe=recipe, max_seq_length=longest, num_calibration_samples=len(ids), shuffle_calibration_samples=False,
            output_dir=out)  # fmt: skip


def nats(folder: str, rows: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total = count = 0
    for row in json.loads(Path(rows).read_text())["held_out"]:
        with torch.no_grad():
            logs = model(torch.tensor([row["ids"]])).logits[0].float().log_softmax(-1)
        total, count = total - sum(logs[at - 1, row["ids"][at]].item() for at in row["at"]), count + len(row["at"])
    print(json.dumps({"nats": total / count}))


def _calibration(rows: str) -> list[list[int]]:
    return json.loads(Path(rows).read_text())["calibration"]


if __name__ == "__main__":
    {"gptqmodel": gptqmodel, "llmcompressor": llmcompressor, "nats": nats}[sys.argv[1]](*sys.argv[2:])
