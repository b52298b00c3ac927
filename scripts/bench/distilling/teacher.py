"""A teacher on loopback that answers after a fixed time and costs next to nothing: an asyncio protocol without a web framework.

It counts what the bench wants to know: when calls came in, how late its own answers were (is it the bottleneck?), and the CPU
time of the process that calls it, read from /proc at the first call and at the last answer.

    python teacher.py LATENCY_SECONDS      # prints its port

Besides POST …/chat/completions: POST /watch {"pid": N, "calls": N} starts the counting anew, GET /stats gives the counts.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from array import array
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
ANSWER = json.dumps({
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "bench-1", "system_fingerprint": "fp_1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "card_arrival, said the teacher"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 30, "completion_tokens": 8, "total_tokens": 38},
}).encode()  # fmt: skip


def cpu_of(pid: int) -> float:
    """CPU-seconds of a process and of its children that ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / TICK


class Counts:
    """Of one run of one caller."""

    def __init__(self, pid: int = 0, calls: int = 0):
        self.pid, self.calls = pid, calls
        self.arrived, self.answered, self.last, self.late = array("d"), 0, 0.0, 0.0
        self.flying, self.most = 0, 0
        self.cpu, self.own = [0.0, 0.0], [0.0, 0.0]

    def come(self) -> None:
        if not self.arrived:
            self.cpu[0], self.own[0] = cpu_of(self.pid), time.process_time()
        self.arrived.append(time.perf_counter())
        self.flying += 1
        self.most = max(self.most, self.flying)

    def gone(self, late: float) -> None:
        self.flying -= 1
        self.answered, self.last, self.late = self.answered + 1, time.perf_counter(), self.late + late
        if self.answered == self.calls:
            self.cpu[1], self.own[1] = cpu_of(self.pid), time.process_time()

    def told(self) -> dict:
        at, tenth = self.arrived, max(1, len(self.arrived) // 10)
        rate = [tenth / max(1e-9, at[tenth] - at[0]), tenth / max(1e-9, at[-1] - at[-1 - tenth])] if len(at) > 1 else [0.0, 0.0]
        return {
            "calls": len(at), "answered": self.answered, "most_in_flight": self.most, "seconds": self.last - at[0] if at else 0.0,
            "cpu": self.cpu[1] - self.cpu[0], "teacher_cpu": self.own[1] - self.own[0], "late_ms": 1000 * self.late / max(1, self.answered),
            "first_tenth": rate[0], "last_tenth": rate[1],
        }  # fmt: skip


class Http(asyncio.Protocol):
    """One connection: keep-alive, bodies with Content-Length, one request at a time."""

    counts = Counts()
    latency = 0.05

    def connection_made(self, transport) -> None:
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            size = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + size:
                return
            body, self.buffer = self.buffer[end + 4 : end + 4 + size], self.buffer[end + 4 + size :]
            self.asked(head.split(b" ", 2)[1], body)

    def asked(self, path: bytes, body: bytes) -> None:
        if path.endswith(b"/chat/completions"):
            self.counts.come()
            loop = asyncio.get_running_loop()
            loop.call_later(self.latency, self.answer, loop.time() + self.latency, self.counts)
        elif path == b"/watch":
            Http.counts = Counts(**json.loads(body))
            self.write(b"{}")
        elif path == b"/stats":
            self.write(json.dumps(self.counts.told()).encode())
        else:
            self.write(b'{"object":"list","data":[{"id":"bench","object":"model"}]}')

    def answer(self, due: float, counts: Counts) -> None:
        if not self.transport.is_closing():
            self.write(ANSWER)
        counts.gone(asyncio.get_running_loop().time() - due)

    def write(self, body: bytes) -> None:
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


async def main(latency: float) -> None:
    Http.latency = latency
    server = await asyncio.get_running_loop().create_server(Http, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1])))
