"""A task in its short form, written as the lm-eval task that it stands for: YAML, metrics and data, in a folder of its own.

    cd FOLDER && lm_eval --model hf --model_args pretrained=MODEL --include_path . --tasks NAME

gives the same scores (slmkit must be importable: the metrics are its own). Data is Parquet: in JSON, `datasets` takes texts that look like
dates for dates.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slmkit.data import asked
from slmkit.data.asked import Question
from slmkit.steps._step import Given
from slmkit.steps._task_form import Task

LM_EVAL = ("bleu", "chrf", "acc", "acc_norm")  # metrics that are lm-eval's own, with its aggregation
JUDGE = "judge"  # a teacher's, asked when all answers are there: slmkit/ml/judged.py
AGGREGATED = {"bleu": "bleu", "chrf": "chrf"}
WHOLE = r"(?s)\A\s*(.*?)\s*\Z"
CONVERSATION = "\x1eslmkit:conversation\x1e"
"""Before a question that is a conversation: its messages and tools as JSON, which slmkit's subjects render; lm-eval knows single questions only."""


def write(given: Given, folder: Path, warn: Callable[[str], None] = lambda _: None) -> Path:
    """Write a task's YAML, metrics and data; the YAML's path. warn: hears what is seldom meant. Raises DataError for data that does not fit."""
    task: Task = given.columns
    found = list(asked.questions(given))
    for doubt in asked.doubts(task, found):
        warn(doubt)
    folder.mkdir(parents=True, exist_ok=True)
    labels = asked.labels(task, found)
    _parquet(folder / f"{task.name}.parquet", [_row(task, q, labels) for q in found])
    metrics = [m for m in task.metric if not (task.generated and m in (*LM_EVAL, JUDGE))]
    imported = f"from slmkit.data.metrics import {', '.join(_imports(task, metrics))}\n"
    chosen = f"\nchosen = chosen_by({', '.join(map(repr, task.metric))})\n" if not task.generated else ""
    if metrics:
        text = f'"""The metrics of {task.name}.yaml."""\n\n{imported}{chosen}'
        (folder / f"{_module(task)}.py").write_text(text, encoding="utf-8")
    path = folder / f"{task.name}.yaml"
    path.write_text("# The lm-eval task that a recipe's short form stands for.\n" + _yaml(_document(task, labels)), encoding="utf-8")
    return path


def _module(task: Task) -> str:
    return f"{task.name.replace('-', '_')}_metrics"


def _imports(task: Task, metrics: list[str]) -> list[str]:
    of = [f"{m}_of" for m in metrics if m.startswith("f1_")]
    return sorted({*of, "chosen_by"}) if not task.generated else sorted({*metrics, *of})


def _row(task: Task, question: Question, labels: list[str] | None) -> dict[str, Any]:
    text = question.user
    if text is None:
        text = CONVERSATION + json.dumps({"messages": question.messages, "tools": question.tools}, ensure_ascii=False)
    row: dict[str, Any] = {"user": text, "answer": question.answer}
    if task.system is not None:
        row["system"] = task.system
    if not task.generated:
        choices = list(question.choices or labels or ())
        row |= {"choices": choices, "label": choices.index(question.answer)}
    return row


class _Function(str):
    """Written as `!function …`."""


def _document(task: Task, labels: list[str] | None) -> dict[str, Any]:
    out: dict[str, Any] = {"task": task.name, "dataset_path": "parquet", "dataset_kwargs": {"data_files": {"test": f"{task.name}.parquet"}}}
    out |= {"test_split": "test", "fewshot_split": "test", "doc_to_text": "user"}
    if task.system is not None:
        out["description"] = "system"
    if task.generated:
        out |= {"output_type": "generate_until", "doc_to_target": "answer"}
        out["generation_kwargs"] = {"until": list(task.stop), "do_sample": False, "max_gen_toks": task.max_tokens}
        found = {"function": "regex", "regex_pattern": task.extract or WHOLE, "fallback": ""}
        out["filter_list"] = [{"name": "none", "filter": [found, {"function": "take_first"}]}]
    else:
        out |= {"output_type": "multiple_choice", "doc_to_target": "label", "doc_to_choice": "choices"}
        out["process_results"] = _Function(f"{_module(task)}.chosen")
    listed = [_metric(task, m, labels) for m in task.metric if m != JUDGE]
    out["metric_list"] = listed or [{"metric": "bypass", "aggregation": "bypass", "higher_is_better": True}]  # lm-eval wants one
    return out | {"metadata": {"version": 1}}


def _metric(task: Task, metric: str, labels: list[str] | None) -> dict[str, Any]:
    own = task.generated and metric not in LM_EVAL
    out: dict[str, Any] = {"metric": _Function(f"{_module(task)}.{metric}") if own else metric}
    f1 = metric.startswith("f1_")
    out["aggregation"] = _Function(f"{_module(task)}.{metric}_of") if f1 else AGGREGATED.get(metric, "mean")
    out["higher_is_better"] = True
    if metric == "numeric" and task.tolerance:
        out["tolerance"] = task.tolerance
    if metric == "regex":
        out["pattern"] = task.pattern
    if metric == "schema_valid":
        out["json_schema"] = json.dumps(task.json_schema, sort_keys=True, ensure_ascii=False)
    return out


def _yaml(document: dict) -> str:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Safe, with `!function` tags."""

    Dumper.add_representer(_Function, lambda dumper, value: dumper.represent_scalar("!function", str(value)))
    return yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=150)


def _parquet(path: Path, rows: list[dict]) -> None:
    import pyarrow
    from pyarrow import parquet

    types = {"user": pyarrow.string(), "answer": pyarrow.string(), "system": pyarrow.string(), "label": pyarrow.int64(),
             "choices": pyarrow.list_(pyarrow.string())}
    schema = pyarrow.schema([(name, types[name]) for name in rows[0]])
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path, compression="zstd")
