"""The short form of a task: what it refuses, how its rows are read, and the lm-eval task that it stands for."""

import json
import os

import pytest
import yaml
from pydantic import ValidationError

from slmkit.data import asked, lm_eval_task
from slmkit.errors import DataError
from slmkit.steps import eval as step
from slmkit.steps._estimate import Size
from slmkit.steps._task_form import Task
from tests.support.drive import given

ROWS = [{"text": f"message {i}", "label": "ab"[i % 2], "n": i} for i in range(5)]


def task(path, **said):
    said = {"name": "t", "data": str(path), "user": "text", "answer": "label", "metric": "exact_match"} | said
    form = Task(**{k: v for k, v in said.items() if v is not None})
    return given(path, "dataset", "tasks", name=form.name, columns=form)


def rows(path, lines):
    path.write_text("".join(json.dumps(r) + "\n" for r in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"metric": "exact"}, "unknown metric `exact`; such a task has exact_match"),
        ({"metric": ["acc", "rougeL"]}, "`rougeL` is not for a task where the likeliest"),
        ({"metric": "acc"}, "`choices` is missing"),
        ({"metric": "acc", "choices": "labels", "stop": ["x"]}, "`stop` is of written answers"),
        ({"metric": "acc", "choices": "labels", "max_tokens": 8}, "`max_tokens` is of written answers"),
        ({"choices": "labels"}, "`choices` is read by f1_macro"),
        ({"metric": ["f1_macro"], "choices": "options"}, "`choices` is `labels` or a list"),
        ({"metric": ["acc", "f1_macro"], "choices": "options"}, "needs the same choices"),
        ({"metric": "regex"}, "needs `pattern`"), ({"pattern": "x"}, "`pattern` is read by the metric regex"),
        ({"metric": "schema_valid"}, "needs `json_schema`"), ({"tolerance": 1.0}, "`tolerance` is read by the metric numeric"),
        ({"metric": "schema_valid", "json_schema": {"type": 5}}, "no JSON Schema"), ({"extract": "("}, "no regular expression"),
        ({"user": None}, "give one of them"), ({"messages": "m"}, "give one of them"),
        ({"user": None, "messages": "m", "system": "x"}, "brings its own"),
        ({"answer": None}, "`answer` is missing"), ({"user": "{{ text"}, "no template"), ({"metric": []}, "names none"),
        ({"metric": ["regex", "regex"], "pattern": "x"}, "twice"), ({"name": "a b"}, "pattern"), ({"color": 1}, "Extra inputs"),
    ],
)  # fmt: skip
def test_what_fits_not_is_refused(said, why):
    with pytest.raises(ValidationError, match=why.replace("(", r"\(")):
        task("t.jsonl", **said)


def test_rows_are_read_from_columns_and_templates(tmp_path):
    file = rows(tmp_path / "t.jsonl", ROWS)
    found = list(asked.questions(task(file, user="{{ n }}: {{ text }}", answer="n", metric="numeric")))
    assert [(q.user, q.answer) for q in found[:2]] == [("0: message 0", "0"), ("1: message 1", "1")]
    assert found[4].place.endswith("t.jsonl:5")
    (tmp_path / "t.csv").write_text("text;label\n\"a;b\";yes\nc;no\n")
    assert [q.user for q in asked.questions(task(tmp_path / "t.csv"))] == ["a;b", "c"]


@pytest.mark.parametrize(
    ("line", "said", "why"),
    [
        ({"label": "a"}, {}, "no column `text` (found: label)"), ({"text": " ", "label": "a"}, {}, "is empty"),
        ({"text": "x", "label": None}, {}, "is null"),
        ({"text": "x", "label": "c"}, {"metric": "acc", "choices": ["a", "b"]}, "none of the choices (a, b)"),
        ({"text": "x", "label": "c"}, {"metric": "f1_macro", "choices": ["a", "b"]}, "none of the choices (a, b)"),
        ({"text": "x", "label": "seven"}, {"metric": "numeric"}, "needs a number as the right answer"),
        ({"text": "x", "label": "{"}, {"metric": "json_f1"}, "needs a JSON object as the right answer"),
        ({"text": "x", "label": "[1]"}, {"metric": "json_f1"}, "and this is another value"),
        ({"text": "x", "label": "hm"}, {"metric": "tool_call"}, "needs a call as the right answer"),
        ({"text": "x", "label": "a"}, {"user": "{{ titel }}"}, "'titel' is undefined (columns: text, label)"),
        ({"text": "x", "label": "a", "o": ["a"]}, {"metric": "acc", "choices": "o"}, "no list of two texts or more"),
        ({"m": [{"role": "user", "content": "hi"}]}, {"user": None, "answer": None, "messages": "m"}, "does not end with an answer"),
        ([1], {}, "a row is an object"), ({"text": "x", "label": "\ud83d"}, {}, "half a character"),
    ],
)  # fmt: skip
def test_broken_rows_are_told_with_their_place_before_anything_runs(tmp_path, line, said, why):
    good = {"text": "fine", "label": "a", "o": ["a", "b"], "m": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    if "metric" in said and said["metric"] not in ("acc", "f1_macro"):
        good["label"] = {"numeric": "1"}.get(said["metric"], '{"name": "f"}')
    file = rows(tmp_path / "t.jsonl", [good if said.get("user") != "{{ titel }}" else line, line])
    with pytest.raises(DataError) as e:
        list(asked.questions(task(file, **said)))
    assert why in e.value.render() and "t.jsonl:2" in e.value.render()


def test_what_is_seldom_meant_is_a_warning(tmp_path):
    lines = [*ROWS, {"text": "message 1", "label": "b"}, {"text": "message 2", "label": "b"}, {"text": "new", "label": " "}]
    heard = []
    lm_eval_task.write(task(rows(tmp_path / "t.jsonl", lines)), tmp_path / "out", heard.append)
    assert [h.partition(": ")[2].partition(",")[0] for h in heard] == ["1 of 8 right answers are empty", "2 of 8 questions were asked before"]
    assert "1 of them with different right answers" in heard[1]
    assert asked.doubts(task("t"), list(asked.questions(task(rows(tmp_path / "u.jsonl", ROWS))))) == []


def test_a_column_that_is_not_there_is_refused_when_it_is_planned(tmp_path):
    file = rows(tmp_path / "t.jsonl", ROWS)
    sizes = {"tasks": (Size(path=file), Size(path=tmp_path / "gone.jsonl"), Size())}

    def refused(*tasks):
        return [p.render() for p in step.refuse(step.Config(models=["m"], tasks=[t if isinstance(t, str) else t.columns for t in tasks]), sizes)]

    (said,) = refused(task(file, answer="lable"))
    assert "t.jsonl:1: no column `lable` (found: text, label, n)" in said
    assert refused(task(file), task(file, name="u"), task(file, name="v", answer="x")) == [], "what is not here yet is not looked at"
    assert "two tasks are called `t`" in refused(task(file), task(file, metric="regex", pattern="x"))[0]
    assert "two tasks are called `t`" in refused(task(file), "t")[0] and refused(task(file), "gsm8k") == []


def test_an_empty_file_has_no_questions(tmp_path):
    with pytest.raises(DataError, match="holds no rows|no questions"):
        list(asked.questions(task(rows(tmp_path / "t.jsonl", []))))


def test_a_conversation_is_asked_whole_with_its_tools(tmp_path):
    call = {"id": "1", "type": "function", "function": {"name": "pay", "arguments": '{"sum": 5}'}}
    tools = [{"type": "function", "function": {"name": "pay", "parameters": {"type": "object"}}}]
    talk = [{"role": "user", "content": "pay 5"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    file = rows(tmp_path / "t.jsonl", [{"messages": talk, "tools": tools}])
    (q,) = asked.questions(task(file, user=None, answer=None, messages="messages", metric="tool_call"))
    assert q.user is None and q.messages == (talk[0],) and q.tools[0]["function"]["name"] == "pay"
    assert json.loads(q.answer) == {"name": "pay", "arguments": {"sum": 5}}
    file = rows(tmp_path / "s.jsonl", [{"system": "Be brief.", "messages": talk, "tools": tools}])
    (q,) = asked.questions(task(file, user=None, answer=None, messages="messages", metric="tool_call"))
    assert q.messages == ({"role": "system", "content": "Be brief."}, talk[0])


def test_the_task_that_is_written_holds_its_data_metrics_and_settings(tmp_path):
    file = rows(tmp_path / "t.jsonl", [r | {"text": f"{{{{ {r['n']} }}}} 2024-01-0{r['n'] + 1}"} for r in ROWS])
    said = {"name": "short-one", "metric": ["f1_macro", "bleu", "regex"], "pattern": "[ab]"}
    said |= {"system": "Say {{ it }}.", "stop": ["\n"], "max_tokens": 7}
    path = lm_eval_task.write(task(file, **said), tmp_path / "out")
    text = path.read_text()
    document = yaml.load(text.replace("!function ", ""), yaml.SafeLoader)
    assert document["generation_kwargs"] == {"until": ["\n"], "do_sample": False, "max_gen_toks": 7}
    assert [one["metric"] for one in document["metric_list"]] == ["short_one_metrics.f1_macro", "bleu", "short_one_metrics.regex"]
    assert str(tmp_path) not in text
    assert "import f1_macro, f1_macro_of, regex" in path.with_name("short_one_metrics.py").read_text()
    import pyarrow.parquet as parquet

    read = parquet.read_table(tmp_path / "out" / "short-one.parquet").to_pylist()
    assert read[0] == {"user": "{{ 0 }} 2024-01-01", "answer": "a", "system": "Say {{ it }}."}  # no date, and no template, is made of it
    again = lm_eval_task.write(task(file, **said), tmp_path / "again")
    for name in os.listdir(path.parent):
        assert (path.parent / name).read_bytes() == (again.parent / name).read_bytes()
