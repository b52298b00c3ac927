"""Requests that share a batch of `slmkit serve` do not share a fate: what is wrong is refused on entry, and what fails yet fails alone."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import openai
import pytest

from slmkit.ml.completions import chat_asks
from slmkit.ml.responses import usage
from slmkit.ml.writer import Ask, Writer
from slmkit.serve.bench import Bench, Job
from tests.serve.conftest import listening, post

HI = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 12, "temperature": 0}


class Failing:
    """The model, which breaks for answers to the tokens of `at` once it has written three of one. batches: how many asks it was given."""

    def __init__(self, writer: Writer, at: tuple[int, ...] = ()):
        self.writer, self.at, self.batches = writer, at, []

    def __call__(self, _, asks, each):
        self.batches.append(len(asks))
        told = [0] * len(asks)

        def watched(row, token):
            told[row] += 1
            if asks[row].ids == self.at and told[row] > 3:
                raise RuntimeError("the device is gone")
            return each(row, token)

        return self.writer.write(asks, watched)


def test_the_coldest_sampling_is_greedy(writer, speaker):
    cold = [{"temperature": 1e-40}, {"temperature": 1e-320}, {"top_p": 0, "temperature": 1.0}, {"top_p": 1e-40, "temperature": 1.0}]
    plain, *others = (writer.write(chat_asks(HI | said, speaker))[0] for said in ({}, *cold))
    assert len(plain.tokens) == 12
    assert [[t.id for t in w.tokens] for w in others] == [[t.id for t in plain.tokens]] * 4


def test_one_that_fails_takes_no_neighbour_along(writer, speaker):
    """Neither whole nor streamed: those are written again, to the same answers, and no token of a stream is sent twice."""
    hot = {"temperature": 1.5, "top_p": 0.9}
    bodies = [HI, HI | hot, HI | hot | {"n": 2}]
    asked = [chat_asks(body, speaker) for body in bodies]
    expected = [[[t.id for t in w.tokens] for w in writer.write(asks)] for asks in asked]
    guilty = [Ask(asked[0][0].ids, 12, frozenset(), stop=(1,))]  # no text: the writer breaks over it at its first token
    late = chat_asks(HI | {"messages": [{"role": "user", "content": "late"}]}, speaker)
    failing = Failing(writer, late[0].ids)

    async def all_at_once():
        loop = asyncio.get_running_loop()
        jobs = [Job("m", asks, loop, loop.create_future()) for asks in (*asked, guilty, late)]
        heard: list[list[tuple[int, int]]] = [[] for _ in jobs]
        for job, into in zip(jobs[1:3], heard[1:3], strict=True):
            job.heard = lambda index, token, into=into: into.append((index, token.id))
        bench = Bench(failing, 32)
        bench.left = jobs[1:]  # all of them in one batch
        bench.put(jobs[0])
        done = await asyncio.gather(*(job.done for job in jobs), return_exceptions=True)
        await asyncio.to_thread(bench.close)
        return done, heard

    done, heard = asyncio.run(all_at_once())
    assert [[[t.id for t in w.tokens] for w in one] for one in done[:3]] == expected
    assert isinstance(done[3], TypeError) and str(done[4]) == "the device is gone"
    assert failing.batches[0] == 6 and len(failing.batches) == 6
    for k in (1, 2):
        assert [[t for i, t in heard[k] if i == index] for index in range(len(asked[k]))] == expected[k]


def test_a_stream_that_fails_says_so(writer, speaker):
    """An error event that the SDK raises, after what was written; no [DONE]."""
    ids = chat_asks(HI, speaker)[0].ids
    bench = Bench(Failing(writer, ids), 8)
    with listening(speaker, bench) as url:
        client = openai.OpenAI(api_key="none", base_url=url, max_retries=0)
        pieces = []
        with pytest.raises(openai.APIError, match="RuntimeError: the device is gone"):
            for piece in client.chat.completions.create(**HI, stream=True):
                pieces.append(piece)
        assert len(pieces) > 1 and not any(p.choices[0].finish_reason for p in pieces)
        status, raw = post(f"{url}/chat/completions", HI | {"stream": True})
        assert status == 200 and "[DONE]" not in raw and '"type": "server_error"' in raw.split("data: ")[-1]


WRONG = [
    ("stop", ""), ("stop", ["a", ""]),
    ("stop", 5), ("stop", [1]), ("stop", {"a": 1}), ("response_format", "x"), ("response_format", {"type": 5}), ("model", ["a"]), ("model", None),
    ("messages", [{"role": "user", "content": "\ud800"}]), ("messages", [{"role": "user", "content": 5}]), ("user", "\udfff"), ("model", "\ud800"),
    ("stream_options", "x"), ("stream_options", {"include_usage": "yes"}), ("messages", [{"role": "user", "content": [5]}]),
    ("messages", [{"role": "user", "content": [{"type": "text", "text": 5}]}]), ("tools", 5),
    ("top_logprobs", 5), ("stream", "yes"), ("logprobs", 5),
]  # fmt: skip
WRONG_PLAIN = [
    ("best_of", 0),
    ("best_of", True), ("suffix", "x"), ("n", 0), ("n", 129), ("prompt", []), ("prompt", [[]]), ("prompt", ["a", 5]), ("max_tokens", -1),
    ("best_of", 2), ("prompt", [True]), ("echo", "x"), ("return_tokens_as_token_ids", 1), ("prompt", "\ud800"), ("stop", 5),
]  # fmt: skip


def test_what_is_wrong_is_refused_by_name_before_it_joins_a_batch(writer, speaker):
    failing = Failing(writer)
    with listening(speaker, Bench(failing, 8)) as url:
        cases = [("chat/completions", key, HI | {"stream": key == "stream_options", key: value}) for key, value in WRONG]
        cases += [("completions", key, {"model": "m", "prompt": "hi", key: value}) for key, value in WRONG_PLAIN]
        for path, key, body in cases:
            status, said = post(f"{url}/{path}", body)
            assert status == 400 and json.loads(said)["error"]["param"] == key, (body, status, said)
    assert not failing.batches


def test_a_stream_is_what_the_whole_answer_is(writer, speaker):
    """With nothing to write, with the prompt sent back and its logprobs; and both count alike."""
    plain = {"model": "m", "prompt": ["Zürich 5", "hi"], "max_tokens": 4, "temperature": 0}
    cases = [("chat/completions", HI | {"max_tokens": 0}), ("chat/completions", HI | {"max_completion_tokens": 0, "max_tokens": None})]
    cases += [("completions", plain | {"echo": True} | more) for more in ({}, {"max_tokens": 0}, {"logprobs": 1}, {"logprobs": 1, "max_tokens": 0})]
    with listening(speaker, Bench(lambda _, asks, each: writer.write(asks, each), 8)) as url:
        for path, body in cases:
            whole = json.loads(post(f"{url}/{path}", body)[1])
            raw = post(f"{url}/{path}", body | {"stream": True, "stream_options": {"include_usage": True}})[1]
            *events, last = [json.loads(line.removeprefix("data: ")) for line in raw.split("\n\n") if line and "[DONE]" not in line]
            assert last["usage"] == whole["usage"] and (body["max_tokens"] or whole["usage"]["completion_tokens"] == 0), body
            for choice in whole["choices"]:
                own = [c for e in events for c in e["choices"] if c["index"] == choice["index"]]
                text = "".join(c["text"] if "text" in c else c["delta"].get("content") or "" for c in own)
                assert text == (choice["text"] if "text" in choice else choice["message"]["content"]), body
                logs = [t for c in own if c["logprobs"] for t in c["logprobs"]["tokens"]]
                assert logs == (choice["logprobs"]["tokens"] if choice["logprobs"] else []), body


def test_usage_counts_what_was_written(writer, speaker):
    """A stop text is found in the tokens that were written: none comes on top, as the token that ends a turn does."""
    whole = writer.write(chat_asks(HI, speaker))[0]
    stopped = chat_asks(HI | {"stop": whole.text[3:5]}, speaker)
    found = writer.write(stopped)
    assert found[0].finish == "stop" and usage(stopped, found)["completion_tokens"] == len(found[0].tokens)
    at = whole.tokens[5].id
    ended = [dataclasses.replace(chat_asks(HI, speaker)[0], ends=frozenset([at]))]
    found = writer.write(ended)
    assert found[0].finish == "stop" and usage(ended, found)["completion_tokens"] == len(found[0].tokens) + 1 and found[0].end.id == at
