"""A way to run the real command line, and four step kinds that are installed from outside the package and need no torch."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Cli:
    """Runs `python -m slmkit` in a folder, with extra import paths."""

    folder: Path
    paths: tuple[Path, ...] = ()

    def environment(self, **extra: str) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if k not in ("CI", "GITHUB_ACTIONS", "SLMKIT_STORE", "PYTHONPATH")}
        return clean | {"PYTHONPATH": os.pathsep.join(map(str, [*self.paths, ROOT])), "OMP_NUM_THREADS": "1"} | extra

    def __call__(self, *words: object, stdin: str | None = None, timeout: float = 300, **env: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "slmkit", *map(str, words)]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment(**env), input=stdin, capture_output=True, text=True, timeout=timeout,
            stdin=subprocess.DEVNULL if stdin is None else None,
        )

    def start(self, *words: object, **env: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "slmkit", *map(str, words)]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment(**env), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True, start_new_session=True)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path


TOY = '''
"""Count lines into a file, slowly if asked.

A kind that lives outside the package.
"""
import os, time
from typing import Annotated, Literal
from pydantic import Field
from slmkit.steps._step import StepConfig, StepExecution, Takes, Result, Card, Check

VERSION = 1
TAKES = {"source": Takes("dataset", optional=True)}
GIVES = "dataset"

class Config(StepConfig):
    source: str | None = None
    """Rows to copy first."""
    count: Annotated[int, Field(ge=1, le=100000)] = 5
    """How many lines to add."""
    word: Literal["a", "b"] = "a"
    """What a line says."""
    lowest: int = 0
    """Fewer lines than this fail the step's own check."""

class Execution(StepExecution):
    pause: float = 0.0
    """Seconds to sleep after each line."""
    chatter: bool = False
    """Print to stdout and stderr."""
    fail: bool = False
    """Break on purpose."""

def run(ctx, config):
    if ctx.execution.chatter:
        print("chatter on stdout", flush=True)
        os.system("echo native chatter; echo native noise >&2")
    if ctx.execution.fail:
        raise RuntimeError("asked to fail")
    state, source = ctx.state / "lines.txt", ctx.inputs["source"]
    path = source and (source.path / "lines.txt" if source.path.is_dir() else source.path)
    if not state.exists() and source:
        state.write_bytes(path.read_bytes())
    start = len(state.read_text().splitlines()) if state.exists() else 0
    total = config.count + (len(path.read_text().splitlines()) if source else 0)
    for i in range(start, total):
        with open(state, "a") as f:
            f.write(f"{config.word} {i}\\n")
        ctx.progress(i + 1, total, "counting")
        time.sleep(ctx.execution.pause)
    (ctx.out / "lines.txt").write_bytes(state.read_bytes())
    ctx.log("counted", total=total, resumed_at=start)
    enough = Check("enough", total >= config.lowest, f"{total} lines, at least {config.lowest} are wanted")
    return Result({"lines": total, "resumed_at": start}, Card({"tags": ["toy"]}, "# Lines"), checks=(enough,) if config.lowest else ())
'''


PEEK = '''
"""Copy a model's config.json."""
from slmkit.steps._step import StepConfig, StepExecution, Takes, Result

VERSION = 1
TAKES = {"model": Takes("model")}
GIVES = "dataset"

class Config(StepConfig):
    model: str
    """The model."""

class Execution(StepExecution):
    pass

def run(ctx, config):
    (ctx.out / "config.json").write_bytes((ctx.inputs["model"].path / "config.json").read_bytes())
    return Result({"revision": ctx.inputs["model"].revision})
'''


ODD = '''
"""Do one odd thing."""
import sys
from typing import Annotated
from slmkit.steps._fields import DataRef
from slmkit.steps._step import StepConfig, StepExecution, Takes, Result

VERSION = 1
TAKES = {"data": Takes("dataset", optional=True)}
GIVES = "dataset"

class Config(StepConfig):
    data: DataRef | None = None
    """Rows."""
    leave: bool = False
    """Call sys.exit(0)."""
    refuse: str | None = None
    """Raise RecipeError, of this key."""

class Execution(StepExecution):
    pass

def run(ctx, config):
    if config.leave:
        sys.exit(0)
    if config.refuse:
        from slmkit.errors import Problem, RecipeError
        raise RecipeError([Problem(f"{config.refuse}: cannot be", mend="change it")])
    given = ctx.inputs["data"]
    (ctx.out / "x.txt").write_text("x")
    return Result({"columns": given.columns.model_dump(exclude_defaults=True, exclude={"path"}) if given and given.columns else None})
'''


GAUGE = '''
"""Write weights drawn by a seed, and scores."""
import time
from typing import Literal
from slmkit.steps._step import StepConfig, StepExecution, Takes, Result

VERSION = 1
TAKES = {"below": Takes("model", optional=True), "seen": Takes("dataset", many=True, optional=True, witness=True)}
GIVES = "model"

class Config(StepConfig):
    below: str | None = None
    """Weights to add to."""
    seed: int = 0
    """Of the draw."""
    claims: Literal["exact", "seeded", "none"] = "seeded"
    """What is claimed of its bytes."""

class Execution(StepExecution):
    pass

def run(ctx, config):
    import numpy as np
    from safetensors.numpy import load_file, save_file
    draw, below = np.random.default_rng(config.seed), ctx.inputs["below"]
    names = ("model.embed_tokens", "model.layers.0.mlp", "model.layers.10.mlp", "model.layers.2.mlp", "model.norm")
    tensors = {f"{n}.weight": draw.standard_normal((4, 8)).astype("float32") for n in names}
    tensors |= {"model.layers.2.codes": draw.integers(0, 99, (4, 4), dtype="int32")}
    for name, more in (load_file(below.path / "model.safetensors").items() if below else ()):
        tensors[name] = tensors[name] + more
    save_file(tensors, ctx.out / "model.safetensors")
    (ctx.out / "config.json").write_text(\'{"transformers_version": "5.0", "layers": 11}\')
    scores = {"m": {"t": {"acc": 0.8, "acc_stderr": 0.05}}}
    values = {"scores": scores, "some_loss": 2.0, "rows": 100, "max_kl": 0.1, "speed": {"seconds": time.time()}}
    values["seen"] = len(ctx.inputs.get("seen") or ())
    return Result(values, determinism=config.claims, seed=config.seed)
'''
