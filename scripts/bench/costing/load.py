"""The load of the cost bench: so many clients, each with its next question as soon as the last is answered; streamed chat completions of notes."""

from __future__ import annotations

import http.client
import json
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

NOTES = Path(__file__).resolve().parents[3] / "slmkit/demo/notes/test.jsonl"
SKIPPED = 64  # notes that are asked in measuring; the load asks others


def load(url: str, model: str, clients: int, requests: int, new: int, own: bool, at: int = 0) -> dict[str, float]:
    """{seconds, read, wrote}: wall seconds, and tokens as the server counts them. own: the model ends its answers. at: the first note asked."""
    notes = [json.loads(line)["note"] for line in NOTES.read_text(encoding="utf-8").splitlines()[SKIPPED:]]
    waiting, counted, lock, where = list(range(at, at + requests)), [], threading.Lock(), urlsplit(url)

    def client() -> None:
        connection = http.client.HTTPConnection(where.netloc, timeout=600)
        while True:
            with lock:
                if not waiting:
                    return
                note = notes[waiting.pop() % len(notes)]
            body = {"model": model, "messages": [{"role": "user", "content": note}], "max_tokens": new, "temperature": 0, "stream": True,
                    "stream_options": {"include_usage": True}} | ({} if own else {"ignore_eos": True})  # fmt: skip
            connection.request("POST", f"{where.path}/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            reply = connection.getresponse()
            said = b""
            while line := reply.readline():
                said = line if line.startswith(b"data: {") else said
            usage = json.loads(said[6:])["usage"]
            with lock:
                counted.append((usage["prompt_tokens"], usage["completion_tokens"]))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    started = time.perf_counter()
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    if len(counted) != requests:
        raise SystemExit(f"{requests - len(counted)} requests of the load came to nothing")
    return {"seconds": time.perf_counter() - started, "read": sum(r for r, _ in counted), "wrote": sum(w for _, w in counted)}
