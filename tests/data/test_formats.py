"""Each way of writing rows becomes the same Row: what it says is kept, and what would be lost is refused."""

import json

import pytest

from slmkit.data import read as reader
from slmkit.errors import DataError
from tests.support.drive import given, mapped

SYSTEM = {"role": "system", "content": "s"}
U, A = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}
RESULT = {"role": "tool", "content": "7"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}


def turns(*pairs):
    return [{"from": who, "value": said} for who, said in pairs]


def rows(tmp_path, *records, **columns):
    path = tmp_path / "d.json"
    path.write_text(json.dumps(list(records)))
    return reader.read(mapped(path, **columns) if columns else given(path, "dataset", "data"))


def one(tmp_path, record, **columns):
    data = rows(tmp_path, record, **columns)
    (row,) = data
    return data, row


CONVERSATIONS = {  # name: (record, format, messages)
    "openai": ({"messages": [SYSTEM, U, A]}, "messages", [SYSTEM, U, A]),
    "developer": ({"messages": [{"role": "developer", "content": "d"}, U, A]}, "messages", [{"role": "developer", "content": "d"}, U, A]),
    "content in parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "u"}, {"type": "text", "text": "v"}]}, A]},
        "messages", [{"role": "user", "content": "uv"}, A],
    ),
    "thinking": ({"messages": [U, A | {"thinking": "hm"}]}, "messages", [U, A | {"reasoning_content": "hm"}]),
    "reasoning": ({"messages": [U, A | {"reasoning": "hm"}]}, "messages", [U, A | {"reasoning_content": "hm"}]),
    "think tags": (
        {"messages": [U, {"role": "assistant", "content": "<think>hm</think>a"}]}, "messages",
        [U, {"role": "assistant", "content": "<think>hm</think>a"}],
    ),
    "null keys": ({"messages": [U | {"name": None, "tool_calls": None}, A | {"refusal": None, "annotations": []}]}, "messages", [U, A]),
    "calls with text arguments": (
        {"messages": [U, {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "7"}, A]},
        "messages",
        [U, {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]},
         RESULT | {"tool_call_id": "c1"}, A],
    ),
    "the older function_call": (
        {"messages": [U, {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
                      {"role": "function", "name": "f", "content": "7"}, A]},
        "messages", [U, CALL, RESULT | {"name": "f"}, A],
    ),
    "a call without a result": ({"messages": [U, CALL]}, "messages", [U, CALL]),
    "calls as text": (
        {"messages": [U, {"role": "assistant", "content": '<tool_call>{"name": "f"}</tool_call>'}, RESULT, A]}, "messages",
        [U, {"role": "assistant", "content": '<tool_call>{"name": "f"}</tool_call>'}, RESULT, A],
    ),
    "messages as JSON text": ({"messages": json.dumps([U, A])}, "messages", [U, A]),
    "alpaca": ({"instruction": "u", "input": "", "output": "a"}, "alpaca", [U, A]),
    "alpaca with all": (
        {"instruction": "u", "input": "i", "output": "a", "system": "s", "history": [["p", "q"]]}, "alpaca",
        [SYSTEM, {"role": "user", "content": "p"}, {"role": "assistant", "content": "q"}, {"role": "user", "content": "u\ni"}, A],
    ),
    "sharegpt": ({"conversations": turns(("human", "u"), ("gpt", "a"))}, "sharegpt", [U, A]),
    "sharegpt with a system column": ({"system": "s", "conversations": turns(("user", "u"), ("assistant", "a"))}, "sharegpt", [SYSTEM, U, A]),
    "sharegpt with calls": (
        {"conversations": turns(("human", "u"), ("function_call", '{"name": "f", "arguments": {"x": 1}}'), ("observation", "7"), ("gpt", "a"))},
        "sharegpt", [U, CALL, RESULT, A],
    ),
    "a call joins the words before it": (
        {"conversations": turns(("human", "u"), ("gpt", "wait"), ("function_call", '[{"name": "f", "arguments": "{\\"x\\": 1}"}]'),
                                ("function_response", "7"), ("gpt", "a"))},
        "sharegpt", [U, CALL | {"content": "wait"}, RESULT, A],
    ),
    "openai's keys under conversations": ({"conversations": [U, A]}, "messages", [U, A]),
    "prompt and completion in messages": ({"prompt": [SYSTEM, U], "completion": [A]}, "completion", [SYSTEM, U, A]),
    "a system field": ({"system": "s", "messages": [U, A]}, "messages", [SYSTEM, U, A]),
    "a system field beside the same message": ({"system": "s", "messages": [SYSTEM, U, A]}, "messages", [SYSTEM, U, A]),
    "an empty system field": ({"system": "", "messages": [SYSTEM, U, A]}, "messages", [SYSTEM, U, A]),
    "a system field beside texts": ({"system": "s", "prompt": "u", "completion": "a"}, "completion", [SYSTEM, U, A]),
    "a system field beside lists": ({"system": "s", "prompt": [U], "completion": [A]}, "completion", [SYSTEM, U, A]),
    "glaive v2": (
        {"system": "SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n"
                   + json.dumps(TOOL["function"], indent=4) + "\n",
         "chat": "USER: u\n\n\nASSISTANT: <functioncall> {\"name\": \"f\", \"arguments\": '{\"x\": 1}'} <|endoftext|>\n\n\n"
                 "FUNCTION RESPONSE: 7\n\n\nASSISTANT: a <|endoftext|>\n\n\n"},
        "glaive", [{"role": "system", "content": "You are a helpful assistant."}, U, CALL, RESULT, A],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation(tmp_path, name):
    record, format_, messages = CONVERSATIONS[name]
    data, row = one(tmp_path, record)
    assert (data.format, data.form) == (format_, "messages") and list(row.messages) == messages
    assert row.line == 1 and row.file.endswith("d.json")


@pytest.mark.parametrize("who", ["gpt", "assistant", "chatgpt", "bing", "bard", "model", "GPT"])
def test_every_name_of_the_assistant(tmp_path, who):
    assert list(one(tmp_path, {"conversations": turns(("human", "u"), (who, "a"))})[1].messages) == [U, A]


@pytest.mark.parametrize(
    "tools", [[TOOL], json.dumps([TOOL]), [TOOL["function"]], json.dumps([TOOL["function"]]), [json.dumps(TOOL)], json.dumps(TOOL)]
)
def test_tools_in_every_way(tmp_path, tools):
    assert one(tmp_path, {"messages": [U, A], "tools": tools})[1].tools == (TOOL,)


@pytest.mark.parametrize("nothing", [None, [], "", "[]"])
def test_no_tools(tmp_path, nothing):
    assert one(tmp_path, {"messages": [U, A], "tools": nothing})[1].tools == ()


B = {"role": "assistant", "content": "b"}
PAIRS = {
    "strings": ({"prompt": "u", "chosen": "a", "rejected": "b"}, "preference", [U]),
    "messages": ({"prompt": [SYSTEM, U], "chosen": [A], "rejected": [B]}, "preference", [SYSTEM, U]),
    "one message each": ({"messages": [U], "chosen": A, "rejected": B}, "preference", [U]),
    "the prompt repeated": ({"prompt": "u", "chosen": [U, A], "rejected": [U, B]}, "preference", [U]),
    "implicit": ({"chosen": [SYSTEM, U, A], "rejected": [SYSTEM, U, B]}, "preference", [SYSTEM, U]),
    "hh-rlhf": ({"chosen": "\n\nHuman: u\n\nAssistant: a", "rejected": "\n\nHuman: u\n\nAssistant: b"}, "preference", [U]),
    "a system column": ({"system": "s", "prompt": "u", "chosen": "a", "rejected": "b"}, "preference", [SYSTEM, U]),
    "a system field beside messages": ({"system": "s", "prompt": [U], "chosen": [A], "rejected": [B]}, "preference", [SYSTEM, U]),
    "a system field and the prompt repeated": ({"system": "s", "prompt": [U], "chosen": [U, A], "rejected": [U, B]}, "preference", [SYSTEM, U]),
    "a system field, and no list of prompts": ({"system": "s", "messages": [U], "chosen": A, "rejected": B}, "preference", [SYSTEM, U]),
    "a system field before whole conversations": ({"system": "s", "chosen": [U, A], "rejected": [U, B]}, "preference", [SYSTEM, U]),
    "a system field that is there already": ({"system": "s", "chosen": [SYSTEM, U, A], "rejected": [SYSTEM, U, B]}, "preference", [SYSTEM, U]),
    "sharegpt": (
        {"conversations": turns(("human", "u")), "chosen": turns(("gpt", "a"))[0], "rejected": turns(("gpt", "b"))[0]}, "sharegpt", [U],
    ),
    "alpaca": ({"instruction": "u", "input": "", "chosen": "a", "rejected": "b"}, "alpaca", [U]),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_a_preference_pair(tmp_path, name):
    record, format_, prompt = PAIRS[name]
    data, row = one(tmp_path, record)
    assert (data.format, data.form) == (format_, "preference")
    assert (list(row.messages), row.chosen, row.rejected) == (prompt, (A,), (B,))


LABELS = {
    "strings": ({"prompt": "u", "completion": "a", "label": True}, "label", [U]),
    "lists": ({"prompt": [U], "completion": [A], "label": True}, "label", [U]),
    "a one": ({"prompt": "u", "completion": "a", "label": 1}, "label", [U]),
    "a system field": ({"system": "s", "prompt": "u", "completion": "a", "label": True}, "label", [SYSTEM, U]),
    "a system field beside lists": ({"system": "s", "prompt": [U], "completion": [A], "label": True}, "label", [SYSTEM, U]),
    "a system field beside messages": ({"system": "s", "messages": [U, A], "label": True}, "label", [SYSTEM, U]),
    "messages": ({"messages": [SYSTEM, U, A], "label": True}, "label", [SYSTEM, U]),
    "sharegpt": ({"conversations": turns(("human", "u"), ("gpt", "a")), "kto_tag": True}, "sharegpt", [U]),
    "alpaca": ({"instruction": "u", "output": "a", "kto_tag": True}, "alpaca", [U]),
}


@pytest.mark.parametrize("name", LABELS)
def test_a_labelled_answer(tmp_path, name):
    record, format_, prompt = LABELS[name]
    data, row = one(tmp_path, record)
    assert (data.format, data.form) == (format_, "label")
    assert (list(row.messages), row.chosen, row.label) == (prompt, (A,), True)


def test_strings_stay_strings_even_when_they_look_like_json(tmp_path):
    data, row = one(tmp_path, {"prompt": '[{"role": "user"}]', "completion": '{"role": "x"}'})
    assert data.form == "completion" and row.completion == '{"role": "x"}'
    assert one(tmp_path, {"instruction": "[1]", "output": '[{"role": "a", "content": "b"}]'})[1].messages[1]["content"].startswith("[{")
    assert one(tmp_path, {"prompt": "{", "chosen": "[", "rejected": "]"})[1].messages == ({"role": "user", "content": "{"},)


FAULTS = {
    "an image": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, A]}, "content[0] is image_url"),
    "arguments cut": (
        {"messages": [U, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
        "tool_calls[0].arguments` holds text that is no JSON",
    ),
    "arguments a list": ({"messages": [U, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}]}, "an object or"),
    "a call without a name": ({"messages": [U, {"role": "assistant", "tool_calls": [{"function": {}}]}]}, "has no function name"),
    "a result without a call": ({"messages": [U, RESULT, A]}, "messages[1] is a tool's answer, and no tool call comes before it"),
    "a result first": ({"messages": [RESULT, A]}, "messages[0] is a tool's answer"),
    "a result of another call": (
        {"messages": [U, CALL | {"tool_calls": [{"id": "c", **CALL["tool_calls"][0]}]}, RESULT | {"tool_call_id": "d"}, A]},
        "tool_call_id is `d`; the calls before it are c",
    ),
    "two ways of thinking": ({"messages": [U, A | {"reasoning": "x", "thinking": "y"}]}, "`reasoning` and `thinking`, which differ"),
    "null content": ({"messages": [U, {"role": "assistant", "content": None}]}, "content should be a string, this is null"),
    "empty content": ({"messages": [U, {"role": "assistant", "content": " "}]}, "content is empty"),
    "a turn not to be learned": ({"messages": [U, A | {"weight": 0}]}, "messages[1].weight is 0"),
    "tools no JSON": ({"messages": [U, A], "tools": "[f"}, "`tools` holds text that is no JSON"),
    "tools without names": ({"messages": [U, A], "tools": [{"type": "function"}]}, "tools[0] has no function name"),
    "sharegpt's role": ({"conversations": turns(("human", "u"), ("alien", "a"))}, "conversations[1].from is `alien`"),
    "sharegpt's value": ({"conversations": [{"from": "human"}]}, "conversations[0] has no `value`"),
    "a call that is no JSON": ({"conversations": turns(("human", "u"), ("function_call", "f(1)"))}, "conversations[1].value is a function call, and"),
    "two systems": ({"system": "s", "conversations": turns(("system", "t"), ("human", "u"), ("gpt", "a"))}, "two system messages"),
    "two systems in messages": ({"system": "s", "messages": [SYSTEM | {"content": "t"}, U, A]}, "`system` and messages[0] are two system messages"),
    "two systems, one a developer's": ({"system": "s", "messages": [{"role": "developer", "content": "t"}, U, A]}, "which differ; keep one"),
    "two systems in a prompt": ({"system": "s", "prompt": [SYSTEM | {"content": "t"}, U], "completion": "a"}, "`system` and prompt[0] are two"),
    "a system that is no text": ({"system": ["s"], "prompt": "u", "completion": "a"}, "`system` should be a string, this is a list"),
    "alpaca's answer empty": ({"instruction": "u", "output": ""}, "`output` is empty"),
    "alpaca's history": ({"instruction": "u", "output": "a", "history": [["p"]]}, "history[0] should be a pair"),
    "pair: the same": ({"prompt": "u", "chosen": "a", "rejected": "a"}, "are the same"),
    "pair: no prompt": ({"chosen": "a", "rejected": "b"}, "what is the prompt?"),
    "pair: nothing shared": ({"chosen": [U, A], "rejected": [A | {"content": "z"}]}, "do not begin alike"),
    "pair: parts at a user": ({"chosen": [U, A, U], "rejected": [U, A, U | {"content": "v"}]}, "should part from the other with an assistant"),
    "pair: ends early": ({"chosen": [U, A], "rejected": [U]}, "it goes on nowhere"),
    "pair: prompt answered": ({"prompt": [U, A], "chosen": "a", "rejected": "b"}, "the prompt ends with an assistant message"),
    "label: a number": ({"prompt": "u", "completion": "a", "kto_tag": 2}, "`label` should be true or false, or 1 and 0, this is a number"),
    "label: unanswered": ({"messages": [U], "label": False}, "there is no answer to judge"),
    "wrapped": ({"data": [{"text": "a"}]}, "do the rows lie under `data`?"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_said(tmp_path, name):
    record, said = FAULTS[name]
    with pytest.raises(DataError) as e:
        rows(tmp_path, record)
    (problem,) = e.value.problems
    assert said in problem.what and problem.line == 1 and problem.file.endswith("d.json")


def test_a_row_of_another_format_is_broken(tmp_path):
    records = [{"instruction": "u", "output": "a"}, {"conversations": turns(("human", "u"), ("gpt", "a"))}, {"instruction": "v", "output": "b"}]
    with pytest.raises(DataError) as e:
        rows(tmp_path, *records)
    assert [p.what for p in e.value.problems] == ["row 2: no `output`, which rows of format alpaca have (found: conversations)"]
    assert "1 broken row, 2 good" in e.value.render()


def test_a_system_field_that_only_a_later_row_has_is_read(tmp_path):
    data = rows(tmp_path, {"prompt": "u", "completion": "a"}, {"system": "s", "prompt": "u", "completion": "a"})
    assert data.form == "messages" and [list(r.messages) for r in data] == [[U, A], [SYSTEM, U, A]]
    text = {"prompt": "u", "completion": "a"}
    mixed = [text | {"label": 0, "completion": ""}, text | {"label": 5}, text | {"label": 1, "system": "s"}]
    (tmp_path / "d.json").write_text(json.dumps(mixed))
    assert reader.format_of(tmp_path / "d.json", None, None) == "completion"
    data = reader.read(given(tmp_path / "d.json", "dataset", "data"), on_bad_row="skip")
    assert [list(r.messages) for r in data] == [[U, A], [SYSTEM, U, A]] and sum(data.dropped.values()) == 1


def test_the_recipes_system_is_no_second_beside_the_rows_own(tmp_path):
    with pytest.raises(DataError, match="a system message of its own, and the recipe's"):
        rows(tmp_path, {"system": "s", "messages": [U, A]}, system="t")
    assert one(tmp_path, {"system": "s", "q": "u", "y": "a"}, user="q", assistant="y")[1].messages == (U, A), "columns are read as they are named"


PAIR, JUDGED = {"chosen": "a", "rejected": "b"}, "`label` says whether the answer is good, and the first row has none"
OTHERS = {  # name: (first row, a later row of another form, what is said)
    "a label of false": ({"prompt": "u", "completion": "a"}, {"prompt": "u", "completion": "a", "label": False}, JUDGED),
    "a label of 0": ({"prompt": "u", "completion": "a"}, {"prompt": "u", "completion": "a", "label": 0}, JUDGED),
    "a label after a null": ({"prompt": "u", "completion": "a", "label": None}, {"prompt": "u", "completion": "a", "label": False}, JUDGED),
    "false after a class": ({"prompt": "u", "completion": "a", "label": "x"}, {"prompt": "u", "completion": "a", "label": False}, JUDGED),
    "a label beside messages": ({"messages": [U, A]}, {"messages": [U, A], "label": 0}, JUDGED),
    "a tag": ({"instruction": "u", "output": "a"}, {"instruction": "u", "output": "a", "kto_tag": False}, "`kto_tag` says whether"),
    "a pair among messages": ({"messages": [U, A]}, {"messages": [U, B]} | PAIR, "`chosen` and `rejected` are a pair, and the first row is none"),
    "a pair among completions": ({"prompt": "u", "completion": "a"}, {"prompt": "u", "completion": "b"} | PAIR, "are a pair"),
    "a pair among labels": ({"prompt": "u", "completion": "a", "label": 1}, {"prompt": "u", "completion": "b", "label": 1} | PAIR, "are a pair"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_later_row_of_another_form_is_broken(tmp_path, name):
    first, other, said = OTHERS[name]
    with pytest.raises(DataError) as e:
        rows(tmp_path, first, first, other)
    (problem,) = e.value.problems
    assert said in problem.what and problem.what.startswith("row 3: ") and "split the file, or write `format: " in problem.what
    named = problem.what.rpartition("format: ")[2].partition("`")[0]
    assert len(rows(tmp_path, first, first, other, format=named)) == 3, "the mend is one"


def test_labels_of_0_and_1_are_verdicts_where_all_are(tmp_path):
    text = {"prompt": "u", "completion": "a"}
    found = rows(tmp_path, *(text | {"label": said} for said in (0, 1, True, 1.0)))
    assert found.form == "label" and [r.label for r in found] == [False, True, True, True]
    (tmp_path / "d.csv").write_text("prompt,completion,label\nu,a,0\nu,b,1\n")
    assert [r.label for r in reader.read(given(tmp_path / "d.csv", "dataset", "data"))] == [False, True]
    for classes in ([0, 1, 7, 0], [3, 0, 1], ["x", "y"]):
        found = rows(tmp_path, *(text | {"label": said} for said in classes))
        assert (found.form, len(found)) == ("completion", len(classes))
        assert reader.format_of(tmp_path / "d.json", None, None) == "completion"
    (tmp_path / "d.csv").write_text("prompt,completion,label\nu,a,0\nu,b,12\n")
    assert reader.read(given(tmp_path / "d.csv", "dataset", "data")).form == "completion"
    assert rows(tmp_path, text | {"label": 0}, format="completion").form == "completion"
    assert rows(tmp_path, text | {"label": 0}, prompt="prompt", completion="completion").form == "completion"
    with pytest.raises(DataError, match="`label` should be true or false, or 1 and 0, this is a string"):
        rows(tmp_path, text | {"label": 0}, text | {"label": "good"})


def test_a_format_can_be_named(tmp_path):
    both = {"messages": [U, A], "instruction": "i", "output": "o"}
    assert one(tmp_path, both)[0].format == "messages"
    assert one(tmp_path, both, format="alpaca")[1].messages[0]["content"] == "i"
    with pytest.raises(DataError, match="no `conversations`, which rows of format sharegpt have"):
        rows(tmp_path, {"text": "a"}, format="sharegpt")
