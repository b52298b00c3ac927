"""What the quantize bench gives to its contenders: rows as token ids, models made on the fly; and slmkit's quantizing without its certificate.

    PYTHONPATH=. .venv/bin/python scripts/bench/quantizing/make.py random OUT            # 86M parameters, for time and memory alone
    PYTHONPATH=. .venv/bin/python scripts/bench/quantizing/make.py untied MODEL OUT      # the same model with an output layer of its own
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import measure
import torch

from slmkit.ml import models

ROOT = Path(__file__).resolve().parents[3]
TEACHER = ROOT / "slmkit/demo/teacher"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def rows(model: str, calibration: str, samples: str, held_out: str, out: str) -> None:
    """The very ids that slmkit calibrates on, in its order; held-out rows with the places whose tokens are measured."""
    from slmkit.data import calibration as drawing
    from slmkit.data import read
    from slmkit.ml import chat

    source = measure.given(model)
    tokenizer = models.tokenizer(source)
    drawn = drawing.draw(read.read(measure.given(calibration, "dataset"), seed=0), int(samples), 0)
    settings = {"loss_on": "all", "max_length": 1024, "too_long": "cut_end", "allow_truncation": True}
    encoded = chat.encode(drawn, tokenizer, ends=models.end_ids(source, tokenizer), **settings).examples
    held = [
        {"ids": list(e.input_ids), "at": [at for start, end in e.spans for at in range(max(start, 1), end)]}
        for e in measure.encoded(model, held_out, measure.ROWS)
    ]
    Path(out).write_text(json.dumps({"calibration": [list(e.input_ids) for e in encoded], "held_out": held}), encoding="utf-8")


def random(out: str) -> None:
    """A Llama of 86M parameters with random weights, and norms that swing as those of trained models do."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=12,
        max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for name, value in model.named_parameters():
        if "norm" in name:
            value.data = torch.exp(0.5 * torch.randn_like(value))
    model.to(torch.bfloat16).save_pretrained(out)
    for name in TOKENIZER:
        shutil.copy(TEACHER / name, out)


def untied(model: str, out: str) -> None:
    """An output layer of its own, a little off the embedding, so that a reader that ties the two is found out."""
    torch.manual_seed(0)
    loaded = models.load(measure.given(model), measure.CPU)
    own = loaded.get_input_embeddings().weight.detach()
    loaded.config.tie_word_embeddings = False
    loaded.lm_head.weight = torch.nn.Parameter(own + 0.05 * own.std() * torch.randn_like(own))
    loaded.save_pretrained(out)
    for name in TOKENIZER:
        if (Path(model) / name).is_file():
            shutil.copy(Path(model) / name, out)


def bare(model: str, calibration: str, samples: str, bits: str, group: str, out: str) -> None:
    """`quantize` with its certificate left out. No key of a recipe does that; the comparison with rounding on rows held out is still in."""
    from slmkit.ml import fidelity
    from tests.support.drive import Driver, given

    fidelity.certified = lambda ctx, said, usual, probed, before, work, after: work(None, None)
    with tempfile.TemporaryDirectory() as place:
        driver = Driver(Path(place))
        config = {"model": "m", "method": "gptq", "bits": int(bits), "group_size": int(group), "act_order": True}
        inputs = {"model": given(Path(model), "model"), "calibration": given(Path(calibration), "dataset", "calibration")}
        driver.run("quantize", config | {"calibration": "c", "samples": int(samples)}, inputs)
        shutil.copytree(driver.out, out)
    print(json.dumps({"path": out}))


def logits(folder: str, file: str) -> None:
    """A folder as slmkit reads it, in fp32, on rows of ids: what others' readings are compared with."""
    runtime = measure.Dense(models.load(measure.given(folder), measure.CPU, dtype=torch.float32))
    print(json.dumps([runtime.logits(row).tolist() for row in json.loads(Path(file).read_text())]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"rows": rows, "random": random, "untied": untied, "bare": bare, "logits": logits}[sys.argv[1]](*sys.argv[2:])
