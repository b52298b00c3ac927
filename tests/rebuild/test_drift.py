"""The parts of a comparison: numbers within bounds, tensors by layer, the first place where two files part, what explains a difference."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from slmkit.errors import StoreError
from slmkit.rebuild import causes, tensors, texts, tolerance


def ok(old: dict, new: dict, questions: dict | None = None) -> dict[str, bool]:
    return {n.path: n.ok for n in tolerance.numbers(old, new, questions)}


def test_numbers_by_what_they_are() -> None:
    before = {"train_loss": 2.0, "held_out": {"nats": 1.0}, "rows": 100, "max_kl": 0.1, "fidelity": {"answers_identical": 8}, "into": "full"}
    near = {"train_loss": 2.09, "held_out": {"nats": 0.96}, "rows": 100, "max_kl": 0.9, "fidelity": {"answers_identical": 7}, "into": "dequantized"}
    assert ok(before, near) == {"train_loss": True, "held_out.nats": True, "max_kl": True, "fidelity.answers_identical": True, "into": True}
    far = before | {"train_loss": 2.11, "held_out": {"nats": float("nan")}, "rows": 101}
    assert ok(before, far) == {"train_loss": False, "held_out.nats": False, "rows": False}
    assert ok({"rows": 1}, {}) == {"rows": False}


def test_times_and_memory_are_no_numbers_of_a_result() -> None:
    noisy = {"speed": {"base": {"seconds": 1.0, "tokens_per_second": 5.0}}, "answers_per_second": 3, "peak_memory_bytes": 9, "started": "x",
             "from_ledger": 0, "checks": [{"detail": "0.9 is", "figures": {"value": 0.9}}]}  # fmt: skip
    assert ok(noisy, {"speed": {"base": {"seconds": 2.0, "tokens_per_second": 6.0}}, "from_ledger": 5}) == {}
    assert list(ok({"secondsight": 1, "timely": 2}, {"secondsight": 2, "timely": 3})) == ["secondsight", "timely"]


def test_a_score_without_spread_has_the_rule_of_three() -> None:
    def scores(value: float) -> dict:
        return {"scores": {"m": {"t": {"acc": value, "acc_stderr": 0.0}}}}

    assert ok(scores(0.0), scores(0.01), {"m.t": 200}) == {"scores.m.t.acc": True}
    assert ok(scores(0.0), scores(0.02), {"m.t": 200}) == {"scores.m.t.acc": False}
    assert ok(scores(0.0), scores(0.01)) == {"scores.m.t.acc": False}


def write(path: Path, tensors_: dict[str, tuple[str, np.ndarray]]) -> None:
    """A safetensors file: name → (type, numbers). BF16 is the upper half of float32."""
    header, data = {}, b""
    for name, (kind, numbers) in tensors_.items():
        raw = (numbers.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes() if kind == "BF16" else numbers.tobytes()
        header[name] = {"dtype": kind, "shape": list(numbers.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)


def test_tensors_of_every_type_and_across_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    was = {
        "lm_head.weight": ("F32", np.ones(3, "<f4")), "model.layers.1.w": ("BF16", np.full(1000, 0.5, "<f4")),
        "model.layers.0.h": ("F16", np.ones(5, "<f2")), "model.layers.0.codes": ("I32", np.arange(10, dtype="<i4")),
        "model.embed_tokens.weight": ("F64", np.ones(2, "<f8")),
    }  # fmt: skip
    now = {name: (kind, numbers.copy()) for name, (kind, numbers) in was.items()}
    now["model.layers.1.w"][1][999] = 2.5
    now["model.layers.0.codes"][1][4] = 7
    one, two = tmp_path / "a", tmp_path / "b"
    write(one, was)
    write(two, now)
    monkeypatch.setattr(tensors, "PIECE", 7)
    found = tensors.compare(one, two)
    assert (found.count, found.differing, found.first.name, found.worst.name) == (5, 2, "model.layers.0.codes", "model.layers.1.w")
    assert found.first.differing == pytest.approx(0.1) and found.codes == pytest.approx(0.1)
    assert found.worst.max_abs == 2.0 and found.worst.relative == pytest.approx(2.0 / 250**0.5)
    assert found.relative == pytest.approx(2.0 / (3 + 250 + 5 + 2) ** 0.5)
    now["lm_head.weight"][1][0] = float("nan")
    write(two, now)
    assert tensors.compare(one, two).relative == float("inf")
    write(two, now | {"lm_head.weight": ("F32", np.ones(4, "<f4"))})
    assert "tensor lm_head.weight is F32 [3] in the recorded file and F32 [4]" in tensors.compare(one, two).told()
    two.write_bytes(b"torn")
    with pytest.raises(StoreError, match="header cannot be read"):
        tensors.compare(one, two)


def test_layers_are_in_their_own_order() -> None:
    names = ["lm_head.weight", "model.layers.10.a", "model.layers.2.b", "model.embed_tokens.weight", "model.layers.2.a", "model.norm.weight",
             "model.h.0.a", "wte.weight"]  # fmt: skip
    assert sorted(names, key=tensors.by_layer) == [
        "model.embed_tokens.weight", "wte.weight", "model.h.0.a", "model.layers.2.a", "model.layers.2.b", "model.layers.10.a",
        "lm_head.weight", "model.norm.weight"]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new", "told"), [
    ("x.json", json.dumps({"a": {"b": 1}, "c": 2}), json.dumps({"a": {"b": 2}, "c": 3}), "key a.b: 1 → 2, and 1 more"),
    ("x.jsonl", '{"a": 1}\n{"a": 2}\n', '{"a": 1}\n{"a": 5}\n', "line 2, key a: 2 → 5"),
    ("x.txt", "one\ntwo\n", "one\n", "line 2 is in the recorded file alone"),
    ("x.bin", "\0ab", "\0ac", "byte 2 (of 3 recorded and 3 rebuilt)"),
    ("x.json", '{"a": 1}', '{"a":1}', 'line 1: {"a": 1} → {"a":1}'),
])  # fmt: skip
def test_the_first_place_where_files_part(tmp_path: Path, name: str, old: str, new: str, told: str) -> None:
    places = [tmp_path / f"{i}-{name}" for i in range(2)]
    for place, text in zip(places, (old, new), strict=True):
        place.write_text(text)
    assert texts.first_difference(*places) == told


def test_a_kernel_excuses_nothing_and_a_processor_does() -> None:
    then = {"python": "3.11.7", "platform": "Linux-6.1-x86_64-with-glibc2.36", "packages": {"torch": "2"}, "processor": "A", "threads": 2}
    same = then | {"python": "3.11.9", "platform": "Linux-6.9-x86_64-with-glibc2.36"}
    assert {c.where: c.explains for c in causes.environment(then, same)} == {"python": False, "platform": False}
    other = then | {"platform": "Linux-6.1-aarch64-with-glibc2.36", "processor": "B", "threads": 4, "python": "3.12.0"}
    assert {c.where: c.explains for c in causes.environment(then, other)} == dict.fromkeys(("python", "processor", "threads", "platform"), True)
    older = {k: v for k, v in then.items() if k != "processor"}  # before it was recorded
    assert causes.environment(older, then) == []
