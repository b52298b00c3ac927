"""What `--batch N` holds: never more than N answers at once, not even of one request, whose answers are those of a larger batch; others get turns."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest

from slmkit.ml.completions import chat_asks
from slmkit.serve.bench import Bench, Job
from tests.serve.conftest import listening, post
from tests.serve.test_neighbours import HI

MANY = {"model": "m", "prompt": [f"parcel {k} goes to" for k in range(11)], "max_tokens": 7, "seed": 5}


class Watched:
    """The model, with whom it was asked to write for: (its prompt's tokens, its seed), batch by batch. `began`: once it writes; it waits for `go`."""

    def __init__(self, writer):
        self.writer, self.batches, self.began, self.go = writer, [], threading.Event(), threading.Event()
        self.go.set()

    def __call__(self, _, asks, each):
        self.batches.append([(a.ids, a.seed) for a in asks])
        self.began.set()
        assert self.go.wait(30)
        return self.writer.write(asks, each)


def texts(choices: list[dict]) -> dict[int, str]:
    """Each answer's text, whole or streamed."""
    out: dict[int, str] = {}
    for c in choices:
        said = c.get("message") or c.get("delta") or c
        out[c["index"]] = out.get(c["index"], "") + (said.get("content") or said.get("text") or "")
    return out


@pytest.mark.parametrize(("path", "body"), [
    ("completions", MANY | {"temperature": 0}), ("completions", MANY | {"temperature": 1.5, "n": 2, "logprobs": 1, "echo": True}),
    ("chat/completions", HI | {"n": 11, "temperature": 1.5, "seed": 3}),
])  # fmt: skip
def test_a_request_of_more_answers_than_a_batch_is_written_in_several(writer, speaker, path, body):
    watched = Watched(writer)
    with listening(speaker, Bench(lambda _, asks, each: writer.write(asks, each), 64)) as url:
        together = json.loads(post(f"{url}/{path}", body)[1])
    with listening(speaker, Bench(watched, 4)) as url:
        whole = json.loads(post(f"{url}/{path}", body)[1])
        raw = post(f"{url}/{path}", body | {"stream": True})[1]
    rows = len(together["choices"])
    sizes = [len(batch) for batch in watched.batches]
    assert sizes == 2 * ([4] * (rows // 4) + [rows % 4]) and rows in (11, 22)
    assert texts(whole["choices"]) == texts(together["choices"]) and len(set(texts(whole["choices"]).values())) > 1
    assert [c["index"] for c in whole["choices"]] == list(range(rows)) and whole["usage"] == together["usage"]
    assert raw.rstrip().endswith("data: [DONE]")
    streamed = [c for line in raw.split("\n\n")[:-2] for c in json.loads(line.removeprefix("data: "))["choices"]]
    assert texts(streamed) == texts(whole["choices"])
    assert {c["index"]: c["finish_reason"] for c in streamed} == {c["index"]: c["finish_reason"] for c in whole["choices"]}


def jobs_of(bodies: list[dict], speaker, loop) -> list[Job]:
    return [Job("m", chat_asks(body, speaker), loop, loop.create_future()) for body in bodies]


def test_a_large_request_takes_turns_with_small_ones_and_cuts_none_up(writer, speaker):
    """Those that came while it was written go before its next part, which fills what they leave of the batch."""
    watched = Watched(writer)
    watched.go.clear()

    async def all_of_them() -> list[int]:
        bench = Bench(watched, 4)
        bodies = [HI | {"n": 10, "seed": 100}, HI | {"n": 3, "seed": 200}, HI | {"n": 3, "seed": 300}]
        large, *small = jobs_of(bodies, speaker, asyncio.get_running_loop())
        bench.put(large)
        await asyncio.to_thread(watched.began.wait, 30)
        counts = [bench.running, bench.queued]
        for job in small:
            bench.put(job)
        counts.append(bench.queued)
        watched.go.set()
        done = await asyncio.gather(*(job.done for job in (large, *small)))
        await asyncio.to_thread(bench.close)
        return counts + [len(one) for one in done]

    assert asyncio.run(all_of_them()) == [4, 0, 2, 10, 3, 3]
    seeds = [[seed for _, seed in batch] for batch in watched.batches]
    assert seeds == [[100, 101, 102, 103], [200, 201, 202, 104], [300, 301, 302, 105], [106, 107, 108, 109]]


@pytest.mark.parametrize("breaks", [False, True])
def test_what_is_left_of_a_request_is_not_begun_when_nobody_waits_for_it(writer, speaker, breaks):
    """Its client has hung up, or a part of it has failed: which is its answer."""
    watched = Watched(writer)

    async def one() -> tuple[list, list[int]]:
        large, after = jobs_of([HI | {"n": 10}, HI], speaker, asyncio.get_running_loop())

        def write(name, asks, each):
            if breaks and len(watched.batches) == 1:
                watched.batches.append([])
                raise RuntimeError("the device is gone")
            wrote = watched(name, asks, each)
            if not breaks:
                large.gone.set()
            return wrote

        bench = Bench(write, 4)
        bench.put(large)
        if breaks:
            with pytest.raises(RuntimeError, match="the device is gone"):
                await large.done
        bench.put(after)
        found = await after.done
        await asyncio.to_thread(bench.close)
        return found, [bench.running, bench.queued]

    found, rest = asyncio.run(one())
    assert len(found[0].tokens) == 12 and rest == [0, 0]
    assert [len(batch) for batch in watched.batches] == ([4, 0, 1] if breaks else [4, 1])


@pytest.mark.parametrize("most", [4, 64])
def test_each_answer_of_a_stream_ends_when_it_has_ended(writer, speaker, most):
    """Not when the last one has: nothing comes of it after its reason, and others go on. `best_of` of as many as are wanted is all of them."""
    body = MANY | {"max_tokens": 30, "temperature": 1.2, "stop": ["z"], "n": 1, "best_of": 1}
    with listening(speaker, Bench(lambda _, asks, each: writer.write(asks, each), most)) as url:
        whole = json.loads(post(f"{url}/completions", body)[1])["choices"]
        raw = post(f"{url}/completions", body | {"stream": True})[1]
        two = json.loads(post(f"{url}/completions", MANY | {"prompt": "to", "n": 2, "best_of": 2})[1])["choices"]
    choices = [c for line in raw.split("\n\n")[:-2] for c in json.loads(line.removeprefix("data: "))["choices"]]
    ends = {c["index"]: at for at, c in enumerate(choices) if c["finish_reason"]}
    last = {c["index"]: at for at, c in enumerate(choices)}
    assert ends == last and [choices[ends[c["index"]]]["finish_reason"] for c in whole] == [c["finish_reason"] for c in whole]
    assert texts(choices) == texts(whole) and {c["finish_reason"] for c in whole} == {"stop", "length"} and len(two) == 2
    first = min(ends, key=ends.get)
    goes_on = [c["index"] for c in choices[ends[first] :] if c["text"] and c["index"] < most]
    assert len(goes_on) > 2 * most, "those that were written beside it go on"
