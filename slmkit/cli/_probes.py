"""What has to be run to be believed, each in a process of its own: `start` one, `finish` it for what it found.

A library that crashes, hangs or prints while it is imported then becomes an answer, and not the end of who asked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SECONDS = 600  # an import of torch and bitsandbytes on a loaded machine takes tens


def start(name: str) -> subprocess.Popen:
    """Begin the function of this name in a process of its own, from the same Python and the same slmkit."""
    return _start(["-c", f"from slmkit.cli import _probes; _probes.{name}()"])


def start_module(name: str, *words: str) -> subprocess.Popen:
    """Begin a module of slmkit in a process of its own."""
    return _start(["-m", name, *words])


def _start(words: list[str]) -> subprocess.Popen:
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(probe: subprocess.Popen) -> dict | list:
    """The JSON of the probe's last line (libraries may print above it), or {"error": why there is none}."""
    try:
        out, err = probe.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        probe.kill()
        probe.communicate()
        return {"error": f"did not answer within {SECONDS} s"}
    if probe.returncode:
        words = err.strip().splitlines()
        return {"error": words[-1][:300] if words else f"ended with code {probe.returncode}"}
    return json.loads(out.strip().splitlines()[-1])


def pytorch() -> None:
    """Builds, threads, GPUs, and bf16 matrix products against fp32's (best of five, same size)."""
    import time

    import torch

    def seconds(dtype: torch.dtype) -> float:
        a, best = torch.ones(768, 768, dtype=dtype), float("inf")
        for _ in range(5):
            started = time.perf_counter()
            a @ a
            best = min(best, time.perf_counter() - started)
        return best

    found = {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip}
    found |= {"threads": torch.get_num_threads(), "bf16": seconds(torch.bfloat16) / seconds(torch.float32), "gpus": []}
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(i)
            bf16 = about.major >= 8 or torch.version.hip is not None
            found["gpus"].append({"name": about.name, "bytes": about.total_memory, "bf16": bf16})
    print(json.dumps(found))


def nf4() -> None:
    """One NF4 layer on the CPU, its quantization error, its forward, and both again afterwards.

    The last matters because bitsandbytes may repack a layer's weights in its first forward, after which they can be neither
    dequantized nor trained on; slmkit switches that off as it is done here.
    """
    import bitsandbytes as bnb
    import torch

    torch.manual_seed(0)
    weight, x = torch.randn(128, 256) * 0.02, torch.randn(4, 256)
    layer = bnb.nn.Linear4bit(256, 128, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layer.load_state_dict({"weight": weight})
    layer = layer.to("cpu").eval()
    layer.support_avx512bf16_for_cpu = False

    def error(a: torch.Tensor, b: torch.Tensor) -> float:
        return ((a.float() - b.float()).norm() / b.float().norm()).item()

    def dense() -> torch.Tensor:
        return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)

    before = dense()
    with torch.no_grad():
        forward = error(layer(x), x @ before.T.float())
    print(json.dumps({"quantization": error(before, weight), "forward": forward, "after": error(dense(), before)}))
