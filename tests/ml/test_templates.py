"""What stock templates have a model write, turn by turn, and what they cannot express. Every expectation is written out by hand.

TRL's own training templates, which mark the assistant's text with {% generation %}, are the oracle where there is one.
"""

import json
from importlib.resources import files

import pytest
from families import FAMILIES, ends_of, text_of, tokenizer_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slmkit.data.rows import Row, of
from slmkit.errors import DataError
from slmkit.ml import chat
from slmkit.ml.render import Renderer

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather now.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Where."}}, "required": ["city"]},
    },
}
CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "get_weather", "arguments": {"city": "Graz"}}}


def user(text):
    return {"role": "user", "content": text}


def system(text):
    return {"role": "system", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def result(text):
    return {"role": "tool", "name": "get_weather", "tool_call_id": "abcdefghi", "content": text}


SINGLE = [user("Where?"), assistant("Graz.")]
MULTI = [*SINGLE, user("When?"), assistant("Monday."), user("Why?"), assistant("Because.")]
TOOLS = [user("Weather?"), assistant("", tool_calls=[CALL]), result('{"degrees": 21}'), assistant("21 degrees.")]
THINKING = [user("Where?"), assistant("Graz.", reasoning_content="It says so."), user("When?"), assistant("Monday.", reasoning_content="Today.")]
TOOLS_THINKING = [TOOLS[0], TOOLS[1] | {"reasoning_content": "Ask."}, TOOLS[2], TOOLS[3] | {"reasoning_content": "Now I know."}]
ARGUMENTS = json.dumps({"city": "Graz"})


def encode(name, messages, *, tools=(), tokenizer=None, **more):
    given = {"loss_on": "assistant", "max_length": 100_000, "ends": ends_of(name)} | more
    return chat.encode(of("d.jsonl", "messages", [Row(7, messages=tuple(messages), tools=tuple(tools))]), tokenizer or tokenizer_of(name), **given)


def spans(tokenizer, example):
    """The text of each trained span, decoded where it stands."""
    whole = [tokenizer.decode(example.input_ids[:end])[len(tokenizer.decode(example.input_ids[:start])) :] for start, end in example.spans]
    labels = [label for label in example.labels if label != chat.IGNORED]
    assert labels == [i for start, end in example.spans for i in example.input_ids[start:end]]
    return whole


def written(name, messages, **more):
    """What is trained, for every example."""
    tokenizer = tokenizer_of(name)
    return [spans(tokenizer, e) for e in encode(name, messages, **more).examples]


def answers(name, *texts):
    """What a family's model writes for plain answers."""
    start = {"qwen3": "<think>\n\n</think>\n\n", "gptoss": "<|channel|>final<|message|>", "mistral_v03": " "}.get(name, "")
    end = dict.fromkeys(("gemma", "gemma2", "gemma3"), "<end_of_turn>") | dict.fromkeys(("phi3", "phi3_5", "phi4_mini"), "<|end|>")
    return [start + text + end.get(name, FAMILIES[name].eos) for text in texts]


REWRITING = ("qwen3", "gptoss")
"""An earlier turn is rendered in another way than it was written: one example a turn."""


def apart(name, turns, rewriting=REWRITING):
    return [[turn] for turn in turns] if name in rewriting else [turns]


@pytest.mark.parametrize("name", FAMILIES)
def test_one_turn_is_the_answer_and_its_end(name):
    assert written(name, SINGLE) == [answers(name, "Graz.")]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_turn_is_trained_once(name):
    encoded = encode(name, MULTI)
    assert [spans(tokenizer_of(name), e) for e in encoded.examples] == apart(name, answers(name, "Graz.", "Monday.", "Because."))
    assert encoded.notes.get("rows_split", 0) == (name in REWRITING)
    assert all(e.line == 7 for e in encoded.examples)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("messages", [SINGLE, MULTI], ids=["single", "multi"])
def test_every_turn_follows_the_tokens_it_will_follow_in_use(name, messages):
    tokenizer, renderer = tokenizer_of(name), Renderer(tokenizer_of(name))
    found = [(e.input_ids[:start], e.input_ids[start:end]) for e in encode(name, messages).examples for start, end in e.spans]
    asked = [renderer.prompt(messages[:k]) for k, m in enumerate(messages) if m["role"] == "assistant"]
    assert [before for before, _ in found] == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in asked]
    assert all(set(ids) & ends_of(name) == {ids[-1]} for _, ids in found)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in ("gemma", "gemma2")])
def test_a_system_prompt_stands_before_the_answer_and_is_not_trained(name):
    (example,) = encode(name, [system("Answer briefly."), *SINGLE]).examples
    assert spans(tokenizer_of(name), example) == answers(name, "Graz.")
    assert "Answer briefly." in tokenizer_of(name).decode(example.input_ids[: example.spans[0][0]])


def test_a_system_prompt_that_moves_stands_where_it_will_in_use():
    encoded = encode("mistral_v03", [system("Answer briefly."), *MULTI])
    texts = [tokenizer_of("mistral_v03").decode(e.input_ids) for e in encoded.examples]
    assert [text.count("Answer briefly.") for text in texts] == [1, 1, 1]
    assert texts[-1].endswith("[INST] Answer briefly.\n\nWhy?[/INST] Because.</s>")
    assert encoded.notes["turns_recomposed"] == 3


def calling(name):
    """What a family's model writes to call the tool; None where its template has no tools."""
    hermes = '<tool_call>\n{"name": "get_weather", "arguments": ' + ARGUMENTS + "}\n</tool_call><|im_end|>"
    llama = '{"name": "get_weather", "parameters": ' + ARGUMENTS + "}<|eot_id|>"
    function = '{"name": "get_weather", "arguments": ' + ARGUMENTS
    return {
        "llama3_1": llama,
        "llama3_2": llama,
        "llama3_3": llama,
        "qwen2_5": hermes,
        "qwen3": "<think>\n\n</think>\n\n" + hermes,
        "qwen3_instruct_2507": hermes,
        "gptoss": " to=functions.get_weather<|channel|>commentary json<|message|>" + ARGUMENTS + "<|call|>",
        "mistral_v03": "[TOOL_CALLS] [" + function + ', "id": "abcdefghi"}]</s>',
        "mistral_nemo": "[TOOL_CALLS][" + function + ', "id": "abcdefghi"}]</s>',
        "phi4_mini": "<|tool_call|>" + function + "}<|/tool_call|><|end|>",
    }.get(name)


@pytest.mark.parametrize("name", [n for n in FAMILIES if calling(n)])
def test_tools_are_offered_and_calls_are_trained(name):
    encoded = encode(name, TOOLS, tools=[TOOL])
    texts = [spans(tokenizer_of(name), e) for e in encoded.examples]
    # gpt-oss has its channels and Qwen 3 keeps no empty thinking before a call that is no longer the last turn
    assert texts == apart(name, [calling(name), *answers(name, "21 degrees.")], ("qwen3",))
    for example in encoded.examples:
        prompt = tokenizer_of(name).decode(example.input_ids[: example.spans[0][0]])
        assert "get_weather" in prompt and "The weather now." in prompt


@pytest.mark.parametrize("name", [n for n in FAMILIES if not calling(n)])
def test_tools_that_a_template_cannot_express_are_refused(name):
    with pytest.raises(DataError, match="tool_calls|alternate") as e:
        encode(name, TOOLS, tools=[TOOL])
    assert "messages[" in e.value.render()
    with pytest.raises(DataError, match="does not render `tools`: `get_weather`"):
        encode(name, SINGLE, tools=[TOOL])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen3", [["<think>\nIt says so.\n</think>\n\nGraz.<|im_end|>"], ["<think>\nToday.\n</think>\n\nMonday.<|im_end|>"]]),
        (
            "gptoss",
            [
                [f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant<|channel|>final<|message|>{answer}<|return|>"]
                for thought, answer in (("It says so.", "Graz."), ("Today.", "Monday."))
            ],
        ),
    ],
)
def test_thinking_is_trained_where_it_will_be_written(name, expected):
    encoded = encode(name, THINKING)
    assert [spans(tokenizer_of(name), e) for e in encoded.examples] == expected
    assert "It says so." not in tokenizer_of(name).decode(encoded.examples[1].input_ids)  # earlier thinking is not there in use
    inline = [m if m["role"] == "user" else assistant(f"<think>\n{m['reasoning_content']}\n</think>\n\n{m['content']}") for m in THINKING]
    if name == "qwen3":
        assert written(name, inline) == expected


@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in REWRITING])
def test_thinking_that_a_template_drops_is_refused(name):
    with pytest.raises(DataError, match=r"drops the reasoning of messages\[1\].reasoning_content") as e:
        encode(name, THINKING)
    assert "thinking: strip" in e.value.render()


@pytest.mark.parametrize("name", FAMILIES)
def test_stripped_thinking_leaves_the_answers(name):
    inline = [m if m["role"] == "user" else assistant(f"<think>\n{m['reasoning_content']}\n</think>\n\n{m['content']}") for m in THINKING]
    for messages in (THINKING, inline):
        encoded = encode(name, messages, thinking="strip")
        assert [spans(tokenizer_of(name), e) for e in encoded.examples] == apart(name, answers(name, "Graz.", "Monday."))
        assert encoded.notes["thinking_stripped"] == 1


def test_a_mode_without_thinking_is_part_of_the_prompt():
    """SmolLM3 with /no_think in its system prompt: the empty thinking stands in the generation prompt, and is not trained."""
    (example,) = encode("smollm3", [system("Be brief. /no_think"), *SINGLE]).examples
    assert spans(tokenizer_of("smollm3"), example) == ["Graz.<|im_end|>"]
    before = tokenizer_of("smollm3").decode(example.input_ids[: example.spans[0][0]])
    assert before.endswith("<|im_start|>assistant\n<think>\n\n</think>\n") and "Reasoning Mode: /no_think" in before


def test_thinking_before_a_tool_call():
    both = written("qwen3", TOOLS_THINKING, tools=[TOOL])
    call = calling("qwen3").replace("<think>\n\n", "<think>\nAsk.\n")
    assert both == [[call, "<think>\nNow I know.\n</think>\n\n21 degrees.<|im_end|>"]]
    # gpt-oss drops the analysis before the call once the final answer stands; while that is written, it is still there
    encoded = encode("gptoss", TOOLS_THINKING, tools=[TOOL])
    (example,) = encoded.examples
    start = "<|channel|>analysis<|message|>"
    assert spans(tokenizer_of("gptoss"), example) == [
        f"{start}Ask.<|end|><|start|>assistant{calling('gptoss')}",
        f"{start}Now I know.<|end|><|start|>assistant<|channel|>final<|message|>21 degrees.<|return|>",
    ]
    assert encoded.notes["turns_recomposed"] == 1


ORACLES = ("llama3", "qwen2_5", "qwen3", "qwen3_instruct_2507", "gemma", "gemma3", "phi3", "phi3_5", "gptoss")
BEYOND = {"qwen2_5": ("\n", ""), "gptoss": ("<|start|>assistant", ""), "phi3": ("", "<|endoftext|>"), "phi3_5": ("", "<|endoftext|>")}
"""What TRL marks, too: at the start a part of the generation prompt, at the end what stands after the token that ends generation."""


def marked(name, messages, tools):
    """The texts that TRL's training template marks as generated, without BEYOND and the newline after the end of turn."""
    tokenizer = tokenizer_of(name)
    template = (files("trl") / "chat_templates" / f"{name}_training.jinja").read_text()
    found = tokenizer.apply_chat_template(
        messages, tools=list(tools) or None, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = found["input_ids"], [*found["assistant_masks"], 0]
    edges = [i for i in range(len(mask)) if mask[i] != (mask[i - 1] if i else 0)]
    texts = [tokenizer.decode(ids[:end])[len(tokenizer.decode(ids[:start])) :] for start, end in zip(edges[::2], edges[1::2], strict=True)]
    start, end = BEYOND.get(name, ("", ""))
    return [text.removesuffix("\n").removeprefix(start).removesuffix(end) for text in texts]


CONVERSATIONS = {"single": SINGLE, "multi": MULTI, "tools": TOOLS, "thinking": THINKING}
MARKED = [(n, c) for n in ORACLES for c in CONVERSATIONS if (c != "tools" or calling(n)) and (c != "thinking" or n in REWRITING)]


@pytest.mark.parametrize(("name", "conversation"), MARKED)
def test_trl_marks_the_same_text(name, conversation):
    messages, tools = CONVERSATIONS[conversation], (TOOL,) if conversation == "tools" else ()
    ours = [text for texts in written(name, messages, tools=tools) for text in texts]
    theirs = marked(name, messages, tools)
    if name in REWRITING and messages is not SINGLE:
        # TRL renders the conversation once: earlier turns are marked as the template rewrites them, not as they were written.
        ours, theirs = ours[-1:], theirs[-1:]
    assert theirs == ours


# --- what is refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "messages", "said"),
    [
        ("gemma", [system("Be brief."), *SINGLE], "System role not supported"),
        ("gemma2", [system("Be brief."), *SINGLE], "System role not supported"),
        ("smollm3", [TOOLS[0], TOOLS[1], *TOOLS[2:]], r"loses messages\[1\].tool_calls\[0\] \(`get_weather`\)"),
        ("mistral_nemo", [TOOLS[0], assistant("", tool_calls=[CALL | {"id": "1"}]), *TOOLS[2:]], "length 9"),
        ("gemma", [user("a"), user("b"), assistant("c")], r"must alternate.*\(at messages\[2\]\)"),
        ("phi3_5", [{"role": "developer", "content": "Be brief."}, *SINGLE], r"loses messages\[0\].content \(role `developer`\)"),
        ("llama3_1", [TOOLS[0], TOOLS[1] | {"content": "Let me look."}, *TOOLS[2:]], r"loses messages\[1\].content"),
        ("llama3_1", [TOOLS[0], assistant("", tool_calls=[CALL, CALL]), *TOOLS[2:]], "only supports single tool-calls"),
        ("mistral_v03", [TOOLS[0], assistant("", tool_calls=[CALL | {"id": "1"}]), *TOOLS[2:]], "length 9"),
        ("mistral_v03", [assistant("Hello."), *SINGLE], "alternate"),
        ("phi4", [*SINGLE, result("x"), user("So?"), assistant("So.")], r"loses messages\[2\].content \(role `tool`\)"),
        ("qwen2_5", [user("Which end?"), assistant("It is <|im_end|> there.")], "holds an end-of-turn token itself"),
    ],
)
def test_what_a_template_cannot_express_is_refused(name, messages, said):
    with pytest.raises(DataError, match=said) as e:
        encode(name, messages)
    (problem,) = e.value.problems
    assert (problem.file, problem.line) == ("d.jsonl", 7)


@pytest.mark.parametrize(
    ("part", "instead", "said"),
    [
        ("{{- tool_call.name }}", "", r"loses messages\[1\].tool_calls\[0\] \(`get_weather`\)"),
        ("tool_call.arguments | tojson", "'{}'", r"loses 'Graz' of messages\[1\].tool_calls\[0\].function.arguments"),
    ],
)
def test_a_lost_part_of_a_call_is_found(part, instead, said):
    with pytest.raises(DataError, match=said):
        encode("qwen2_5", TOOLS, tokenizer=changed("qwen2_5", text_of("qwen2_5").replace(part, instead)))


def changed(name, template):
    from copy import deepcopy

    tokenizer = deepcopy(tokenizer_of(name))
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", ["llama3", "llama3_1", "qwen2_5", "qwen3", "phi3_5", "gptoss", "phi4", "smollm2"])
def test_a_conversation_may_begin_with_the_assistant(name):
    texts = written(name, [assistant("Hello."), *SINGLE])
    opening = ["Hello.<|im_end|>"] if name == "qwen3" else answers(name, "Hello.")  # it writes thinking only after a user's message
    assert [t for part in texts for t in part] == opening + answers(name, "Graz.")


# --- dates, hashes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "shown"), [("llama3_2", "Today Date: 26 Jul 2024"), ("gptoss", "Current date: 2024-07-26"), ("qwen3", None)])
def test_training_does_not_depend_on_the_day(name, shown):
    encoded = encode(name, SINGLE)
    assert encoded.notes.get("template_date") == ("2024-07-26" if shown else None)
    assert (shown or "") in tokenizer_of(name).decode(encoded.examples[0].input_ids)


def test_a_date_that_cannot_be_fixed_is_refused():
    with pytest.raises(DataError, match="depend on the day"):
        encode("qwen2_5", SINGLE, tokenizer=changed("qwen2_5", "{% set f = '%d' %}{{ strftime_now(f) }}" + text_of("qwen2_5")))


def test_the_hash_is_of_the_text():
    import hashlib

    assert chat.template_hash(tokenizer_of("qwen3")) == hashlib.sha256(text_of("qwen3").encode()).hexdigest()
    assert chat.template_hash(changed("qwen3", None)) is None


# --- any conversation -----------------------------------------------------------------------------------------------------------

CONTENT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30).filter(str.strip)
TALK = st.tuples(st.none() | CONTENT, st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=4))


@pytest.mark.parametrize(("name", "template", "trims"), [("smollm2", chat.TEMPLATES["chatml"], False), ("llama3", None, True)])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(talk=TALK)
def test_trained_spans_are_the_contents_and_their_ends(name, template, trims, talk):
    first, pairs = talk
    messages = [system(first)] if first else []
    messages += [m for asked, said in pairs for m in (user(asked), assistant(said))]
    tokenizer = changed(name, template) if template else tokenizer_of(name)
    encoded = encode(name, messages, tokenizer=tokenizer)
    trained = b"".join(_bytes(tokenizer, e.input_ids[start:end]) for e in encoded.examples for start, end in e.spans)
    expected = "".join((said.strip() if trims else said) + FAMILIES[name].eos for _, said in pairs)
    assert trained.decode() == expected


def _bytes(tokenizer, ids):
    """The ids' bytes, each token by itself: a decoder would mend halves of characters."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    back = {character: byte for byte, character in bytes_to_unicode().items()}
    added = tokenizer.get_added_vocab()
    return b"".join(t.encode() if t in added else bytes(back[c] for c in t) for t in tokenizer.convert_ids_to_tokens(ids))
