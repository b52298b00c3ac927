"""Shows on the demo's student, within minutes on a CPU, that preferences and rewards teach what they should.

dpo: the student learns to name the number in a note, in two styles: three rows in ten say `7 parcels`, seven say `7`. Pairs then prefer the
rarer style. Measured: the margin, and the share of greedy answers to held-out notes in the preferred style, with the right number.
kto: the same from single answers marked good or bad.
grpo: the student learns to count one too many, in four rows of five; in the fifth it is right. The reward says which answers are right.
Measured: the share of right greedy answers to held-out notes, before and after.
gkd: a student that has begun to turn delivery notes into JSON goes on, once from the labelled rows (sft), once on the distributions of the
demo's teacher in half as many steps, on the rows' answers or on its own. Measured on the same held-out notes: how often the likeliest
next token is the teacher's, along the rows' answers, and the share of greedy answers that are exactly right.

    PYTHONPATH=. .venv/bin/python scripts/objectives_demo.py grpo --out /tmp/objectives
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

from slmkit import demo
from slmkit.data import rows, xray
from slmkit.ml import training
from slmkit.steps import train
from slmkit.steps._step import Context, Given, Result

PLACES = "Graz Linz Wien Enns Wels Steyr Krems Melk Ried Lienz Bregenz Villach".split()
GOODS = "boxes crates parcels sacks pallets letters barrels".split()
FORMS = ("{place}: {n} {goods}", "{n} {goods} to {place}", "please send {n} {goods} to {place}", "for {place} we have {n} {goods}")
SIZE = {"max_length": 64, "precision": "fp32", "seed": 0}


def notes(seed: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(note, number in it), for training and held out; no note is in both."""
    every = [(f.format(place=p, n=n, goods=g), str(n)) for f in FORMS for p in PLACES for g in GOODS for n in range(10)]
    random.Random(seed).shuffle(every)
    return every[:-200], every[-200:]


def chat(note: str, answer: str | None = None) -> tuple[dict, ...]:
    asked = ({"role": "user", "content": f"How many? {note}"},)
    return (*asked, {"role": "assistant", "content": answer}) if answer is not None else asked


def messages(pairs: list[tuple[str, str]]) -> rows.Rows:
    return rows.of("notes", "messages", [rows.Row(i, chat(*pair)) for i, pair in enumerate(pairs, 1)])


def run(out: Path, model: Path, config: dict, data: rows.Rows, held_out: rows.Rows | None = None) -> Result:
    """One training, told on the screen every 20 steps."""
    (out / "payload").mkdir(parents=True)
    (out / "state").mkdir()

    def log(event: str, **fields: object) -> None:
        if event != "step" or fields["step"] % 20 == 0:
            said = {k: round(v, 4) if isinstance(v, float) else v for k, v in fields.items()}
            print(event, json.dumps(said), flush=True)

    given = {"model": Given("model", "student", "model", str(model), model), "data": (Given("data", "notes", "dataset", "notes", None),)}
    if config.get("teacher"):
        given["teacher"] = Given("teacher", "teacher", "model", config["teacher"], demo.path("teacher"), digest="0" * 64)
    said = SIZE | config | {"model": "student", "data": "notes"} | ({"validation": "held-out"} if held_out else {})
    execution = train.Execution(allow=["duplicates", "leaks"])
    context = Context(out / "payload", out / "state", given, execution, log, lambda *a, **k: None, lambda name: "")
    xray.check_rows(context, data, held_out)
    start = time.perf_counter()
    result = training.train(context, train.Config(**said), data, held_out)
    print(f"{out.name}: {time.perf_counter() - start:.0f} s", json.dumps(result.values), flush=True)
    return result


def pretrain(out: Path, pairs: list[tuple[str, str]], epochs: int) -> Path:
    """The student, all weights trained on these answers."""
    config = {"method": "full", "epochs": epochs, "learning_rate": 2e-3, "batch_size": 32}
    run(out / "sft", demo.path("student"), config, messages(pairs))
    return out / "sft/payload"


def greedy(model: Path, adapter: Path | None, held_out: list[tuple[str, str]]) -> list[str]:
    """Greedy answers to held-out notes, from weights as they were written to disk."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from slmkit.ml import answers, models, pairs

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(loaded, adapter) if adapter else loaded
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompts = pairs.prompts(messages(held_out), tokenizer, max_length=64).prompts
    ends = models.end_ids(Given("model", "m", "model", "m", model), tokenizer)
    written = answers.greedy(loaded, prompts, ends, tokenizer.pad_token_id or 0, 8, torch.device("cpu"))
    return tokenizer.batch_decode(written, skip_special_tokens=True)


def share(said: list[str], wanted: list[str]) -> float:
    return sum(a.strip() == b for a, b in zip(said, wanted, strict=True)) / len(wanted)


def grpo(out: Path) -> None:
    train_notes, held_out = notes(0)
    draw = random.Random(1)
    model = pretrain(out, [(note, n if draw.random() < 0.2 else str((int(n) + 1) % 10)) for note, n in train_notes], 5)
    config = {
        "objective": "grpo", "method": "full", "learning_rate": 1e-4, "schedule": "constant", "batch_size": 16, "max_steps": 100,
        "grpo": {"rewards": [{"exact_match": {}}], "generations": 8, "max_new_tokens": 4},
    }  # fmt: skip
    run(out / "grpo", model, config, messages(train_notes), messages(held_out))
    wanted = [n for _, n in held_out]
    before, after = (share(greedy(m, None, held_out), wanted) for m in (model, out / "grpo/payload"))
    print(f"grpo: right greedy answers to {len(held_out)} held-out notes: {before:.1%} before, {after:.1%} after")


def preferred(out: Path, objective: str) -> None:
    train_notes, held_out = notes(0)
    draw = random.Random(1)
    model = pretrain(out, [(note, f"{n} parcels" if draw.random() < 0.3 else n) for note, n in train_notes], 6)
    made = []
    for i, (note, n) in enumerate(train_notes[:1000], 1):
        good, bad = chat(note, f"{n} parcels")[1:], chat(note, n)[1:]
        if objective == "dpo":
            made.append(rows.Row(i, chat(note), chosen=good, rejected=bad))
        else:
            made.append(rows.Row(i, chat(note), chosen=good if i % 2 else bad, label=bool(i % 2)))
    data = rows.of("notes", "preference" if objective == "dpo" else "label", made)
    config = {"objective": objective, "method": "lora", "lora": {"r": 16}, "learning_rate": 3e-4, "batch_size": 16, "max_steps": 60}
    run(out / objective, model, config, data)
    wanted = [f"{n} parcels" for _, n in held_out]
    before, after = (share(greedy(model, a, held_out), wanted) for a in (None, out / objective / "payload"))
    print(f"{objective}: greedy answers to {len(held_out)} held-out notes in the preferred style: {before:.1%} before, {after:.1%} after")


def labelled(split: str) -> rows.Rows:
    lines = demo.path(split).read_text().splitlines()
    return rows.of(split, "messages", [rows.Row(i, tuple(json.loads(line)["messages"])) for i, line in enumerate(lines, 1)])


def agreement(folder: Path, held_out: rows.Rows) -> tuple[float, float]:
    """(how often the likeliest next token is the teacher's, share of exactly right greedy answers)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from slmkit.ml import agreement, answers, chat, models, pairs, teachers, vocabulary

    student = Given("model", "m", "model", "m", folder)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
    cpu, ends, known = torch.device("cpu"), models.end_ids(student, tokenizer), vocabulary.known(tokenizer)
    teacher = teachers.Local(Given("teacher", "t", "model", "t", demo.path("teacher"), digest="0" * 64), cpu, known)
    encoded = chat.encode(held_out, tokenizer, loss_on="assistant", max_length=256, ends=ends)
    found = agreement.measure(model, teacher, encoded.examples, cpu, torch.float32, known)
    prompts = pairs.prompts(held_out, tokenizer, max_length=256).prompts
    written = answers.greedy(model, prompts, ends, tokenizer.pad_token_id or 0, 120, cpu)
    said = tokenizer.batch_decode(written, skip_special_tokens=True)
    return found.share, share(said, [row.messages[-1]["content"] for row in held_out])


def gkd(out: Path, long: int) -> None:
    data, held_out = labelled("train"), labelled("validation")
    config = {"method": "full", "learning_rate": 1e-3, "schedule": "linear", "batch_size": 16, "max_length": 256}
    run(out / "begun", demo.path("student"), config | {"max_steps": long // 4, "learning_rate": 2e-3}, data)
    begun = out / "begun/payload"
    taught = config | {"objective": "gkd", "teacher": "demo:teacher", "max_steps": long // 2}
    trials = {f"sft, {n} steps": config | {"max_steps": n} for n in (long, long // 2)}
    for own in (0.0, 0.5, 1.0):
        more = {"max_new_tokens": 120} if own else {}
        trials[f"gkd, {long // 2} steps, {own:.0%} on its own answers"] = taught | {"gkd": {"on_policy": own} | more}
    print(told("begun", begun, held_out), flush=True)
    for i, (name, said) in enumerate(trials.items()):
        run(out / str(i), begun, said, data)
        print(told(name, out / str(i) / "payload", held_out), flush=True)


def told(name: str, folder: Path, held_out: rows.Rows) -> str:
    same, right = agreement(folder, held_out)
    return f"{name}: agreement with the teacher on held-out notes {same:.2%}, exactly right {right:.1%}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objective", choices=["dpo", "kto", "grpo", "gkd"])
    parser.add_argument("--out", type=Path, default=Path("/tmp/objectives"), help="a folder for what is made; OUT/OBJECTIVE must not exist")
    parser.add_argument("--steps", type=int, default=200, help="of sft, which gkd is compared with (default 200)")
    options = parser.parse_args()
    folder = options.out / options.objective
    if options.objective == "gkd":
        gkd(folder, options.steps)
    else:
        grpo(folder) if options.objective == "grpo" else preferred(folder, options.objective)
