"""What is trained is the assistant's text and the end of its turn, nothing else; templates that break this are refused."""

import json

import pytest

from slmkit.data import read
from slmkit.data.rows import Row, of
from slmkit.errors import DataError
from slmkit.ml import chat
from slmkit.ml.chat import IGNORED
from tests.ml.conftest import CHATML, chats
from tests.support.drive import given

END = 2  # <|im_end|>


def rows(*messages_of_rows, form="messages"):
    return of("d.jsonl", form, [Row(i + 1, messages=tuple(m)) for i, m in enumerate(messages_of_rows)])


def encode(data, tokenizer, **more):
    return chat.encode(data, tokenizer, **{"loss_on": "assistant", "max_length": 256, "ends": {END}} | more)


def trained_text(tokenizer, example):
    return tokenizer.decode([label for label in example.labels if label != IGNORED])


@pytest.fixture
def templated(tokenizer):
    saved = tokenizer.chat_template
    yield tokenizer
    tokenizer.chat_template = saved


def test_only_assistant_tokens_and_the_end_of_turn_are_trained(tokenizer):
    (row,) = chats(1)
    (example,) = encode(rows(row["messages"]), tokenizer).examples
    assert trained_text(tokenizer, example) == "Graz 0<|im_end|>"
    assert tokenizer.decode(example.input_ids) == tokenizer.apply_chat_template(row["messages"], tokenize=False)


def test_every_turn_is_trained(tokenizer):
    row = chats(2, turns=3)[1]
    (example,) = encode(rows(row["messages"]), tokenizer).examples
    answers = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
    assert trained_text(tokenizer, example) == "".join(a + "<|im_end|>" for a in answers)


def test_the_trained_context_is_the_one_met_in_use(tokenizer):
    row = chats(1, turns=2)[0]["messages"]
    (example,) = encode(rows(row), tokenizer).examples
    prompt = tokenizer.apply_chat_template(row[:-1], tokenize=True, add_generation_prompt=True)["input_ids"]
    assert example.input_ids[: len(prompt)] == prompt
    assert example.labels[len(prompt)] == example.input_ids[len(prompt)]


def test_loss_on_all(tokenizer):
    (example,) = encode(rows(chats(1)[0]["messages"]), tokenizer, loss_on="all").examples
    assert example.labels == example.input_ids


def test_prompt_and_completion_become_a_chat_and_it_is_said(tokenizer):
    data = of("d", "completion", [Row(1, prompt="hi", completion="ho")])
    encoded = encode(data, tokenizer)
    assert trained_text(tokenizer, encoded.examples[0]) == "ho<|im_end|>"
    assert encoded.notes["prompt_as_messages"] is True


FORGETS = CHATML.replace("m['content'] }}", "'' if not loop.last and m['role'] == 'assistant' else m['content'] }}")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (FORGETS, "loses messages"),
        (CHATML.replace("<|im_start|>", "{{ messages | length }}<|im_start|>", 1), "as a continuation"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "no end-of-turn token"),
        ("{{ raise_exception('roles must alternate') }}", "refuses this row: roles must alternate"),
    ],
)
def test_a_template_that_cannot_be_masked_is_refused_with_the_line(templated, template, said):
    templated.chat_template = template
    with pytest.raises(DataError, match=said) as e:
        encode(rows(*(r["messages"] for r in chats(7, turns=2))), templated)
    assert [p.line for p in e.value.problems] == [1, 2, 3, 4, 5]
    assert "7 of 7 rows cannot be rendered" in e.value.render()


def test_a_doubled_bos_is_refused(templated):
    templated.bos_token = "<|endoftext|>"
    templated.chat_template = "{{ bos_token }}{{ bos_token }}" + CHATML
    try:
        with pytest.raises(DataError, match="two BOS"):
            encode(rows(chats(1)[0]["messages"]), templated)
    finally:
        templated.bos_token = None


def test_chats_need_a_template(templated):
    templated.chat_template = None
    with pytest.raises(DataError) as e:
        encode(rows(chats(1)[0]["messages"]), templated)
    assert "chat_template: plain" in e.value.render()


@pytest.mark.parametrize("name", ["plain", "chatml"])
def test_named_templates(templated, name):
    chat.set_template(templated, name)
    (example,) = encode(rows(chats(1)[0]["messages"]), templated).examples
    assert trained_text(templated, example) == "Graz 0<|im_end|>"
    assert "\n" in templated.decode(example.input_ids)


def test_chatml_needs_its_tokens(templated):
    tokens = templated.get_vocab
    templated.get_vocab = lambda: {}
    try:
        with pytest.raises(DataError, match="chat_template chatml needs"):
            chat.set_template(templated, "chatml")
    finally:
        templated.get_vocab = tokens


def test_a_row_of_an_array_is_named_by_the_line_where_it_begins(tokenizer, tmp_path):
    made = chats(3)
    made[2]["messages"][-1]["content"] = "Graz <|im_end|> 1"
    (tmp_path / "d.json").write_text(json.dumps(made, indent=1))
    (tmp_path / "e.jsonl").write_text("".join(json.dumps(r) + "\n" for r in chats(2)))
    files = (given(tmp_path / "e.jsonl", "dataset", "data"), given(tmp_path / "d.json", "dataset", "data"))
    line = [i for i, text in enumerate((tmp_path / "d.json").read_text().splitlines(), 1) if text == " {"][2]
    with pytest.raises(DataError) as e:
        encode(read.read(files), tokenizer)
    (problem,) = e.value.problems
    assert problem.file.endswith("d.json") and problem.line == line and problem.what.startswith("row 3: ")


def test_rows_too_long_are_left_out_whole_and_counted(tokenizer):
    long = chats(1)[0]["messages"]
    long = [long[0] | {"content": "x " * 300}, long[1]]
    short = [r["messages"] for r in chats(40)]
    encoded = encode(rows(long, *short), tokenizer)
    assert encoded.too_long.shown("d") == ["d:1"] and len(encoded.examples) == 40
    assert all(e.input_ids[-2] == END for e in encoded.examples)
    with pytest.raises(DataError, match="max_length") as e:
        encode(rows(long, long, long, *short), tokenizer)
    assert "3 of 43 rows (7%)" in e.value.render()


def test_plain_rows_end_in_eos(templated):
    templated.chat_template = None
    data = of("d", "completion", [Row(1, prompt="parcel", completion=" goes")])
    (example,) = encode(data, templated).examples
    assert trained_text(templated, example) == " goes<|im_end|>"
    data = of("d", "text", [Row(1, text="parcel goes")])
    (example,) = encode(data, templated).examples
    assert example.input_ids[-1] == END and example.labels == example.input_ids


def test_a_token_across_the_boundary_is_not_trained_on(templated):
    templated.chat_template = None
    prompt, completion = "par", "cel goes"
    assert templated(prompt + completion)["input_ids"][:1] != templated(prompt)["input_ids"][:1]
    encoded = encode(of("d", "completion", [Row(1, prompt=prompt, completion=completion)]), templated)
    alone = templated(prompt)["input_ids"]
    assert encoded.examples[0].input_ids[: len(alone)] == alone
    assert encoded.notes["boundary_merges"] == 1
