"""Files as they should not be: each is read right, or refused with its place and a sentence that says what is wrong."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from slmkit.data import read as reader
from slmkit.errors import DataError
from tests.support.drive import given, mapped

U, A = '{"role": "user", "content": "u"}', '{"role": "assistant", "content": "a"}'
GOOD = f'{{"messages": [{U}, {A}]}}'
ARRAY = f"[{GOOD},\n{GOOD}]"


def put(tmp_path, name, body):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass"))
    return path


def read(path, **how):
    return reader.read(given(path, "dataset", "data"), **how)


def asked(content):
    """A row whose user says `content`, which is JSON text."""
    return f'{{"messages": [{{"role": "user", "content": {content}}}, {A}]}}'


READ = {  # name: (file, body, the first row's user content)
    "CRLF": ("d.jsonl", GOOD.replace("\n", "\r\n") + "\r\n" + GOOD + "\r\n", "u"),
    "byte order mark": ("d.json", "\ufeff" + ARRAY, "u"),
    "byte order mark in JSONL": ("d.jsonl", "\ufeff" + GOOD, "u"),
    "byte order mark in CSV": ("d.csv", "\ufefftext\nu\n", "u"),
    "blank lines": ("d.jsonl", f"\n \n{GOOD}\n\t\n{GOOD}\n\n", "u"),
    "no newline at the end": ("d.jsonl", GOOD, "u"),
    "an escaped NUL": ("d.jsonl", asked('"a\\u0000b"'), "a\0b"),
    "line separators inside strings": ("d.jsonl", asked('"a\u2028b\u0085c"'), "a\u2028b\u0085c"),
    "a pair of surrogates": ("d.jsonl", asked('"\\ud83d\\ude42"'), "🙂"),
    "combining and right-to-left": ("d.jsonl", asked('"e\u0301 \u202eabc\u200d"'), "e\u0301 \u202eabc\u200d"),
    "a line of 10 MB": ("d.jsonl", asked(json.dumps("x" * 10_000_000)), "x" * 10_000_000),
    "a row of 10 MB in an array": ("d.json", f"[{asked(json.dumps('é' * 5_000_000))}]", "é" * 5_000_000),
    "a cell of 10 MB": ("d.csv", "text\n" + "y" * 10_000_000 + "\n", "y" * 10_000_000),
    "empty user content": ("d.jsonl", asked('""'), ""),
    "the assistant first": ("d.jsonl", f'{{"messages": [{A}, {U}, {A}]}}', "u"),
    "a fraction of the fields in later rows": ("d.jsonl", f'{{"id": 1, "messages": [{U}, {A}]}}\n{GOOD}', "u"),
    "an array of one line named .jsonl": ("d.jsonl", f"[{GOOD}]", "u"),
    "JSON named .csv": ("d.csv", GOOD + "\n" + GOOD, "u"),
    "gzip without its suffix": ("d.jsonl", gzip.compress(GOOD.encode()), "u"),
    "gzip's suffix without gzip": ("d.jsonl.gz", GOOD, "u"),
    "two gzip members": ("d.jsonl.gz", gzip.compress(GOOD.encode() + b"\n") + gzip.compress(GOOD.encode()), "u"),
    "quotes and newlines in cells": ("d.csv", 'text\n"say ""x"",\nthen"\n', 'say "x",\nthen'),
    "a NUL in a cell": ("d.csv", "text\na\0b\n", "a\0b"),
    "a column without a name": ("d.csv", ",text\n0,u\n", "u"),
    "spaces around JSON": ("d.json", f" \n\t[ {GOOD} ,\n {GOOD} ]\n \n", "u"),
    "a number as an id": ("d.jsonl", f'{{"id": 1e400, "messages": [{U}, {A}]}}', "u"),
}


@pytest.mark.parametrize("name", READ)
def test_read_right(tmp_path, name):
    file, body, said = READ[name]
    row = next(iter(read(put(tmp_path, file, body))))
    assert (row.text or next(m["content"] for m in row.messages if m["role"] == "user")) == said


BROKEN = {  # name: (file, body, line or 0, what is said)
    "empty": ("d.jsonl", "", 0, "the file holds no rows"),
    "empty array": ("d.json", "[]", 0, "the file holds no rows"),
    "blank lines only": ("d.json", "\n \r\n\t\n", 0, "the file holds no rows"),
    "a header only": ("d.csv", "text\n", 0, "the file holds no rows"),
    "NaN": ("d.jsonl", f'{GOOD}\n{{"messages": [{U}, {A}], "score": NaN}}', 2, "NaN is no JSON"),
    "Infinity in an array": ("d.json", f'[{GOOD},\n{{"s": -Infinity}},\n{GOOD}]', 2, "not JSON: -Infinity is no JSON"),
    "a key twice": ("d.jsonl", f'{GOOD}\n{{"messages": [], "messages": [{U}, {A}]}}', 2, "the key `messages` stands twice in one object"),
    "a key twice, deep": ("d.json", f'[{GOOD},\n{{"messages": [{{"role": "user", "role": "system"}}]}}]', 2, "the key `role` stands twice"),
    "a lone surrogate": ("d.jsonl", f"{GOOD}\n{asked(json.dumps(chr(0xD83D)))}", 2, "messages[0].content holds a lone surrogate (\\ud83d)"),
    "raw surrogate bytes": ("d.jsonl", f"{GOOD}\n" + asked('"\ud83d"'), 2, "not UTF-8"),
    "a raw NUL": ("d.jsonl", f"{GOOD}\n{asked(chr(34) + chr(0) + chr(34))}", 2, "not JSON: Invalid control character"),
    "huge nesting": ("d.jsonl", f"{GOOD}\n" + "[" * 100_000, 2, "not JSON"),
    "huge nesting in an array": ("d.json", "[" * 100_000, 1, "not JSON"),
    "an endless number": ("d.jsonl", GOOD + '\n{"a": ' + "9" * 5000 + "}", 2, "not JSON"),
    "Latin-1": ("d.jsonl", f"{GOOD}\n".encode() + asked('"é"').encode("latin-1"), 2, "not UTF-8"),
    "Latin-1 in an array": ("d.json", f"[{GOOD},\n".encode() + asked('"é"').encode("latin-1") + b"]", 2, "not UTF-8"),
    "Latin-1 in CSV": ("d.csv", "text\na\né\nb\n".encode("latin-1"), 3, "not UTF-8"),
    "Latin-1 in a CSV header": ("d.csv", "téxt\na\n".encode("latin-1"), 1, "not UTF-8"),
    "UTF-16": ("d.jsonl", GOOD.encode("utf-16"), 0, "this looks like UTF-16"),
    "UTF-16 without a mark": ("d.csv", "text\nabc\n".encode("utf-16-le"), 0, "this looks like UTF-16"),
    "an array cut": ("d.json", ARRAY[:-40], 2, "the file ends in the middle of a row: it was cut"),
    "an array cut between rows": ("d.json", f"[{GOOD},\n", 2, "the array is not closed"),
    "a comma missing": ("d.json", f"[{GOOD}\n{GOOD}]", 2, "between two rows stands a comma"),
    "a comma too many": ("d.json", f"[{GOOD},\n]", 2, "not JSON"),
    "more after the array": ("d.json", ARRAY + "\n{}", 3, "after the array's end there is more"),
    "a syntax error early in a long array": ("d.json", f"[{GOOD},\n{{'a': 1}},\n" + f"{GOOD},\n" * 20_000 + "]", 2, "not JSON: Expecting property"),
    "lines of lists": ("d.jsonl", "[1]\n[2]\n", 1, "a row is an object, this is a number"),
    "CSV named .jsonl": ("d.jsonl", "a,b\n1,2\n", 1, "not JSON"),
    "two columns of one name": ("d.csv", "text,a,text\nx,y,z\n", 1, "two columns have the same name: `text`"),
    "ragged": ("d.csv", "text,b\nx,y\nx\n", 3, "1 cells, the header has 2"),
    "a quote never closed": ("d.csv", 'text,b\n"x,y\nz,w\n', 2, "a quoted cell is never closed"),
    "a quote in the middle": ("d.csv", 'text\n"x"y\n', 2, "not CSV"),
    "old Mac newlines": ("d.csv", "text\ra\rb\r", 1, "not CSV"),
    "gzip cut": ("d.jsonl.gz", gzip.compress(f"{GOOD}\n".encode() * 5000)[:-100], 0, "the compressed file is cut or damaged"),
    "gzip damaged": ("d.jsonl.gz", gzip.compress(os.urandom(5000).hex().encode())[:1500] + b"garbage" * 500, 0, "the compressed file is cut"),
    "a zip": ("d.csv", b"PK\x03\x04" + b"\0" * 50, 0, "this is a zip file"),
    "xz": ("d.jsonl.xz", b"\xfd7zXZ\0" + b"\1" * 50, 0, "this is an xz file"),
    "a pickle": ("d.json", b"\x80\x04\x95" + b"abc" * 20, 0, "this is a pickle, which is never opened"),
    "noise named .parquet": ("d.parquet", b"noise" * 20, 0, "neither Parquet nor Arrow"),
    "numbers for text": ("d.jsonl", '{"text": "a"}\n{"text": 3}', 2, "`text` should be a string, this is a number"),
    "a list for text": ("d.jsonl", '{"text": "a"}\n{"text": ["b"]}', 2, "`text` should be a string, this is a list"),
    "mixed formats": ("d.jsonl", f'{GOOD}\n{{"text": "a"}}', 2, "no `messages`, which rows of format messages have (found: text)"),
    "an unknown role": ("d.jsonl", f'{GOOD}\n{{"messages": [{{"role": "bot", "content": "x"}}]}}', 2, "messages[0].role is `bot`"),
    "a role that is a number": ("d.jsonl", f'{GOOD}\n{{"messages": [{{"role": 1, "content": "x"}}]}}', 2, "messages[0].role should be a string"),
    "an empty object": ("d.jsonl", f"{GOOD}\n{{}}", 2, "(found: nothing)"),
    "a column-wise object": ("d.json", '{"text": {"0": "a"}}', 1, "`text` should be a string, this is an object"),
    "rows one level down": ("d.json", '{\n "rows": [\n  {"text": "a"}\n ]\n}', 1, "do the rows lie under `rows`?"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_refused_with_its_place(tmp_path, name):
    file, body, line, said = BROKEN[name]
    path = put(tmp_path, file, body)
    with pytest.raises(DataError) as e:
        read(path)
    first = e.value.problems[0]
    assert said in first.what and first.line == line and Path(first.file).name == file
    assert e.value.render() and json.dumps(e.value.record())


@pytest.mark.parametrize("name", [*READ, *BROKEN])
def test_a_plan_is_never_broken_by_a_file(tmp_path, name):
    file, body, *_ = (READ | BROKEN)[name]
    assert reader.format_of(put(tmp_path, file, body), None, None) in (None, "messages", "text")


def _write(path, table):
    parquet.write_table(table, path)
    return path


TABLES = {
    "a null in a text column": (pa.table({"text": ["a", None]}), "row 2: `text` should be a string, this is null"),
    "a null messages": (pa.table({"messages": [None, json.loads(GOOD)["messages"]]}), "row 1: no known format"),
    "numbers in a text column": (pa.table({"text": [1, 2]}), "row 1: `text` should be a string, this is a number"),
    "bytes in a text column": (pa.table({"text": [b"a"]}), "this is of type bytes"),
    "a column of nulls": (pa.table({"text": pa.nulls(2)}), "`text` should be a string, this is null"),
    "other columns": (pa.table({"question": ["a"]}), "no known format (found: question)"),
    "no rows": (pa.table({"text": pa.array([], pa.string())}), "the file holds no rows"),
    "a column twice": (pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), "two columns have the same name"),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("container", ["parquet", "arrow"])
def test_tables_of_the_wrong_kind(tmp_path, name, container):
    table, said = TABLES[name]
    path = tmp_path / f"d.{container}"
    if container == "parquet":
        parquet.write_table(table, path)
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(DataError) as e:
        read(path)
    assert said in e.value.problems[0].what


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("container", ["parquet", "arrow", "stream"])
def test_tables_cut_short(tmp_path, container, keep):
    table = pa.table({"text": [f"row {i} " * 20 for i in range(5000)]})
    path = tmp_path / f"d.{container}"
    if container == "parquet":
        parquet.write_table(table, path)
    else:
        with (pa.ipc.new_file if container == "arrow" else pa.ipc.new_stream)(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=500)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep)])
    try:
        found = list(read(path))
    except DataError as e:
        assert "cut or damaged" in e.problems[0].what
    else:  # a stream's last bytes are a mark of its end, and may be left out by the standard
        assert container == "stream" and keep > 0.99 and len(found) == 5000


def test_zstd_cut(tmp_path):
    with pa.CompressedOutputStream(str(tmp_path / "d.jsonl.zst"), "zstd") as f:
        f.write(b"".join(asked(json.dumps(os.urandom(50).hex())).encode() + b"\n" for _ in range(2000)))
    raw = (tmp_path / "d.jsonl.zst").read_bytes()
    (tmp_path / "d.jsonl.zst").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataError, match="cut|Truncated"):
        read(tmp_path / "d.jsonl.zst")


def test_a_folder_named_like_a_file(tmp_path):
    put(tmp_path, "d.jsonl/part.jsonl", GOOD)
    assert len(read(tmp_path / "d.jsonl")) == 1


def test_links_that_go_round(tmp_path):
    put(tmp_path, "d/a.jsonl", GOOD)
    (tmp_path / "d/again").symlink_to(tmp_path / "d")
    (tmp_path / "d/self.jsonl").symlink_to(tmp_path / "d/self.jsonl")
    assert len(read(tmp_path / "d")) == 1
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "d/self.jsonl")


def test_a_file_that_may_not_be_read(tmp_path):
    path = put(tmp_path, "d.jsonl", GOOD)
    path.chmod(0)
    code = f"""
import os
from slmkit.data import read
from slmkit.errors import DataError
from tests.support.drive import given
if os.getuid() == 0: os.setuid(65534)
try: read.read(given({str(path)!r}, "dataset"))
except DataError as e: print(e.render())
"""
    tmp_path.chmod(0o755)
    for up in [p for p in tmp_path.parents if p.name.startswith("pytest")]:
        up.chmod(0o755)
    env = {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "cannot be read: Permission denied" in done.stdout, done.stderr


def test_all_are_counted_and_five_shown_in_every_container(tmp_path):
    bad = [json.loads(GOOD)] + [{"messages": []}] * 8
    put(tmp_path, "d.json", json.dumps(bad))
    put(tmp_path, "d.jsonl", "\n".join(map(json.dumps, bad)))
    put(tmp_path, "d.csv", "messages\n" + "\n".join('"' + json.dumps(r["messages"]).replace('"', '""') + '"' for r in bad))
    for name in ("d.json", "d.jsonl", "d.csv"):
        with pytest.raises(DataError) as e:
            read(tmp_path / name)
        assert len(e.value.problems) == 5 and "8 broken rows, 1 good; the first 5 are shown" in e.value.render(), name


def test_skip_drops_rows_and_counts_them_by_reason(tmp_path):
    path = put(tmp_path, "d.jsonl", "\n".join([GOOD, "{", "{", GOOD, '{"messages": []}', asked("3"), asked("4")]))
    for held in (0, 1 << 20):
        data = read(path, on_bad_row="skip", held=held)
        assert [r.line for r in data] == [1, 4] and len(data) == 2
        assert sorted(data.dropped.values()) == [1, 2, 2] and sum(data.dropped.values()) == 5
    assert "messages[N].content should be a string, this is a number" in data.dropped


def test_skip_does_not_pass_over_a_broken_file(tmp_path):
    for name, body in {"d.json": ARRAY[:-10], "d.jsonl.gz": gzip.compress(f"{GOOD}\n".encode() * 5000)[:-100]}.items():
        with pytest.raises(DataError) as e:
            read(put(tmp_path, name, body), on_bad_row="skip")
        assert not e.value.summary, "a cut file is no broken row"
    with pytest.raises(DataError, match="left nothing|not JSON"):
        read(put(tmp_path, "all.jsonl", "{\n{"), on_bad_row="skip")


def test_a_mapping_meets_a_table_without_its_columns(tmp_path):
    path = put(tmp_path, "d.csv", "q,a\nx,y\n")
    with pytest.raises(DataError) as e:
        reader.read(mapped(path, prompt="q", completion="b"))
    assert "no field `b` (found: q, a)" in e.value.problems[0].what and "the columns are q, a" in e.value.problems[0].mend
