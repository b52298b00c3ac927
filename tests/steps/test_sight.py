"""What `plan` says an eval's questions can see: counted from the task's files, reckoned as the verdicts are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slmkit.evidence import intervals, power
from slmkit.steps import _sight
from slmkit.steps import eval as step
from slmkit.steps._estimate import Size


def task(folder: Path, text: str, name: str = "t.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def lines(folder: Path, name: str, n: int) -> None:
    (folder / name).write_text("".join(f'{{"q": {i}}}\n' for i in range(n)) + "\n")


def test_questions_are_counted_in_the_split_that_is_asked(tmp_path):
    lines(tmp_path, "a.jsonl", 30)
    lines(tmp_path, "b.jsonl", 5)
    (tmp_path / "c.csv").write_text('q,a\n"two\nlines",1\nx,2\n')
    (tmp_path / "d.json").write_text(json.dumps({"rows": [1, 2, 3]}))
    (tmp_path / "e.json").write_text("[1, 2, 3, 4]")
    (tmp_path / "f.parquet").write_bytes(b"PAR1")
    head = "task: {0}\ntest_split: test\ndataset_path: {1}\ndataset_kwargs: {{data_files: {2}}}\n"
    files = {
        "one": ("json", "{train: a.jsonl, test: b.jsonl}", 5), "many": ("json", "{test: [a.jsonl, b.jsonl]}", 35), "csv": ("csv", "c.csv", 2),
        "array": ("json", "e.json", 4), "unknown": ("parquet", "f.parquet", None), "both": ("json", "{test: [a.jsonl, f.parquet]}", None),
    }  # fmt: skip
    for name, (kind, said, n) in files.items():
        assert _sight.questions(task(tmp_path, head.format(name, kind, said))) == ({name: n} if n else {}), name
    field = "task: f\ndataset_path: json\ntest_split: test\ndataset_kwargs: {data_files: {test: d.json}, field: rows}\n"
    assert _sight.questions(task(tmp_path, field)) == {"f": 3}
    one = "  - {{task: {0}, dataset_path: json, test_split: test, dataset_kwargs: {{data_files: {{test: {1}}}}}}}\n"
    inline = "group: g\ntask:\n" + one.format("x", "a.jsonl") + one.format("y", "b.jsonl")
    assert _sight.questions(task(tmp_path, inline)) == {"x": 30, "y": 5}


@pytest.fixture
def notes(tmp_path) -> tuple[Size, ...]:
    lines(tmp_path, "a.jsonl", 200)
    return (Size(path=task(tmp_path, "task: notes\ndataset_path: json\ntest_split: test\ndataset_kwargs: {data_files: {test: a.jsonl}}\n")),)


def sees(notes, limit=None, **expect: str) -> list[str]:
    config = step.Config(models=["m"], tasks=["t"], limit=limit, expect={k.replace("__", "."): v for k, v in expect.items()})
    return step.estimate(config, step.Execution(), {"tasks": notes}).get("sees", [])


def test_what_the_questions_can_see_is_what_the_verdicts_use(notes):
    (rate,) = sees(notes, m__notes__acc=">= 0.85")
    assert rate == f"`m.notes.acc`: 200 questions show `>= 0.85` 4 times in 5 from {100 * power.rate_that_passes(200, 0.85):.1f} % up"
    (below,) = sees(notes, m__notes__acc="<= 0.15")
    assert f"{100 - 100 * power.rate_that_passes(200, 0.85):.1f} % down" in below
    (never,) = sees(notes, limit=20, m__notes__acc=">= 0.9")
    assert "20 questions cannot show `>= 0.9`, even with every answer right" in never and intervals.exact(20, 20, 0.95)[0] < 0.9
    config = step.Config(models=["m"], tasks=["t"], limit=50, expect={"m.notes.acc - n.notes.acc": ">= -0.02"})
    said = step.estimate(config, step.Execution(), {"tasks": notes})
    assert said["questions"] == 50 and f"see a difference of {100 * power.difference(50):.1f} points" in said["sees"][0]
    assert f"with nothing lost takes about {power.questions_for(0.02):,}" in said["sees"][0]
    wide = step.Config(models=["m"], tasks=["t"], expect={"m.notes.acc - n.notes.acc": ">= -0.2"})
    assert "nothing lost" not in step.estimate(wide, step.Execution(), {"tasks": notes})["sees"][0]


def test_nothing_is_said_of_what_is_not_known(notes, tmp_path):
    for bound in ({"m__other__acc": ">= 0.5"}, {"m__notes__acc": "== 1"}, {"m__notes__acc": ">= 0.5 point"}, {"m__notes__perplexity": "<= 9"}, {}):
        assert sees(notes, **bound) == []
    assert sees((Size(),), m__notes__acc=">= 0.5") == []
    broken = (Size(path=task(tmp_path, "a: [", "broken.yaml")),)
    assert sees(broken, m__notes__acc=">= 0.5") == []


def test_inconclusive_is_read_where_something_is_expected():
    with pytest.raises(ValueError, match="read where there is an `expect`"):
        step.Config(models=["m"], tasks=["t"], inconclusive="pass")
