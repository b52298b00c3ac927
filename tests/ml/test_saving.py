"""A file written a tensor at a time is the one that safetensors writes of all at once."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from slmkit.ml import saving
from slmkit.ml.saving import Stored
from tests.support.drive import Driver, given


def stored(tensors):
    return {name: Stored(v.dtype, tuple(v.shape), lambda v=v: v) for name, v in tensors.items()}


def test_bytes_are_those_of_safetensors(tmp_path):
    made = {f"{name}.é{i}": (torch.arange(6 * (i + 1)).reshape(2, -1) % 2).to(t) for i, t in enumerate(saving.ORDER) for name in ("b", "a", "B")}
    made |= {"scalar": torch.tensor(1.5), "turned": torch.arange(12.0).reshape(3, 4).T, "none": torch.zeros(0, 4)}
    whole, streamed = tmp_path / "whole.safetensors", tmp_path / "streamed.safetensors"
    save_file({k: v.contiguous() for k, v in made.items()}, whole, metadata={"format": "pt"})
    saving.save(stored(made), streamed, {"format": "pt"})
    assert streamed.read_bytes() == whole.read_bytes()


def test_one_tensor_is_read_at_a_time(tmp_path):
    """The one before has been let go of when the next is read."""
    import weakref

    alive: list[weakref.ref] = []

    def read():
        assert sum(ref() is not None for ref in alive) <= 1
        value = torch.ones(4)
        alive.append(weakref.ref(value))
        return value

    saving.save({f"t{i}": Stored(torch.float32, (4,), read) for i in range(5)}, tmp_path / "f.safetensors", {})
    assert len(alive) == 5


def test_another_shape_than_was_said_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="t was said to be"):
        saving.save({"t": Stored(torch.float32, (3,), lambda: torch.zeros(4))}, tmp_path / "f.safetensors", {})


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_a_folder_is_as_it_was_when_all_was_gathered(tmp_path, tiny, rows_file, method):
    driver, inputs = Driver(tmp_path), {"model": given(tiny, "model")}
    more = {}
    if method == "gptq":
        inputs, more = inputs | {"calibration": given(rows_file, "dataset", "calibration")}, {"calibration": "c", "samples": 8}
    driver.run("quantize", {"model": "m", "method": method, "group_size": 32} | more, inputs)
    file = driver.out / "model.safetensors"
    save_file(load_file(file), tmp_path / "again.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()
