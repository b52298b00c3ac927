"""Data from a glob, a list, a hub dataset or a URL, through the real command line: planned by content, shown with its format."""

import json
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.hub import Hub

KIND = '''
"""Say what rows came in."""
from slmkit.data import read
from slmkit.steps._fields import DataRefs, HeldOut
from slmkit.steps._step import Result, StepConfig, StepExecution, Takes
from typing import Literal

VERSION = 1
TAKES = {"data": Takes("dataset", many=True, lone=True), "validation": Takes("dataset", optional=True)}
GIVES = "dataset"

class Config(StepConfig):
    data: DataRefs
    """Rows."""
    validation: HeldOut | None = None
    """Held out."""
    on_bad_row: Literal["error", "skip"] = "error"
    """As in train."""
    seed: int = 0
    """Seed."""

class Execution(StepExecution):
    pass

def run(ctx, config):
    rows, held = read.train_and_held_out(ctx.inputs["data"], ctx.inputs["validation"], config)
    (ctx.out / "train.jsonl").write_text("".join('{"text": "%s"}\\\\n' % r.text for r in rows))
    return Result({"texts": [r.text for r in rows], "held": [r.text for r in held or ()], "uris": [g.uri for g in ctx.inputs["data"]]})
'''


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    info = tmp_path / "lib/slmkit_rows-1.0.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "lib/slmkit_rows.py").write_text(KIND.replace("\\\\n", "\\n"))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slmkit-rows\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[slmkit.steps]\nrows = slmkit_rows\n")
    (tmp_path / "work").mkdir()
    return Cli(tmp_path / "work", (tmp_path / "lib",))


def recipe(cli: Cli, data: str, more: str = "") -> None:
    cli.write("r.yaml", f"recipe: r\nsteps:\n  rows: {{data: {data}{more}}}\n")


def ran(cli: Cli, **env: str) -> dict:
    done = cli("run", "r.yaml", "--json", **env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def planned(cli: Cli, **env: str) -> dict:
    done = cli("plan", "r.yaml", "--json", **env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["steps"][-1]


def put(cli: Cli, name: str, *said: str) -> Path:
    return cli.write(name, "".join(json.dumps({"text": s}) + "\n" for s in said))


def test_a_glob_is_all_its_files_sorted(cli: Cli) -> None:
    put(cli, "data/b.jsonl", "b")
    put(cli, "data/a.jsonl", "a")
    recipe(cli, "data/*.jsonl")
    first = ran(cli)
    assert first["result"]["texts"] == ["a", "b"]
    assert ran(cli)["cached"]
    put(cli, "data/c.jsonl", "c")
    assert planned(cli)["why"] == ["data changed (dataset)"]
    assert ran(cli)["result"]["texts"] == ["a", "b", "c"]
    recipe(cli, "data/*.csv")
    none = cli("plan", "r.yaml")
    assert none.returncode == 2 and "no file matches data/*.csv" in none.stderr and "r.yaml:3:16" in none.stderr


def test_a_list_is_a_mixture(cli: Cli) -> None:
    put(cli, "a.jsonl", *"abcd")
    put(cli, "b.jsonl", "x")
    recipe(cli, "[{path: a.jsonl, weight: 0.5}, b.jsonl]")
    result = ran(cli)["result"]
    assert len(result["texts"]) == 3 and result["texts"][-1] == "x" and len(result["uris"]) == 2
    row = planned(cli)
    assert [i["format"] for i in row["inputs"]] == ["text", "text"]
    assert "(text), data=" in cli("plan", "r.yaml").stdout
    recipe(cli, "[a.jsonl, {path: b.jsonl, wieght: 2}]")
    wrong = cli("plan", "r.yaml")
    assert wrong.returncode == 2 and "did you mean `weight`?" in wrong.stderr


def test_a_share_is_held_out_and_moves_the_fingerprint(cli: Cli) -> None:
    put(cli, "a.jsonl", *"abcdefghij")
    recipe(cli, "a.jsonl", ", validation: 0.2")
    first = ran(cli)
    assert len(first["result"]["texts"]) == 8 and len(first["result"]["held"]) == 2
    recipe(cli, "a.jsonl", ", validation: 0.3")
    assert planned(cli)["why"] == ["validation 0.2 → 0.3"]
    recipe(cli, "a.jsonl", ", validation: 0.9")
    wrong = cli("plan", "r.yaml")
    assert wrong.returncode == 2 and "`validation`" in wrong.stderr and "0.5" in wrong.stderr


def test_an_artifact_of_rows_is_data(cli: Cli) -> None:
    put(cli, "a.jsonl", "a")
    cli.write("r.yaml", "recipe: r\nsteps:\n  one: {kind: rows, data: a.jsonl}\n  two: {kind: rows, data: [$one, a.jsonl]}\n")
    assert ran(cli)["result"]["texts"] == ["a", "a"]
    again = cli("run", "r.yaml", "two", "--from", "data=r/one", "--json")
    assert again.returncode == 2 or json.loads(again.stdout)["result"]["texts"] == ["a"], again.stderr


def test_plan_says_the_format_and_imports_nothing_heavy(cli: Cli) -> None:
    cli.write("a.json", json.dumps([{"instruction": "q", "output": "a"}]))
    recipe(cli, "a.json")
    assert planned(cli)["inputs"][0]["format"] == "alpaca" and "a.json (alpaca)" in cli("plan", "r.yaml").stdout
    code = "import sys; from slmkit.cli.main import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    code += "print(sorted({'pyarrow', 'fsspec', 'torch', 'datasets', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, "plan", "r.yaml"], cwd=cli.folder, env=cli.environment(), capture_output=True, text=True)
    assert done.stderr.strip() == "[]" and "(alpaca)" in done.stdout


def test_plan_says_nothing_of_a_broken_head(cli: Cli) -> None:
    cli.write("a.json", "[{,")
    recipe(cli, "a.json")
    assert "format" not in planned(cli)["inputs"][0]
    done = cli("run", "r.yaml")
    assert done.returncode == 2 and "a.json:1:3: not JSON" in done.stderr and "Traceback" not in done.stderr


def test_a_hub_dataset_is_locked_and_read_by_split(cli: Cli, tmp_path: Path) -> None:
    with Hub(page=2) as hub:
        env = hub.environment(tmp_path / "home")
        files = {f"data/{n}.jsonl": json.dumps({"text": n}) + "\n" for n in ("train-0", "train-1", "test-0")}
        files |= {"README.md": "# rows\n", "x.bin": "no"}
        first = hub.commit("datasets/me/rows", files)
        recipe(cli, "hf:me/rows")
        done = ran(cli, **env)
        assert done["result"] == {"texts": ["train-0", "train-1"], "held": [], "uris": [f"hf:me/rows@{first}"]}
        assert json.loads((cli.folder / "r.lock.json").read_text())["hub"] == {"hf:datasets/me/rows@main": first}
        assert not hub.count("x.bin") and not hub.count("test-0"), "only what is read is fetched"
        hub.commit("datasets/me/rows", files | {"data/train-1.jsonl": ""})
        assert ran(cli, **env)["cached"]
        recipe(cli, "hf:me/rows:test")
        assert ran(cli, **env)["result"]["texts"] == ["test-0"]
        by_colon = planned(cli, **env)["fingerprint"]
        recipe(cli, "{path: hf:me/rows, split: test}")
        assert planned(cli, **env)["fingerprint"] == by_colon
        recipe(cli, "hf:me/rows:dev")
        missing = cli("run", "r.yaml", **env)
        assert missing.returncode == 2 and "no split `dev`" in missing.stderr and "it has test, train" in missing.stderr
        recipe(cli, "hf:me/model")
        hub.commit("me/model", {"config.json": "{}"})
        wrong = cli("run", "r.yaml", **env)
        assert wrong.returncode == 2 and "a dataset is wanted" in wrong.stderr


def test_a_url_is_its_content(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    (tmp_path / "www/a.jsonl").write_text('{"text": "a"}\n')
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path / "www"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = {"SLMKIT_CACHE": str(tmp_path / "cache"), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        recipe(cli, f'"{url}/a.jsonl?key=secret"')
        done = ran(cli, **env)
        assert done["result"] == {"texts": ["a"], "held": [], "uris": [f"{url}/a.jsonl"]}
        assert "secret" not in (Path(done["path"]) / ".slmkit/manifest.json").read_text()
        (tmp_path / "www/a.jsonl").write_text('{"text": "b"}\n')
        assert ran(cli, **env)["result"]["texts"] == ["b"]
        put(cli, "same.jsonl", "b")
        recipe(cli, "same.jsonl")
        assert ran(cli, **env)["cached"], "a URL is its content, as a path is"
        recipe(cli, f"{url}/none.jsonl")
        gone = cli("plan", "r.yaml", **env)
        assert gone.returncode == 2 and "no such file" in gone.stderr and "r.yaml:3:16" in gone.stderr
    finally:
        server.shutdown()
        server.server_close()
    recipe(cli, f"{url}/a.jsonl")
    off = cli("plan", "r.yaml", **env)
    assert off.returncode == 4 and "cannot fetch" in off.stderr and "Traceback" not in off.stderr


def test_a_missing_backend_and_an_unknown_scheme(cli: Cli) -> None:
    recipe(cli, "s3://bucket/a.jsonl")
    done = cli("plan", "r.yaml")
    assert done.returncode == 4 and "pip install s3fs" in done.stderr and "Traceback" not in done.stderr
    recipe(cli, "nope://x/a.jsonl")
    done = cli("plan", "r.yaml")
    assert done.returncode == 2 and "nope://" in done.stderr
    recipe(cli, "https://me:hush@host/a.jsonl")
    done = cli("plan", "r.yaml")
    assert done.returncode == 2 and "a password in a URL" in done.stderr
    cli.write("r.yaml", "recipe: r\nbase: s3://bucket/model\nsteps:\n  merge: {model: $base}\n")
    done = cli("plan", "r.yaml")
    assert done.returncode == 2 and "a URL can only be data" in done.stderr


def test_a_file_url_is_a_path(cli: Cli) -> None:
    path = put(cli, "a b.jsonl", "a")
    recipe(cli, f'"file://{str(path).replace(" ", "%20")}"')
    assert ran(cli)["result"]["texts"] == ["a"]


def test_fsspec_of_any_kind(tmp_path, monkeypatch) -> None:
    import fsspec

    from slmkit import remote, sources

    monkeypatch.setenv("SLMKIT_CACHE", str(tmp_path))
    fs = fsspec.filesystem("memory")
    for n in "ba":
        fs.pipe_file(f"/rows/{n}.jsonl", f'{{"text": "{n}"}}\n'.encode())
    one = remote.fetched(sources.parse("memory://rows/a.jsonl", tmp_path))
    assert one.path.read_text() == '{"text": "a"}\n' and one.files is None
    many = remote.fetched(sources.parse("memory://rows/*.jsonl", tmp_path))
    assert [f.name for f in many.files] == ["a.jsonl", "b.jsonl"]
