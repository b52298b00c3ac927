"""`slmkit serve` as its clients see it: the openai SDK, lm-eval, curl; its answers are those of the model alone."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from slmkit import demo
from slmkit.errors import StepFailed
from tests.support.cli import ROOT, Cli

NOTES = [json.loads(line) for line in demo.path("test").read_text().splitlines()[:24]]


class Server:
    """A running server; `url` is the line that it printed."""

    def __init__(self, *words: str, **env: str):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | env
        command = [sys.executable, "-m", "slmkit", "serve", *words, "--port", "0"]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().strip()
        self.client = openai.OpenAI(api_key="none", base_url=self.url or "http://none", max_retries=0)

    def stop(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGTERM)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err

    def chat(self, text: str, **more):
        return self.client.chat.completions.create(**{"model": "student", "messages": [{"role": "user", "content": text}], "temperature": 0} | more)


@pytest.fixture(scope="module")
def server():
    one = Server("demo:teacher", "--name", "student", "--dtype", "fp32")
    yield one
    one.stop()


@pytest.fixture(scope="module")
def alone() -> list[str]:
    """What transformers' own generate writes for each note, one at a time."""
    folder = demo.path("teacher")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    out = []
    for row in NOTES:
        text = tokenizer.apply_chat_template([{"role": "user", "content": row["note"]}], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        found = model.generate(ids, max_new_tokens=80, do_sample=False)
        out.append(tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True))
    return out


def test_answers_in_a_batch_are_those_of_the_model_alone(server, alone):
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        found = list(pool.map(lambda row: server.chat(row["note"], max_tokens=80), NOTES))
    assert [one.choices[0].message.content for one in found] == alone
    assert {one.choices[0].finish_reason for one in found} == {"stop"}
    assert found[0].system_fingerprint and found[0].usage.completion_tokens > 20


def test_a_stream_is_the_same_text_with_its_end_and_usage(server, alone):
    more = {"stream": True, "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 1}
    pieces = list(server.chat(NOTES[0]["note"], **more))
    text = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert text == alone[0] and len(pieces) > 10
    assert [p.choices[0].finish_reason for p in pieces if p.choices][-1] == "stop" and pieces[-1].usage.total_tokens > 0
    whole = server.chat(NOTES[0]["note"], logprobs=True, top_logprobs=1)
    streamed = [t.logprob for p in pieces if p.choices and p.choices[0].logprobs for t in p.choices[0].logprobs.content]
    assert streamed == pytest.approx([t.logprob for t in whole.choices[0].logprobs.content], abs=1e-4)


def test_stops_lengths_seeds_and_several_answers(server, alone):
    assert server.chat(NOTES[0]["note"], stop=['","carrier']).choices[0].message.content == alone[0].partition('","carrier')[0]
    streamed = server.chat(NOTES[0]["note"], stop=['","carrier'], stream=True)
    assert "".join(p.choices[0].delta.content or "" for p in streamed) == alone[0].partition('","carrier')[0]
    cut = server.chat(NOTES[0]["note"], max_tokens=5).choices[0]
    assert cut.finish_reason == "length" and alone[0].startswith(cut.message.content)
    one, two = (server.chat("hello", temperature=1.5, seed=7, max_tokens=20, n=3) for _ in range(2))
    texts = [c.message.content for c in one.choices]
    assert texts == [c.message.content for c in two.choices] and len(set(texts)) > 1
    with concurrent.futures.ThreadPoolExecutor(4) as pool:  # neighbours in the batch change no draw
        crowd = list(pool.map(lambda _: server.chat("hello", temperature=1.5, seed=7, max_tokens=20, n=3), range(4)))
    assert all([c.message.content for c in found.choices] == texts for found in crowd)


def test_prompt_logprobs_are_the_models_own(server):
    """What lm-eval's likelihood needs: echo with logprobs."""
    folder = demo.path("teacher")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = [tokenizer(row["note"])["input_ids"] for row in NOTES[:3]]
    found = server.client.completions.create(model="student", prompt=ids, max_tokens=1, echo=True, logprobs=1, temperature=0)
    for choice, one in zip(found.choices, ids, strict=True):
        logs = torch.log_softmax(model(torch.tensor([one])).logits[0].detach(), -1)
        expected = [float(logs[i - 1, one[i]]) for i in range(1, len(one))]
        assert choice.logprobs.token_logprobs[0] is None
        assert choice.logprobs.token_logprobs[1 : len(one)] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("body", "status", "told"), [
    ({"frequency_penalty": 1}, 400, "frequency_penalty"), ({"response_format": {"type": "json_object"}}, 400, "not constrained"),
    ({"temperature": "hot"}, 400, "temperature"), ({"messages": []}, 400, "messages"), ({"model": "other"}, 404, "student"),
    ({"messages": [{"role": "user", "content": "x" * 9000}]}, 400, "context"), ({"max_tokens": 5000}, 400, "context"),
    ({"nonsense": 1}, 400, "nonsense"), ({"ignore_eos": "yes"}, 400, "ignore_eos"),
])  # fmt: skip
def test_what_cannot_be_done_is_refused(server, body, status, told):
    request = {"model": "student", "messages": [{"role": "user", "content": "hi"}]} | body
    with pytest.raises(urllib.error.HTTPError) as e:
        urllib.request.urlopen(urllib.request.Request(f"{server.url}/chat/completions", json.dumps(request).encode()))
    said = json.loads(e.value.read())["error"]["message"]
    assert e.value.code == status and told in said


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_place(server, stream):
    """Those that are being answered, and those that wait: twelve answers each, which would take the server far longer than it is given."""
    root = server.url.removesuffix("/v1")
    body = {"model": "student", "messages": [{"role": "user", "content": "hi"}], "n": 12, "max_tokens": 950, "ignore_eos": True, "stream": stream}
    data = json.dumps(body).encode()

    def busy() -> list[int]:
        found = json.loads(urllib.request.urlopen(f"{root}/health").read())
        return [found["running"], found["waiting"]]

    def until(wanted: list[int], seconds: float) -> list[int]:
        deadline = time.monotonic() + seconds
        while (found := busy()) != wanted and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    callers = []
    for wanted in ([12, 0], [12, 1]):
        callers.append(socket.create_connection(("127.0.0.1", int(root.rpartition(":")[2]))))
        callers[-1].sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        assert until(wanted, 10) == wanted
    for one in callers:
        one.close()
    assert until([0, 0], 2.5) == [0, 0]


def test_speed_over_http_counts_what_the_server_wrote(server):
    """Answers of one length where ends are ignored; else the model's own, which are those that a client of the chat interface gets."""
    from slmkit.ml.speed_http import OverHttp

    tokenizer = AutoTokenizer.from_pretrained(demo.path("teacher"))
    texts = [tokenizer.apply_chat_template([{"role": "user", "content": r["note"]}], tokenize=False, add_generation_prompt=True) for r in NOTES[:4]]
    prompts = [tuple(i) for i in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    forced = OverHttp(server.url, "student", own_ends=False, most=4)
    started = time.perf_counter()
    batch = forced(prompts, 90)
    assert batch.wrote == (90,) * 4 and batch.read == tuple(map(len, prompts))
    assert all(0 < f < last <= time.perf_counter() - started for f, last in zip(batch.first, batch.last, strict=True))
    own = OverHttp(server.url, "student", own_ends=True, most=4)
    told = [server.chat(row["note"], max_tokens=90).usage.completion_tokens for row in NOTES[:4]]
    assert own(prompts, 90).wrote == tuple(told) and max(told) < 90
    forced.close()
    own.close()
    with pytest.raises(StepFailed, match="the endpoint answers 404.*no model `nobody` here"):
        OverHttp(server.url, "nobody", own_ends=True, most=1)(prompts[:1], 5)


def test_a_streamed_token_does_not_wait_for_an_acknowledgement():
    """Connections to the listener have Nagle's algorithm off: asyncio sees to it only where the listener says that it is TCP."""
    from slmkit.serve.server import _listen

    async def accepted() -> int:
        heard: asyncio.Future = asyncio.get_running_loop().create_future()
        listener = _listen("127.0.0.1", 0)
        at = await asyncio.start_server(lambda _, writer: heard.set_result(writer.get_extra_info("socket")), sock=listener)
        _, writer = await asyncio.open_connection(*listener.getsockname())
        off = (await heard).getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        writer.close()
        at.close()
        return off

    assert asyncio.run(accepted())


def test_lm_eval_scores_over_it_as_it_scores_the_model(server, tmp_path):
    """local-chat-completions, on the demo's own task."""
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "local-chat-completions", "--tasks", "notes",
        "--include_path", str(demo.path("notes").parent),
        "--model_args", f"model=student,base_url={server.url}/chat/completions,num_concurrent=8,max_retries=1", "--apply_chat_template",
        "--limit", "16", "--output_path", str(tmp_path),
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, cwd=demo.path("notes").parent)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(next(tmp_path.rglob("results*.json")).read_text())["results"]["notes"]
    assert found["exact_match,none"] >= 0.8


def test_lm_eval_finds_texts_as_likely_as_the_model_does(server, alone):
    """local-completions beside --model hf, to the last token, where the model would end after the text (it leaves out what was written by itself)."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    folder = demo.path("teacher")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    asked = []
    for row, answer in zip(NOTES[:4], alone, strict=False):
        text = tokenizer.apply_chat_template([{"role": "user", "content": row["note"]}], tokenize=False, add_generation_prompt=True)
        begun, end = _parted(tokenizer, answer)
        asked += [(text, answer), (text + begun, end), (text + begun, "low"), (text + begun[:10], end)]
    assert all(len(tokenizer(choice, add_special_tokens=False)["input_ids"]) == 1 for _, choice in asked if len(choice) < 9)
    after = server.client.completions.create(model="student", prompt=[a + b for a, b in asked], max_tokens=1, temperature=0)
    assert [c.finish_reason for c in after.choices] == ["stop", "stop", "length", "stop"] * 4
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(asked)]
    # no logits_cache: lm-eval 0.4.13 mixes up requests whose tokens are the same and parted at another place
    alike = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, device="cpu", logits_cache=False)
    expected = alike.loglikelihood(requests, disable_tqdm=True)
    said = {"model": "student", "tokenizer": str(folder), "tokenizer_backend": "huggingface", "batch_size": 4}
    api = LocalCompletionsAPI(base_url=f"{server.url}/completions", **said)
    found = api.loglikelihood(requests, disable_tqdm=True)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected] == [True, True, False, False] * 4
    assert [one for one, _ in found] == pytest.approx([one for one, _ in expected], abs=1e-3)
    assert all(one < -1 for one, greedy in expected if not greedy)


def _parted(tokenizer, answer: str) -> tuple[str, str]:
    """All of it but its last token, and that."""
    end = tokenizer.decode(tokenizer(answer, add_special_tokens=False)["input_ids"][-1:])
    return answer.removesuffix(end), end


@pytest.mark.parametrize("echo", [False, True])
def test_the_end_of_a_plain_completion_has_its_logprobs(server, alone, echo):
    tokenizer = AutoTokenizer.from_pretrained(demo.path("teacher"))
    begun, end = _parted(tokenizer, alone[0])
    text = tokenizer.apply_chat_template([{"role": "user", "content": NOTES[0]["note"]}], tokenize=False, add_generation_prompt=True) + begun
    body = {"model": "student", "prompt": text, "max_tokens": 9, "temperature": 0, "logprobs": 2, "echo": echo}
    (whole,) = server.client.completions.create(**body).choices
    assert whole.finish_reason == "stop" and whole.text == (text if echo else "") + end and whole.logprobs.tokens[-2:] == [end, "<|end|>"]
    assert whole.logprobs.text_offset[-1] == len(whole.text) and -0.1 < whole.logprobs.token_logprobs[-1] <= 0
    assert max(whole.logprobs.top_logprobs[-1], key=whole.logprobs.top_logprobs[-1].get) == "<|end|>"
    pieces = [c for p in server.client.completions.create(**body, stream=True) for c in p.choices]
    streamed = [p.logprobs for p in pieces if p.logprobs]
    assert "".join(p.text for p in pieces) == whole.text and pieces[-1].finish_reason == "stop"
    for key in ("tokens", "text_offset"):
        assert [one for logs in streamed for one in getattr(logs, key)] == getattr(whole.logprobs, key)
    at_once = server.client.completions.create(**body | {"prompt": text + end, "max_tokens": 1}).choices[0]
    assert at_once.finish_reason == "stop" and at_once.logprobs.tokens[-1] == "<|end|>" and (echo or at_once.text == "")
    told = server.chat(NOTES[0]["note"], logprobs=True)  # in chats as at OpenAI: the tokens are the answer
    assert "".join(t.token for t in told.choices[0].logprobs.content) == told.choices[0].message.content == alone[0]
    assert told.usage.completion_tokens == len(told.choices[0].logprobs.content) + 1


def test_health_models_and_a_gentle_stop():
    one = Server("demo:student", "--api-key-env", "SERVE_KEY", SERVE_KEY="canary-55aa")
    root = one.url.removesuffix("/v1")
    assert json.loads(urllib.request.urlopen(f"{root}/health").read())["status"] == "ok"
    with pytest.raises(openai.AuthenticationError):
        one.client.models.list()
    client = openai.OpenAI(api_key="canary-55aa", base_url=one.url, max_retries=0)
    assert [m.id for m in client.models.list()] == ["demo:student"]
    answers = []

    def ask() -> None:
        more = {"max_tokens": 400, "temperature": 2.0, "seed": 1, "stop": None}
        answers.append(client.chat.completions.create(model="demo:student", messages=[{"role": "user", "content": "a"}], n=8, **more))

    thread = threading.Thread(target=ask)
    thread.start()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not json.loads(urllib.request.urlopen(f"{root}/health").read())["running"]:
        time.sleep(0.01)
    with socket.create_connection(("127.0.0.1", int(root.rpartition(":")[2]))) as gone:  # with half of what it wanted to say
        gone.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer canary-55aa\r\nContent-Length: 99\r\n\r\n{")
        time.sleep(0.2)
    time.sleep(0.2)
    code, err = one.stop()
    thread.join()
    assert code == 0 and len(answers) == 1 and "canary" not in err and "Traceback" not in err and "rror" not in err, err


def test_what_cannot_be_served_is_told(cli: Cli, server, tmp_path: Path):
    cases = [
        (("serve", "nowhere"), 2, "nowhere"), (("serve", "demo:train"), 2, "no model folder"),
        (("serve", "demo:student", "--adapter", "x"), 2, "NAME=REF"),
        (("serve", "demo:student", "--api-key-env", "NOT_SET"), 4, "NOT_SET"),
        (("serve", "demo:student", "--port", server.url.rpartition(":")[2].removesuffix("/v1")), 4, "is in use"),
        (("serve", "demo:student", "--adapter", "t=demo:teacher"), 2, "this is a model"),
    ]  # fmt: skip
    for words, code, told in cases:
        done = cli(*words)
        assert done.returncode == code and told in done.stderr and not done.stdout, (words, done.stderr)
