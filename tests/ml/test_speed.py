"""Speed as it is measured: what is counted and what is not, in which order, on whose prompts; and that an eval's payload knows nothing of it."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch

from slmkit.errors import StepFailed, UsageError
from slmkit.evidence.timing import Batch
from slmkit.ml import models, speed
from slmkit.ml.speed_http import OverHttp
from slmkit.ml.writer import Writer
from slmkit.steps._speed import Speed
from tests.ml.conftest import chats, write_jsonl
from tests.ml.test_eval import CHOOSE, GENERATE, evaluate
from tests.support.drive import given

CPU = torch.device("cpu")
SMALL = {"new_tokens": 5, "batch_sizes": [1, 3], "repeats": 3, "requests": 4}


@pytest.fixture(scope="module")
def inside(tiny) -> speed.InProcess:
    source = given(tiny, "model")
    return speed.InProcess(Writer(models.load(source, CPU), models.tokenizer(source), CPU))


def test_every_request_gets_as_many_tokens_and_is_timed_from_first_to_last(inside, tokenizer) -> None:
    prompts = [tuple(tokenizer(t)["input_ids"]) for t in ("parcel 3 goes to Graz", "please", "where is the parcel that goes to Wels")]
    batch = inside(prompts, 12)
    assert batch.read == tuple(map(len, prompts)) and batch.wrote == (12, 12, 12), "no answer ends early"
    assert all(0 < f < last for f, last in zip(batch.first, batch.last, strict=True))
    assert len(set(batch.first)) > 1 and max(batch.first) < min(batch.last), "each row's own time, the first of all before the last of any"
    every = frozenset(range(384))  # all that the model can write
    ended = speed.InProcess(inside.writer, every)(prompts, 12)
    assert ended.wrote == (1, 1, 1), "with ends, answers stop where the model ends them; the end counts as a token"
    one, several = inside(prompts[:1], 12), inside(prompts, 12)
    assert sum(several.wrote) / several.last[0] > sum(one.wrote) / one.last[0], "a batch gives more tokens a second in all"


class Recorded:
    """A runtime that answers in made-up times and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple, int]] = []

    def __call__(self, prompts, new: int) -> Batch:
        self.asked.append((tuple(prompts), new))
        n, slow = len(prompts), 100.0 if len(self.asked) <= 2 else 1.0  # the first of both sizes are cold
        return Batch((slow,) * n, (slow + new - 1,) * n, tuple(len(p) for p in prompts), (new,) * n)


def test_sizes_take_turns_and_the_first_of_each_is_not_counted() -> None:
    runtime, prompts, rounds, peaks = Recorded(), [(i,) * 4 for i in range(7)], [], iter(range(10, 1000, 10))
    found = speed.measure(runtime, prompts, Speed(**SMALL), lambda: next(peaks), rounds.append)
    sizes = [len(p) for p, _ in runtime.asked]
    assert sizes == [1, 3, 1, 1, 3, 3, 1, 1, 1, 1, 3] and rounds == [1, 2, 3], "4 requests alone over 3 rounds are 2 a round; to and fro"
    assert {new for _, new in runtime.asked[2:]} == {5}
    used = [p for some, _ in runtime.asked[2:] for p in some]
    assert used == [prompts[i % 7] for i in range(len(used))], "one prompt after another, and from the beginning again"
    assert found["curve"]["1"]["batches"] == 6 and found["curve"]["3"]["batches"] == 3 and found["latency"]["requests"] == 6
    assert found["curve"]["3"]["input_tokens_per_second"]["value"] == pytest.approx(12)
    assert found["curve"]["3"]["output_tokens_per_second"]["value"] == pytest.approx(3)
    assert found["latency"]["time_to_first_token"]["p50"]["high"] == found["latency"]["time_per_token"]["p95"]["value"] == 1
    assert found["curve"]["1"]["peak_memory_bytes"] == 100 and found["peak_memory_bytes"] == 120


def test_it_ends_where_the_time_is_used_up() -> None:
    def rounds(seconds: float) -> int:
        clock = iter(range(0, 10_000, 10))
        return speed.measure(Recorded(), [(1, 2)], Speed(**SMALL | {"repeats": 50, "seconds": seconds}), clock=lambda: next(clock))["rounds"]

    assert rounds(55.0) == 8, "the sixth look at the clock is past it, and the first is after the rounds that are made in any case"
    assert rounds(0.5) == speed.FEWEST_ROUNDS and rounds(1e6) == 50


CHUNKS = [{"choices": [{"text": "a"}], "usage": None}, {"choices": [{"text": "b"}]}, {"choices": [], "usage": {"completion_tokens": 2}}]


class Forgetful(BaseHTTPRequestHandler):
    """Answers a request, and closes the connection afterwards without having said so, as a server does that was kept waiting."""

    protocol_version, heard, dawdles = "HTTP/1.1", [], 0.0

    def do_POST(self) -> None:
        self.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        body = b"".join(b"data: " + json.dumps(c, separators=(",", ":")).encode() + b"\n\n" for c in CHUNKS) + b"data: [DONE]\n\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True
        time.sleep(self.dawdles)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("dawdles", [0.0, 0.1])  # 0.1: it closes when the next request is on its way already
def test_a_connection_that_the_server_closed_meanwhile_is_opened_again(monkeypatch, dawdles) -> None:
    monkeypatch.setattr(Forgetful, "heard", [])
    monkeypatch.setattr(Forgetful, "dawdles", dawdles)
    server = HTTPServer(("127.0.0.1", 0), Forgetful)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = OverHttp(f"http://127.0.0.1:{server.server_port}/v1", "m", own_ends=False, most=1)
    assert [client([(1, 2, 3)], 2).wrote for _ in range(3)] == [(2,)] * 3
    asked = {"model": "m", "prompt": [1, 2, 3], "max_tokens": 2, "temperature": 0, "stream": True, "ignore_eos": True}
    assert Forgetful.heard == [asked | {"stream_options": {"include_usage": True}}] * 3
    server.shutdown()
    server.server_close()
    with pytest.raises(StepFailed, match="cannot be reached"):
        client([(1, 2, 3)], 2)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "data").mkdir()
    write_jsonl(folder / "data" / "t.jsonl", chats(6))
    (folder / "metrics.py").write_text("def first_letter(predictions, references, **_):\n    return 1.0\n")
    (folder / "notes.yaml").write_text(GENERATE)
    (folder / "city.yaml").write_text(CHOOSE)
    return folder


def test_an_eval_measures_each_model_on_its_own_prompts_and_the_payload_is_the_same(tmp_path, tiny, tasks, tokenizer) -> None:
    model, files = [given(tiny, "model", name="m")], [tasks / "notes.yaml", tasks / "city.yaml"]
    plain, bare = evaluate(tmp_path / "plain", model, files)
    timed, result = evaluate(tmp_path / "timed", model, files, speed=SMALL, cost={"usd_per_hour": 2.0})
    held = [{str(p.relative_to(d.out)): p.read_bytes() for p in d.out.rglob("*") if p.is_file()} for d in (plain, timed)]
    assert held[0] == held[1], "speed is in the manifest alone: the bytes of an eval repeat"
    assert "measured" not in bare.values["speed"]["m"] and "cost" not in bare.values
    measured = result.values["speed"]["m"]["measured"]
    assert result.values["cost"] == {"usd_per_hour": 2.0, "idle": 0.0} and result.values["scores"] == bare.values["scores"]
    rows = [json.loads(line) for line in (timed.out / "samples/m/notes.jsonl").read_text().splitlines()]
    rows = list({r["doc_id"]: r for r in rows}.values())
    others = list({r["doc_id"]: r for r in map(json.loads, (timed.out / "samples/m/city.jsonl").read_text().splitlines())}.values())
    lengths = [len(tokenizer(r["prompt"], add_special_tokens=False)["input_ids"]) for r in (*rows, *others)]
    written = [len(tokenizer(r["resps"][0][0], add_special_tokens=False)["input_ids"]) + 1 for r in rows]
    assert measured["mix"] == {"input_tokens": pytest.approx(sum(lengths) / 12), "questions": 12, "output_tokens": pytest.approx(sum(written) / 6),
                               "answers": 6}  # fmt: skip
    assert measured["asked"] == Speed(**SMALL).model_dump(mode="json") and measured["rounds"] == 3 and set(measured["curve"]) == {"1", "3"}
    assert measured["curve"]["3"]["mean_output_tokens"] == 5 and measured["curve"]["3"]["peak_memory_bytes"] > 50e6
    assert result.cost["peak_memory_bytes"] >= measured["peak_memory_before_bytes"]
    (event,) = [e for e in timed.events if e["event"] == "speed"]
    assert event["name"] == "m" and event["said"].startswith("first token ") and "at batch " in event["said"]


def test_prompts_that_leave_no_room_are_told(tmp_path, tiny) -> None:
    write_jsonl(tmp_path / "t.jsonl", [{"doc_id": 0, "prompt": "parcel", "resps": [["Graz"]]}])
    source = given(tiny, "model")
    with pytest.raises(UsageError, match="no prompt of the tasks leaves room for 600 new tokens in the context of tiny"):
        speed.of_model(Speed(new_tokens=600), models.load(source, CPU), source, CPU, tmp_path, lambda _: None)


def test_more_tokens_than_the_context_has_are_told_before_anything_is_scored(tmp_path, tiny, tasks) -> None:
    with pytest.raises(UsageError, match="`speed.new_tokens` is 100000, and the whole context of m has 512 tokens"):
        evaluate(tmp_path, [given(tiny, "model", name="m")], [tasks / "notes.yaml"], speed=SMALL | {"new_tokens": 100_000})
    assert not list((tmp_path / "state").rglob("*.jsonl"))
