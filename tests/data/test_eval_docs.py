"""The tasks that docs/eval.md shows are read, written for lm-eval, and the right answer to the row that is shown scores full marks."""

import json
import re
from pathlib import Path

import pytest
import yaml

from slmkit.data import asked, lm_eval_task, metrics
from slmkit.steps import eval as step
from slmkit.steps._task_form import CHOSEN, GENERATED, Task
from tests.support.drive import given

PAGE = (Path(__file__).parents[2] / "docs/eval.md").read_text()
BLOCKS = re.findall(r"```yaml\n# (\{[^\n]*\})\n(.*?)```", PAGE, re.S)
TASKS = [(json.loads(row), Task(**yaml.safe_load(text))) for row, text in BLOCKS]


def test_every_metric_is_shown_and_told():
    shown = {m for _, task in TASKS for m in task.metric}
    assert shown >= {*GENERATED, *CHOSEN} - {"f1_weighted"}
    assert all(f"`{m}`" in PAGE for m in (*GENERATED, *CHOSEN))


@pytest.mark.parametrize(("row", "task"), TASKS, ids=[task.name for _, task in TASKS])
def test_a_task_of_the_page_is_one(tmp_path, row, task):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([row]))
    said = given(file, "dataset", "tasks", name=task.name, columns=task)
    path = lm_eval_task.write(said, tmp_path / "out")
    assert f"task: {task.name}" in path.read_text()
    if not task.generated:
        return
    (question,) = asked.questions(said)
    answer = re.search(task.extract, question.answer)[1] if task.extract else question.answer
    made = yaml.load(path.read_text().replace("!function ", ""), yaml.SafeLoader)
    for metric in made["metric_list"]:
        name = metric["metric"].rpartition(".")[2]
        if name in lm_eval_task.LM_EVAL:
            continue
        more = {k: v for k, v in metric.items() if k in ("pattern", "tolerance", "json_schema")}
        value = getattr(metrics, name)([question.answer], [answer], **more)
        assert value == 1.0 or value[0] == value[1] == question.answer, name


def test_the_step_of_the_page_is_one():
    (text,) = re.findall(r"```yaml\n(  score:.*?)```", PAGE, re.S)
    body = yaml.safe_load(text)["score"]
    assert body.pop("kind") == "eval" and step.Config(**body).apis["teacher"].budget.usd == 2
