"""The embedded demo is what its makers say: the data comes from the seed, no split knows another's orders, the answers
parse, the tokenizer's template gives exact prefixes, the models fit, and nothing in the folders tells where they were made."""

import json
import subprocess
import sys

import pytest

from slmkit.demo import NAMES, notes, path
from slmkit.demo.notes import FIELDS, Dice, compact, lines, spell_date, splits
from slmkit.demo.words import CARRIERS, CITIES, PRIORITIES

MODELS = ("student", "teacher")
GOLDEN = "Moin,\nSpeed urgent; Gross 26 kg; Via Hermes; Ref SO/86269; Due 19 Jun 26; To Mailand\nsent\nfrom my phone"


def rows(name):
    return [json.loads(line) for line in path(name).read_text(encoding="utf-8").splitlines()]


def pairs(name):
    if name == "test":
        return [(row["note"], row["answer"]) for row in rows(name)]
    return [tuple(message["content"] for message in row["messages"]) for row in rows(name)]


@pytest.fixture(scope="module", params=MODELS)
def tokenizer(request):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path(request.param))


def test_generator_is_deterministic():
    assert notes.notes(5, 30) == notes.notes(5, 30) != notes.notes(6, 30)
    # A golden row: another Python, or a change of the generator, must not move it unseen.
    assert notes.notes(1, 1)[0]["messages"][0]["content"] == GOLDEN


def test_files_are_what_the_generator_makes():
    for name, made in splits().items():
        assert path(name).read_text(encoding="utf-8") == lines(made), f"{name}.jsonl is stale: python -m slmkit.demo.notes"
    assert sum(path(name).stat().st_size for name in ("train", "validation", "test")) < 1_200_000


def test_splits_share_no_note_and_no_order():
    texts, orders = [], []
    for name in ("train", "validation", "test"):
        for text, gold in pairs(name):
            texts.append(" ".join(text.lower().split()))
            orders.append(json.loads(gold)["order"])
    assert len(set(texts)) == len(texts) == len(set(orders)) == sum(notes.SIZES.values())


def test_gold_answers_are_canonical():
    for name in ("train", "validation", "test"):
        for _, text in pairs(name):
            gold = json.loads(text)
            assert tuple(gold) == FIELDS and compact(gold) == text and len(gold["order"]) == 5
            assert gold["carrier"] in CARRIERS and gold["city"] in CITIES and gold["priority"] in PRIORITIES
            assert 0 < gold["weight_kg"] <= 6000 and not text.endswith(".0") and ".0," not in text


def test_a_spelling_has_one_meaning():
    for table in (CARRIERS, CITIES, PRIORITIES):
        spelled = [{one.lower() for one in ways} for ways in table.values()]
        assert sum(map(len, spelled)) == len(set().union(*spelled))


def test_dates_are_spelled_in_many_ways():
    dice = Dice(0)
    assert len({spell_date(dice, "2026-03-04") for _ in range(300)}) == 10


def test_path_names_what_there_is():
    assert all(path(name).exists() for name in NAMES)
    with pytest.raises(KeyError, match=r"student, teacher, prompts, train, validation, test, notes"):
        path("pupil")


def test_the_demo_imports_the_standard_library_only():
    code = "import sys; import slmkit.demo.notes; print(sorted({'torch', 'yaml', 'pydantic', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_tokenizer_round_trip(tokenizer):
    for text, gold in pairs("validation")[:50]:
        for one in (text, gold, text + " €\t" + gold):
            assert tokenizer.decode(tokenizer(one)["input_ids"]) == one
    digits = tokenizer("4711")["input_ids"]
    assert len(digits) == 4 and tokenizer.eos_token == "<|end|>" and tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_prompt_is_a_prefix_of_its_row(tokenizer):
    def ids(messages, **how):
        return tokenizer.apply_chat_template(messages, return_dict=True, **how)["input_ids"]

    for row in rows("train")[:100]:
        system = [{"role": "system", "content": "Be brief."}]
        for head in ([], system):
            prompt, whole = ids(head + row["messages"][:1], add_generation_prompt=True), ids(head + row["messages"])
            assert whole[: len(prompt)] == prompt and whole[-1] == tokenizer.eos_token_id and len(whole) <= 200


@pytest.mark.parametrize("name", MODELS)
def test_shapes_suit_four_bits(name):
    config = json.loads((path(name) / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["dtype"] == "bfloat16"
    assert config["hidden_size"] % 128 == config["intermediate_size"] % 128 == config["vocab_size"] % 32 == 0
    assert config["max_position_embeddings"] >= 512


def test_models_are_small_and_anonymous():
    assert sum((path(name) / "model.safetensors").stat().st_size for name in MODELS) <= 12_000_000
    for name in MODELS:
        for file in path(name).iterdir():
            if file.suffix == ".json":
                text = file.read_text(encoding="utf-8")
                assert not [place for place in ("/tmp", "/home", "/root", "/work") if place in text], file


def test_both_models_share_the_tokenizer():
    assert (path("student") / "tokenizer.json").read_bytes() == (path("teacher") / "tokenizer.json").read_bytes()
