"""The identity of an lm-eval task: the files whose content decides what it measures."""

import subprocess
import sys
from pathlib import Path

import pytest

from slmkit.errors import RecipeError
from slmkit.steps import _tasks


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def files(folder, name="t.yaml"):
    return [str(p.relative_to(folder)) for p in _tasks.task_files(folder / name)]


def test_data_includes_and_functions_are_found(tmp_path):
    write(
        tmp_path,
        t_dot_yaml="include: common.yaml\ntask: t\nprocess_docs: !function lib.tools.process\ndoc_to_text: !function json.dumps\n",
        common_dot_yaml="dataset_path: json\ndataset_kwargs:\n  data_files: {test: [a.jsonl, sub/b.jsonl]}\n",
        lib__tools_dot_py="",
        a_dot_jsonl="",
        sub__b_dot_jsonl="",
    )
    assert sorted(files(tmp_path)) == ["a.jsonl", "common.yaml", "lib/tools.py", "sub/b.jsonl", "t.yaml"]
    assert files(tmp_path)[0] == "t.yaml"


def test_patterns_and_hub_data(tmp_path):
    write(tmp_path, t_dot_yaml="task: t\ndataset_path: csv\ndataset_kwargs: {data_files: 'd/*.csv'}\n", d__1_dot_csv="", d__2_dot_csv="")
    assert files(tmp_path) == ["t.yaml", "d/1.csv", "d/2.csv"]
    write(tmp_path, t_dot_yaml="task: t\ndataset_path: EleutherAI/arc\n")
    assert files(tmp_path) == ["t.yaml"]


@pytest.mark.parametrize(
    ("text", "line", "column", "said"),
    [
        ("task: t\ndataset_path: json\ndataset_kwargs: {data_files: {test: gone.jsonl}}\n", 3, 37, "`gone.jsonl`, does not exist"),
        ("task: t\ndataset_path: json\n", 2, 1, "has no data_files"),
        ("task: t\ninclude: gone.yaml\n", 2, 10, "`gone.yaml`, does not exist"),
        ("task: t\ndataset_path: json\ndataset_kwargs: {data_files: 'https://x.org/a.json'}\n", 3, 31, "is remote"),
        ("task: t\ndataset_path: json\ndataset_kwargs: {data_files: 'x*.json'}\n", 3, 31, "no file matches"),
        ("task: t\n  x: [\n", 2, 4, "cannot be read"),
        ("task: !!python/object:os.system {}\n", 1, 7, "cannot be read"),
        ("- a\n", 1, 1, "it is no mapping"),
        ("doc_to_text: x\n", 1, 1, "it has no `task`"),
        ("include: t.yaml\n", 1, 1, "round in a circle"),
    ],
)
def test_faults_have_a_place(tmp_path, text, line, column, said):
    write(tmp_path, t_dot_yaml=text)
    with pytest.raises(RecipeError) as e:
        _tasks.task_files(tmp_path / "t.yaml")
    (problem,) = e.value.problems
    assert said in problem.what
    assert (problem.line, problem.column) == (line, column)
    assert problem.file.endswith("t.yaml")


@pytest.mark.parametrize(
    ("word", "bare"),
    [("arc_easy", True), ("tasks/x", False), ("x.yaml", False), ("x.yml", False), ("./x", False), ("$ref", False), ("mmlu", True)],
)
def test_bare_names(word, bare):
    assert _tasks.bare(word) is bare


def test_neither_torch_nor_lm_eval_is_imported(tmp_path):
    write(tmp_path, t_dot_yaml="task: t\ndataset_path: x/y\n")
    script = (
        "import sys; from pathlib import Path; from slmkit.steps import _tasks; _tasks.task_files(Path(sys.argv[1]))\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'lm_eval', 'datasets')))"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path / "t.yaml")], cwd=root).returncode == 0
