"""One folder of ours as another toolkit reads it: its logits on rows of ids, as JSON. Run by the Python of that toolkit's environment.

    python interop.py auto-gptq FOLDER IDS          # IDS: a JSON list of lists of ids
    python interop.py gptqmodel FOLDER IDS
    python interop.py transformers FOLDER IDS       # with gptqmodel and optimum beside it

auto-gptq 0.7.1 has accelerate load into memory that nothing has initialised, and accelerate then ties a tied pair to the first name of the two,
`lm_head.weight`, which the file does not hold: embedding and output layer are whatever lay in that memory, of every tied model, gptqmodel's
too, with accelerate 0.28 to 1.15. So what the file holds of them is filled in here once more, and `mended` says whether it had to be.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

import torch


def autogptq(folder: str) -> tuple[torch.nn.Module, bool]:
    from auto_gptq import AutoGPTQForCausalLM
    from safetensors import safe_open

    model = AutoGPTQForCausalLM.from_quantized(folder, use_safetensors=True, device="cpu", torch_dtype=torch.float32).model
    embedding = model.get_input_embeddings().weight
    name = next(n for n, p in model.named_parameters() if p is embedding)
    for file in Path(folder).glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            if name in opened.keys():
                stored = opened.get_tensor(name).float()
    mended = not torch.equal(embedding.data, stored)
    embedding.data.copy_(stored)
    return model, mended


def gptqmodel(folder: str) -> tuple[torch.nn.Module, bool]:
    os.environ["GPTQMODEL_CPU_WORKERS"] = "2"
    from gptqmodel import BACKEND, GPTQModel

    # its torch kernel takes 16 bits alone
    return GPTQModel.load(folder, device="cpu", backend=BACKEND.TORCH, dtype=torch.float16).model, False


def transformers(folder: str) -> tuple[torch.nn.Module, bool]:
    os.environ["GPTQMODEL_CPU_WORKERS"] = "2"
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu").eval(), False


def main() -> None:
    reader, folder, ids = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr):  # banners
        model, mended = {"auto-gptq": autogptq, "gptqmodel": gptqmodel, "transformers": transformers}[reader](folder)
        with torch.no_grad():
            found = [model(torch.tensor([row])).logits[0].float().tolist() for row in json.loads(Path(ids).read_text())]
    print(json.dumps({"mended": mended, "logits": found}))


if __name__ == "__main__":
    main()
