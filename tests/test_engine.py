"""What a user may rely on while steps run: whole artifacts only, no work twice, clear ends. Uses a kind that needs no torch."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.cli import Cli

CHAIN = """\
recipe: counting
steps:
  one: {kind: toy, count: 6, execution: {pause: 0.02}}
  two: {kind: toy, source: $one, count: 4, word: b, execution: {pause: 0.02}}
"""


def whole(store: Path) -> list[Path]:
    """All artifacts of a store; fails if a folder is there that is none, or whose bytes differ from its manifest."""
    from slmkit.artifact import manifest

    found = [p for p in store.iterdir() if p.name not in ("refs", ".work")] if store.is_dir() else []
    for path in found:
        assert manifest.load(path).faults() == []
    return found


def test_run_then_nothing_to_do(toy: Cli) -> None:
    toy.write("r.yaml", CHAIN)
    first = toy("run", "r.yaml")
    assert first.returncode == 0 and len(first.stdout.splitlines()) == 1
    artifact = Path(first.stdout.strip())
    assert (artifact / "lines.txt").read_text().splitlines() == [f"a {i}" for i in range(6)] + [f"b {i}" for i in range(6, 10)]
    before = {p: p.stat().st_mtime_ns for p in (toy.folder / "artifacts").rglob("*")}
    second = toy("run", "r.yaml", "--json")
    assert json.loads(second.stdout)["cached"] is True
    assert before == {p: p.stat().st_mtime_ns for p in (toy.folder / "artifacts").rglob("*")}
    assert not list((toy.folder / "artifacts/.work").glob("toy-*"))
    assert (toy.folder / "artifacts/refs/counting/two").resolve() == artifact
    sums = subprocess.run(["sha256sum", "-c", ".slmkit/SHA256SUMS"], cwd=artifact, capture_output=True, text=True)
    assert sums.returncode == 0 and "FAILED" not in sums.stdout


def test_verb_builds_what_it_needs_and_pipes(toy: Cli) -> None:
    toy.write("r.yaml", CHAIN)
    toy.write("x.txt", "first\n")
    one = toy("toy", "r.yaml", "one", "--from", "source=x.txt")
    two = toy("toy", "r.yaml", "two", "--from", "source=-", "--json", stdin=one.stdout)
    assert two.returncode == 0, two.stderr
    assert json.loads(two.stdout)["result"]["lines"] == 1 + 6 + 4
    assert toy("toy", "r.yaml").returncode == 2
    nothing = toy("toy", "r.yaml", "two", "--from", "source=-", stdin="")
    assert nothing.returncode == 2 and "nothing came on stdin" in nothing.stderr


def test_json_is_one_object_whatever_is_printed(toy: Cli) -> None:
    toy.write("r.yaml", CHAIN.replace("pause: 0.02", "chatter: true"))
    done = toy("run", "r.yaml", "--json")
    assert json.loads(done.stdout)["result"]["lines"] == 10
    assert "chatter" not in done.stderr
    log = (Path(json.loads(done.stdout)["path"]) / ".slmkit/attempt-1/stderr.log").read_text()
    assert "chatter on stdout" in log and "native chatter" in log and "native noise" in log


def test_closed_pipe_is_no_traceback(toy: Cli) -> None:
    toy.write("r.yaml", CHAIN)
    for words in ("run r.yaml", "run r.yaml --json", "plan r.yaml", "ls", "--help", "schema"):
        shell = f"set -o pipefail; {sys.executable} -m slmkit {words} | head -0; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", shell], cwd=toy.folder, env=toy.environment(), capture_output=True, text=True)
        assert "Traceback" not in done.stderr and "Broken" not in done.stderr, done.stderr
        assert done.stdout.strip() == "0"


def test_kill_nine_at_any_moment(toy: Cli) -> None:
    toy.write("r.yaml", CHAIN.replace("0.02", "0.1"))
    straight = [s["digest"] for s in json.loads(toy("run", "r.yaml", "--json", "--store", "straight").stdout)["steps"]]
    rng, killed, stores = random.Random(7), 0, 0
    while killed < 8 and stores < 20:  # a fast machine may finish a chain before it is killed: then the next store's turn has come
        stores += 1
        store, published, code = toy.folder / f"store-{stores}", {}, None
        while code != 0:
            running = toy.start("run", "r.yaml", "--store", store)
            try:
                code = running.wait(rng.uniform(0.2, 1.0 + 0.15 * killed))  # longer each time, so that a slow machine gets through
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)
                code, killed = running.wait(), killed + 1
            out, err = running.communicate()
            assert code in (0, -signal.SIGKILL), err
            for path in whole(store):
                body = (path / ".slmkit/manifest.json").read_bytes()
                assert published.setdefault(path, body) == body, "a published step ran again"
        done = json.loads(toy("run", "r.yaml", "--json", "--store", store).stdout)
        assert [s["digest"] for s in done["steps"]] == straight and done["cached"]
    assert killed >= 8


def test_resumes_from_its_state(toy: Cli) -> None:
    toy.write("r.yaml", CHAIN.replace("count: 6, execution: {pause: 0.02}", "count: 6, execution: {pause: 0.5}"))
    running = toy.start("run", "r.yaml")
    state = toy.folder / "artifacts/.work"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not any(len(p.read_text().splitlines()) >= 3 for p in state.glob("*/state/lines.txt")):
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    plan = json.loads(toy("plan", "r.yaml", "--json").stdout)
    assert plan["steps"][0]["action"] == "resume"
    done = json.loads(toy("run", "r.yaml", "--set", "steps.one.execution.pause=0", "--json").stdout)
    assert done["steps"][0]["result"]["resumed_at"] >= 3
    manifest = json.loads((Path(done["steps"][0]["path"]) / ".slmkit/manifest.json").read_text())
    assert manifest["run"]["attempts"] == 2 and manifest["run"]["resumed_from"] == 1
    assert len(list(Path(done["steps"][0]["path"]).glob(".slmkit/attempt-*/events.jsonl"))) == 2


def test_two_at_once(toy: Cli) -> None:
    toy.write("r.yaml", CHAIN.replace("0.02", "0.1"))
    pair = [toy.start("run", "r.yaml", "--json") for _ in range(2)]
    done = [p.communicate(timeout=120) for p in pair]
    assert [p.returncode for p in pair] == [0, 0], done
    said = [json.loads(out) for out, _ in done]
    assert said[0]["path"] == said[1]["path"]
    assert sorted(s["cached"] for one in said for s in one["steps"]) == [False, False, True, True]
    assert any("waiting for it" in err for _, err in done)


def test_no_wait_is_busy(toy: Cli) -> None:
    toy.write("r.yaml", CHAIN.replace("0.02", "0.5"))
    running = toy.start("run", "r.yaml")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not list(toy.folder.glob("artifacts/.work/toy-*/state/lines.txt")):
        time.sleep(0.05)
    busy = toy("run", "r.yaml", "--no-wait")
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    assert busy.returncode == 75 and str(running.pid) in busy.stderr and busy.stdout == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(toy: Cli, number: int, code: int) -> None:
    toy.write("r.yaml", CHAIN.replace("0.02", "0.5"))
    running = toy.start("run", "r.yaml")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not list(toy.folder.glob("artifacts/.work/toy-*/state/lines.txt")):
        time.sleep(0.05)
    os.killpg(running.pid, number)
    out, err = running.communicate(timeout=20)
    assert running.returncode == code and out == "" and "Traceback" not in err
    assert whole(toy.folder / "artifacts") == []
    assert toy("run", "r.yaml", "--set", "steps.one.execution.pause=0", "--set", "steps.two.execution.pause=0").returncode == 0


def test_a_broken_step_says_where_its_log_is(toy: Cli) -> None:
    toy.write("r.yaml", CHAIN.replace("pause: 0.02}}\n  two", "fail: true}}\n  two"))
    done = toy("run", "r.yaml")
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    log = Path(done.stderr.rpartition("the traceback is in ")[2].strip())
    assert "RuntimeError: asked to fail" in log.read_text()
    failure = json.loads(log.with_name("failure.json").read_text())
    assert failure["exit"] == 1 and "asked to fail" in failure["what"]


@pytest.mark.parametrize(("key", "place"), [("refuse", "r.yaml:5:13"), ("data.path", "r.yaml:6:18"), ("execution.nothing", "r.yaml:3:3")])
def test_what_a_step_refuses_while_it_runs_is_told_at_its_key(toy: Cli, key: str, place: str) -> None:
    toy.write("d.jsonl", '{"text": "a"}\n')
    toy.write("r.yaml", f"recipe: r\nsteps:\n  one:\n    kind: odd\n    refuse: {key}\n    data: {{path: d.jsonl}}\n")
    done = toy("run", "r.yaml")
    assert done.returncode == 2 and f"{place}: {key}: cannot be" in done.stderr and "help: change it" in done.stderr


def test_a_failed_check_exits_three_each_time_and_stops(toy: Cli) -> None:
    toy.write("r.yaml", CHAIN.replace("count: 6,", "count: 6, lowest: 9,"))
    for _ in range(2):
        done = toy("run", "r.yaml")
        assert done.returncode == 3 and "at least 9 are wanted" in done.stderr and done.stdout == ""
    assert len(whole(toy.folder / "artifacts")) == 1


def test_flipped_byte(toy: Cli) -> None:
    toy.write("r.yaml", CHAIN)
    one = Path(toy("run", "r.yaml", "one").stdout.strip())
    lines = one / "lines.txt"
    lines.write_bytes(b"A" + lines.read_bytes()[1:])
    verdict = toy("verify", "counting/one")
    assert verdict.returncode == 3 and "lines.txt was altered" in verdict.stderr
    assert "lines.txt" in json.loads(toy("verify", "counting/one", "--json").stdout)["faults"][0]
    consumer = toy("run", "r.yaml")
    assert consumer.returncode == 1 and "lines.txt was altered" in consumer.stderr and "help:" in consumer.stderr
    assert len(list((toy.folder / "artifacts").glob("toy-*"))) == 1
    lines.unlink()
    assert "lines.txt is missing" in toy("verify", "counting/one").stderr


def test_an_input_that_changes_while_it_is_read(toy: Cli) -> None:
    toy.write("data.txt", "x\n")
    toy.write("r.yaml", "recipe: c\nsteps:\n  one: {kind: toy, source: data.txt, count: 8, execution: {pause: 0.2}}\n")
    running = toy.start("run", "r.yaml")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not list(toy.folder.glob("artifacts/.work/toy-*/state/lines.txt")):
        time.sleep(0.05)
    toy.write("data.txt", "y\n")
    out, err = running.communicate(timeout=30)
    assert running.returncode == 1 and out == "" and "data.txt" in err and "changed" in err
    assert whole(toy.folder / "artifacts") == []
    done = toy("run", "r.yaml")
    assert done.returncode == 0 and (Path(done.stdout.strip()) / "lines.txt").read_text().startswith("y\n")


def test_rebuilt_upstream_with_other_bytes_makes_downstream_stale(toy: Cli) -> None:
    toy.write("r.yaml", CHAIN)
    toy("run", "r.yaml")
    import shutil

    store = toy.folder / "artifacts"
    other = toy.folder / "other"
    shutil.copytree(store, other, symlinks=True)
    one = (store / "refs/counting/one").resolve()
    body = json.loads((one / ".slmkit/manifest.json").read_text())
    body["outputs"]["digest"] = "0" * 64
    (one / ".slmkit/manifest.json").write_text(json.dumps(body))
    plan = json.loads(toy("plan", "r.yaml", "--json").stdout)
    assert plan["steps"][1]["action"] == "stale" and "came out different" in plan["steps"][1]["why"][0]


needs_mount = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small tmpfs")


@pytest.fixture
def tmpfs(tmp_path: Path):
    """A mounted tmpfs of 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@needs_mount
def test_full_disk(toy: Cli, tmpfs: Path) -> None:
    toy.write("r.yaml", CHAIN.replace("pause: 0.02", "pause: 0"))
    ballast = tmpfs / "ballast"
    with pytest.raises(OSError, match="No space left"), open(ballast, "wb", buffering=0) as f:
        while True:
            f.write(b"x" * 4096)
    done = toy("run", "r.yaml", "--store", tmpfs / "store")
    assert done.returncode == 1 and "disk is full" in done.stderr and "Traceback" not in done.stderr and done.stdout == ""
    ballast.unlink()
    assert toy("run", "r.yaml", "--store", tmpfs / "store").returncode == 0


@needs_mount
def test_read_only_store(toy: Cli, tmpfs: Path) -> None:
    toy.write("r.yaml", CHAIN.replace("pause: 0.02", "pause: 0"))
    assert toy("run", "r.yaml", "one", "--store", tmpfs).returncode == 0
    subprocess.run(["mount", "-o", "remount,ro", tmpfs], check=True)
    hit = toy("run", "r.yaml", "one", "--store", tmpfs)
    assert hit.returncode == 0, hit.stderr
    build = toy("run", "r.yaml", "--store", tmpfs)
    assert build.returncode == 1 and "cannot write" in build.stderr and "--store" in build.stderr and "Traceback" not in build.stderr


def test_canary_secret_is_nowhere(toy: Cli) -> None:
    canary = "hf_canaryCanaryCanary0123456789"
    toy.write("r.yaml", CHAIN.replace("pause: 0.02", "chatter: true"))
    screens = []
    broken = ["run", "r.yaml", "--set", "steps.one.execution.fail=true", "--set", "steps.one.count=7"]
    for words in (["run", "r.yaml", "--json"], ["show", "counting/two"], ["doctor"], broken):
        done = toy(*words, HF_TOKEN=canary, OPENAI_API_KEY=canary)
        screens += [done.stdout, done.stderr]
    files = [p for p in toy.folder.rglob("*") if p.is_file()]
    assert len(files) > 10
    assert not [p for p in files if canary.encode() in p.read_bytes()]
    assert not [s for s in screens if canary in s]


def test_gc_keeps_what_names_reach(toy: Cli) -> None:
    toy.write("r.yaml", CHAIN)
    toy("run", "r.yaml")
    toy("run", "r.yaml", "--set", "steps.one.count=7")
    store = toy.folder / "artifacts"
    assert len(whole(store)) == 4
    listed = json.loads(toy("gc", "--json").stdout)
    assert len(listed["garbage"]) == 2 and not listed["deleted"] and len(whole(store)) == 4
    assert toy("gc", "--delete").returncode == 0
    assert len(whole(store)) == 2
    assert json.loads(toy("run", "r.yaml", "--set", "steps.one.count=7", "--json").stdout)["cached"] is True
