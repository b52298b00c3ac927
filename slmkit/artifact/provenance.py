"""What is recorded beside identity: the machine, the packages, slmkit's own commit. Advice for people; nothing here is hashed."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import slmkit

HEAD = re.compile(r"^(Name|Version): *(\S+)", re.MULTILINE)
MAIN = (
    "torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "accelerate", "lm_eval", "safetensors", "tokenizers", "numpy",
    "gptqmodel",
)


def version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def environment() -> dict:
    """Python, platform, processor, packages, and the GPU if a step has already loaded torch (it is not loaded for this).

    processor, simd: the same sums come out in other bits on a CPU with other vector units.
    """
    found = {"python": platform.python_version(), "platform": platform.platform(), "cpus": os.cpu_count(), "cuda": None, "gpus": []}
    found["processor"] = processor()
    found["packages"] = {name: v for name in MAIN if (v := version(name))}
    torch = sys.modules.get("torch")
    if torch is not None:
        found["threads"] = torch.get_num_threads()
        found["simd"] = torch.backends.cpu.get_cpu_capability()
        if torch.cuda.is_available():
            found["cuda"] = torch.version.cuda
            found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


@functools.cache
def processor() -> str | None:
    """The CPU's name, as the kernel tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
            found = next((line.partition(":")[2].strip() for line in f if line.startswith("model name")), None)
    except OSError:
        found = None
    return found or platform.processor() or platform.machine() or None


@functools.cache
def requirements() -> str:
    """Every installed distribution, pinned, sorted: enough to build this environment again."""
    said = (d.read_text("METADATA") or d.read_text("PKG-INFO") or "" for d in metadata.distributions())
    heads = (dict(reversed(HEAD.findall(text))) for text in said)  # to parse all of each takes nine times as long
    pins = {head["Name"]: head["Version"] for head in heads if len(head) == 2}
    return "".join(f"{name}=={v}\n" for name, v in sorted(pins.items(), key=lambda p: p[0].lower()))


def tool() -> dict:
    """slmkit's version, and its git commit, tree and dirtiness when it runs from a checkout."""
    found = {"slmkit": slmkit.__version__, "commit": None, "tree": None, "dirty": None}
    top = Path(slmkit.__file__).parent.parent
    if (top / ".git").exists():
        try:
            found["commit"] = _git(top, "rev-parse", "HEAD")
            found["tree"] = _git(top, "rev-parse", "HEAD^{tree}")
            found["dirty"] = bool(_git(top, "status", "--porcelain", "--untracked-files=no"))
        except (OSError, subprocess.SubprocessError):
            pass  # no git on this machine, or a checkout without commits: the version alone is recorded
    return found


def _git(top: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(top), *words], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
