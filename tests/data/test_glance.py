"""What plan says of data: any container, mixtures with weights, a share held out; by the first rows where there are many."""

import gzip
import json
import random

import pytest

from slmkit.data import glance
from slmkit.steps import train
from slmkit.steps._estimate import Size, weights
from slmkit.steps._step import Columns


def rows(count: int, seed: int = 0) -> list[dict]:
    draw = random.Random(seed)
    words = [f"w{i}" for i in range(500)]
    return [{"prompt": " ".join(draw.choices(words, k=draw.randint(5, 40))), "completion": draw.choice(words)} for _ in range(count)]


def written(folder, kind: str, given: list[dict]):
    path = folder / f"d.{kind}"
    lines = "".join(json.dumps(r) + "\n" for r in given)
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(given), path)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == "csv":
        path.write_text("prompt,completion\n" + "".join(f"{r['prompt']},{r['completion']}\n" for r in given))
    else:
        path.write_text({"json": json.dumps(given, indent=1)}.get(kind, lines))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "jsonl.gz"])
def test_rows_of_every_container(tmp_path, kind):
    few = glance.at(written(tmp_path, kind, rows(300)), None, None)
    assert few.rows == 300 and few.texts[0] == "\n".join(rows(1)[0].values())
    many = glance.at(written(tmp_path, kind, rows(9000)), None, None)
    assert len(many.texts) == glance.MOST
    assert abs(many.rows / 9000 - 1) < {"parquet": 1e-9, "jsonl.gz": 0.25}.get(kind, 0.05)


def test_what_cannot_be_told_is_left_out(tmp_path):
    assert glance.at(tmp_path / "none.jsonl", None, None) is None
    (tmp_path / "odd.jsonl").write_text('{"x": 1}\n' * 5000)
    assert glance.at(tmp_path / "odd.jsonl", None, None) is None
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    assert glance.at(tmp_path / "cut.parquet", None, None) is None


@pytest.mark.parametrize("later", [{"label": 7}, {"system": "Be brief."}])
def test_a_later_row_that_tells_the_form_anew_is_no_fault(tmp_path, later):
    """Labels that turn out to number classes, a system message that comes late: the file is read anew, as for training."""
    given = [r | ({"label": i % 2} if "label" in later else {}) for i, r in enumerate(rows(40))]
    given[20] |= later
    found = glance.at(written(tmp_path, "jsonl", given), None, None)
    assert found.rows == 40 and found.texts[0] == "\n".join(rows(1)[0].values())


def test_weights_a_share_held_out_and_what_a_row_says(tmp_path):
    first, second = (written(tmp_path / name, "jsonl", rows(200, seed)) for name, seed in (("a", 1), ("b", 2)) if not (tmp_path / name).mkdir())
    config = train.Config(model="m", data=["a", "b"], validation=0.25, method="lora", batch_size=4, epochs=1)
    sizes = (Size(path=first), Size(path=second, columns=Columns(path="b", weight=0.5)))
    said = train.estimate(config, train.Execution(), {"model": (Size(),), "data": sizes})
    assert said["rows"] == 225 and said["steps"] == 57
    letters = sum(len(r["prompt"]) + 1 + len(r["completion"]) for r in rows(200, 1)) / 200
    assert said["tokens"] == pytest.approx(57 * 4 * letters / 4, rel=0.05), "of the texts alone, not of the JSON around them"


def test_a_micro_batch_that_does_not_divide_is_told(tmp_path):
    shape = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    header = json.dumps({"w": {"dtype": "F32", "shape": [32, 32], "data_offsets": [0, 4096]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4096))
    path = written(tmp_path, "jsonl", rows(50))
    config = train.Config(model="m", data="d", method="lora", batch_size=4, epochs=1)
    said = train.estimate(config, train.Execution(micro_batch=3), {"model": (weights(tmp_path),), "data": (Size(path=path),)})
    assert "does not divide" in said["refused"]
