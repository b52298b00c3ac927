"""Memory does not grow with the data: 60 MB are gone through in a process of their own, whose peak is watched."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SIZE, BOUND = 60 << 20, 30 << 20
ROW = json.dumps({"messages": [{"role": "user", "content": "lorem ipsum " * 40}, {"role": "assistant", "content": "dolor " * 40}]})
CODE = """
import re, sys
from slmkit.data import mixture, read
from slmkit.errors import DataError
from tests.support.drive import given

def peak():  # not ru_maxrss, which begins with what the parent held when it started this process
    return int(re.search("VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

list(read.read(given(sys.argv[1] + ".warm", "dataset"), held=0))  # imports and buffers are not data
before, count = peak(), 0
try:
    data = read.read(given(sys.argv[1], "dataset"), held=1 << 20)
    count = len(data) if sum(1 for _ in data) == len(data) else -1
except DataError as e:
    print(e.problems[0].what[:60], file=sys.stderr)
print(count, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "broken rows", "broken early", "skipped"])
def test_the_peak_does_not_follow_the_size(tmp_path: Path, kind: str) -> None:
    n = SIZE // len(ROW)
    body = {
        "jsonl": lambda: f"{ROW}\n" * n,
        "json": lambda: "[" + ",\n".join([ROW] * n) + "]",
        "csv": lambda: "text\n" + ('"' + ROW.replace('"', '""') + '"\n') * n,
        "broken rows": lambda: f"{ROW[:-1]}\n" * n,
        "broken early": lambda: "[" + ",\n".join([ROW] * 10) + ",\n{'no': 1},\n" + ",\n".join([ROW] * n) + "]",
        "skipped": lambda: f"{ROW}\n{{\n" * n,
    }[kind]()
    suffix = {"jsonl": "jsonl", "csv": "csv", "json": "json", "broken early": "json"}.get(kind, "jsonl")
    path = tmp_path / f"d.{suffix}"
    path.write_text(body)
    (tmp_path / f"d.{suffix}.warm").write_text("[" + ",\n".join([ROW] * 600) + "]")
    code = CODE.replace("held=1 << 20", 'held=1 << 20, on_bad_row="skip"') if kind == "skipped" else CODE
    env = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code, path], env=env, capture_output=True, text=True)
    count, growth = map(int, done.stdout.split())
    assert count == (0 if "broken" in kind else n), done.stderr
    assert growth < BOUND, f"{growth / 1e6:.0f} MB for {path.stat().st_size / 1e6:.0f} MB of data"
