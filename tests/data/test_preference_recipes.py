"""Preferences and labels from file to artifact through the command line: each way to write them, `slmkit data` first, then training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.cli import Cli

ASKED, GOOD, BAD = "Where does parcel {i} go?", "To Graz, bay {i}.", "I do not know {i}."


def explicit(i: int) -> dict:
    return {"prompt": ASKED.format(i=i), "chosen": GOOD.format(i=i), "rejected": BAD.format(i=i)}


def implicit(i: int) -> dict:
    asked = {"role": "user", "content": ASKED.format(i=i)}
    return {side: [asked, {"role": "assistant", "content": text.format(i=i)}] for side, text in (("chosen", GOOD), ("rejected", BAD))}


def ranking(i: int) -> dict:
    asked = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": ASKED.format(i=i)}]
    return {"conversations": asked, "chosen": {"from": "gpt", "value": GOOD.format(i=i)}, "rejected": {"from": "gpt", "value": BAD.format(i=i)}}


def label(i: int) -> dict:
    return {"prompt": ASKED.format(i=i), "completion": (GOOD if i % 2 else BAD).format(i=i), "label": bool(i % 2)}


RECIPE = """\
recipe: preferences
base: demo:student
steps:
  tuned:
    kind: train
    model: $base
    data: rows.jsonl
    objective: {objective}
    method: lora
    lora: {{r: 4, alpha: 8}}
    learning_rate: 5e-3
    max_steps: 2
    batch_size: 4
    max_length: 128
    execution: {{device: cpu, allow: [duplicates]}}
"""


WAYS = {"explicit": ("dpo", "preference", explicit), "implicit": ("dpo", "preference", implicit), "ranking": ("dpo", "preference", ranking),
        "label": ("kto", "label", label)}  # fmt: skip


@pytest.fixture(scope="module")
def all_ways(tmp_path_factory) -> tuple[Path, dict, dict]:
    """One recipe with a training for each way of writing rows: what `data` shows of each, and what each gave. (One process, since importing the
    libraries takes longer than all four.)"""
    cli = Cli(tmp_path_factory.mktemp("preferences"))
    head, body = RECIPE.split("  tuned:\n")
    steps = []
    for name, (objective, _, make) in WAYS.items():
        (cli.folder / f"{name}.jsonl").write_text("".join(json.dumps(make(i)) + "\n" for i in range(12)))
        steps.append(f"  {name}:\n" + body.format(objective=objective).replace("rows.jsonl", f"{name}.jsonl"))
    cli.write("r.yaml", head + "".join(steps))
    shown, done = cli("data", "r.yaml", "--json"), cli("run", "r.yaml", "--json")
    assert shown.returncode == 0 and done.returncode == 0, shown.stderr + done.stderr
    return cli.folder, json.loads(shown.stdout)["steps"], {s["name"]: s for s in json.loads(done.stdout)["steps"]}


@pytest.mark.parametrize("way", WAYS)
def test_rows_are_shown_and_trained_on(all_ways, way: str) -> None:
    folder, shown, done = all_ways
    objective, form, _ = WAYS[way]
    facts, said = shown[way], done[way]
    assert facts["data"]["rows"] == 12
    pieces = [p for sample in facts["samples"] for p in sample["pieces"]]
    trained = " ".join(p["text"] for p in pieces if p["trained"])
    assert "Graz" in trained and "do not know" in trained and "Where does" not in trained
    assert "Where does parcel" in " ".join(p["text"] for p in pieces if not p["trained"])
    assert said["result"]["form"] == form and said["result"]["rows"] == 12 and said["result"]["steps"] == 2
    assert abs(said["result"]["first_loss"] - {"dpo": 0.6931, "kto": 0.5}[objective]) < 5e-3
    assert (folder / said["path"] / "adapter_model.safetensors").is_file()


def test_prompts_of_grpo_are_shown_with_nothing_trained(cli: Cli) -> None:
    text = RECIPE.format(objective="grpo") + "    grpo: {rewards: [{exact_match: {}}], generations: 2, max_new_tokens: 4}\n"
    cli.write("r.yaml", text.replace("lora: {r: 4, alpha: 8}", "lora: {r: 4}"))
    rows = [{"prompt": ASKED.format(i=i), "completion": GOOD.format(i=i)} for i in range(12)]
    (cli.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = cli("data", "r.yaml", "--json")
    assert shown.returncode == 0, shown.stderr
    facts = json.loads(shown.stdout)["steps"]["tuned"]
    pieces = [p for sample in facts["samples"] for p in sample["pieces"]]
    assert pieces and not any(p["trained"] for p in pieces) and not any("Graz" in p["text"] for p in pieces)
    assert facts["tokens"]["trained"] is None and not (facts["tokens"].get("untrained") or {}).get("rows")


def test_a_faulty_pair_is_named_before_any_model_is_loaded(cli: Cli) -> None:
    cli.write("r.yaml", RECIPE.format(objective="dpo"))
    rows = [explicit(0), explicit(1) | {"rejected": None}, explicit(2) | {"chosen": BAD.format(i=2)}]
    (cli.folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = cli("train", "r.yaml")
    assert done.returncode == 2 and "rows.jsonl:2" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_rows_for_another_objective_are_refused_with_its_name(cli: Cli) -> None:
    cli.write("r.yaml", RECIPE.format(objective="sft"))
    (cli.folder / "rows.jsonl").write_text("".join(json.dumps(explicit(i)) + "\n" for i in range(12)))
    for verb in ("data", "train"):
        done = cli(verb, "r.yaml")
        assert done.returncode == 2 and "objective: dpo" in done.stderr and "Traceback" not in done.stderr, done.stderr
