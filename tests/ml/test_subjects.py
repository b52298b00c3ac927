"""What is evaluated, in its own runtime: exports score as the model they were made of, an endpoint as lm-eval finds it; a killed eval goes on."""

import json
import shutil

import pytest
import torch
import yaml

from slmkit.errors import CannotRun, DataError, UsageError
from slmkit.evidence import aggregates, samples
from slmkit.steps import _tasks
from slmkit.steps import eval as step
from slmkit.steps._task_form import Task
from tests.ml.conftest import chats, write_jsonl
from tests.support import teacher as teachers
from tests.support.drive import Driver, given

ASKED = {"user": "{{messages[-2]['content']}}", "answer": "{{messages[-1]['content']}}", "max_tokens": 6}


def form(path, name="t", **said):
    said = {"name": name, "data": path.name, "metric": "exact_match"} | (ASKED if "user" not in said and "messages" not in said else {}) | said
    if said["metric"] in ("acc", ["acc", "f1_macro"]):
        said = {k: v for k, v in said.items() if k != "max_tokens"} | {"choices": "labels"}
    return given(path, "dataset", "tasks", name=name, columns=Task(**said))


def evaluate(root, models, tasks, execution=None, /, **config):
    driver = Driver(root)
    models = tuple(models)
    return driver, driver.run("eval", {"models": ["m"] * len(models), "tasks": ["t"]} | config, {"models": models, "tasks": tuple(tasks)}, execution)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("rows") / "t.jsonl", chats(20))


def read(folder, model, task="t"):
    return [json.loads(line) for line in (folder / "samples" / model / f"{task}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["gguf", "onnx"])
def test_an_export_scores_as_the_model_it_was_made_of(tmp_path, tiny, rows, kind):
    pytest.importorskip({"gguf": "llama_cpp", "onnx": "onnxruntime_genai"}[kind])
    exporter = Driver(tmp_path / "x")
    said = {"type": "f32"} if kind == "gguf" else {"type": "fp32", "format": "onnx"}
    exporter.run("export", {"model": "m"} | said, {"model": given(tiny, "model")}, {"threads": 1})
    both = [given(tiny, "model", name="before"), given(exporter.out, kind, name="after")]
    tasks = [form(rows), form(rows, "pick", metric=["acc", "f1_macro"]), form(rows, "stopped", stop=[" "])]
    speed = {"new_tokens": 4, "batch_sizes": [1, 2], "repeats": 3, "requests": 6}
    ran, result = evaluate(tmp_path / "e", both, tasks, {"batch_size": 1}, chat=True, speed=speed)
    assert result.values["scores"]["before"] == result.values["scores"]["after"]
    assert result.values["chat_template_sha256"]["before"] == result.values["chat_template_sha256"]["after"]
    measured = result.values["speed"]["after"]["measured"]
    assert [point["mean_output_tokens"] for point in measured["curve"].values()] == [4, 4], "none ends where the model would"
    assert set(measured["curve"]) == {"1", "2"}
    assert measured["runtime"]["in_turn"] and measured["runtime"]["name"].startswith(("llama.cpp", "onnxruntime"))
    assert step.unmet(step.Config(models=["m"], tasks=["t"], speed=speed), result.values) == []
    assert result.values["size_bytes"]["after"] > 10_000 and result.values["speed"]["after"]["tokens_per_second"] > 0
    for task in ("t", "pick", "stopped"):
        before, after = (read(ran.out, name, task) for name in ("before", "after"))
        assert [s["prompt"] for s in before] == [s["prompt"] for s in after]
        if task != "pick" and kind == "gguf":  # genai shows the half characters of a random model in another way
            assert [s["resps"] for s in before] == [s["resps"] for s in after]
    assert all(" " not in s["resps"][0][0] for s in read(ran.out, "after", "stopped"))


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    one = teachers.start(tmp_path_factory.mktemp("api"), mind="pupil")
    yield one
    one.stop()


def test_an_endpoint_scores_as_lm_eval_finds_it_and_is_asked_once(tmp_path, tiny, rows, api):
    apis = {"gpt": {"model": "t", "base_url": api.url, "prices": {"input": 1.0, "output": 2.0}}}
    models = [given(tiny, "model", name="tiny")]
    ran, result = evaluate(tmp_path / "a", models, [form(rows), form(rows, "f", metric="f1_macro")], chat=True, apis=apis)
    gpt = result.values["scores"]["gpt"]
    assert 0 < gpt["t"]["exact_match"] < 1 and result.determinism == "none"
    assert result.values["asked"]["gpt"]["requests"] == 20 and result.values["asked"]["gpt"]["usd"] > 0  # the second task asks the same
    assert result.values["hashes"]["gpt"]["t"]["questions"] == result.values["hashes"]["tiny"]["t"]["questions"]
    told = result.values["asked"]["gpt"]
    assert told["prices"] == {"input": 1.0, "output": 2.0} and sum(told["mean"].values()) * 20 == pytest.approx(told["tokens"])
    timed = result.values["speed"]["gpt"]["answers"]
    assert timed["answers"] == 20 and 0.004 < timed["seconds"]["p50"]["low"] <= timed["seconds"]["p95"]["value"] < 30  # it waits 5 ms
    before = sum(api.answered().values())
    again, repeated = evaluate(tmp_path / "a", models, [form(rows)], chat=True, apis=apis)
    assert sum(api.answered().values()) == before and repeated.values["asked"]["gpt"]["from_ledger"] == 20
    assert repeated.values["scores"]["gpt"]["t"] == gpt["t"] and repeated.values["speed"]["gpt"]["answers"] == timed

    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from slmkit.ml import task_specs

    written = task_specs._localise
    document = task_specs.load_yaml(ran.out / "tasks" / "t.yaml")
    written(document, ran.out / "tasks", str(tmp_path / "cache"))
    theirs = simple_evaluate(
        "local-chat-completions", model_args=f"model=t,base_url={api.url}/chat/completions,num_concurrent=2", tasks=[document],
        task_manager=TaskManager(include_defaults=False), apply_chat_template=True,
    )  # fmt: skip
    for metric, value in gpt["t"].items():
        assert theirs["results"]["t"][f"{metric},none"] == value


def test_an_endpoint_that_is_down_is_told_before_a_model_is_run(tmp_path, tiny, rows):
    apis = {"gpt": {"model": "t", "base_url": "http://127.0.0.1:9/v1"}}
    with pytest.raises(CannotRun, match="cannot connect") as e:
        evaluate(tmp_path, [given(tiny, "model", name="m")], [form(rows)], chat=True, apis=apis)
    assert "apis.gpt.base_url" in e.value.render() and not list((tmp_path / "state").glob("answers/*"))


def test_an_endpoint_is_asked_only_what_it_can_answer(rows):
    apis = {"gpt": {"model": "t"}}
    common = {"models": [], "apis": apis, "tasks": [form(rows).columns.model_dump(exclude_unset=True)]}
    assert step.Config(**common, chat=True).models == []
    with pytest.raises(ValueError, match="write `chat: true`"):
        step.Config(**common)
    with pytest.raises(ValueError, match="ranks choices"):
        step.Config(**common | {"tasks": [form(rows, metric="acc").columns.model_dump(exclude_unset=True)]}, chat=True)
    with pytest.raises(ValueError, match="`models` is empty"):
        step.Config(models=[], tasks=["t"])
    with pytest.raises(ValueError, match="needs `prices`"):
        step.Config(**common | {"apis": {"gpt": {"model": "t", "budget": {"usd": 1}}}}, chat=True)
    keyed = {"apis": {"g": {"model": "t", "api_key_env": "NO_SUCH_KEY"}}}
    assert "$NO_SUCH_KEY is not set" in step.blocked(step.Config(**common | keyed, chat=True), None)


def test_an_endpoint_refuses_likelihoods_of_a_task_file(tmp_path, rows, api):
    text = "task: c\ndataset_path: json\ndataset_kwargs: {data_files: {test: t.jsonl}}\ntest_split: test\noutput_type: multiple_choice\n"
    text += "doc_to_text: \"{{messages[-2]['content']}}\"\ndoc_to_choice: [a, b]\ndoc_to_target: 0\nmetric_list: [{metric: acc}]\n"
    shutil.copy(rows, tmp_path / "t.jsonl")
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError, match="how likely it finds a given text: `c` cannot be asked"):
        evaluate(tmp_path / "e", [], [given(tmp_path / "c.yaml", "task", "tasks")], chat=True, apis={"gpt": {"model": "t", "base_url": api.url}})


def test_killed_in_a_task_it_goes_on_at_the_sample_to_the_same_bytes(tmp_path, tiny, rows):
    shutil.copy(rows, tmp_path / "t.jsonl")
    text = "task: x\ndataset_path: json\ndataset_kwargs: {data_files: {test: t.jsonl}}\ntest_split: test\noutput_type: loglikelihood_rolling\n"
    text += "doc_to_text: ''\ndoc_to_target: \"{{messages[-2]['content']}}\"\nmetric_list: [{metric: word_perplexity}]\n"
    (tmp_path / "x.yaml").write_text(text)
    tasks = [form(rows), form(rows, "pick", metric="acc"), given(tmp_path / "x.yaml", "task", "tasks")]
    models = [given(tiny, "model", name="m")]
    whole, _ = evaluate(tmp_path / "whole", models, tasks, {"batch_size": 4})
    kept = (whole.root / "state" / "answers" / "m.jsonl").read_bytes().splitlines(keepends=True)
    assert len(kept) > 12
    for count in (0, 1, 3, len(kept) - 1):
        part = tmp_path / f"part{count}"
        (part / "state" / "answers").mkdir(parents=True)
        (part / "state" / "answers" / "m.jsonl").write_bytes(b"".join(kept[:count]) + kept[count][:-9])  # torn in the middle of a line
        ran, _ = evaluate(part, models, tasks, {"batch_size": 4})
        for file in sorted(p.relative_to(whole.out) for p in whole.out.rglob("*") if p.is_file()):
            assert (ran.out / file).read_bytes() == (whole.out / file).read_bytes(), file
        assert (part / "state" / "answers" / "m.jsonl").read_bytes().count(b"\n") == len(kept)
        calls = sum("scoring m" in report[2] for report in ran.reports)
        assert calls <= len(kept) - count + 2


def test_a_batch_that_fits_is_found_and_kept_to(tmp_path, tiny, rows):
    ran, _ = evaluate(tmp_path, [given(tiny, "model", name="m")], [form(rows)])
    first = json.loads((ran.root / "state" / "answers" / "m.jsonl").read_text().splitlines()[0])
    assert first[0][1] == 64


def test_a_batch_too_large_for_the_memory_is_halved_and_what_was_answered_stays(tmp_path, tiny, rows):
    from lm_eval.api.instance import Instance

    from slmkit.ml import models
    from slmkit.ml.subjects.hf import Transformers
    from slmkit.ml.subjects.kept import Kept, Resumed

    class Small(Transformers):
        """A device on which the second batch of more than three requests does not fit any more."""

        def _model_generate(self, context, *args, **kwargs):
            sizes.append(len(context))
            if len(context) > 3 and len(sizes) > 1:
                raise torch.cuda.OutOfMemoryError
            return super()._model_generate(context, *args, **kwargs)

    def answers(kind, state):
        lm = kind(pretrained=models.load(one, torch.device("cpu")), tokenizer=models.tokenizer(one), batch_size=8, report=lambda *_: None)
        texts = [row["messages"][-2]["content"] for row in map(json.loads, rows.read_text().splitlines())]
        settings = {"until": ["x"], "max_gen_toks": 3, "do_sample": False}
        asked = [Instance("generate_until", {}, (text, settings), i, metadata=("t", i, 1)) for i, text in enumerate(texts)]
        return Resumed(lm, Kept(state / "m.jsonl")).generate_until(asked)

    one, sizes = given(tiny, "model", name="m"), []
    assert answers(Small, tmp_path / "a") == answers(Transformers, tmp_path / "b")
    assert sizes == [8, 8, 4, 2, 2, 2, 2, 2, 2]


def test_odd_models_and_tasks_are_scored_or_refused(tmp_path, tiny, rows, api):
    """A random model writes bytes that are no UTF-8; the endpoint nothing, loops, broken JSON and lone surrogates."""
    one = write_jsonl(tmp_path / "one.jsonl", [{"q": "odd: nothing", "a": ""}])
    asked = [f"odd: {what}" for what in ("loop", "loop", "json", "surrogate", "fine")]
    twice = write_jsonl(tmp_path / "twice.jsonl", [{"id": 1, "q": q, "a": '{"n": 1}'} for q in asked])
    short = {"user": "q", "answer": "a", "max_tokens": 5}
    tasks = [form(one, "one", **short), form(twice, "twice", **short, metric=["json_f1", "json_valid", "json_exact"])]
    ran, result = evaluate(tmp_path / "e", [given(tiny, "model", name="m")], tasks, chat=True, apis={"gpt": {"model": "t", "base_url": api.url}})
    scores = result.values["scores"]
    assert scores["gpt"]["one"]["exact_match"] == 1 and "exact_match_stderr" not in scores["gpt"]["one"]  # one sample has no spread
    assert scores["gpt"]["twice"]["json_f1"] == scores["gpt"]["twice"]["json_valid"] == 0.2 and scores["m"]["twice"]["json_valid"] == 0
    assert [s["doc_id"] for s in read(ran.out, "gpt", "twice")] == [0, 1, 2, 3, 4]
    long = write_jsonl(tmp_path / "long.jsonl", [{"q": "word " * 600, "a": "x"}, {"q": "word", "a": "x"}])
    _, result = evaluate(tmp_path / "l", [given(tiny, "model", name="m")], [form(long, **short)])
    assert result.values["cut_questions"] == {"m": 1}
    with pytest.raises(UsageError, match="wants answers of up to 600 tokens, and the model's context is 512"):
        evaluate(tmp_path / "w", [given(tiny, "model", name="m")], [form(one, **short | {"max_tokens": 600})])
    with pytest.raises(UsageError, match="two tasks are called `t`"):
        evaluate(tmp_path / "n", [given(tiny, "model", name="m")], [form(one, **short), form(one, **short)])
    with pytest.raises(DataError, match="no column `b`"):
        evaluate(tmp_path / "b", [given("/nowhere", "model", name="m")], [form(one, **short | {"answer": "b"})])


def test_a_conversation_is_rendered_whole_with_its_tools(tmp_path, tiny):
    tools = [{"type": "function", "function": {"name": "pay", "parameters": {"type": "object"}}}]
    call = {"id": "1", "type": "function", "function": {"name": "pay", "arguments": "{}"}}
    talk = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}, {"role": "user", "content": "three"}]
    file = write_jsonl(tmp_path / "t.jsonl", [{"messages": [*talk, {"role": "assistant", "content": "", "tool_calls": [call]}], "tools": tools}])
    task = form(file, messages="messages", metric="tool_call", max_tokens=4)
    ran, _ = evaluate(tmp_path / "e", [given(tiny, "model", name="m")], [task], chat=True)
    (sample,) = read(ran.out, "m")
    assert sample["prompt"] == "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in talk) + "<|im_start|>assistant\n"
    with pytest.raises(ValueError, match="asks with conversations"):
        step.Config(models=["m"], tasks=[task.columns.model_dump(exclude_unset=True)])


@pytest.mark.parametrize("together", [False, True])
def test_a_judge_scores_what_the_models_wrote_and_is_paid_once(tmp_path, tiny, rows, api, together):
    """The judge of tests/support/minds.py likes what is shown first, and right answers better."""
    apis = {"gpt": {"model": "t", "base_url": api.url}}
    judge = {"teacher": {"model": "judge", "base_url": api.url}, "side_by_side": together, "prices": {"input": 1, "output": 1}}
    task = form(rows, metric=["exact_match", "judge"], rubric="It is right.")
    said = {"tasks": [task.columns.model_dump(exclude_unset=True)], "chat": True, "apis": apis, "judge": judge}
    ran, result = evaluate(tmp_path / "e", [given(tiny, "model", name="m")], [task], **said)
    scores = result.values["scores"]
    assert scores["gpt"]["t"]["judge"] > scores["m"]["t"]["judge"] >= 0 and scores["gpt"]["t"]["judge_stderr"] > 0
    told = result.values["judge"]
    assert told["questions"] == 20 and told["unjudged"] == 1 and told["usd"] > 0  # one verdict is never to be read
    assert ("consistency" in told) == together and (not together or 0 < told["consistency"] <= 1)
    kept = samples.of_folder(ran.out)
    for name in ("gpt", "m"):
        values = kept.samples(name, "t").values["judge"]
        assert len(values) == 19 and sum(values.values()) / 19 == pytest.approx(scores[name]["t"]["judge"])
    assert aggregates.statistic(kept.samples("gpt", "t"), "judge", scores["gpt"]["t"]["judge"])[0] == "mean"
    before = len(api.lines())
    _, again = evaluate(tmp_path / "e", [given(tiny, "model", name="m")], [task], **said)
    new = [line for line in api.lines()[before:] if line["kind"] == "ok"]
    assert again.values["scores"] == scores and not new
    with pytest.raises(ValueError, match="needs `judge:`"):
        step.Config(models=["m"], tasks=said["tasks"])


def test_a_group_is_asked_with_the_files_beside_it(tmp_path, tiny, rows):
    """Tasks that a group names are the files beside it, wherever the eval runs; their data is part of what the task is."""
    text = "task: NAME\ndataset_path: json\ndataset_kwargs: {data_files: {test: t.jsonl}}\ntest_split: test\noutput_type: generate_until\n"
    text += "doc_to_text: \"{{messages[-2]['content']}}\"\ndoc_to_target: a\ngeneration_kwargs: {until: ['x'], max_gen_toks: 2, do_sample: false}\n"
    text += "metric_list: [{metric: exact_match}]\n"
    (tmp_path / "in").mkdir()
    shutil.copy(rows, tmp_path / "in" / "t.jsonl")
    (tmp_path / "in" / "one.yaml").write_text(text.replace("NAME", "one"))
    inline = yaml.safe_load(text.replace("NAME", "two"))
    inline["dataset_kwargs"] = {"data_files": {"test": "in/t.jsonl"}}
    group = {"group": "both", "task": ["one", inline], "aggregate_metric_list": [{"metric": "exact_match", "weight_by_size": True}]}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(group))
    names = [p.name for p in _tasks.task_files(tmp_path / "both.yaml")]
    assert sorted(names) == ["both.yaml", "one.yaml", "t.jsonl"]
    assert [d["task"] for d in _tasks.documents(tmp_path / "both.yaml")] == ["one", "two"]
    _, result = evaluate(tmp_path / "e", [given(tiny, "model", name="m")], [given(tmp_path / "both.yaml", "task", "tasks")], limit=3)
    assert set(result.values["scores"]["m"]) == {"both", "one", "both::two"}


def test_the_gate_finds_how_f1_comes_of_the_answers(tmp_path, rows, api):
    ran, result = evaluate(tmp_path, [], [form(rows, metric="f1_macro")], chat=True, apis={"gpt": {"model": "t", "base_url": api.url}})
    kept = samples.of_folder(ran.out).samples("gpt", "t")
    assert aggregates.statistic(kept, "f1_macro", result.values["scores"]["gpt"]["t"]["f1_macro"])[0] == "macro F1 of right labels"
