"""A stand-in of the Hugging Face hub on loopback: real HTTP, real commits, so that tests need neither network nor patches.

It speaks what the hub's own client asks for when it resolves and downloads models: `/api/models/ID[/revision/REV]`,
`/api/models/ID/tree/REV` and `/ID/resolve/REV/FILE`, all files served plainly (no LFS, no Xet); datasets are the repositories
whose name begins with `datasets/`. Ids of blobs and commits are made as git makes them, from content, so the same commits in
the same order have the same names in every run.

    with Hub() as hub:
        first = hub.commit("me/tiny", {"config.json": "{}"})      # main moves to it
        subprocess.run([...], env=environ | hub.environment(home))
        assert hub.requests["GET /me/tiny/resolve/main/config.json"] == 1
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

API = "/api/models/"
DATASETS = "datasets/"


def git_id(kind: str, body: bytes) -> str:
    """The 40 hex digits by which git names an object; a file's is what the client compares ETags and cache entries with."""
    return hashlib.sha1(f"{kind} {len(body)}\0".encode() + body).hexdigest()


@dataclass
class Repository:
    """Commits by their sha, each all its files by path, and the names (`main`, tags) that point at one."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)


class NotFound(Exception):
    """What the hub answers with 404 and one of its error codes: RepoNotFound, RevisionNotFound, EntryNotFound."""


class Hub:
    """The server. `token` set means that every request must carry it. `page` is how many tree entries one answer holds."""

    def __init__(self, token: str | None = None, page: int = 1000):
        self.token, self.page = token, page
        self.repositories: dict[str, Repository] = {}
        self.requests: Counter[str] = Counter()  # "METHOD /path" without the query → how often
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self.url = ""

    def __enter__(self) -> Hub:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the hub off the network: connections are refused from now on. Its address stays in `url`."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def environment(self, home: Path) -> dict[str, str]:
        """Variables that lead a process's hub client here, with `home` for its cache, past any proxy, and online."""
        found = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_TOKEN": self.token or ""}
        found |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return found | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def commit(self, repo: str, files: dict[str, bytes | str], ref: str = "main") -> str:
        """Add a commit that holds exactly `files`, move `ref` to it, and return its sha."""
        repository = self.repositories.setdefault(repo, Repository())
        bodies = {path: body.encode() if isinstance(body, str) else body for path, body in files.items()}
        tree = {path: git_id("blob", body) for path, body in sorted(bodies.items())}
        sha = git_id("commit", json.dumps([repo, repository.refs.get(ref), tree]).encode())
        repository.commits[sha] = bodies
        repository.refs[ref] = sha
        return sha

    def commit_folder(self, repo: str, folder: Path, ref: str = "main") -> str:
        """Add a commit that holds all files below `folder`, leaving out names that begin with a dot."""
        paths = [p for p in sorted(folder.rglob("*")) if p.is_file()]
        named = {p.relative_to(folder).as_posix(): p for p in paths}
        return self.commit(repo, {n: p.read_bytes() for n, p in named.items() if not n.startswith(".")}, ref)

    def move(self, repo: str, sha: str, ref: str = "main") -> None:
        """Point `ref` at a commit that is there already, as a force push would."""
        self.find(repo, sha)
        self.repositories[repo].refs[ref] = sha

    def count(self, part: str) -> int:
        """How many requests had `part` in "METHOD /path"."""
        with self._lock:
            return sum(n for path, n in self.requests.items() if part in path)

    def seen(self, line: str) -> None:
        with self._lock:
            self.requests[line] += 1

    def find(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]]:
        """(sha, files) of a repository at a name or a commit. Raises NotFound."""
        if repo not in self.repositories:
            raise NotFound("RepoNotFound")
        found = self.repositories[repo]
        sha = found.refs.get(revision, revision)
        if sha not in found.commits:
            raise NotFound("RevisionNotFound")
        return sha, found.commits[sha]


class _Handler(BaseHTTPRequestHandler):
    """One request. HEAD and GET take the same road; the body is left out of the former."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.hub.seen(f"{self.command} {path}")
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            headers = {"X-Error-Message": "Invalid username or password."}
            return self.answer(401, b'{"error": "Invalid username or password."}', headers)
        if path.startswith(f"/api/{DATASETS}"):
            path = API + path.removeprefix("/api/")
        try:
            if path.startswith(API) and "/tree/" in path:
                self.tree(*path.removeprefix(API).split("/tree/", 1), query=url.query)
            elif path.startswith(API):
                self.info(*path.removeprefix(API).partition("/revision/")[::2])
            elif "/resolve/" in path:
                self.file(*path.strip("/").split("/resolve/", 1))
            else:
                raise NotFound("EntryNotFound")
        except NotFound as e:
            self.answer(404, json.dumps({"error": str(e)}).encode(), {"X-Error-Code": str(e), "X-Error-Message": str(e)})

    do_HEAD = do_GET

    def info(self, repo: str, revision: str) -> None:
        sha, files = self.hub.find(repo, revision or "main")
        repo = repo.removeprefix(DATASETS)
        about = {"_id": sha[:24], "id": repo, "modelId": repo, "sha": sha, "private": False, "gated": False, "disabled": False}
        siblings = [{"rfilename": p} for p in sorted(files)]
        self.answer_json(about | {"tags": [], "downloads": 0, "likes": 0, "siblings": siblings})

    def tree(self, repo: str, revision: str, query: str) -> None:
        """All files (the client always asks recursively), in pages that a Link header chains by an index."""
        sha, files = self.hub.find(repo, revision)
        start = int(dict(p.partition("=")[::2] for p in query.split("&") if p).get("cursor", 0))
        entries = [{"type": "file", "path": p, "size": len(b), "oid": git_id("blob", b)} for p, b in sorted(files.items())]
        end, headers = start + self.hub.page, {}
        if end < len(entries):
            api = "/api/" if repo.startswith(DATASETS) else API
            headers["Link"] = f'<{self.hub.url}{api}{repo}/tree/{sha}?recursive=true&cursor={end}>; rel="next"'
        self.answer_json(entries[start:end], headers)

    def file(self, repo: str, rest: str) -> None:
        revision, _, name = rest.partition("/")
        sha, files = self.hub.find(repo, revision)
        if name not in files:
            raise NotFound("EntryNotFound")
        body = files[name]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{git_id("blob", body)}"', "Accept-Ranges": "bytes"}
        self.answer(200, body, headers, "application/octet-stream")

    def answer_json(self, value: object, headers: dict[str, str] | None = None) -> None:
        self.answer(200, json.dumps(value).encode(), headers or {})

    def answer(self, status: int, body: bytes, headers: dict[str, str], kind: str = "application/json") -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Type": kind, "Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing on stderr: `Hub.requests` is the log."""
