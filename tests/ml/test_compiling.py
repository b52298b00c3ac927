"""Starting a training loads no compiler; what is to be compiled is compiled when it is called."""

import subprocess
import sys

import torch

from slmkit.ml import compiling


def test_the_start_of_a_training_loads_no_compiler():
    code = "import sys; from slmkit.ml.objectives import sft; import bitsandbytes; print('torch._inductor.lowering' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_functions_of_bitsandbytes_are_compiled_at_their_first_call_and_others_at_once():
    def doubled(x):
        return 2 * x

    assert torch.compile(doubled, backend="eager")(torch.ones(2)).tolist() == [2, 2]
    doubled.__module__ = "bitsandbytes.backends.default.ops"
    asked = []
    later = compiling._later(doubled, lambda: asked.append(1) or torch.compile(lambda x: 3 * x, backend="eager"))
    assert not asked and later(torch.ones(1)).item() == later(torch.ones(1)).item() == 3 and asked == [1]
    seen = torch.compile(doubled, backend=lambda graph, inputs: asked.append(2) or graph.forward)
    assert asked == [1] and seen(torch.ones(1)).item() == 2 and 2 in asked
