"""The SDK makes the first request of a kind, its HTTP client those that follow: what arrives, and what a failure is taken for, is the same."""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest

from slmkit.errors import SlmkitError
from slmkit.teach.endpoint import Endpoint, Failure, Route

KEY_TEXT = "sk-canary-0123456789"
GOOD = json.dumps({"choices": [{"message": {"role": "assistant", "content": "sí"}}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}).encode()


def http(status: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "content-type: application/json", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def refusal(status: str, *headers: str, **error: str) -> bytes:
    return http(status, json.dumps({"error": error}).encode(), *headers)


TOLD = {
    "no balance": ("CannotRun", "top it up"), "the key again": ("CannotRun", "Bearer ***"), "too long at vLLM": ("row", "maximum context length"),
    "too long at Anthropic": ("row", "too long"), "a limit too large": ("UsageError", "max_tokens"), "an odd pause": ("busy", "slow down"),
    "an error with status 200": ("garbled", "overloaded"),
}  # fmt: skip
HALF = b"?"  # asked with half a character
ANSWERS = {
    "an answer": http("200 OK", GOOD),
    "a packed answer": http("200 OK", gzip.compress(GOOD), "content-encoding: gzip"),
    "broken packing": http("200 OK", GOOD, "content-encoding: gzip"),
    "429 with a pause": refusal("429 Too Many Requests", "retry-after: 7", message="slow down"),
    "no money": refusal("429 Too Many Requests", message="pay first", code="insufficient_quota"),
    "wrong key": refusal("401 Unauthorized", message="no such key", code="invalid_api_key"),
    "no such model": refusal("404 Not Found", message="no model `m`"),
    "no balance": refusal("402 Payment Required", message="Insufficient Balance"),
    "the key again": refusal("401 Unauthorized", message=f"bad key Bearer {KEY_TEXT}"),
    "the key in an answer": http("200 OK", GOOD.replace(b"s\\u00ed", KEY_TEXT.encode())),
    "an odd pause": refusal("429 Too Many Requests", "retry-after: soon, maybe", message="slow down"),
    "an error with status 200": http("200 OK", b'{"error": {"message": "overloaded"}}'),
    "too long at vLLM": refusal("400 Bad Request", message="This model's maximum context length is 4096 tokens.", code="400"),
    "too long at Anthropic": refusal("400 Bad Request", message="prompt is too long: 210000 tokens > 200000 maximum"),
    "a limit too large": refusal("400 Bad Request", message="max_tokens is too large: 9. This model supports at most 4 completion tokens"),
    "a filtered row": refusal("400 Bad Request", message="no", code="content_filter"),
    "an unknown parameter": refusal("400 Bad Request", message="Unsupported parameter: 'max_tokens'"),
    "an error without an object": http("400 Bad Request", b'{"error": "bad"}'),
    "a list": http("422 Unprocessable Entity", b'["bad"]'),
    "a proxy's page": http("502 Bad Gateway", b"<html>bad gateway</html>"),
    "too large": http("413 Payload Too Large"),
    "timed out there": http("504 Gateway Timeout", b"late"),
    "no redirection": http("304 Not Modified"),
    "a page": http("200 OK", b"<html>hello</html>"),
    "nothing": http("200 OK"),
    "no completion": http("200 OK", b'{"choices": []}'),
    "reset": b"",
    "half a body": http("200 OK", GOOD)[:-9],
    "no HTTP": b"hello\r\n\r\n",
    "an endless header": http("200 OK", GOOD, "x: " + "y" * 70000),
    "silence": b"HTTP/1.1 200",
}


async def told(answers: list[bytes], seen: list[bytes]) -> list[tuple]:
    """What comes of calls that are answered one after another with these bytes; the requests' bytes go into `seen`."""
    left = iter(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
            seen.append(head + await reader.readexactly(length))
            data = next(left)
            writer.write(data)
            await writer.drain()
            if data == ANSWERS["silence"]:
                await asyncio.sleep(30)
            if data not in [ANSWERS["an answer"]]:
                break
        writer.close()

    def serving(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.create_task(serve(reader, writer)))

    tasks: list[asyncio.Task] = []
    server = await asyncio.start_server(serving, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    found = []
    async with Endpoint(Route(url, KEY_TEXT, "KEY", 1.0)) as endpoint:
        for number in range(len(answers)):
            asked = "\ud83d" if answers[number] is HALF else "¿qué?" * (number + 1)
            body = {"model": "m", "messages": [{"role": "user", "content": asked}], "max_tokens": 5}
            try:
                one = await endpoint.call(body)
                found.append((one.message, one.usage))
            except Failure as e:
                found.append((e.means, e.why.replace(url, "URL"), e.after))
            except SlmkitError as e:
                found.append((type(e).__name__, e.render().replace(url, "URL")))
    server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return found


@pytest.mark.parametrize("what", ANSWERS)
def test_a_later_request_fails_as_the_first_one_does(what):
    first, later = [], []
    (as_first,) = asyncio.run(told([ANSWERS[what]], first))
    _, as_later = asyncio.run(told([ANSWERS["an answer"], ANSWERS[what]], later))
    assert as_later == as_first
    if what in ("an answer", "a packed answer"):
        assert as_first == ({"role": "assistant", "content": "sí"}, {"input": 3, "output": 1, "cached": 0})
    elif what == "the key in an answer":
        assert as_first[0]["content"] == "***"
    else:
        assert isinstance(as_first[0], str) and KEY_TEXT not in str(as_first)
        kind, words = TOLD.get(what, (as_first[0], ""))
        assert as_first[0] == kind and words in as_first[1]


def test_a_later_request_is_the_first_one():
    """But for what the SDK says of a single request: its count of trials, and the like."""
    seen: list[bytes] = []
    asyncio.run(told([ANSWERS["an answer"]] * 3, seen))

    def parts(request: bytes) -> tuple[set[str], dict]:
        head, _, body = request.partition(b"\r\n\r\n")
        return set(head.decode().lower().split("\r\n")), json.loads(body)

    (first, asked), *later = map(parts, seen)
    assert f"authorization: bearer {KEY_TEXT}" in first and asked["messages"][0]["content"] == "¿qué?"
    own = {h.partition(":")[0] for h in first if h.startswith("x-stainless")}
    for number, (heads, body) in enumerate(later, 2):
        assert {h.partition(":")[0] for h in heads ^ first} <= {"content-length"} | own
        assert body["messages"][0]["content"] == "¿qué?" * number


@pytest.mark.parametrize("before", [0, 1])
def test_half_a_character_is_a_fault_of_its_row(before):
    """Nothing is sent, and it is no fault of the endpoint."""
    seen: list[bytes] = []
    *_, last = asyncio.run(told([ANSWERS["an answer"]] * before + [HALF], seen))
    assert last[0] == "row" and "half a character" in last[1] and len(seen) == before
