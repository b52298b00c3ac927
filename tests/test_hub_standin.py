"""The stand-in hub answers the hub's own client: every test runs the real huggingface_hub in a process of its own.

Without this, a test that uses the stand-in could pass because both sides share one misunderstanding.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.hub import Hub

REPO = "someone/tiny"
FIRST = {"config.json": '{"model_type": "llama", "round": 1}', "model.safetensors": b"\0" * 4096, "nested/vocab.txt": "a\nb\n"}
SECOND = FIRST | {"config.json": '{"model_type": "llama", "round": 2}', "model.safetensors": b"\1" * 5000}


def client(code: str, hub: Hub, home: Path, **environment: str):
    """What `code` prints as JSON, run where the hub client knows only the stand-in. It may use HfApi and the downloaders."""
    start = "import json, sys\nfrom huggingface_hub import HfApi, hf_hub_download, snapshot_download\n"
    done = subprocess.run(
        [sys.executable, "-c", start + code],
        env=os.environ | hub.environment(home) | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def hub():
    with Hub(page=2) as hub:  # pages of two: the client has to follow the Link header for three files
        yield hub


def snapshot(revision: str) -> str:
    return f"""
from pathlib import Path
folder = Path(snapshot_download({REPO!r}, revision={revision!r}))
print(json.dumps({{p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}}
      | {{"round": json.loads((folder / "config.json").read_text())["round"]}}))
"""


def test_main_resolves_to_a_commit_and_moves(hub, tmp_path):
    ask = f"print(json.dumps([i.sha for i in (HfApi().model_info({REPO!r}), HfApi().model_info({REPO!r}, revision='main'))]))"
    first = hub.commit(REPO, FIRST)
    assert client(ask, hub, tmp_path) == [first, first]
    second = hub.commit(REPO, SECOND)
    assert len(second) == 40 and second != first
    assert client(ask, hub, tmp_path) == [second, second]
    hub.move(REPO, first)
    assert client(ask, hub, tmp_path) == [first, first]


def test_a_commit_keeps_its_files_after_main_has_moved(hub, tmp_path):
    first = hub.commit(REPO, FIRST)
    hub.commit(REPO, SECOND)
    sizes = {"config.json": 35, "model.safetensors": 4096, "nested/vocab.txt": 4}
    assert client(snapshot(first), hub, tmp_path) == sizes | {"round": 1}
    assert client(snapshot("main"), hub, tmp_path) == sizes | {"model.safetensors": 5000, "round": 2}


def test_requests_are_counted_and_a_cached_file_is_not_fetched_again(hub, tmp_path):
    sha = hub.commit(REPO, FIRST)
    client(snapshot(sha), hub, tmp_path)
    line = f"GET /{REPO}/resolve/{sha}/model.safetensors"
    assert hub.requests[line] == 1
    client(snapshot(sha), hub, tmp_path)
    assert hub.requests[line] == 1 and hub.count("/resolve/") >= 3


def test_one_file_by_name(hub, tmp_path):
    hub.commit(REPO, FIRST)
    hub.commit(REPO, SECOND, ref="v2")
    code = f"print(json.dumps(json.load(open(hf_hub_download({REPO!r}, 'config.json', revision='v2')))))"
    assert client(code, hub, tmp_path)["round"] == 2


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("HfApi().model_info('someone/unknown')", "RepositoryNotFoundError"),
        (f"HfApi().model_info({REPO!r}, revision='nope')", "RevisionNotFoundError"),
        (f"snapshot_download({REPO!r}, revision={'0' * 40!r})", "RevisionNotFoundError"),
        (f"hf_hub_download({REPO!r}, 'nope.json')", "RemoteEntryNotFoundError"),
    ],
)
def test_what_is_not_there_raises_as_on_the_real_hub(call, error, hub, tmp_path):
    hub.commit(REPO, FIRST)
    code = f"""
import huggingface_hub.errors as errors
try: {call}
except errors.HfHubHTTPError as e: print(json.dumps(type(e).__name__))
"""
    assert client(code, hub, tmp_path) == error


def test_a_token_is_required_when_set(tmp_path):
    code = f"""
import huggingface_hub.errors as errors
try: print(json.dumps(HfApi().model_info({REPO!r}).sha))
except errors.HfHubHTTPError as e: print(json.dumps(e.response.status_code))
"""
    with Hub(token="let-me-in") as hub:
        sha = hub.commit(REPO, FIRST)
        assert client(code, hub, tmp_path) == sha
        assert client(code, hub, tmp_path, HF_TOKEN="wrong") == 401
        assert client(code, hub, tmp_path, HF_TOKEN="") == 401


def test_offline_after_a_download(hub, tmp_path):
    first = hub.commit(REPO, FIRST)
    online = client(snapshot(first), hub, tmp_path)
    hub.stop()
    assert client(snapshot(first), hub, tmp_path, HF_HUB_OFFLINE="1") == online
    assert client(snapshot(first), hub, tmp_path) == online  # connection refused falls back to what was downloaded


def test_commits_have_the_same_names_in_every_run(tmp_path):
    def shas() -> list[str]:
        with Hub() as hub:
            return [hub.commit(REPO, FIRST), hub.commit(REPO, SECOND)]

    assert shas() == shas()


def test_a_folder_becomes_a_commit(hub, tmp_path):
    (tmp_path / "model" / "nested").mkdir(parents=True)
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "nested" / "a.txt").write_text("a")
    sha = hub.commit_folder("someone/folder", tmp_path / "model")
    assert hub.find("someone/folder", sha)[1] == {"config.json": b"{}", "nested/a.txt": b"a"}
