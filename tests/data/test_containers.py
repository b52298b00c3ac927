"""The same rows come back from every container, plain or compressed, from one file or many, whatever the file is called."""

import gzip
import json

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from slmkit.data import jsontext
from slmkit.data import read as reader
from slmkit.errors import DataError
from tests.support.drive import given as input_of
from tests.support.drive import mapped

ROWS = [{"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]} for i in range(700)]


def read(path, **columns):
    return reader.read(mapped(path, **columns) if columns else input_of(path, "dataset", "data"))


def plain(data):
    return [{"messages": list(row.messages)} | ({"tools": list(row.tools)} if row.tools else {}) for row in data]


def _lines(path, rows):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")


def _array(path, rows, **how):
    path.write_text(json.dumps(rows, **how), encoding="utf-8")


def _cells(path, rows, delimiter=","):
    import csv

    names = list(dict.fromkeys(k for r in rows for k in r))
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f, delimiter=delimiter)
        writer.writerow(names)
        writer.writerows([json.dumps(r[n]) if n in r else "" for n in names] for r in rows)


def _table(rows):
    """Arrow structs hold the keys of all rows, so objects of free shape (arguments, tools) are written as JSON text, as on the Hub."""

    def call(one):
        return one | {"function": one["function"] | {"arguments": json.dumps(one["function"]["arguments"])}}

    def message(m):
        return m | {"tool_calls": [call(c) for c in m["tool_calls"]]} if "tool_calls" in m else m

    def flat(row):
        return {"messages": [message(m) for m in row["messages"]], "tools": json.dumps(row["tools"]) if "tools" in row else None}

    return pa.Table.from_pylist([flat(r) for r in rows])


def _arrow(path, rows, new):
    table = _table(rows)
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=300)


def _saved(path, rows):
    from datasets import Dataset

    Dataset(_table(rows)).save_to_disk(path, num_shards=2 if len(rows) > 1 else 1)


WRITE = {
    "d.jsonl": _lines,
    "d.ndjson": _lines,
    "d.json": _array,
    "pretty.json": lambda p, rows: _array(p, rows, indent=2),
    "lines.json": _lines,
    "array.jsonl": _array,
    "no-suffix": _lines,
    "ascii.json": lambda p, rows: _array(p, rows, ensure_ascii=True),
    "loose.json": lambda p, rows: p.write_text("\n".join(json.dumps(r, indent=1) for r in rows), encoding="utf-8"),
    "d.csv": _cells,
    "d.tsv": lambda p, rows: _cells(p, rows, "\t"),
    "semicolons.csv": lambda p, rows: _cells(p, rows, ";"),
    "d.parquet": lambda p, rows: parquet.write_table(_table(rows), p, row_group_size=200),
    "d.arrow": lambda p, rows: _arrow(p, rows, pa.ipc.new_file),
    "stream.arrow": lambda p, rows: _arrow(p, rows, pa.ipc.new_stream),
    "saved": _saved,
}


@pytest.mark.parametrize("name", WRITE)
def test_every_container(tmp_path, name):
    WRITE[name](tmp_path / name, ROWS)
    data = read(tmp_path / name)
    assert plain(data) == ROWS and len(data) == 700 and data.format == "messages"
    again = reader.read(input_of(tmp_path / name, "dataset"), held=100)
    assert list(again) == list(data) == list(again), "large data is read again, and gives the same"
    assert reader.format_of(tmp_path / name, None, None) == "messages"


PACKED = [f"d.{kind}.{how}" for kind in ("jsonl", "json", "csv", "tsv") for how in ("gz", "zst")]


@pytest.mark.parametrize("name", [*PACKED, "zipped.json"])
def test_compressed(tmp_path, name):
    inner = tmp_path / name.removesuffix(".gz").removesuffix(".zst")
    WRITE[inner.name if inner.name != "zipped.json" else "d.json"](inner, ROWS)
    raw = inner.read_bytes()
    if name.endswith(".zst"):
        with pa.CompressedOutputStream(str(tmp_path / name), "zstd") as f:
            f.write(raw)
    else:
        (tmp_path / name).write_bytes(gzip.compress(raw))
    assert plain(read(tmp_path / name)) == ROWS


def test_parquet_and_arrow_number_rows_and_have_no_lines(tmp_path):
    bad = [*ROWS[:300], {"messages": [{"role": "user", "content": "q"}]}, *ROWS[:5]]
    parquet.write_table(pa.Table.from_pylist(bad), tmp_path / "d.parquet")
    with pytest.raises(DataError) as e:
        read(tmp_path / "d.parquet")
    (problem,) = e.value.problems
    assert problem.what.startswith("row 301: no assistant message") and problem.line == 0


def test_a_struct_of_all_rows_keys_is_one_rows_keys_again(tmp_path):
    """Arrow gives every call all the arguments that any call has, null where it has none."""
    calls = [[{"function": {"name": n, "arguments": a}}] for n, a in (("f", {"x": 1}), ("g", {"y": "z"}))]
    talks = [{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": None, "tool_calls": c}]} for c in calls]
    parquet.write_table(pa.Table.from_pylist(talks), tmp_path / "d.parquet")
    assert [r.messages[1]["tool_calls"][0]["function"]["arguments"] for r in read(tmp_path / "d.parquet")] == [{"x": 1}, {"y": "z"}]


def test_an_array_tells_the_row_and_the_line(tmp_path):
    _array(tmp_path / "d.json", [*ROWS[:3], {"messages": []}, ROWS[3]], indent=2)
    with pytest.raises(DataError) as e:
        read(tmp_path / "d.json")
    lines = (tmp_path / "d.json").read_text().splitlines()
    (problem,) = e.value.problems
    assert problem.what.startswith("row 4: ") and lines[problem.line] == '    "messages": []'
    assert [row.line for row in read(_good(tmp_path))] == [1, 2, 3]


def _good(tmp_path):
    _array(tmp_path / "good.json", ROWS[:3], indent=2)
    return tmp_path / "good.json"


ident = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=20)
words = ident.filter(lambda s: s.strip())
leaves = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | ident
deep = st.recursive(leaves, lambda x: st.lists(x, max_size=2) | st.dictionaries(ident, x, max_size=2), max_leaves=4)
objects = st.dictionaries(ident, deep, max_size=3)
calls = st.builds(lambda i, n, a: {"id": i, "type": "function", "function": {"name": n, "arguments": a}}, ident, ident, objects)
answers = st.builds(lambda c, r: {"role": "assistant", "content": c} | ({"reasoning_content": r} if r else {}), words, st.none() | words)
asks = st.lists(calls, min_size=1, max_size=2).map(lambda c: {"role": "assistant", "content": "", "tool_calls": c})


@st.composite
def conversations(draw):
    out = [{"role": draw(st.sampled_from(["system", "developer"])), "content": draw(ident)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 2))):
        out.append({"role": "user", "content": draw(ident)})
        if draw(st.booleans()):
            out.append(draw(asks))
            out += [{"role": "tool", "content": draw(ident), "tool_call_id": c["id"]} for c in out[-1]["tool_calls"]]
        out.append(draw(answers))
    tools = [{"type": "function", "function": {"name": draw(ident), "parameters": draw(objects)}}] if draw(st.booleans()) else []
    return {"messages": out} | ({"tools": tools} if tools else {})


@pytest.mark.parametrize("name", [n for n in WRITE if n != "saved"])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(conversations(), min_size=1, max_size=3))
@example(rows=[{"messages": [{"role": "user", "content": '"\r\n\u2028,;\t\x00\ufeff'}, {"role": "assistant", "content": "\x85 é 🙂"}]}])
def test_any_valid_rows_come_back_equal(tmp_path, name, rows):
    WRITE[name](tmp_path / name, rows)
    assert plain(read(tmp_path / name)) == rows


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(values=st.lists(objects | leaves, max_size=6), chunk=st.integers(1, 40), indent=st.none() | st.integers(0, 2), ascii_only=st.booleans())
def test_an_array_is_the_same_through_any_window(monkeypatch, values, chunk, indent, ascii_only):
    """Wherever the window ends, in a number, an escape, a letter of four bytes, the values are json's own."""
    import io

    monkeypatch.setattr(jsontext, "CHUNK", chunk)
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    found = [r.value for r in jsontext.array(io.BytesIO(text.encode()))]
    assert found == values and [type(v) for v in found] == [type(v) for v in values]


def test_a_folder_its_shards_and_its_splits(tmp_path):
    for i, name in enumerate(["a/train-00000.jsonl", "a/train-00001.jsonl", "a/test.jsonl", "a/notes.txt"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        _lines(tmp_path / name, ROWS[i : i + 1])
    assert plain(read(tmp_path / "a")) == ROWS[:2]
    assert plain(read(tmp_path / "a", split="test")) == ROWS[2:3]
    with pytest.raises(DataError, match="no split `dev`") as e:
        read(tmp_path / "a", split="dev")
    assert "it has test, train" in e.value.problems[0].mend
    with pytest.raises(DataError, match="this is one file"):
        read(tmp_path / "a/test.jsonl", split="test")


def test_a_folder_says_what_it_cannot_choose(tmp_path):
    with pytest.raises(DataError, match="no data file in this folder"):
        read(tmp_path)
    _lines(tmp_path / "a.jsonl", ROWS[:1])
    _lines(tmp_path / "b.jsonl", ROWS[1:2])
    assert plain(read(tmp_path)) == ROWS[:2], "shards without a split's name are all the rows"
    _cells(tmp_path / "c.csv", ROWS[:1])
    with pytest.raises(DataError, match="no one data file in this folder"):
        read(tmp_path)
    _lines(tmp_path / "train.jsonl", ROWS[2:3])
    assert plain(read(tmp_path)) == ROWS[2:3], "an artifact's folder means its train.jsonl"


def test_the_readme_says_the_splits(tmp_path):
    (tmp_path / "x").mkdir()
    _lines(tmp_path / "x/one.jsonl", ROWS[:1])
    _lines(tmp_path / "x/two.jsonl", ROWS[1:2])
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  default: true\n  data_files:\n  - {split: train, path: x/two.*}\n"
        "  - {split: test, path: x/one.jsonl}\n"
        "- config_name: other\n  data_files: x/one.jsonl\n---\n# A card\n"
    )
    assert plain(read(tmp_path)) == ROWS[1:2]
    assert plain(read(tmp_path, split="test")) == plain(read(tmp_path, split="other/train")) == ROWS[:1]
    with pytest.raises(DataError, match="no config `nope`"):
        read(tmp_path, split="nope/train")


def test_a_saved_dict_of_datasets(tmp_path):
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset(_table(ROWS[:2])), "test": Dataset(_table(ROWS[2:3]))}).save_to_disk(tmp_path / "d")
    assert plain(read(tmp_path / "d")) == ROWS[:2] and plain(read(tmp_path / "d", split="test")) == ROWS[2:3]
