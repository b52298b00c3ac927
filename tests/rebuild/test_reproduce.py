"""`reproduce`: a folder whose script, run where the packages are, builds the chain elsewhere and compares; and says what is not as recorded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from slmkit.artifact import manifest
from slmkit.rebuild import bundle
from tests.support import planted
from tests.support.cli import Cli

CHAIN = """\
recipe: counting
data: {path: data.txt, format: text}
steps:
  one: {kind: toy, source: data.txt, count: 6, execution: {chatter: true}}
  two: {kind: toy, source: $one, count: 4, word: b}
  three: {kind: odd, data: $data}
"""


@pytest.fixture
def kit(toy: Cli) -> Path:
    """What `reproduce --env` wrote of the chain's second step; its environment is this one, so that nothing has to be installed."""
    toy.write("data.txt", "x\ny\n")
    toy.write("r.yaml", CHAIN)
    assert toy("run", "r.yaml", "--set", "steps.two.count=5").returncode == 0
    made = toy("reproduce", "counting/two", "--env", "-o", "kit")
    assert made.returncode == 0 and made.stdout == "kit\n", made.stderr
    folder = toy.folder / "kit"
    assert f"must be at hand: dataset = {toy.folder / 'data.txt'}, sha256" in made.stderr
    (folder / ".venv/bin").mkdir(parents=True)
    path = toy.environment()["PYTHONPATH"]
    for name, module in (("python", ""), ("slmkit", "-m slmkit")):
        script = folder / ".venv/bin" / name
        script.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec {sys.executable} {module} "$@"\n')
        script.chmod(0o755)
    (folder / ".venv/.made").touch()
    return folder


def reproduce(kit: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([kit / "reproduce", *words], capture_output=True, text=True, env=Cli(kit).environment(PYTHON=sys.executable))


def test_the_script_builds_the_chain_and_says_what_is_not_as_recorded(kit: Path, tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data.txt", tmp_path / "moved.txt"
    data.rename(elsewhere)
    gone = reproduce(kit)
    assert gone.returncode == 4 and f"dataset: {data} is not there; sha256 " in gone.stderr and "./reproduce dataset=PATH" in gone.stderr
    done = reproduce(kit, f"dataset={elsewhere}")
    assert done.returncode == 0, done.stderr
    assert "counting/two is reproduced" in done.stderr and done.stdout.count("as recorded") == 2
    assert (kit / "artifacts/refs/counting/two/lines.txt").read_text() == (tmp_path / "artifacts/refs/counting/two/lines.txt").read_text()
    expected = json.loads((kit / "expected.json").read_text())
    expected["steps"]["two"]["digest"], expected["steps"]["two"]["files"]["lines.txt"] = "0" * 64, "0" * 64
    (kit / "expected.json").write_text(json.dumps(expected))
    other = reproduce(kit, f"dataset={elsewhere}")
    assert other.returncode == 3 and "two: lines.txt is the first file that is another" in other.stderr
    expected["steps"]["two"]["claimed"] = "none"  # of a teacher's rows the same is no fault
    (kit / "expected.json").write_text(json.dumps(expected))
    told = reproduce(kit, f"dataset={elsewhere}")
    assert told.returncode == 0 and "lines.txt is the first file that is another" in told.stdout
    elsewhere.write_text("x\nz\n")
    changed = reproduce(kit, f"dataset={elsewhere}")
    assert changed.returncode == 4 and "has sha256" in changed.stderr and "was recorded" in changed.stderr


def test_the_folder_holds_all_that_was_recorded(kit: Path, tmp_path: Path, toy: Cli) -> None:
    two = manifest.load((tmp_path / "artifacts/refs/counting/two").resolve())
    recorded = (two.path / ".slmkit/requirements.txt").read_text().splitlines()
    pinned = [line for line in (kit / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert set(pinned) == {line for line in recorded if not line.startswith(("pip==", "slmkit=="))}
    facts = json.loads((kit / "environment.json").read_text())
    assert facts["environment"] == two.manifest["environment"] and facts["environment"]["processor"] and facts["tool"] == two.manifest["tool"]
    assert json.loads((kit / "manifests/two.json").read_text()) == two.manifest
    assert "count: 5" in (kit / "recipe.yaml").read_text() and "count: 4" in (kit / "original.yaml").read_text()
    assert "asks for the recorded fingerprints" in (kit / "README.md").read_text()
    checked = subprocess.run([kit / ".venv/bin/python", kit / "check.py", "packages"], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    (kit / "requirements.txt").write_text("numpy==0.1\nno-such-thing==1\n")
    checked = subprocess.run([kit / ".venv/bin/python", kit / "check.py", "packages"], capture_output=True, text=True)
    assert checked.returncode == 3 and "numpy: " in checked.stderr and "no-such-thing: not installed" in checked.stderr
    assert toy("reproduce", "counting/two", "--env", "-o", "kit").returncode == 2
    said = toy("reproduce", "counting/two")
    assert said.returncode == 0 and f"digest {two.digest}" in said.stdout and "--set steps.two.count=5" in said.stdout


def test_builds_of_torch_and_hub_names(toy: Cli, tmp_path: Path) -> None:
    toy.write("r.yaml", "recipe: r\nsteps: {one: {kind: toy}}\n")
    folder = Path(toy("run", "r.yaml").stdout.strip())
    (folder / ".slmkit/recipe.yaml").write_text("recipe: r\nbase: hf:A/b\nsteps: {one: {kind: toy, data: 'hf:A/b@v1'}}\n")
    commit = "1" * 40
    planted.alter(folder, lambda m: m["inputs"].append({"role": "model", "name": "b", "type": "model", "uri": f"hf:A/b@{commit}", "revision": commit,
                                                        "digest": None, "fingerprint": None, "bytes": None, "columns": None}))  # fmt: skip
    artifact = manifest.load(folder)
    made = bundle.Bundle({"one": artifact}, bundle.written.Written("", ()), ())
    assert made.commits() == {"hf:A/b@main": commit, "hf:A/b@v1": commit}
    for pin, wanted in (("torch==2.9.0+cu128", "whl/cu128"), ("torch==2.9.0", None)):
        (folder / ".slmkit/requirements.txt").write_text(f"pip==1\n{pin}\n")
        script = made.__class__(made.chain, made.recipe, ()).write(tmp_path / pin).joinpath("reproduce").read_text()
        assert pin in script and (wanted in script if wanted else "index-url" not in script)
