"""Broken data is found before any model is loaded, with file and line."""

import json
import subprocess
import sys

import pytest

from slmkit.data import read as reader
from slmkit.errors import DataError
from tests.support.drive import given, mapped

GOOD = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'


def read(path, **columns):
    return reader.read(mapped(path, **columns) if columns else given(path, "dataset", "data"))


def jsonl(tmp_path, *lines: str | bytes):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines))
    return path


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ('{"a": NaN}', "NaN is no JSON"),
        ("[1]", "a row is an object, this is a list"),
        ("null", "this is null"),
        (b'{"text": "\xff"}', "not UTF-8"),
        ('{"input": "x"}', "no `messages`, which rows of format messages have (found: input)"),
        ('{"messages": []}', "should be a list of messages, this is empty"),
        ('{"messages": "hi"}', "this is a string"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "no assistant message"),
        ('{"messages": [{"role": "human", "content": "a"}]}', "role is `human`; roles are system, developer, user, assistant, tool"),
        ('{"messages": [{"role": "assistant", "content": 3}]}', "messages[0].content should be a string, this is a number"),
        ('{"messages": [{"role": "assistant", "content": null}]}', "messages[0].content should be a string, this is null"),
        ('{"messages": [{"role": "assistant"}]}', "messages[0] has no `content`"),
        ('{"messages": [{"role": "assistant", "content": " "}]}', "is empty: there is no answer to learn"),
        ('{"messages": [{"role": "assistant", "content": "a", "loss": 1}]}', "`loss`, which nothing here reads"),
    ],
)
def test_a_broken_row_is_named(tmp_path, line, said):
    with pytest.raises(DataError) as e:
        read(jsonl(tmp_path, GOOD, line, GOOD))
    (problem,) = e.value.problems
    assert problem.line == 2 and problem.file.endswith("d.jsonl")
    assert said in problem.what
    assert "1 broken row, 2 good" in e.value.render()


def test_every_broken_row_is_counted_and_five_are_shown(tmp_path):
    with pytest.raises(DataError) as e:
        read(jsonl(tmp_path, GOOD, *["{"] * 8))
    assert [p.line for p in e.value.problems] == [2, 3, 4, 5, 6]
    assert "8 broken rows, 1 good; the first 5 are shown" in e.value.render()


def test_byte_order_mark_and_empty_lines_are_no_rows(tmp_path):
    data = read(jsonl(tmp_path, b"\xef\xbb\xbf" + GOOD.encode(), "", "  ", GOOD, ""))
    assert [r.line for r in data] == [1, 4]


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_said(tmp_path, content):
    with pytest.raises(DataError, match="no rows"):
        read(jsonl(tmp_path, content))


def test_a_json_array_named_jsonl_is_read_as_what_it_is(tmp_path):
    assert [r.line for r in read(jsonl(tmp_path, "[", GOOD + ",", GOOD, "]"))] == [1, 2]


def test_forms_are_told_by_the_first_row(tmp_path):
    assert read(jsonl(tmp_path, '{"prompt": "a", "completion": "b", "id": 1}')).form == "completion"
    assert read(jsonl(tmp_path, '{"text": "a"}')).form == "text"
    with pytest.raises(DataError, match=r"no known format \(found: question, answer\)"):
        read(jsonl(tmp_path, '{"question": "a", "answer": "b"}'))
    with pytest.raises(DataError, match="`completion` should be a string"):
        read(jsonl(tmp_path, '{"prompt": "a", "completion": 3}'))


def csv(tmp_path, text: str, encoding="utf-8"):
    path = tmp_path / "d.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_csv_with_a_mapping(tmp_path):
    data = read(csv(tmp_path, '\ufeffq,a\n"two\nlines",x\n\nfour,y\n'), user="q", assistant="a", system="s")
    assert data.form == "messages"
    assert [r.line for r in data] == [2, 5]
    assert list(data)[0].messages == (
        {"role": "system", "content": "s"},
        {"role": "user", "content": "two\nlines"},
        {"role": "assistant", "content": "x"},
    )


def test_csv_faults(tmp_path):
    with pytest.raises(DataError) as e:
        read(csv(tmp_path, "text,category\na,b\n"), user="txt", assistant="category")
    assert e.value.problems[0].what == "no field `txt` (found: text, category)"
    assert e.value.problems[0].mend.startswith("the columns are text, category")
    with pytest.raises(DataError, match="3 cells, the header has 2") as e:
        read(csv(tmp_path, "q,a\na,b\na,b,c\n"), user="q", assistant="a")
    assert e.value.problems[0].line == 3
    with pytest.raises(DataError, match="content is empty"):
        read(csv(tmp_path, "q,a\na,\n"), user="q", assistant="a")
    with pytest.raises(DataError, match="not UTF-8") as e:
        read(csv(tmp_path, "q,a\na,é\n", "latin-1"), user="q", assistant="a")
    assert e.value.problems[0].line == 2
    with pytest.raises(DataError, match="no known format") as e:
        read(csv(tmp_path, "q,a\na,b\n"))
    assert "user: COLUMN, assistant: COLUMN" in e.value.problems[0].mend


def test_a_mapping_serves_jsonl_too(tmp_path):
    data = read(jsonl(tmp_path, json.dumps({"q": "a", "a": "b"})), user="q", assistant="a")
    assert list(data)[0].messages[1]["content"] == "b"
    with pytest.raises(DataError, match="no field `x`"):
        read(jsonl(tmp_path, json.dumps({"q": "a", "a": "b"})), user="q", assistant="x")


def test_broken_rows_stop_before_torch_is_imported(tmp_path):
    path = jsonl(tmp_path, GOOD, "{")
    script = (
        "import sys; from tests.support.drive import *; from slmkit.errors import DataError\n"
        f"try: Driver(sys.argv[1]).run('train', dict(model='m', data='d'), dict(model=None, data=given({str(path)!r}, 'dataset')))\n"
        "except DataError: sys.exit('torch' in sys.modules)\n"
        "sys.exit(9)"
    )
    from pathlib import Path

    env = {"PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path / "w")], env=env).returncode == 0


def test_a_row_knows_its_line_and_its_number(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = [{"prompt": f"{i}?", "completion": f"{i}."} for i in range(3)]
    (tmp_path / "a.json").write_text(json.dumps(records, indent=1))
    (tmp_path / "b.json").write_text(json.dumps(records))
    (tmp_path / "c.jsonl").write_text("\n" + "".join(json.dumps(r) + "\n" for r in records))
    (tmp_path / "d.csv").write_text('prompt,completion\n"0\n?",0.\n1?,1.\n2?,2.\n')
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "e.parquet")
    places = {p.name: [r.place("d").rpartition("/")[2] for r in read(p)] for p in sorted(tmp_path.iterdir())}
    assert places == {
        "a.json": ["a.json:2 (row 1)", "a.json:6 (row 2)", "a.json:10 (row 3)"], "b.json": ["b.json:1", "b.json:1 (row 2)", "b.json:1 (row 3)"],
        "c.jsonl": ["c.jsonl:2", "c.jsonl:3", "c.jsonl:4"], "d.csv": ["d.csv:2", "d.csv:4", "d.csv:5"],
        "e.parquet": ["e.parquet (row 1)", "e.parquet (row 2)", "e.parquet (row 3)"],
    }  # fmt: skip
    assert [r.line for r in read(tmp_path / "a.json")] == [1, 2, 3], "by which rows are told apart"
