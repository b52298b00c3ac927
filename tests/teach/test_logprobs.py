"""What an endpoint says of a text goes into what a student learns: whatever else than logprobs comes back is told, with its place and the mend."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from slmkit.errors import CannotRun, SlmkitError, StepFailed, UsageError
from slmkit.teach import logprobs
from slmkit.teach.endpoint import Route

IDS = [5, 6, 7, 8]
Says = Callable[[dict], tuple[int, Any]]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[tuple[Route, dict[str, Says]]]:
    """A server on loopback, and what it answers to a body: (status, JSON)."""
    says: dict[str, Says] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, said = says["now"](json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            text = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Route(f"http://127.0.0.1:{server.server_port}/v1/echo", None, None, 10), says
    server.shutdown()
    server.server_close()


def good(ids: list[int], k: int) -> dict:
    """As vLLM answers: one place more, which is what it wrote; and the prompt's own token beside the k, where it is none of them."""
    tops = [None, *({f"token_id:{i}": -1.0 - i for i in range(k)} | {f"token_id:{one}": -90.0} for one in ids[1:]), {"token_id:0": -0.5}]
    return {"tokens": [f"t{i}" for i in ids] + ["x"], "token_logprobs": [None] + [-1.0] * len(ids), "top_logprobs": tops}


def completion(logs: Any) -> tuple[int, dict]:
    return 200, {"choices": [{"index": 0, "text": "", "logprobs": logs}]}


def place(at: int, said: Any) -> Says:
    """One of the places says something else."""
    def says(body: dict) -> tuple[int, dict]:
        logs = good(body["prompt"], body["logprobs"])
        logs["top_logprobs"][at] = said
        return completion(logs)

    return says


def test_what_it_says_is_read_place_by_place(endpoint):
    route, says = endpoint
    says["now"] = lambda body: completion(good(body["prompt"], body["logprobs"]))
    assert logprobs.of(route, "m", [IDS, IDS[:2]], 2, ["a", "b"]) == [[[(0, -1.0), (1, -2.0)]] * 3, [[(0, -1.0), (1, -2.0)]]]
    assert logprobs.read(route, "m", [IDS]) == [["t5", "t6", "t7", "t8"]]


@pytest.mark.parametrize("nothing", [-math.inf, -9999.0, -1e30, -(10**400)])
def test_no_probability_at_all_is_a_number(endpoint, nothing):
    route, says = endpoint
    says["now"] = place(1, {"token_id:3": 0.004, "token_id:4": nothing})
    ((first, *_),) = logprobs.of(route, "m", [IDS], 2, ["a"])
    assert [i for i, _ in first] == [3, 4] and first[1][1] < -9e3 and all(math.isfinite(p) for _, p in first)


NONE = [None, [], {}, "x", 5, {"choices": None}, {"choices": []}, {"choices": [None]}, {"choices": [{}]}, {"choices": {"0": 1}},
        {"choices": "abc"}, {"error": {"message": "it is cold"}}]  # fmt: skip
LOGS = [None, [], {}, "x", {"content": []}, {"tokens": None, "top_logprobs": None}, {"tokens": "abcdef", "top_logprobs": "abcdef"},
        {"tokens": ["a", "b"], "top_logprobs": [None, {}]}, {"tokens": [1, 2, 3, 4], "top_logprobs": [None, 1, 2, 3]},
        {"tokens": [None] * 4, "top_logprobs": [None] * 4}]  # fmt: skip


@pytest.mark.parametrize("said", [(200, one) for one in NONE] + [completion(one) for one in LOGS], ids=lambda one: str(one[1])[:50])
def test_what_is_no_completion_with_logprobs_is_told(endpoint, said):
    route, says = endpoint
    says["now"] = lambda _: said
    for ask in (lambda: logprobs.of(route, "m", [IDS], 2, ["rows.jsonl:3"]), lambda: logprobs.read(route, "m", [IDS])):
        with pytest.raises(StepFailed, match="the teacher") as e:
            ask()
        assert e.value.key == "teacher" and "slmkit serve" in e.value.mend
    if isinstance(said[1], dict) and "error" in said[1]:
        assert "it is cold" in str(e.value)


@pytest.mark.parametrize(("named", "key", "told"), [
    ({"token_id:1": math.nan, "token_id:2": -1.0}, "teacher", "token 1 has the logprob nan at token 2 of rows.jsonl:3"),
    ({"token_id:1": math.inf, "token_id:2": -1.0}, "teacher", "logprob inf"), ({"token_id:1": 0.4, "token_id:2": -1.0}, "teacher", "logprob 0.4"),
    ({"token_id:1": "-1", "token_id:2": -1.0}, "teacher", "logprob '-1'"), ({"token_id:1": None, "token_id:2": -1.0}, "teacher", "logprob None"),
    ({"token_id:1": False, "token_id:2": -1.0}, "teacher", "logprob False"), ({"token_id:1": [-1.0], "token_id:2": -1.0}, "teacher", "no logarithm"),
    ({"token_id:1": -0.01, "token_id:2": -0.01}, "teacher", "add up to 1.98"),
    ([-1.0, -2.0], "teacher", "should name tokens"), ({"token_id:1": -1.0}, "gkd.top_k", "names 1 tokens by number where 2 were asked for"),
    ({"token_id:-1": -1.0, "token_id:2": -1.0}, "gkd.top_k", "names 1 tokens by number where 2 were asked for, and 1 by their texts"),
    ({" a": -1.0, " b": -2.0}, "teacher", "names 0 tokens by number where 2 were asked for, and 2 by their texts"), (None, "teacher", "names 0"),
])  # fmt: skip
def test_what_is_no_logarithm_of_a_probability_is_told_with_its_place(endpoint, named, key, told):
    route, says = endpoint
    says["now"] = place(2, named)
    with pytest.raises(StepFailed) as e:
        logprobs.of(route, "m", [IDS], 2, ["rows.jsonl:3"])
    assert told in e.value.what and "token 2 of rows.jsonl:3" in e.value.what and e.value.key == key
    assert ("gkd.top_k" in e.value.mend) is (key == "gkd.top_k")


@pytest.mark.parametrize(("said", "more", "kind", "key"), [
    ("`logprobs` should be a whole number from 0 to 20, this is 21", True, UsageError, "gkd.top_k"),
    ("Requested prompt logprobs of 21, which is greater than max allowed: 20", True, UsageError, "gkd.top_k"),
    ("prompt must be a string", True, UsageError, "teacher"), ("echo is not supported", False, StepFailed, "teacher"),
    ("logprobs are not available for this model", False, StepFailed, "teacher"), ("prompt must be a string", False, UsageError, "teacher"),
])  # fmt: skip
def test_a_refusal_is_told_at_the_key_that_mends_it(endpoint, said, more, kind, key):
    """more: of more logprobs than one; else of any at all. The endpoint's own address, which has `echo` in it, is no reason."""
    route, says = endpoint
    says["now"] = lambda _: (400, {"error": {"message": said}})
    with pytest.raises(SlmkitError) as e:
        logprobs.of(route, "m", [IDS], 21, ["a"]) if more else logprobs.read(route, "m", [IDS])
    assert type(e.value) is kind and e.value.key == key and said in e.value.what
    assert ("lower `gkd.top_k`" in e.value.mend) is (key == "gkd.top_k") and ("slmkit serve" in e.value.mend) is (kind is StepFailed)


def test_a_teacher_that_is_not_there_is_told_as_that():
    with pytest.raises(CannotRun, match="gave no logprobs"):
        logprobs.read(Route("http://127.0.0.1:9/v1", None, None, 1), "m", [IDS])
