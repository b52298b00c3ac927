"""Odd ways in which people and machines use the command line; each was once answered wrongly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.cli import Cli


def plan(cli: Cli, *words: object) -> list[dict]:
    done = cli("plan", *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["steps"]


def test_two_adapters_by_path_are_two_merges(toy: Cli) -> None:
    for name in ("ada", "adb"):
        toy.write(f"{name}/adapter_config.json", json.dumps({"base_model_name_or_path": "../base", "name": name}))
    toy.write("base/config.json", "{}")
    toy.write("r.yaml", "recipe: r\nsteps:\n  one: {kind: peek, model: ada}\n  two: {kind: peek, model: adb}\n  three: {kind: peek, model: ada}\n")
    steps = plan(toy, "r.yaml")
    prints = {s["name"]: s["fingerprint"] for s in steps}
    assert len([s for s in steps if s["kind"] == "merge"]) == 2
    assert prints["one"] != prints["two"] and prints["one"] == prints["three"]


def test_a_value_that_is_a_reference_is_followed_or_refused(toy: Cli) -> None:
    toy.write("data.txt", "x\n")
    toy.write("r.yaml", "recipe: r\nsrc: $other\nother: data.txt\nsteps: {a: {kind: toy, source: $src}}\n")
    assert plan(toy, "r.yaml")[0]["inputs"][0]["uri"].endswith("data.txt")
    toy.write("r.yaml", "recipe: r\nsrc: $typo\nsteps: {a: {kind: toy, source: $src}}\n")
    done = toy("plan", "r.yaml")
    assert done.returncode == 2 and "`$typo` is neither" in done.stderr and "r.yaml:2:" in done.stderr
    toy.write("r.yaml", "recipe: r\na: $b\nb: $a\nsteps: {s: {kind: toy, source: $a}}\n")
    assert "circle" in toy("plan", "r.yaml").stderr


def test_a_file_called_unknown(toy: Cli) -> None:
    toy.write("unknown", "x\n")
    toy.write("r.yaml", "recipe: r\nsteps: {a: {kind: toy, source: unknown}}\n")
    assert plan(toy, "r.yaml")[0]["inputs"]


def test_a_column_mapping_is_never_lost(toy: Cli) -> None:
    toy.write("b.csv", "q,a\n1,2\n")
    toy.write("r.yaml", "recipe: r\nmap: {path: b.csv, user: q, assistant: a}\nsteps:\n  t: {kind: toy}\n  o: {kind: odd, data: $map}\n"
              "  p: {kind: odd, data: {path: $t, user: q, assistant: a, text: null}}\n")
    done = json.loads(toy("run", "r.yaml", "--json").stdout)
    assert [s["result"]["columns"] for s in done["steps"][1:]] == [{"user": "q", "assistant": "a"}] * 2
    given = json.loads(toy("odd", "r.yaml", "o", "--from", "data=b.csv", "--json").stdout)
    assert given["fingerprint"] == done["steps"][1]["fingerprint"]


def test_gc_leaves_what_a_run_is_using(toy: Cli) -> None:
    toy.write("r.yaml", "recipe: r\nsteps:\n  one: {kind: toy}\n  two: {kind: toy, source: $one, execution: {pause: 0.7}}\n")
    running = toy.start("run", "r.yaml", "--set", "steps.one.count=4")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not list(toy.folder.glob("artifacts/.work/toy-*/state/lines.txt")):
        time.sleep(0.05)
    assert toy("run", "r.yaml", "one").returncode == 0  # moves the name away
    assert toy("gc", "--delete").returncode == 0
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    assert not list(toy.folder.glob("artifacts/.work/run-*"))


def test_init_overwrites_nothing(cli: Cli) -> None:
    cli.write("p/data/prompts.jsonl", "mine\n")
    done = cli("init", "p")
    assert done.returncode == 2 and "prompts.jsonl" in done.stderr
    assert (cli.folder / "p/data/prompts.jsonl").read_text() == "mine\n" and not (cli.folder / "p/recipe.yaml").exists()
    cli.write("afile", "x")
    for words in (["init", "afile"], ["init", "afile/x"], ["quickstart", "--out", "afile"]):
        assert cli(*words).returncode == 2


def test_a_step_that_calls_exit_has_failed(toy: Cli) -> None:
    toy.write("r.yaml", "recipe: r\nsteps: {a: {kind: odd, leave: true}, b: {kind: toy}}\n")
    done = toy("run", "r.yaml")
    assert done.returncode == 1 and "SystemExit" in done.stderr and done.stdout == ""


def test_the_neighbours_of_a_tasks_python_file_are_identity(toy: Cli) -> None:
    toy.write("task.yaml", "task: t\ndataset_path: json\ndataset_kwargs: {data_files: {test: t.jsonl}}\nprocess_results: !function m.score\n")
    toy.write("t.jsonl", "{}\n")
    toy.write("m.py", "from helper import f\n")
    toy.write("helper.py", "f = 1\n")
    toy.write("model/config.json", "{}")
    toy.write("r.yaml", "recipe: r\nsteps: {eval: {model: model, tasks: [task.yaml]}}\n")
    before = plan(toy, "r.yaml")[0]["fingerprint"]
    toy.write("helper.py", "f = 2\n")
    assert plan(toy, "r.yaml")[0]["fingerprint"] != before


def test_content_under_an_old_time_is_seen(toy: Cli) -> None:
    toy.write("r.yaml", "recipe: r\nsteps: {a: {kind: toy, source: d.txt}}\n")
    for text in ("aaaa\n", "bbbb\n"):
        toy.write("d.txt", text)
        os.utime(toy.folder / "d.txt", (1_600_000_000, 1_600_000_000))
        done = toy("run", "r.yaml")
        assert done.returncode == 0 and (Path(done.stdout.strip()) / "lines.txt").read_text().startswith(text)


def test_a_linked_folder_is_content(toy: Cli) -> None:
    toy.write("real/config.json", '{"a": 1}')
    (toy.folder / "model").mkdir()
    toy.write("model/config.json", "{}")
    (toy.folder / "model/sub").symlink_to("../real")
    (toy.folder / "real/up").symlink_to("..")
    toy.write("r.yaml", "recipe: r\nsteps: {a: {kind: peek, model: model}}\n")
    before = plan(toy, "r.yaml")[0]["fingerprint"]
    toy.write("real/config.json", '{"a": 2}')
    assert plan(toy, "r.yaml")[0]["fingerprint"] != before


@pytest.mark.parametrize("body", ["{", "", "[]", '{"schema": "slmkit.manifest/1", "kind": 1}', None])
def test_one_broken_manifest_stops_nothing_else(toy: Cli, body: str | None) -> None:
    toy.write("r.yaml", "recipe: r\nsteps: {a: {kind: toy}, b: {kind: toy, word: b}}\n")
    toy("run", "r.yaml")
    broken = (toy.folder / "artifacts/refs/r/a").resolve() / ".slmkit/manifest.json"
    if body is None:
        body = json.dumps({k: v for k, v in json.loads(broken.read_text()).items() if k != "run"})
    broken.write_text(body)
    listed = toy("ls", "--json")
    assert listed.returncode == 0 and len(json.loads(listed.stdout)) == 1 and "warning" in listed.stderr
    assert toy("gc").returncode == 0
    shown = toy("show", str(broken.parent.parent))
    assert shown.returncode == 1 and "manifest" in shown.stderr and "fault of slmkit" not in shown.stderr
    assert [s["action"] for s in plan(toy, "r.yaml")][1] == "cached"
    assert toy("run", "r.yaml").returncode == 0 and toy("verify", "r/a").returncode == 0


@pytest.mark.parametrize("shut", ["2>&-", ">&-", "<&-", "0<&- 1>&- 2>&-"])
def test_closed_streams(toy: Cli, shut: str) -> None:
    toy.write("r.yaml", "recipe: r\nsteps: {a: {kind: toy, execution: {chatter: true}}}\n")
    shell = f"{sys.executable} -m slmkit run r.yaml >out {shut}"
    done = subprocess.run(["bash", "-c", shell], cwd=toy.folder, env=toy.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = (toy.folder / "out").read_text().splitlines()
    assert said == ([] if ">&-" in shut.replace("2>&-", "") else [str(toy.folder / "artifacts" / Path(said[0]).name)])
    full = subprocess.run(["bash", "-c", f"{sys.executable} -m slmkit plan r.yaml > /dev/full"], cwd=toy.folder, env=toy.environment(),
                          capture_output=True, text=True)
    assert full.returncode == 1 and "cannot write to stdout" in full.stderr


def test_places_that_are_no_store(toy: Cli) -> None:
    toy.write("r.yaml", "recipe: r\nsteps: {a: {kind: toy}}\n")
    toy.write("afile", "x")
    (toy.folder / "dangling").symlink_to("nowhere/at/all")
    for store in ("afile", "afile/below", "dangling"):
        done = toy("run", "r.yaml", "--store", store)
        assert done.returncode == 1 and "--store" in done.stderr and "fault of slmkit" not in done.stderr, done.stderr
    assert toy("run", "r.yaml", "--store", "").returncode == 2


def test_a_broken_lock_file_can_be_made_anew(toy: Cli) -> None:
    toy.write("r.yaml", "recipe: r\nsteps: {a: {kind: toy}}\n")
    toy.write("r.lock.json", "{")
    assert "--refresh" in toy("lock", "r.yaml").stderr
    assert toy("lock", "r.yaml", "--refresh").returncode == 0
    assert json.loads((toy.folder / "r.lock.json").read_text())["hub"] == {}


def test_an_artifact_by_path_is_looked_up_from_the_recipe(toy: Cli) -> None:
    toy.write("r.yaml", "recipe: r\nsteps: {a: {kind: toy}}\n")
    name = Path(toy("run", "r.yaml").stdout.strip()).name
    toy.write("sub/x.yaml", f"recipe: x\nsteps: {{b: {{kind: toy, word: b, source: 'artifact:../artifacts/{name}'}}}}\n")
    assert plan(toy, "sub/x.yaml")[0]["inputs"][0]["uri"] == f"artifact:{name}"


def test_references_are_taken_by_the_letter(toy: Cli) -> None:
    toy.write("r.yaml", "recipe: r\nsteps: {a: {kind: toy}}\n")
    said = json.loads(toy("run", "r.yaml", "--json").stdout)
    (toy.folder / "r/a").mkdir(parents=True)
    for good in (said["fingerprint"], said["fingerprint"][:9], "r/a"):
        assert toy("show", good).returncode == 0, good
    for bad in (said["fingerprint"][:12] + "zzz", said["fingerprint"][:12] + "0" * 8, "x" * 300):
        done = toy("show", bad)
        assert done.returncode == 2 and "fault of slmkit" not in done.stderr, bad


def test_json_tells_the_scores_of_a_failed_check(toy: Cli) -> None:
    toy.write("r.yaml", "recipe: r\nsteps: {a: {kind: toy, lowest: 99}}\n")
    done = toy("run", "r.yaml", "--json")
    assert done.returncode == 3 and json.loads(done.stdout)["result"]["checks"][0]["ok"] is False


def test_json_goes_through_a_pipe(toy: Cli) -> None:
    toy.write("r.yaml", "recipe: r\nsteps: {a: {kind: toy}, b: {kind: toy, source: $a, word: b}}\n")
    said = toy("toy", "r.yaml", "a", "--json").stdout
    assert toy("toy", "r.yaml", "b", "--from", "source=-", stdin=said).returncode == 0


def test_odd_values(toy: Cli) -> None:
    for text, words in (
        ("data: ~nosuchuser/x", "cannot be a path"), (f"data: {'x' * 300}", "no such file"), ("data: ''", "no such file"),
        ("leave: yes", "true or false"),
    ):
        toy.write("r.yaml", f"recipe: r\nsteps:\n  a:\n    kind: odd\n    {text}\n")
        done = toy("plan", "r.yaml")
        assert done.returncode == 2 and words in done.stderr and "r.yaml:5:" in done.stderr, done.stderr
    toy.write("r.yaml", "recipe: r # sk-abcdefghijklmnop12345\nsteps: {a: {kind: toy}}\n")
    done = toy("plan", "r.yaml")
    assert done.returncode == 2 and "secret" in done.stderr and "abcdefgh" not in done.stderr
    toy.write("r.yaml", "recipe: " + "[" * 500_000)
    started = time.monotonic()
    assert "nested too deep" in toy("plan", "r.yaml").stderr and time.monotonic() - started < 10
    assert toy("--help", "nosuch").returncode == 2


@pytest.mark.parametrize(("given", "wanted"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)])
def test_threads_do_not_spin_while_others_work(cli: Cli, given: dict, wanted: str | None) -> None:
    """Said before torch is loaded, and only where the user has said nothing."""
    code = "\n".join(["import os, sys", "from slmkit.__main__ import main", "sys.argv = ['slmkit', '--version']", "try: main()",
                      "except SystemExit: print(os.environ.get('GOMP_SPINCOUNT'))"])  # fmt: skip
    environment = {k: v for k, v in cli.environment(**given).items() if k in given or k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == str(wanted), done.stderr
