"""Do others read our folders as we do? Logits of auto-gptq, gptqmodel and transformers beside slmkit's in fp32, on the same ids.

auto-gptq runs in fp32 too; gptqmodel's kernel takes fp16 alone, and the one that transformers gets from it rounds its weights to bf16.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import peers

HERE = Path(__file__).resolve().parent
SETTINGS = {
    "gptq 4 bits, act_order": ["--method", "gptq", "--bits", "4", "--act-order"],
    "gptq 3 bits": ["--method", "gptq", "--bits", "3"],
    "rtn 8 bits": ["--method", "rtn", "--bits", "8"],
    "rtn 2 bits, asymmetric": ["--method", "rtn", "--bits", "2", "--no-symmetric"],
}
ROWS = 3


def compared(python: str, cache: Path, model: str, calibration: Path, group: int, rows: Path, work: Path, env: dict) -> list[dict]:
    """One entry a model (as it is, and with an output layer of its own), setting and reader."""
    ids = work / "ids.json"
    ids.write_text(json.dumps([row["ids"] for row in json.loads(rows.read_text())["held_out"][:ROWS]]))
    models = {"as it is": Path(model), "untied": work / "untied"}
    _run([python, HERE / "make.py", "untied", model, models["untied"]], env)
    found = []
    for name, place in models.items():
        for setting, words in SETTINGS.items():
            more = ["--calibration", calibration, "--samples", "64"] if "gptq" in words else []
            bounds = ["--fidelity", "{mean_kl: 99, perplexity: 1e9, ended: 1}"]
            words = ["quantize", place, *words, "--group-size", str(group), *more, *bounds, "--store", work / "store", "--json"]
            folder = Path(json.loads(_run([python, "-m", "slmkit", *words], env))["path"])
            own = json.loads(_run([python, HERE / "make.py", "logits", folder, ids], env))
            for reader in peers.READERS:
                print(f"{name}, {setting}: {reader} …", file=sys.stderr, flush=True)
                found.append({"model": name, "setting": setting, "reader": reader} | _beside(own, peers.logits(cache, reader, folder, ids)))
    return found


def _beside(own: list, other: dict) -> dict:
    """The largest difference of any logit, the largest logit, and the share of places with the same likeliest token."""
    if "failed" in other:
        return other
    pairs = [(a, b) for x, y in zip(own, other["logits"], strict=True) for a, b in zip(x, y, strict=True)]
    apart = max(abs(p - q) for a, b in pairs for p, q in zip(a, b, strict=True))
    same = sum(a.index(max(a)) == b.index(max(b)) for a, b in pairs) / len(pairs)
    return {"apart": apart, "largest": max(abs(p) for a, _ in pairs for p in a), "same": same, "mended": other["mended"]}


def _run(words: list, env: dict) -> str:
    done = subprocess.run([str(w) for w in words], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stderr[-2000:]}")
    return done.stdout


def drawn(found: list[dict]) -> str:
    lines = [f"{'model':<10} {'setting':<24} {'reader':<13} {'apart':>9} {'of':>6} {'top-1':>6}"]
    for row in found:
        head = f"{row['model']:<10} {row['setting']:<24} {row['reader']:<13}"
        mended = "  (embedding filled in after it)" if row.get("mended") else ""
        if "failed" in row:
            lines.append(f"{head} {row['failed'][:90]}")
        else:
            lines.append(f"{head} {row['apart']:>9.2g} {row['largest']:>6.3g} {row['same']:>6.1%}{mended}")
    return "\n".join(lines)
