"""slmkit started several times at once, by torchrun on two nodes or by srun: one world, one artifact, one line."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slmkit.errors import CannotRun
from slmkit.steps import _world

RECIPE = """
recipe: r
base: {model}
steps:
  sft: {{kind: train, model: $base, data: {data}, method: lora, max_steps: {steps}, batch_size: 8, max_length: 64, precision: fp32,
        execution: {{checkpoint_every: 2}}}}
"""


def recipe(root: Path, model: Path, data: Path, steps: int = 3) -> Path:
    file = root / "r.yaml"
    file.write_text(RECIPE.format(model=model, data=data, steps=steps))
    return file


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(root: Path, count: int, command) -> list[subprocess.Popen]:
    """`command(i)` gives the arguments and the environment of the i-th."""
    out = []
    for i in range(count):
        args, env = command(i)
        base = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "TORCHELASTIC"))}
        base |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
        out.append(subprocess.Popen([sys.executable, *args], cwd=root, env=base | env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    return out


def srun(root: Path, count: int, *args: str) -> list[subprocess.Popen]:
    """As srun starts them: no launcher in between, and its variables."""
    port = str(free_port())
    shared = {"SLURM_STEP_NUM_TASKS": str(count), "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": port}
    return start(root, count, lambda i: (["-m", "slmkit", *args], shared | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}))


def ended(children: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each."""
    said = [c.communicate(timeout=300) for c in children]
    return [(c.returncode, *words) for c, words in zip(children, said, strict=True)]


def test_torchrun_on_two_nodes_makes_one_artifact(tmp_path, tiny, rows_file):
    """Two launchers of one process each, meeting at a port: as on two machines, one store between them."""
    file, port = recipe(tmp_path, tiny, rows_file), free_port()

    def node(i: int) -> tuple[list[str], dict]:
        launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(i), "--nproc-per-node", "1"]
        return [*launcher, "--master-addr", "127.0.0.1", "--master-port", str(port), "-m", "slmkit", "train", str(file), "--json"], {}

    (a, first, story), (b, second, silent) = ended(start(tmp_path, 2, node))
    assert (a, b) == (0, 0), story + silent
    assert second == "" and "sft: done" in story and "sft:" not in silent
    made = json.loads(first)
    (manifest,) = tmp_path.glob("artifacts/*/.slmkit/manifest.json")
    assert json.loads(manifest.read_text())["determinism"]["claimed"] == "seeded"  # two took part; alone it is exact
    assert Path(made["path"]) == manifest.parents[1] and not made["cached"]
    assert [p.name for p in (tmp_path / "artifacts/.work").iterdir() if p.is_dir()] == []
    again = ended(srun(tmp_path, 2, "train", str(file), "--json"))
    assert [c for c, *_ in again] == [0, 0] and json.loads(again[0][1])["cached"] and again[1][1] == ""


def test_all_end_with_the_code_of_the_first(tmp_path, tiny, rows_file):
    file = recipe(tmp_path, tiny, rows_file)
    said = ended(srun(tmp_path, 2, "train", str(file), "--set", "steps.sft.nope=1"))
    assert [c for c, *_ in said] == [2, 2] and "nope" in said[0][2] and "nope" not in said[1][2]
    said = ended(srun(tmp_path, 2, "train", str(file), "--set", "steps.sft.execution.processes=2"))
    assert [c for c, *_ in said] == [2, 2] and "execution.processes: 2 would start more" in said[0][2]


def test_a_lost_worker_elsewhere_ends_all_and_is_named(tmp_path, tiny, rows_file):
    children = srun(tmp_path, 2, "train", str(recipe(tmp_path, tiny, rows_file, 400)))
    until = time.monotonic() + 120
    while not list(tmp_path.glob("artifacts/.work/*/state/checkpoints/checkpoint-*/slmkit-checkpoint.json")) and time.monotonic() < until:
        time.sleep(0.1)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            env, words = (Path(f"/proc/{pid}/{f}").read_bytes().split(b"\0") for f in ("environ", "cmdline"))
        except OSError:
            continue
        if b"RANK=1" in env and b"slmkit.ml.launch" in words and any(str(tmp_path).encode() in w for w in words):
            os.kill(int(pid), signal.SIGKILL)
    (a, _, story), (b, _, _) = ended(children)
    assert (a, b) == (1, 1) and "process 1 was lost (it ended with code -9 on" in story, story
    assert "goes on from the last checkpoint" in story


def test_who_was_started_with_others(monkeypatch):
    for name in [*_world.ENV, "SLURM_STEP_NUM_TASKS", "SLMKIT_LAUNCH"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "4")  # in a batch script, before any srun
    assert _world.member() is None
    said = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "gpu[03-05,9],login", "SLURM_JOB_ID": "7"}
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert _world.member() == _world.Member(2, 4, 0, "gpu03", 15007)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CannotRun, match="LOCAL_RANK and MASTER_ADDR and MASTER_PORT not set"):
        _world.member()
    assert [_world.first_node(n) for n in ("a", "a,b", "n[1,4]", "n1-[07-09]")] == ["a", "a", "n1", "n1-07"]
