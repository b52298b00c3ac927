"""A hub name becomes a commit, is locked, and is fetched at that commit; a moved `main` changes nothing once locked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.hub import Hub

RECIPE = "recipe: hub\nbase: hf:me/tiny\nsteps:\n  look: {kind: peek, model: $base}\n"


@pytest.fixture
def hub():
    with Hub() as one:
        yield one


def test_resolved_locked_and_fetched_at_the_commit(toy: Cli, hub: Hub, tmp_path: Path) -> None:
    env = hub.environment(tmp_path / "home")
    first = hub.commit("me/tiny", {"config.json": '{"n": 1}', "model.safetensors": "x"})
    toy.write("r.yaml", RECIPE)
    done = json.loads(toy("run", "r.yaml", "--json", **env).stdout)
    lock = json.loads((toy.folder / "r.lock.json").read_text())
    assert lock == {"schema": "slmkit.lock/1", "hub": {"hf:me/tiny@main": first}}
    assert done["result"]["revision"] == first
    manifest = json.loads((Path(done["path"]) / ".slmkit/manifest.json").read_text())
    assert manifest["inputs"][0]["uri"] == f"hf:me/tiny@{first}" and manifest["inputs"][0]["revision"] == first
    assert manifest["fingerprint_payload"]["inputs"]["model"] == {"type": "model", "hub": "me/tiny", "commit": first}

    second = hub.commit("me/tiny", {"config.json": '{"n": 2}', "model.safetensors": "y"})
    again = json.loads(toy("run", "r.yaml", "--locked", "--json", **env).stdout)
    assert again["cached"] and again["path"] == done["path"]
    fresh = json.loads(toy("run", "r.yaml", "--locked", "--json", "--store", "other", **hub.environment(tmp_path / "home2")).stdout)
    assert fresh["fingerprint"] == done["fingerprint"] and fresh["digest"] == done["digest"]
    assert json.loads((Path(fresh["path"]) / "config.json").read_text()) == {"n": 1}

    refreshed = toy("lock", "r.yaml", "--refresh", **env)
    assert refreshed.returncode == 0 and second in refreshed.stdout
    plan = json.loads(toy("plan", "r.yaml", "--json", **env).stdout)["steps"][0]
    assert plan["action"] == "stale" and plan["why"] == ["model changed (base)"]
    assert json.loads((Path(json.loads(toy("run", "r.yaml", "--json", **env).stdout)["path"]) / "config.json").read_text()) == {"n": 2}


def test_locked_is_the_default_under_ci_and_resolves_nothing(toy: Cli, hub: Hub, tmp_path: Path) -> None:
    hub.commit("me/tiny", {"config.json": "{}"})
    toy.write("r.yaml", RECIPE)
    for extra, words in (({"CI": "true"}, ["plan", "r.yaml"]), ({}, ["run", "r.yaml", "--locked"])):
        done = toy(*words, **hub.environment(tmp_path / "home"), **extra)
        assert done.returncode == 2 and "r.yaml:2:7" in done.stderr and "slmkit lock" in done.stderr
    assert not hub.requests and not (toy.folder / "r.lock.json").exists()


def test_plan_writes_no_lock(toy: Cli, hub: Hub, tmp_path: Path) -> None:
    hub.commit("me/tiny", {"config.json": "{}"})
    toy.write("r.yaml", RECIPE)
    assert toy("plan", "r.yaml", **hub.environment(tmp_path / "home")).returncode == 0
    assert not (toy.folder / "r.lock.json").exists() and not (toy.folder / "artifacts").exists()


def test_a_full_commit_needs_no_lock(toy: Cli, hub: Hub, tmp_path: Path) -> None:
    sha = hub.commit("me/tiny", {"config.json": "{}"})
    toy.write("r.yaml", RECIPE.replace("me/tiny", f"me/tiny@{sha}"))
    assert toy("run", "r.yaml", "--locked", **hub.environment(tmp_path / "home")).returncode == 0


def test_unknown_repository_and_no_network(toy: Cli, hub: Hub, tmp_path: Path) -> None:
    env = hub.environment(tmp_path / "home")
    sha = hub.commit("me/tiny", {"config.json": "{}"})
    toy.write("r.yaml", RECIPE.replace("me/tiny", "me/tyni"))
    unknown = toy("run", "r.yaml", **env)
    assert unknown.returncode == 2 and "r.yaml:2:7" in unknown.stderr and "me/tyni" in unknown.stderr and "Traceback" not in unknown.stderr
    toy.write("r.yaml", RECIPE)
    toy.write("r.lock.json", json.dumps({"schema": "slmkit.lock/1", "hub": {"hf:me/tiny@main": sha}}))
    hub.stop()
    fetch = toy("run", "r.yaml", **env)
    assert fetch.returncode == 4 and "cannot fetch hf:me/tiny" in fetch.stderr and "Traceback" not in fetch.stderr
    (toy.folder / "r.lock.json").unlink()
    resolve = toy("plan", "r.yaml", **env)
    assert resolve.returncode == 4 and "lock" in resolve.stderr and "Traceback" not in resolve.stderr


def test_a_broken_lock_file_is_said(toy: Cli) -> None:
    toy.write("r.yaml", RECIPE)
    for text in ("{", "[]", '{"schema": "slmkit.lock/1", "hub": {"hf:me/tiny@main": "short"}}'):
        toy.write("r.lock.json", text)
        done = toy("plan", "r.yaml")
        assert done.returncode == 2 and "r.lock.json" in done.stderr and "slmkit lock" in done.stderr
