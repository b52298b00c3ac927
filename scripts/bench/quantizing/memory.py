"""Peak memory of quantizing a random Llama in bf16 (198M parameters, or TinyLlama's shape of 1.1B), two threads, with and without the certificate.

    PYTHONPATH=. OMP_NUM_THREADS=2 .venv/bin/python scripts/bench/quantizing/memory.py rtn            # or gptq: minutes
    PYTHONPATH=. OMP_NUM_THREADS=2 .venv/bin/python scripts/bench/quantizing/memory.py rtn --bare     # no certificate
    PYTHONPATH=. OMP_NUM_THREADS=2 .venv/bin/python scripts/bench/quantizing/memory.py gptq --1b      # half an hour
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers.models.llama.modeling_llama  # noqa: F401 (counted among the imports)
from transformers import LlamaConfig, LlamaForCausalLM

from slmkit.ml import fidelity, quantize  # noqa: F401 (the second is counted among the imports)
from tests.ml.conftest import chats, make_tokenizer, write_jsonl
from tests.support.drive import Driver, given

SMALL = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 14, "num_attention_heads": 16, "num_key_value_heads": 8}
LARGE = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4}


def made(folder: Path, shape: dict) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32000, max_position_embeddings=1024, tie_word_embeddings=shape is SMALL, eos_token_id=2, pad_token_id=3,
                         bos_token_id=None, dtype="bfloat16", **shape)  # fmt: skip
    LlamaForCausalLM._from_config(config).save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def peak() -> float:
    """MB, of this program alone: getrusage would count the process that started it."""
    said = Path("/proc/self/status").read_text()
    return int(said.partition("VmHWM:")[2].split()[0]) / 1024


def main() -> None:
    method, bare = sys.argv[1], "--bare" in sys.argv
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        if "--child" not in sys.argv:  # the model is made in a process of its own, whose memory is not counted
            made(root / "m", LARGE if "--1b" in sys.argv else SMALL)
            write_jsonl(root / "rows.jsonl", chats(200))
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--child", str(root)], check=True)
            return
        torch.set_num_threads(2)
        home, before = Path(sys.argv[-1]), peak()
        if bare:
            fidelity.certified = lambda ctx, said, usual, probed, before, work, after: work(None, None)
        inputs, config = {"model": given(home / "m", "model")}, {"model": "m", "method": method, "group_size": 128}
        if method == "gptq":
            inputs["calibration"] = given(home / "rows.jsonl", "dataset", "calibration")
            config |= {"calibration": "c", "samples": 32}
        Driver(root).run("quantize", config | {"fidelity": {"mean_kl": 99.0, "perplexity": 1e9, "ended": 1.0}}, inputs)
        print(f"{method}{' bare' if bare else ''}: peak {peak():.0f} MB, {peak() - before:.0f} MB above the imports")


if __name__ == "__main__":
    main()
