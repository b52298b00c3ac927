"""A real HTTP teacher on loopback, in a process of its own, with the faults that real endpoints have, drawn by call number.

Answers are a function of the prompt, so that a caller can check every row; each answered call is a line of the log.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.support import judges, minds


def says(prompt: str) -> str:
    """What the teacher answers."""
    return "echo " + hashlib.sha256(prompt.encode()).hexdigest()[:12]


def _serve(log: str, faults: dict) -> None:
    from aiohttp import web

    numbers = iter(range(1, 10**9))
    mind = (vars(minds) | vars(judges))[faults["mind"]] if faults.get("mind") else None
    out = open(log, "a", buffering=1)  # noqa: SIM115  for the life of the process

    def note(kind: str, **more) -> None:
        out.write(json.dumps({"kind": kind, "at": time.time(), **more}) + "\n")

    async def chat(request: web.Request) -> web.StreamResponse:
        number, body = next(numbers), await request.json()
        if faults.get("key") and request.headers.get("Authorization") != f"Bearer {faults['key']}":
            note("401")
            return web.json_response({"error": {"message": "no such key", "code": "invalid_api_key"}}, status=401)
        prompt = body["messages"][-1]["content"]
        digest = hashlib.sha256(json.dumps([body["messages"], body.get("seed")]).encode()).hexdigest()
        draw = random.Random(number * 7919).random()
        for kind, share in faults.items():
            if kind in ("key", "latency", "script", "refuse", "mind", "polls", "expired", "batches", "after"):
                continue
            if draw < share:
                note(kind, digest=digest)
                if kind == "429":
                    return web.json_response({"error": {"message": "slow down"}}, status=429, headers={"Retry-After": str(faults.get("after", 0.05))})
                if kind == "500":
                    headers = {"Retry-After": str(faults["after"])} if "after" in faults else {}
                    return web.json_response({"error": {"message": "oops"}}, status=500, headers=headers)
                if kind == "400":
                    return web.json_response({"error": {"message": "Unsupported parameter: 'max_tokens'"}}, status=400)
                if kind == "reset":
                    request.transport.abort()
                    return web.Response()
                if kind == "hang":
                    await asyncio.sleep(600)
                return web.Response(text="<html>bad gateway</html>", content_type="text/html")
            draw -= share
        await asyncio.sleep(faults.get("latency", 0.005))
        if faults.get("refuse") and faults["refuse"] in prompt:
            return web.json_response({"error": {"message": "no", "code": "content_filter"}}, status=400)
        text = faults.get("script", {}).get(prompt, says(prompt))
        if isinstance(text, list):  # one for each seed
            text = text[(body.get("seed") or 0) % len(text)]
        message = {"role": "assistant", "content": text} if mind is None else mind(body, number)
        text = json.dumps(message) if mind else text
        usage = {"prompt_tokens": len(json.dumps(body["messages"])) // 4, "completion_tokens": min(len(text) // 4 + 1, body["max_tokens"])}
        finish = "length" if len(text) // 4 + 1 > body["max_tokens"] else "stop"
        note("ok", digest=digest, **usage, **({"body": body} if mind else {}))
        choice = {"index": 0, "message": message, "finish_reason": finish}
        return web.json_response({"id": "x", "model": "t-1", "system_fingerprint": "fp", "choices": [choice], "usage": usage})

    files: dict[str, bytes] = {}
    batches: dict[str, dict] = {}
    odd = faults.get("batches", {})  # see `start`

    def page(where: str) -> None:
        if odd.get("page") == where:
            raise web.HTTPOk(text="<html>sign in</html>", content_type="text/html")

    async def upload(request: web.Request) -> web.StreamResponse:
        page("upload")
        form = await request.post()
        name = f"file-{len(files)}"
        files[name] = form["file"].file.read()
        return web.json_response({"id": name, "object": "file", "purpose": form["purpose"], "bytes": len(files[name]), "created_at": 0,
                                  "filename": "x", "status": "processed"})  # fmt: skip

    async def batch(request: web.Request) -> web.StreamResponse:
        body, name = await request.json(), f"batch-{len(batches)}"
        note("batch")
        batches[name] = {"id": name, "object": "batch", "status": "in_progress", "input_file_id": body["input_file_id"], "created_at": 0,
                         "endpoint": body["endpoint"], "completion_window": body["completion_window"], "polls": 0,
                         "metadata": body.get("metadata")}  # fmt: skip
        page("create")
        await asyncio.sleep(odd.get("slow_create", 0))
        return web.json_response(batches[name])

    async def listed(request: web.Request) -> web.StreamResponse:
        if odd.get("no_list"):
            raise web.HTTPNotFound
        return web.json_response({"object": "list", "data": list(batches.values())[::-1], "has_more": False})

    async def poll(request: web.Request) -> web.StreamResponse:
        page("poll")
        status = odd.get("poll_status")
        if status and request.match_info["name"] == "batch-0":
            told = {"error": {"message": "cannot just now"}}
            return web.json_response(told, status=status, headers={"x-should-retry": "false"})
        one = batches[request.match_info["name"]]
        one["polls"] += 1
        if one["polls"] >= faults.get("polls", 1) and one["status"] == "in_progress":
            out, bad = [], []
            for line in files[one["input_file_id"]].decode().splitlines():
                asked = json.loads(line)
                prompt = asked["body"]["messages"][-1]["content"]
                if one["id"] == "batch-0" and len(out) >= odd.get("expire_after", 10**9):
                    continue
                if random.Random(len(files) * 1000 + len(out) + 7 * len(bad)).random() < faults.get("expired", 0):
                    bad.append({"custom_id": asked["custom_id"], "response": None, "error": {"code": "batch_expired", "message": "expired"}})
                    continue
                usage = {"prompt_tokens": len(json.dumps(asked["body"]["messages"])) // 4, "completion_tokens": 5}
                choice = {"index": 0, "message": {"role": "assistant", "content": says(prompt)}, "finish_reason": "stop"}
                note("ok", digest=hashlib.sha256(json.dumps([asked["body"]["messages"], asked["body"].get("seed")]).encode()).hexdigest(), **usage)
                done = {"id": "x", "model": "t-1", "choices": [choice], "usage": usage}
                out.append(odd["lines"][len(out)] | {"custom_id": asked["custom_id"]} if len(out) < len(odd.get("lines", ())) else
                           {"custom_id": asked["custom_id"], "response": {"status_code": 200, "body": done}, "error": None})
            for key, lines in (("output_file_id", out[::-1]), ("error_file_id", bad)):
                if lines:
                    one[key] = f"file-{len(files)}"
                    files[one[key]] = "".join(json.dumps(v) + "\n" for v in lines).encode()
            one["status"] = "expired" if one["id"] == "batch-0" and "expire_after" in odd else "completed"
        return web.json_response(one)

    async def content(request: web.Request) -> web.StreamResponse:
        page("content")
        return web.Response(body=files[request.match_info["name"]])

    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/files", upload)
    app.router.add_get("/v1/files/{name}/content", content)
    app.router.add_post("/v1/batches", batch)
    app.router.add_get("/v1/batches/{name}", poll)
    app.router.add_get("/v1/batches", listed)
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", lambda r: _json({"object": "list", "data": [{"id": "t"}]}))

    async def main() -> None:
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print(site._server.sockets[0].getsockname()[1], flush=True)
        await asyncio.sleep(10**6)

    async def _json(value):
        return web.json_response(value)

    asyncio.run(main())


@dataclass
class Teacher:
    """A running teacher. `calls()` are the kinds of all calls; `answered()` counts answers by request."""

    process: subprocess.Popen
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def calls(self) -> Counter[str]:
        return Counter(line["kind"] for line in self.lines())

    def answered(self) -> Counter[str]:
        return Counter(line["digest"] for line in self.lines() if line["kind"] == "ok")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def start(folder: Path, **faults) -> Teacher:
    """Start a teacher. Faults by name and share: 429, 500, reset, hang, garbage, 400; latency in seconds; key; script: prompt → answer;
    mind: a function of tests/support/minds.py or judges.py that answers by the whole body, which is then kept in the log.
    batches: oddities of the batch API. expire_after: so many answers of the first batch, and nothing of the others; poll_status: of every look at
    the first batch; slow_create: seconds until a creation is answered; no_list: it cannot list batches; page: where a proxy's page comes
    instead (upload, create, poll, content); lines: what stands in place of the first answers. after: seconds of Retry-After."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"calls-{time.monotonic_ns()}.jsonl"
    log.touch()
    here = Path(__file__)
    command = [sys.executable, str(here), str(log), json.dumps({k.lstrip("_"): v for k, v in faults.items()})]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(here.parents[2])})
    port = int(process.stdout.readline())
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=10) as answer:
        assert answer.status == 200
    return Teacher(process, port, log)


if __name__ == "__main__":
    _serve(sys.argv[1], json.loads(sys.argv[2]))
