"""`method: auto` for llama.cpp: its own types, each made from one whole file by its own tool and run by it; the best under the size is exported.

How large a type comes out depends on the model's widths (layers that do not suit one take the nearest that does), so each is made, and what is
larger than asked for is not measured. llama.cpp rounds here without an importance matrix; calibration rows serve to choose by.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmkit.data.rows import Rows
from slmkit.ml import choosing, fidelity
from slmkit.ml.examples import Example
from slmkit.ml.export import gguf, gguf_write
from slmkit.ml.export.llama import Llama
from slmkit.steps import _exports
from slmkit.steps._step import Context, Given, Result


def quantize(ctx: Context, config: Any, data: Rows, examples: list[Example], given: Given) -> Result:
    """Choose a type, and make the artifact that `export` makes of it."""
    types = [t for t in sorted(_exports.TYPES["gguf"], key=_exports.BITS.__getitem__, reverse=True) if t not in gguf_write.STORED]
    best, values = choosing.race(ctx, config, _Types(types, ctx, given), data, examples, given)
    return gguf.published(ctx, best, config.fidelity, None, {k: values[k] for k in ("chosen", "target", "candidates", "chosen_on")})


@dataclass(frozen=True)
class _Types:
    names: list[str]
    ctx: Context
    given: Given

    def build(self, name: str, home: Path) -> None:
        if (home / "values.json").is_file():
            return
        shutil.rmtree(home / "out", ignore_errors=True)
        (home / "out").mkdir(parents=True)
        tensors = gguf.make(self.given, name, home / "out" / "model.gguf", self.ctx.state, None)
        choosing.write(home / "values.json", {"parameters": sum(int(t.n_elements) for t in tensors)})

    def before(self) -> fidelity.Runtime:
        return gguf.original(self.given)

    def after(self, home: Path) -> fidelity.Runtime:
        return Llama(home / "out" / "model.gguf", gguf.length(Path(self.given.path)), None)
