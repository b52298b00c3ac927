"""Every field of a step is a flag of its verb, with a recipe and without one; the recipe that the flags stood for is kept."""

from __future__ import annotations

import json

import pytest
import yaml

from slmkit.cli import flags
from slmkit.steps import _registry
from tests.support.cli import Cli


def built(done) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", [k for k, module in _registry.locations().items() if module.startswith("slmkit.steps.")])
def test_the_flags_are_the_fields(kind: str) -> None:
    module = _registry.load(kind)
    config, execution = module.module.Config.model_fields, module.module.Execution.model_fields
    found = flags.fields(kind)
    assert set(found) == set(config) | set(execution)
    assert all(found[name].execution == (name not in config) for name in found)
    switches = {name for name, field in (config | execution).items() if "bool" in str(field.annotation)}
    assert {name for name, field in found.items() if field.switch} == switches
    assert all(field.help for field in found.values())


def test_without_a_recipe_the_flags_are_one(toy: Cli) -> None:
    toy.write("rows.txt", "one\ntwo\n")
    made = built(toy("toy", "rows.txt", "--count", "3", "--word=b", "--pause", "0.001", "--chatter", "--json"))
    assert made["result"]["lines"] == 5
    kept = toy.folder / "artifacts" / f"toy-{made['fingerprint'][:12]}" / ".slmkit/recipe.yaml"
    said = yaml.safe_load(kept.read_text())
    assert said["steps"]["toy"] == {
        "source": str(toy.folder / "rows.txt"), "count": 3, "word": "b", "execution": {"pause": 0.001, "chatter": True},
    }  # fmt: skip
    toy.write("again.yaml", kept.read_text())
    again = built(toy("toy", "again.yaml", "--json"))
    assert again["cached"] and again["fingerprint"] == made["fingerprint"]
    assert sorted(p.name for p in toy.folder.iterdir() if p.is_file()) == ["again.yaml", "rows.txt"]  # nothing else is written beside


def test_with_a_recipe_a_flag_is_set_and_from(toy: Cli) -> None:
    toy.write("deep/r.yaml", "recipe: r\nsteps: {one: {kind: toy, count: 2}, two: {kind: toy, source: $one}}\n")
    toy.write("rows.txt", "one\n")
    flag = built(toy("toy", "deep/r.yaml", "one", "--count", "4", "--source", "rows.txt", "--no-chatter", "--json"))
    told = built(toy("toy", "deep/r.yaml", "one", "--set", "steps.one.count=4", "--from", "source=rows.txt", "--json"))
    assert flag["result"]["lines"] == 5 and told["cached"] and told["fingerprint"] == flag["fingerprint"]


def test_a_reference_comes_through_a_pipe(toy: Cli) -> None:
    toy.write("rows.txt", "one\n")
    first = toy("toy", "rows.txt", "--count", "1")
    made = built(toy("toy", "-", "--count", "2", "--json", stdin=first.stdout))
    assert made["result"]["lines"] == 4


@pytest.mark.parametrize(("words", "told"), [
    (["rows.txt", "--cuont", "3"], "did you mean --count?"),
    (["rows.txt", "--count"], "--count wants a value"),
    (["rows.txt", "--count", "--json"], "--count wants a value"),
    (["rows.txt", "--count", "many"], "command line:6:12"),
    (["rows.txt", "--execution.pause", "1"], "no such option: --execution.pause"),
    (["rows.txt", "one", "--count", "3"], "no recipe, so it has no step `one`"),
    (["nowhere", "--count", "3"], "neither a recipe (FILE.yaml) nor a source"),
    (["-", "--count", "3"], "nothing"),
])  # fmt: skip
def test_a_wrong_flag_is_told(toy: Cli, words: list[str], told: str) -> None:
    toy.write("rows.txt", "one\n")
    done = toy("toy", *words)
    assert done.returncode == 2 and told in done.stderr, done.stderr
    assert not (toy.folder / "artifacts").exists() or not list((toy.folder / "artifacts").glob("toy-*"))
