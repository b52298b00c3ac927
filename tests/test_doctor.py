"""`doctor` in real processes: on this machine as it is, and with libraries, a store and a hub that are really broken."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.support.hub import Hub

ROOT = Path(__file__).parents[1]


def doctor(store: Path, *, online=False, as_json=True, path: Path | None = None, **environment: str) -> tuple[int, str]:
    """(exit code, stdout) of one run; `path` is searched for modules before what is installed."""
    call = f"doctor.run(Path({str(store)!r}), {online}, {as_json})"
    code = f"import sys; from pathlib import Path; from slmkit.cli import doctor; sys.exit({call})"
    search = os.pathsep.join(str(p) for p in (path, ROOT) if p)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": search} | environment,
        cwd=store.parent if store.parent.is_dir() else ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def rows_of(out: str) -> dict[str, dict]:
    return {r["name"]: r for r in json.loads(out)["rows"]}


def broken(folder: Path, module: str, line: str) -> Path:
    """A folder in which `module` is a file that fails as a damaged installation does."""
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(line + "\n")
    return folder


def test_this_machine_can_run_the_core_chain(tmp_path):
    code, out = doctor(tmp_path / "store")
    report, rows = json.loads(out), rows_of(out)
    assert (code, report["ok"], report["exit"]) == (0, True, 0)
    assert all(set(r) == {"name", "ok", "level", "detail", "mend"} for r in report["rows"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        row = rows[re.match(r"[\w-]+", requirement)[0]]
        assert row["level"] == "ok", row
    for extra in project["optional-dependencies"]:
        row = rows[f"extra {extra}"]
        assert row["ok"] and (row["level"] == "ok" or "install" in row["mend"])
    assert {"python", "torch runs", "cpu bf16", "gpu", "memory", "disk", "nf4 on cpu"} <= set(rows)
    assert "hub" not in rows
    assert 0.05 < float(re.search(r"error ([\d.]+)", rows["nf4 on cpu"]["detail"])[1]) < 0.12
    assert not (tmp_path / "store").exists()  # looking makes nothing


def test_lines_name_broken_libraries_and_the_exit_code_says_so(tmp_path):
    path = broken(tmp_path / "lib", "torch", "raise ImportError('libtorch_cpu.so: cannot open shared object file')")
    broken(path, "bitsandbytes", "import os; print('a banner'); os._exit(11)")
    code, out = doctor(tmp_path / "store", as_json=False, path=path)
    assert code == 4
    lines = {line.split("  ")[1].strip(): line for line in out.splitlines()}
    assert re.match(r"fail  torch runs .*libtorch_cpu\.so: cannot open.*; mend: ", lines["torch runs"])
    assert re.match(r"fail  nf4 on cpu .*ended with code 11; mend: ", lines["nf4 on cpu"])
    assert all(re.match(r"(ok  |warn|fail)  \S", line) for line in out.splitlines())


def test_versions_out_of_bounds_store_and_hub(tmp_path):
    """Three things at once, because each run of doctor starts the libraries."""
    metadata = tmp_path / "lib" / "typer-99.0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: typer\nVersion: 99.0\n")
    broken(tmp_path / "lib", "torch", "raise ImportError('left out: this test is about other rows')")
    (tmp_path / "file").write_text("a store cannot lie in a file")
    here = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    with Hub() as hub:
        code, out = doctor(tmp_path / "file" / "store", online=True, path=tmp_path / "lib", HF_ENDPOINT=hub.url, **here)
        rows = rows_of(out)
        assert hub.count("HEAD /") == 1
    assert code == 4
    assert rows["typer"]["level"] == "warn" and "99.0 is outside" in rows["typer"]["detail"] and "typer" in rows["typer"]["mend"]
    assert rows["disk"]["level"] == "fail" and "--store" in rows["disk"]["mend"]
    assert rows["hub"]["level"] == "ok" and hub.url in rows["hub"]["detail"]
    _, out = doctor(tmp_path / "store", online=True, path=tmp_path / "lib", HF_ENDPOINT=hub.url, **here)
    assert rows_of(out)["hub"]["level"] == "warn" and "HF_ENDPOINT" in rows_of(out)["hub"]["mend"]


def test_nothing_heavy_is_loaded_by_the_module():
    code = "import sys; from slmkit.cli import doctor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "bitsandbytes", "packaging", "psutil", "pydantic", "rich", "urllib.request"} & set(done.stdout.split())
