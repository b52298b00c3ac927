"""A continuation is exactly what the model would write after the prompt; what is cut, dropped or merged is counted."""

from array import array

import pytest
from families import ends_of, tokenizer_of
from test_templates import SINGLE, THINKING, TOOL, TOOLS, assistant, changed, encode, spans, system, user

from slmkit.data.rows import Row, of
from slmkit.errors import DataError
from slmkit.ml import chat, look, tokens
from tests.ml.conftest import chats

ASKED = (user("Where?"),)
PREFERENCE = Row(3, messages=ASKED, chosen=(assistant("Graz."),), rejected=(assistant("I do not know."),))


def pairs(name, *rows, form="preference", **more):
    return chat.encode_pairs(of("p.jsonl", form, list(rows)), tokenizer_of(name), **{"max_length": 9999, "ends": ends_of(name)} | more)


@pytest.mark.parametrize(("name", "end"), [("llama3_1", "<|eot_id|>"), ("qwen2_5", "<|im_end|>"), ("gemma3", "<end_of_turn>"), ("phi3_5", "<|end|>")])
def test_both_continuations_follow_the_prompt_in_use(name, end):
    tokenizer = tokenizer_of(name)
    (pair,) = pairs(name, PREFERENCE).pairs
    prompt = tokenizer.apply_chat_template(list(ASKED), add_generation_prompt=True, tokenize=False)
    assert pair.prompt_ids == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(pair.chosen_ids) == "Graz." + end
    assert tokenizer.decode(pair.rejected_ids) == "I do not know." + end
    (example,) = encode(name, [*ASKED, assistant("Graz.")]).examples
    (span,) = example.spans
    assert pair.prompt + pair.chosen == example.ids[: span[1]]


def test_labelled_continuations():
    row = Row(1, messages=ASKED, chosen=(assistant("Graz."),), label=False)
    (pair,) = pairs("qwen3", row, form="label").pairs
    assert tokenizer_of("qwen3").decode(pair.completion_ids) == "<think>\n\n</think>\n\nGraz.<|im_end|>"
    assert pair.label is False and pair.rejected is None and pair.rejected_ids == []


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (Row(9, messages=ASKED, chosen=(assistant("a"),), rejected=(assistant("a"),)), "chosen and rejected are the same"),
        (Row(9, messages=ASKED, chosen=(assistant("a"), user("b"), assistant("c")), rejected=(assistant("d"),)), "one assistant message, this is 3"),
        (Row(9, messages=ASKED, chosen=(assistant("a", reasoning_content="Hm."),), rejected=(assistant("d"),)), "drops the reasoning"),
        (Row(9, messages=({"role": "developer", "content": "Be brief."},), chosen=(assistant("a"),), rejected=(assistant("d"),)), "loses messages"),
        (Row(9, messages=ASKED, chosen=(assistant("a <|end|> b"),), rejected=(assistant("d"),)), "end-of-turn token itself"),
    ],
)
def test_pairs_that_cannot_be_written_are_refused(row, said):
    with pytest.raises(DataError, match=said) as e:
        pairs("phi3_5", row)
    assert e.value.problems[0].line == 9


def test_prompts_are_what_a_model_is_asked():
    conversations = (system("Be brief."), *SINGLE), (*SINGLE, user("So?"))
    given = [*(Row(i, messages=m) for i, m in enumerate(conversations, 1)), Row(3, messages=tuple(TOOLS), tools=(TOOL,))]
    found = chat.prompts(of("g", "messages", given), tokenizer_of("qwen2_5"), max_length=9999).prompts
    assert [p.answer for p in found] == ["Graz.", None, "21 degrees."]
    assert found[0].text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer_of("qwen2_5").decode(found[0].prompt_ids) == found[0].text
    assert found[0].messages == (system("Be brief."), user("Where?")) and found[1].messages[-1] == user("So?")
    assert found[2].tools == (TOOL,) and "get_weather" in found[2].text


def test_long_pairs_and_prompts_are_left_out_and_counted():
    short = [PREFERENCE] * 30
    long = Row(99, messages=ASKED, chosen=(assistant("Graz. " * 400),), rejected=(assistant("No."),))
    found = pairs("qwen2_5", *short, long, max_length=200)
    assert len(found.pairs) == 30 and found.too_long.shown("d") == ["d:99"]
    with pytest.raises(DataError, match="longer than max_length"):
        pairs("qwen2_5", PREFERENCE, long, max_length=200)
    assert pairs("qwen2_5", PREFERENCE, long, max_length=200, allow_truncation=True).too_long.count == 1


def test_tokens_of_pairs_are_those_of_both_sequences():
    (pair,) = (found := pairs("qwen2_5", PREFERENCE)).pairs
    facts = look.tokens(found, 9999, "d")
    assert facts["kept"] == 2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected) == found.tokens
    assert facts["trained"] == [len(pair.chosen) + len(pair.rejected)] and list(facts["lengths"]) == [len(pair.prompt) + len(pair.rejected)]
    long = Row(99, messages=ASKED, chosen=(assistant("Graz. " * 400),), rejected=(assistant("No."),))
    facts = look.tokens(pairs("qwen2_5", PREFERENCE, long, max_length=200, allow_truncation=True), 200, "d")
    assert max(facts["lengths"]) > 400 and facts["left_out"] == {"rows": 1, "shown": ["d:99"]}, "before any was left out"


# --- cuts, boundaries, batches --------------------------------------------------------------------------------------------------


def rows(*conversations):
    return of("d.jsonl", "messages", [Row(i + 1, messages=tuple(m)) for i, m in enumerate(conversations)])


def cut(name, data, **more):
    return chat.encode(data, tokenizer_of(name), **{"loss_on": "assistant", "ends": ends_of(name), "max_length": 60} | more)


LONG = [user("please " * 60 + "?"), assistant("Graz.")]
SHORT = [SINGLE] * 30


def test_a_cut_at_the_start_keeps_bos_and_the_answer():
    encoded = cut("llama3", rows(LONG, *SHORT), too_long="cut_start")
    example = encoded.examples[0]
    assert len(example.ids) == 60 and example.ids[0] == tokenizer_of("llama3").bos_token_id
    assert [i for i in example.labels if i != chat.IGNORED] == example.input_ids[example.spans[0][0] :]
    assert tokenizer_of("llama3").decode([i for i in example.labels if i != chat.IGNORED]) == "Graz.<|eot_id|>"
    assert encoded.cut | {"tokens": 0} == {"rows": 1, "answers_cut": 0, "tokens": 0, "side": "start"} and encoded.cut["tokens"] > 0
    assert len(encoded.examples) == 31 and not encoded.too_long.count and not encoded.answers_cut.count


def test_a_cut_at_the_end_that_takes_the_answer_is_counted_and_too_many_are_an_error():
    encoded = cut("llama3", rows(LONG, *SHORT), too_long="cut_end")
    assert len(encoded.examples) == 30  # nothing trained was left of the first
    assert encoded.cut["answers_cut"] == 1 and encoded.cut["side"] == "end"
    assert encoded.answers_cut.shown("d") == encoded.untrained.shown("d") == ["d:1"]
    with pytest.raises(DataError) as e:
        cut("llama3", rows(LONG, LONG, LONG, *SHORT), too_long="cut_end")
    assert "3 of 33 rows (9%) lose a part of an answer (cut at the end)" in e.value.render() and [p.line for p in e.value.problems] == [1, 2, 3]
    allowed = cut("llama3", rows(LONG, LONG, LONG, *SHORT), too_long="cut_end", allow_truncation=True)
    assert allowed.cut["answers_cut"] == 3
    with pytest.raises(DataError):
        cut("llama3", rows(LONG), too_long="cut_end", allow_truncation=True)  # nothing is left


def test_all_tokens_are_learned_once_even_where_a_row_is_split():
    encoded = cut("qwen3", rows(THINKING), loss_on="all", max_length=9999)
    first, second = encoded.examples
    assert first.labels == first.input_ids
    (start, _) = second.spans[0]
    assert second.input_ids[:start] == first.input_ids[:start] and second.input_ids[start] != first.input_ids[start]


def test_a_newline_that_would_merge_stays_with_the_prompt():
    """GPT-2's and ChatML's newline merges with an answer's own; in use the prompt is tokenised alone."""
    tokenizer = tokenizer_of("smollm2")
    encoded = encode("smollm2", [user("Where?"), assistant("\n\nGraz.")])
    (example,) = encoded.examples
    assert encoded.notes["boundary_merges"] == 1
    assert spans(tokenizer, example) == ["\n\nGraz.<|im_end|>"]


def test_a_continuation_gets_no_space_of_its_own():
    tokenizer = tokenizer_of("phi3_5")
    assert tokenizer.convert_ids_to_tokens(tokenizer("Graz", add_special_tokens=False)["input_ids"])[0].startswith("▁")
    assert not tokenizer.convert_ids_to_tokens(list(tokens.continuation(tokenizer, "Graz")))[0].startswith("▁")


@pytest.mark.parametrize("name", ["llama3", "gemma", "mistral_v03"])
def test_bos_is_written_once(name):
    tokenizer = tokenizer_of(name)
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    assert encode(name, SINGLE).examples[0].input_ids.count(tokenizer.bos_token_id) == 1
    twice = changed(name, "{{ bos_token }}" + tokenizer.chat_template)
    with pytest.raises(DataError, match="two BOS"):
        encode(name, SINGLE, tokenizer=twice)
    text = of("t", "text", [Row(1, text=tokenizer.bos_token + "x")])
    with pytest.raises(DataError, match="two BOS") as e:
        chat.encode(text, tokenizer, loss_on="all", max_length=99, ends=ends_of(name))
    assert "take the BOS token out of the text" in e.value.render()


def test_batches_change_nothing(monkeypatch):
    data = rows(*(r["messages"] for r in chats(23, turns=2)))
    whole = cut("qwen3", data, max_length=9999)
    monkeypatch.setattr(tokens, "ROWS", 4)
    parts = cut("qwen3", data, max_length=9999)
    assert parts == whole and [e.line for e in whole.examples] == [i for i in range(1, 24) for _ in range(2)]
    assert [len(part) for part in tokens.batches(data)] == [4] * 5 + [3]
    assert isinstance(whole.examples[0].ids, array)


def test_unanswered_messages_are_not_learned():
    (example,) = encode("qwen2_5", [*SINGLE, user("And then?")]).examples
    assert "And then?" not in tokenizer_of("qwen2_5").decode(example.input_ids)
    encoded = encode("qwen2_5", [*SINGLE, user("And then?")], loss_on="all")
    assert "And then?" in tokenizer_of("qwen2_5").decode(encoded.examples[0].input_ids) and encoded.notes["rows_with_unanswered_messages"] == 1
