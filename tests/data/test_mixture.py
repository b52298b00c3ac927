"""Weights are multiples of a source's rows; what is drawn or held out depends on the seed and the content, on nothing else."""

import hashlib
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmkit.data import mixture, rows, xray
from slmkit.data import read as reader
from slmkit.data.rows import Row
from slmkit.errors import DataError
from slmkit.steps._step import Columns
from slmkit.steps.train import Config
from tests.support.drive import given as input_of
from tests.support.drive import mapped


def texts(*said):
    return rows.of("d", "text", [Row(i + 1, text=s) for i, s in enumerate(said)])


def file(tmp_path, name, *records):
    path = tmp_path / name
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 60), weight=st.floats(0.01, 5), seed=st.integers(0, 9))
def test_a_weight_is_a_multiple_of_rows(n, weight, seed):
    data = texts(*map(str, range(n)))
    found = [r.text for r in mixture.of([(data, weight)], seed)]
    assert len(found) == len(mixture.of([(data, weight)], seed)) == max(1, round(n * weight))
    counts = Counter(found).values()
    assert max(counts) - min(counts) <= 1 and (len(counts) == n or max(counts) == 1), "none a third time before all stand twice"
    assert found == [r.text for r in mixture.of([(data, weight)], seed)]


def test_another_seed_draws_others():
    data = texts(*map(str, range(100)))
    draws = {tuple(r.text for r in mixture.of([(data, 0.5)], seed)) for seed in range(5)}
    assert len(draws) == 5


def test_sources_one_after_another(tmp_path):
    a, b = file(tmp_path, "a.jsonl", {"text": "1"}, {"text": "2"}), file(tmp_path, "b.jsonl", {"text": "3"})
    data = reader.read((input_of(a, "dataset"), mapped(b, weight=2)))
    assert [(r.text, r.file[-7:], r.line) for r in data] == [("1", "a.jsonl", 1), ("2", "a.jsonl", 2), ("3", "b.jsonl", 1), ("3", "b.jsonl", 1)]
    assert len(data) == 4 and data.name.endswith("b.jsonl") and data.format == "text"


def test_completions_are_lifted_to_messages(tmp_path):
    talk = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}]
    a, b = file(tmp_path, "a.jsonl", {"prompt": "p", "completion": "c"}), file(tmp_path, "b.jsonl", {"messages": talk})
    data = reader.read((input_of(a, "dataset"), input_of(b, "dataset")))
    assert data.form == "messages" and [list(r.messages) for r in data] == [talk, talk] and data.format == "completion + messages"


def test_other_forms_do_not_mix(tmp_path):
    a, b = file(tmp_path, "a.jsonl", {"text": "p"}), file(tmp_path, "b.jsonl", {"prompt": "p", "chosen": "a", "rejected": "b"})
    with pytest.raises(DataError, match=r"a\.jsonl is text, .*b\.jsonl is preference"):
        reader.read((input_of(a, "dataset"), input_of(b, "dataset")))


@settings(max_examples=100, deadline=None)
@given(said=st.lists(st.sampled_from("abcdefghijklmnop"), min_size=2, max_size=40), share=st.floats(0.01, 0.5), seed=st.integers(0, 9))
def test_held_out_rows_are_never_trained_on(said, share, seed):
    data = texts(*said)
    if len(set(said)) == 1:
        with pytest.raises(DataError, match="no rows can be held out"):
            mixture.hold_out(data, share, seed)
        return
    kept, out = mixture.hold_out(data, share, seed)
    assert (len(kept), len(out)) == (len(list(kept)), len(list(out))) and len(out) >= 1 and len(kept) >= 1
    assert not {r.text for r in kept} & {r.text for r in out}
    assert sorted(r.text for r in [*kept, *out]) == sorted(said)


def test_the_share_is_met_when_no_row_stands_twice():
    kept, out = mixture.hold_out(texts(*map(str, range(1000))), 0.1, 0)
    assert (len(kept), len(out)) == (900, 100)
    assert list(out) == list(mixture.hold_out(texts(*map(str, range(1000))), 0.1, 0)[1])
    assert list(out) != list(mixture.hold_out(texts(*map(str, range(1000))), 0.1, 1)[1])


def test_near_copies_are_on_one_side_and_nothing_else_moves():
    apart = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(300)]
    kept, out = mixture.hold_out(texts(*apart), 0.1, 0)
    one, two = out.open(), kept.open()
    copies = [next(one).text + "!", next(two).text + "!", next(one).text + "?"]
    plain, (kept, out) = {r.text for r in out}, mixture.hold_out(texts(*apart, *copies), 0.1, 0)
    assert xray.measure(kept, out)["leaks"][0]["leaked"] == 0 and (len(kept), len(out)) == (273, 30) and len(list(out)) == 30
    assert list(out) == list(mixture.hold_out(texts(*apart, *copies), 0.1, 0)[1])
    held = {r.text for r in out}
    assert len(held & plain) >= 27 and held - plain, "only rows with near copies go back, and the next of the draw come for them"
    sides = [{c in held, c[:-1] in held} for c in copies]
    assert all(len(side) == 1 for side in sides)


def test_a_draw_without_near_copies_is_as_it_always_was():
    """Rows held out by an earlier version stay held out: their trainings stay what they were."""
    out = mixture.hold_out(texts(*(hashlib.sha256(str(i).encode()).hexdigest() for i in range(40))), 0.1, 7)[1]
    assert [r.line for r in out] == [2, 9, 15, 21]


def test_the_train_step_holds_out_and_skips(tmp_path):
    path = file(tmp_path, "a.jsonl", *[{"text": str(i)} for i in range(20)], {"text": ""})
    config = Config(model="m", data="d", validation=0.1, on_bad_row="skip")
    data, held = reader.train_and_held_out((input_of(path, "dataset"),), None, config)
    assert (len(data), len(held)) == (18, 2) and data.dropped == {"`text` is empty": 1} and held.dropped == {}
    with pytest.raises(DataError, match="`text` is empty"):
        reader.train_and_held_out((input_of(path, "dataset"),), None, Config(model="m", data="d"))


@pytest.mark.parametrize("share", [0, 0.51, 1, True, -0.1])
def test_a_share_is_at_most_half(share):
    with pytest.raises(ValueError):
        Config(model="m", data="d", validation=share)




@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"user": "a"}, "both `user` and `assistant`"),
        ({"text": "a", "user": "b", "assistant": "c"}, "`text` alone"),
        ({"format": "alpaca", "prompt": "q"}, "format alpaca reads"),
        ({"format": "text", "system": "s"}, "format text reads text"),
        ({"format": "glaive", "messages": "m"}, "no mapping"),
        ({"completion": "a", "chosen": "b"}, "no format reads them together"),
        ({"format": "csv"}, "'messages', 'sharegpt'"),
        ({"weight": 0}, "greater than 0"),
    ],
)
def test_a_key_that_would_have_no_effect_is_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        Columns(path="x", **keys)


def test_every_key_has_an_effect(tmp_path):
    """Each part can lie in a column of another name, beside columns that bear the names of other formats."""
    u, a, b = ({"role": r, "content": c} for r, c in (("user", "u"), ("assistant", "a"), ("assistant", "b")))
    tool = {"type": "function", "function": {"name": "f"}}
    record = {"x": [u, a], "q": "u", "y": "a", "z": "b", "ok": True, "t": [tool], "text": "decoy", "instruction": "decoy", "output": "decoy"}
    path = file(tmp_path, "d.jsonl", record)

    def row(**columns):
        return next(iter(reader.read(mapped(path, **columns))))

    assert row(messages="x", tools="t").tools == (tool,) and row(messages="x").messages == (u, a)
    assert row(user="q", assistant="y", system="s").messages == ({"role": "system", "content": "s"}, u, a)
    assert row(text="q").text == "u"
    assert (row(prompt="q", completion="y").prompt, row(prompt="q", completion="y").completion) == ("u", "a")
    pair = row(format="preference", prompt="q", chosen="y", rejected="z")
    assert (pair.messages, pair.chosen, pair.rejected) == ((u,), (a,), (b,))
    judged = row(prompt="q", completion="y", label="ok")
    assert (judged.messages, judged.chosen, judged.label) == ((u,), (a,), True)
    assert row(messages="x", system="s").messages[0] == {"role": "system", "content": "s"}


def test_a_mapped_column_that_no_row_has(tmp_path):
    path = file(tmp_path, "d.jsonl", {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]})
    with pytest.raises(DataError, match="`tools: t` is mapped, and no row has that field"):
        reader.read(mapped(path, tools="t"))
    with pytest.raises(DataError, match="no field `m`"):
        reader.read(mapped(path, messages="m"))
    with pytest.raises(DataError, match="`system` is mapped, and rows of format text read text"):
        reader.read(mapped(file(tmp_path, "t.jsonl", {"text": "a"}), system="s"))
