"""Forty wrong recipes: each exits 2 with file:line:column, a caret, a mend and no traceback, before torch is imported."""

from __future__ import annotations

import re
import sys

import pytest

from tests.support.cli import Cli

GOOD = """\
recipe: wrong
base: demo:student
steps:
  sft:
    kind: train
    model: $base
    data: rows.jsonl
    method: lora
    lora: {r: 8, alpha: 16}
    learning_rate: 1e-3
  int4:
    kind: quantize
    model: $sft
    method: gptq
    bits: 4
    calibration: rows.jsonl
  score:
    kind: eval
    models: [$base, $int4]
    tasks: [demo:notes]
"""


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


BOMB = "recipe: b\na: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(6)
) + "steps:\n  train: {data: $g}\n"

TEACH = """recipe: t
steps:
  t:
    {kind: distill, prompts: rows.jsonl,
    teacher: {model: t, api_key_env: KEY, base_url: "http://localhost:1"}}
"""

JUDGED = """recipe: j
steps:
  rl:
    kind: train
    model: demo:student
    data: rows.jsonl
    objective: grpo
    grpo: {rewards: [{judge: {rubric: good, teacher: {model: t, base_url: "http://localhost:1"}}}]}
    validation: rows.jsonl
"""

CASES: dict[str, tuple[str | bytes, str, str]] = {
    # name: (text, expected line:column, words of the message or the help)
    "unknown top-level key": ("extra: 1\n" + GOOD, "1:1", "nothing reads the key `extra`"),
    "misspelt top-level key": (changed("steps:", "stpes:"), "3:1", "`steps` is missing"),
    "unknown step key": (changed("learning_rate", "learningrate"), "10:5", "did you mean `learning_rate`?"),
    "abbreviated key": (changed("learning_rate", "lr"), "10:5", "|     ^^\n  help: did you mean `learning_rate`?"),
    "unknown nested key": (changed("alpha: 16", "alhpa: 16"), "9:18", "did you mean `alpha`?"),
    "unknown execution key": (changed("learning_rate: 1e-3", "execution: {micro_bath: 1}"), "10:17", "did you mean `micro_batch`?"),
    "identity key in execution": (changed("learning_rate: 1e-3", "execution: {seed: 1}"), "10:17", "unknown key `seed`"),
    "wrong type: text for a number": (changed("r: 8", "r: eight"), "9:15", "`r` must be a valid integer"),
    "wrong type: float for an integer": (changed("r: 8", "r: 8.5"), "9:15", "`r`"),
    "wrong type: quoted number": (changed("bits: 4", "bits: '4'"), "15:11", "`bits` cannot be '4'"),
    "wrong type: list for a mapping": (changed("{r: 8, alpha: 16}", "[8, 16]"), "9:11", "`lora` is a mapping"),
    "wrong type: on for a boolean": (
        changed("learning_rate: 1e-3", "execution: {gradient_checkpointing: on}"), "10:41", "`gradient_checkpointing` must be true or false",
    ),
    "out of range": (changed("1e-3", "-1e-3"), "10:20", "greater than 0"),
    "out of range: zero rank": (changed("r: 8", "r: 0"), "9:15", "greater than or equal to 1, not 0"),
    "nan": (changed("1e-3", ".nan"), "10:20", "finite number"),
    "infinity": (changed("1e-3", ".inf"), "10:20", "finite number"),
    "unknown kind": (changed("kind: train", "kind: trian"), "5:11", "did you mean `train`?"),
    "no kind": (changed("    kind: train\n", ""), "4:3", "has no `kind`"),
    "unknown method": (changed("method: gptq", "method: gptk"), "14:13", "did you mean `gptq`?"),
    "unknown reference": (changed("model: $sft", "model: $stf"), "13:12", "did you mean `$sft`?"),
    "forward reference": (changed("model: $base", "model: $int4"), "6:12", "move `int4` before `sft`"),
    "self reference": (changed("model: $base", "model: $sft"), "6:12", "refers to the step itself"),
    "wrong-typed reference": (changed("data: rows.jsonl\n    method", "data: $base\n    model2: 1\n    method"), "8:5", "unknown key `model2`"),
    "scores where a model is wanted": (GOOD + "  more:\n    kind: quantize\n    model: $score\n    method: nf4\n", "23:12", "gives a scores"),
    "a step where a number is wanted": (GOOD + "  more:\n    kind: quantize\n    model: $int4\n    method: $sft\n", "24:13", "is a step"),
    "missing data file": (changed("data: rows.jsonl", "data: row.jsonl"), "7:11", "did you mean rows.jsonl?"),
    "unknown mapping key": (changed("rows.jsonl", "{path: rows.jsonl, usr: a}"), "7:30", "completion, messages, tools, chosen, rejected, label\n"),
    "missing base": (changed("demo:student", "models/none"), "2:7", "no such file or folder"),
    "unknown demo": (changed("demo:student", "demo:sudent"), "2:7", "student"),
    "unknown scheme": (changed("demo:student", "hfx:me/model"), "2:7", "unknown scheme"),
    "malformed hub name": (changed("demo:student", "hf:../../etc"), "2:7", "no hub name"),
    "duplicate key": (changed("    bits: 4\n", "    bits: 4\n    bits: 8\n"), "16:5", "already given at line 15"),
    "tab": (changed("    bits: 4", "\tbits: 4"), "15:1", "tab"),
    "unclosed bracket": (changed("alpha: 16}", "alpha: 16"), "9:11", "opened here and not closed"),
    "unclosed quote": (changed("recipe: wrong", 'recipe: "wrong'), "1:9", "close the bracket or quote"),
    "merge conflict": (changed("    bits: 4\n", "<<<<<<< HEAD\n    bits: 4\n=======\n    bits: 3\n>>>>>>> other\n"), "15:1", "merge conflict marker"),
    "python tag": (changed("wrong", "!!python/object/apply:os.system [id]"), "1:9", "not allowed"),
    "alias bomb": (BOMB, "", "more than 20,000 values"),
    "merge key": (changed("{r: 8, alpha: 16}", "{<<: {r: 8}}"), "9:12", "merge keys"),
    "not UTF-8": (GOOD.replace("wrong", "wr\xe9ng").encode("latin-1"), "1:11", "not UTF-8"),
    "empty": ("", "1:1", "the recipe is empty"),
    "only a comment": ("# nothing\n", "1:1", "the recipe is empty"),
    "a list": ("- recipe: a\n- steps: {}\n", "1:1", "a recipe is a mapping"),
    "a word": ("hello\n", "1:1", "a recipe is a mapping"),
    "two documents": (GOOD + "---\n" + GOOD, "21:1", "second YAML document"),
    "no steps": ("recipe: a\nsteps: {}\n", "2:1", "maps names to steps"),
    "recipe name with ..": (changed("recipe: wrong", "recipe: ../wrong"), "1:9", "no recipe name"),
    "step name with ..": (changed("  sft:", "  ../sft:"), "4:3", "no step name"),
    "literal API key": (changed("base: demo:student", "base: demo:student\napi_key: sk-abcdefghijklmnop1234"), "3:10", "api_key_env"),
    "literal token anywhere": (changed("rows.jsonl", "hf_abcdefghijklmnopqrstu"), "7:11", "a literal secret"),
    "key in place of its variable's name": (TEACH.replace("KEY", "9f8e-mine"), "5:38", "a literal secret"),
    "key written with an escape": (TEACH.replace("KEY", '"9f8e-mi\\x6ee"'), "5:38", "a literal secret"),
    "key as a number": (TEACH.replace("KEY", "98765432"), "5:38", "a literal secret"),
    "key in a list": (TEACH.replace("KEY", "[9f8e-mine]"), "5:38", "a literal secret"),
    "login in an address without http": (TEACH.replace("http://localhost:1", "me:9f8e-mine@localhost:1/v1"), "5:53", "a literal secret"),
    "address without http": (TEACH.replace("http://", "").replace("KEY", "A_KEY"), "5:55", "help: where the endpoint is, from http:// or"),
    "neither rows nor a share": (TEACH.replace("distill,", "distill, min_kept: 1.5,"), "4:31", "help: write a whole number (500), or a share"),
    "a judge alone, and validation": (JUDGED, "9:5", "|     ^^^^^^^^^^"),
    "no teacher": (TEACH.replace("teacher:", "x:"), "3:3", "help: who answers:"),
    "epochs and max_steps": (changed("learning_rate: 1e-3", "max_steps: 5\n    epochs: 1"), "11:13", "keep one"),
    "lora with method full": (changed("method: lora", "method: full"), "9:11", "`lora` is read by"),
    "bad bound": (GOOD + "    expect: {int4.notes.exact_match: about 1}\n", "21:13", "int4.notes.exact_match"),
    "gptq without calibration": (changed("    calibration: rows.jsonl\n", ""), "11:3", "calibration"),
}


@pytest.mark.parametrize("name", CASES)
def test_wrong_recipe(name: str, cli: Cli) -> None:
    text, place, words = CASES[name]
    (cli.folder / "r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    cli.write("rows.jsonl", '{"prompt": "a", "completion": "b"}\n')
    done = cli("run", "r.yaml")
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert re.search(rf"^r\.yaml:{place}", done.stderr, re.M), done.stderr
    assert words in done.stderr, done.stderr
    if text and not text.isspace() and isinstance(text, str) and not text.startswith("#"):
        assert "^" in done.stderr, done.stderr
    assert "help:" in done.stderr or "already" in done.stderr or "`" in done.stderr
    assert "sk-abcdef" not in done.stderr and "hf_abcdef" not in done.stderr and all(k not in done.stderr for k in ("9f8e-mi", "98765432"))
    assert not (cli.folder / "artifacts").exists()


def test_all_problems_at_once(cli: Cli) -> None:
    cli.write("rows.jsonl", "{}\n")
    text = GOOD.replace("r: 8", "r: x").replace("bits: 4", "bits: 5").replace("1e-3", "no")
    cli.write("r.yaml", text)
    done = cli("plan", "r.yaml")
    lines = [int(n) for n in re.findall(r"^r\.yaml:(\d+):", done.stderr, re.M)]
    assert lines == sorted(lines) and set(lines) == {9, 10, 15}


def test_no_torch_before_the_error(cli: Cli) -> None:
    cli.write("r.yaml", GOOD.replace("r: 8", "r: x"))
    cli.write("rows.jsonl", "{}\n")
    code = (
        "import sys\nfrom slmkit.cli.main import main\nrc = main(['run', 'r.yaml'])\n"
        "print(rc, sorted({'torch', 'transformers', 'datasets', 'peft'} & set(sys.modules)), file=sys.stderr)"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], cwd=cli.folder, env=cli.environment(), capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "2 []"


SETS = {
    "unknown step": ("steps.stf.lora.r=8", "did you mean `sft`?"),
    "unknown key": ("steps.sft.lora.rank=8", "unknown key `rank`"),
    "unknown key, a letter is meant": ("steps.sft.lora.rank=8", "did you mean `r`?"),
    "wrong type": ("steps.sft.lora.r=x", "`r` must be a valid integer"),
    "not of the form": ("steps.sft.lora.r", "a.b=value"),
    "unclosed": ("steps.sft.lora=[1", "close the bracket"),
    "through a scalar": ("recipe.x=1", "does not exist"),
}


@pytest.mark.parametrize("name", SETS)
def test_wrong_set(name: str, cli: Cli) -> None:
    text, words = SETS[name]
    cli.write("r.yaml", GOOD)
    cli.write("rows.jsonl", "{}\n")
    done = cli("plan", "r.yaml", "--set", text)
    assert done.returncode == 2 and words in done.stderr and "--set:1:" in done.stderr, done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr


def test_missing_recipe_names_the_neighbours(cli: Cli) -> None:
    cli.write("real.yaml", GOOD)
    done = cli("plan", "reel.yaml")
    assert done.returncode == 2 and "real.yaml" in done.stderr
