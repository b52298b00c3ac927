"""The environments of other quantizers, each in a folder of its own under a cache, and how their scripts are called.

torch is installed first and stays: gptqmodel 7.7 and newer want a CUDA build of another one. gptqmodel and five of its needs come as source,
one of them C (a compiler); auto-gptq 0.7.1 is archived, and this is the newest company in which it loads on a CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONSTRAINTS = HERE.parents[2] / "constraints.txt"
TORCH = ["torch==2.13.0", "numpy<2.3", "setuptools", "wheel", "packaging", "ninja"]
WANTED = {  # what pip is asked for, one call after another
    "gptqmodel": [["-c", str(CONSTRAINTS), "gptqmodel>=7.6,<7.7", "optimum", "transformers", "accelerate", "torch==2.13.0"]],
    "llmcompressor": [["llmcompressor==0.14.0.1", "torch==2.13.0"]],
    "auto-gptq": [
        ["torch==2.13.0", "numpy<2.3", "transformers==4.57.6", "peft==0.14.0", "accelerate", "datasets", "safetensors"],
        ["--no-build-isolation", "--no-deps", "auto-gptq==0.7.1", "rouge", "gekko", "sentencepiece", "six"],
    ],
}
JOBS = ("gptqmodel", "llmcompressor")  # those that quantize on a CPU; auto-gptq does on CUDA alone
READERS = {"auto-gptq": "auto-gptq", "gptqmodel": "gptqmodel", "transformers": "gptqmodel"}  # and whose environment each runs in


def python(cache: Path, name: str) -> Path:
    return cache / name / "bin/python"


def setup(cache: Path, name: str) -> None:
    """Make the environment where there is none; what fails says so in pip's words."""
    if (cache / name / "made").exists():
        return
    print(f"environment of {name} …", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", cache / name], check=True)
    pip = [python(cache, name), "-m", "pip", "install", "--quiet"]
    for wanted in (TORCH, *WANTED[name]):
        subprocess.run([*pip, *wanted], check=True, env=os.environ | {"BUILD_CUDA_EXT": "0"})
    (cache / name / "made").touch()


def env(cache: Path, name: str) -> dict[str, str]:
    """As its users would have it, with the environment's programs (ninja, for gptqmodel's C++) on the path."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    path = f"{python(cache, name).parent}:{os.environ['PATH']}"
    return kept | {"PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "DO_NOT_TRACK": "1"}


def job(cache: Path, name: str, *words: str) -> list[str]:
    return [str(python(cache, name)), str(HERE / "jobs.py"), *words]


def warmed(cache: Path, name: str, words: list[str], out: Path) -> None:
    """Run a job once unmeasured: the first of gptqmodel compiles C++, and bytecode is written."""
    if not (cache / name / "warm").exists():
        subprocess.run([*words[:-1], str(out)], check=True, env=env(cache, name), capture_output=True)
        (cache / name / "warm").touch()


def logits(cache: Path, reader: str, folder: Path, ids: Path) -> dict:
    """What a reader makes of a folder, or {"failed": its last words}."""
    home = READERS[reader]
    done = subprocess.run([python(cache, home), HERE / "interop.py", reader, folder, ids], env=env(cache, home), capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])
