"""awq and autoround are refused where they cannot work, before anything is loaded; on a GPU they write what gptq writes."""

import json
import subprocess
import sys

import pytest
import torch

from slmkit.errors import CannotRun, StepFailed
from slmkit.ml import models
from slmkit.ml.quantizers import autoround
from slmkit.steps import quantize
from tests.support.drive import Driver, given

METHODS = ("awq", "autoround")


def config(method, **more):
    return {"model": "m", "method": method, "calibration": "c", "samples": 32, "max_length": 64, "group_size": 32} | more


@pytest.mark.parametrize("method", METHODS)
def test_a_cpu_is_refused_before_anything_is_loaded(tmp_path, rows_file, method):
    inputs = {"model": given(tmp_path / "none", "model"), "calibration": given(rows_file, "dataset", "calibration")}
    with pytest.raises(CannotRun, match=f"method {method} needs a GPU, and this is cpu"):
        Driver(tmp_path).run("quantize", config(method), inputs, {"device": "cpu"})
    said = quantize.blocked(quantize.Config(**config(method)), quantize.Execution(device="cpu"))
    assert said.startswith(f"method {method} needs a GPU") and "slmkit[autoround]" in said


def test_the_command_exits_4_and_says_so(tmp_path, rows_file):
    words = [sys.executable, "-m", "slmkit", "quantize", "demo:student", "--method", "awq", "--calibration", str(rows_file), "--group-size", "32"]
    done = subprocess.run([*words, "--store", str(tmp_path), "--device", "cpu"], capture_output=True, text=True)
    assert done.returncode == 4 and "method awq needs a GPU" in done.stderr and not done.stdout


def test_calibration_is_cut_into_pieces_of_one_length():
    rows = [list(range(k * 100, k * 100 + 50)) for k in range(10)]
    pieces = autoround._pieces(rows, 60)
    assert {tuple(p["input_ids"].shape) for p in pieces} == {(1, 60)} and len(pieces) == 8
    assert torch.cat([p["input_ids"][0] for p in pieces]).tolist() == [t for row in rows for t in row][:480]
    assert {p["input_ids"].shape[1] for p in autoround._pieces(rows, 1024)} == {62}, "a little data still makes a batch"
    with pytest.raises(StepFailed, match="255 tokens of calibration are too few"):
        autoround._pieces([[1] * 255], 1024)


@pytest.mark.parametrize("key", [{"act_order": True}, {"damping": 0.1}, {"backend": "gptqmodel"}, {"target": "vllm"}])
def test_keys_that_are_not_read_are_refused(key):
    with pytest.raises(ValueError, match="is not read by method awq"):
        quantize.Config(**config("awq", **key))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("method", METHODS)
def test_the_folder_is_in_gptqs_format(tmp_path, tiny, rows_file, method):
    pytest.importorskip("auto_round")
    driver = Driver(tmp_path)
    inputs = {"model": given(tiny, "model"), "calibration": given(rows_file, "dataset", "calibration")}
    result = driver.run("quantize", config(method), inputs, {"device": "cuda"})
    assert result.values["layers"] == 14 and result.values["fidelity"]["mean_kl"] < 0.1
    said = json.loads((driver.out / "config.json").read_text())["quantization_config"]
    assert (said["quant_method"], said["bits"], said["group_size"], said["sym"]) == ("gptq", 4, 32, True)
    assert models.load(given(driver.out, "model"), torch.device("cpu")).dtype == torch.float32
    assert str(tmp_path).encode() not in b"".join(p.read_bytes() for p in driver.out.iterdir() if p.is_file())
