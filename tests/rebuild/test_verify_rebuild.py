"""`verify --rebuild`: what was made is made again and compared, a planted drift is found and named, and the store is left as it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.support import planted, teacher
from tests.support.cli import Cli

CHAIN = """\
recipe: counting
steps:
  one: {kind: toy, source: data.txt, count: 6, execution: {pause: 0.0}}
  two: {kind: toy, source: $one, count: 4, word: b}
"""
WEIGHTS = """\
recipe: w
steps:
  one: {kind: gauge, claims: CLAIMS}
"""


@pytest.fixture
def counted(toy: Cli) -> Cli:
    toy.write("data.txt", "x\ny\n")
    toy.write("r.yaml", CHAIN)
    assert toy("run", "r.yaml").returncode == 0
    return toy


def weights(toy: Cli, claims: str) -> Path:
    """An artifact of weights and scores whose step claims so much."""
    toy.write("w.yaml", WEIGHTS.replace("CLAIMS", claims))
    return Path(toy("run", "w.yaml").stdout.strip())


def rebuilt(cli: Cli, *words: object, code: int = 0, **env: str) -> dict:
    done = cli("verify", *words, "--rebuild", "--json", **env)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_a_chain_comes_out_identical_and_the_store_is_untouched(counted: Cli, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    before = planted.state(tmp_path / "artifacts")
    said = rebuilt(counted, "counting/two", "--deep", TMPDIR=str(tmp_path / "tmp"))
    assert [(s["name"], s["verdict"], s["judged"]) for s in said["steps"]] == [("one", "identical", "exact"), ("two", "identical", "exact")]
    assert said["ok"] and said["verdict"] == "identical" and said["first_drift"] is None
    assert planted.state(tmp_path / "artifacts") == before and list((tmp_path / "tmp").iterdir()) == []
    kept = counted("verify", "counting/two", "--rebuild", "--keep", "kept")
    assert kept.returncode == 0 and kept.stdout.splitlines() == [f"{(tmp_path / 'artifacts/refs/counting/two').resolve()}: rebuilt, identical"]
    assert (tmp_path / "kept/store/refs/counting/two/lines.txt").is_file()
    assert counted("verify", "counting/two", "--rebuild", "--keep", "kept").returncode == 2
    assert counted("verify", "counting/two", "--deep").returncode == 2


def test_an_input_that_is_changed_or_gone_is_named(counted: Cli) -> None:
    data = counted.folder / "data.txt"
    data.write_text("x\nz\n")
    done = counted("verify", "counting/two", "--rebuild", "--deep")
    assert done.returncode == 4 and done.stdout == "" and f"one cannot be built again here: its input `source` ({data}) changed" in done.stderr
    data.unlink()
    done = counted("verify", "counting/one", "--rebuild")
    assert done.returncode == 4 and f"({data}) is gone" in done.stderr
    assert rebuilt(counted, "counting/two")["verdict"] == "identical"  # whose own input is in the store
    shutil.rmtree((counted.folder / "artifacts/refs/counting/one").resolve())
    done = counted("verify", "counting/two", "--rebuild")
    assert done.returncode == 4 and "its input `source` (artifact:toy-" in done.stderr and "not in the store" in done.stderr


def test_a_config_that_was_altered_with_its_fingerprint_is_named(counted: Cli) -> None:
    two = (counted.folder / "artifacts/refs/counting/two").resolve()
    planted.alter(two, lambda m: m["fingerprint_payload"]["config"].update(count=5))
    assert counted("verify", str(two)).returncode == 0  # nothing else tells
    said = rebuilt(counted, str(two), code=3)
    assert said["verdict"] == "different"
    assert said["first_drift"] == "two: config count: 4 in the recipe kept with it (recorded) → 5 in the manifest"
    assert said["steps"][0]["files"][0] == {"path": "lines.txt", "what": "line 13 is in the rebuilt file alone", "ok": False}


def test_the_first_drift_of_a_chain_is_at_its_root(counted: Cli) -> None:
    one = (counted.folder / "artifacts/refs/counting/one").resolve()
    (one / "lines.txt").write_text((one / "lines.txt").read_text().replace("a 3", "a 9"))
    planted.alter(one, lambda m: None)
    alone = counted("verify", "counting/two", "--rebuild")
    assert alone.returncode == 4 and "was built anew since, and came out different" in alone.stderr
    done = counted("verify", "counting/two", "--rebuild", "--deep")
    assert done.returncode == 3 and "it first drifted at one: lines.txt: line 4: a 9 → a 3" in done.stderr


def test_bytes_promised_exactly_must_be_the_same(toy: Cli) -> None:
    one = weights(toy, "exact")
    planted.nudge(one, "model.layers.10.mlp.weight", 1e-3)
    planted.nudge(one, "model.layers.2.mlp.weight", 1e-4)
    loose = rebuilt(toy, "w/one", code=3)  # its own manifest tells that it was altered, and the rebuild which tensor
    assert "altered" in loose["faults"][0] and loose["verdict"] == "different"
    planted.alter(one, lambda m: None)
    said = rebuilt(toy, "w/one", code=3)
    assert said["faults"] == [] and said["steps"][0]["judged"] == "exact"
    first = "model.safetensors: 2 of 6 tensors; the first is tensor model.layers.2.mlp.weight: max |Δ| 0.0001, relative"
    assert said["first_drift"].startswith(f"one: {first}") and "the worst is tensor model.layers.10.mlp.weight" in said["first_drift"]


def test_another_package_explains_and_loosens(toy: Cli) -> None:
    one = weights(toy, "exact")
    planted.alter(one, lambda m: m["environment"]["packages"].update(torch="1.0"))
    same = rebuilt(toy, "w/one")
    assert same["verdict"] == "identical" and [c["where"] for c in same["steps"][0]["causes"] if c["explains"]] == ["packages.torch"]
    planted.nudge(one, "model.norm.weight", 0.01)
    (one / "config.json").write_text('{"transformers_version": "4.9", "layers": 11}')
    planted.alter(one, lambda m: None)
    near = rebuilt(toy, "w/one")
    assert (near["verdict"], near["steps"][0]["judged"]) == ("within tolerance", "seeded")
    assert near["first_drift"].startswith("one: package torch: 1.0 (recorded) → ")
    planted.nudge(one, "model.norm.weight", 5.0)
    planted.alter(one, lambda m: None)
    assert rebuilt(toy, "w/one", code=3)["verdict"] == "different"


def test_a_score_may_be_off_by_its_standard_error(toy: Cli) -> None:
    one = weights(toy, "seeded")
    for recorded, code in ((0.84, 0), (0.86, 3)):
        planted.alter(one, lambda m: m["result"]["scores"]["m"]["t"].update(acc=recorded))  # noqa: B023
        said = rebuilt(toy, "w/one", code=code)
        numbers = said["steps"][0]["numbers"]
        assert [(n["path"], n["recorded"], n["rebuilt"], n["allowed"]) for n in numbers] == [("scores.m.t.acc", recorded, 0.8, 0.05)]
    assert said["verdict"] == "different" and said["first_drift"] == "one: scores.m.t.acc 0.86 → 0.8 (more than 0.05 off)"


def test_what_was_only_looked_at_may_be_gone(toy: Cli) -> None:
    toy.write("data.txt", "x\n")
    toy.write("w.yaml", "recipe: w\nsteps: {one: {kind: gauge}, two: {kind: toy, source: data.txt}}\n")
    assert toy("run", "w.yaml", "one").returncode == 0
    assert rebuilt(toy, "w/one")["steps"][0]["numbers"] == []
    (toy.folder / "data.txt").unlink()
    step = rebuilt(toy, "w/one")["steps"][0]
    assert (step["verdict"], [n["path"] for n in step["numbers"]]) == ("identical", ["seen"])
    assert "looked at only" in step["causes"][0]["where"]


def test_what_claims_nothing_is_told_and_not_judged(toy: Cli) -> None:
    one = weights(toy, "none")
    planted.nudge(one, "model.norm.weight", 9.0)
    planted.alter(one, lambda m: m["result"].update(rows=7))
    said = rebuilt(toy, "w/one")
    assert (said["ok"], said["verdict"]) == (True, "not judged") and "model.norm.weight" in said["first_drift"]


def test_kill_nine_leaves_the_store_as_it_was(toy: Cli, tmp_path: Path) -> None:
    toy.write("r.yaml", "recipe: slow\nsteps: {one: {kind: toy, count: 12, execution: {pause: 0.1}}}\n")
    assert toy("run", "r.yaml").returncode == 0
    (tmp_path / "tmp").mkdir()
    before = planted.state(tmp_path / "artifacts")
    running = toy.start("verify", "slow/one", "--rebuild", TMPDIR=str(tmp_path / "tmp"))
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not list((tmp_path / "tmp").glob("slmkit-rebuild-*/store/.work/toy-*/state/lines.txt")):
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    assert list((tmp_path / "tmp").glob("slmkit-rebuild-*/store/.work/toy-*/state/lines.txt"))
    assert planted.state(tmp_path / "artifacts") == before
    assert rebuilt(toy, "slow/one", TMPDIR=str(tmp_path / "tmp"))["verdict"] == "identical"


def test_a_teacher_is_never_asked_again(cli: Cli, tmp_path: Path) -> None:
    """Its answers come from a copy of the ledger, without a key and from another folder; where one is missing, the rebuild ends."""
    asked = teacher.start(tmp_path / "teacher", key="k", mind="critic")
    try:
        cli.write("prompts/p.jsonl", "".join(json.dumps({"prompt": "x" * i}) + "\n" for i in range(1, 6)))
        cli.write("r.yaml", f"""\
            recipe: r
            steps:
              teach:
                kind: distill
                prompts: prompts/p.jsonl
                teacher: {{model: t-1, base_url: "{asked.url}", api_key_env: KEY}}
                filters: {{min_score: 3}}
                judge: {{rubric: "10 is best"}}
                max_tokens: 99
            """)
        assert cli("distill", "r.yaml", KEY="k").returncode == 0
        calls = len(asked.lines())
        before = planted.state(tmp_path / "artifacts")
        (tmp_path / "elsewhere").mkdir()
        said = rebuilt(Cli(tmp_path / "elsewhere"), str((tmp_path / "artifacts/refs/r/teach").resolve()), "--store", str(tmp_path / "artifacts"))
        assert said["verdict"] == "identical" and [f["path"] for f in said["steps"][0]["files"]] == ["README.md"]
        assert planted.state(tmp_path / "artifacts") == before
        ledger = next((tmp_path / "artifacts/ledgers").glob("*.jsonl"))
        lines = ledger.read_text().splitlines(keepends=True)
        for kept, told in ((5, "some answers"), (3, "2 of 5 answers")):  # all answers and no verdict on them; three answers
            ledger.write_text("".join(lines[:kept]))
            done = cli("verify", "r/teach", "--rebuild", KEY="k")
            assert done.returncode == 4 and f"{told} of its teacher are not in the store's ledger" in done.stderr
        assert len(asked.lines()) == calls
    finally:
        asked.stop()
