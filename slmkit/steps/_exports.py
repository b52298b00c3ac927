"""What models are exported as: the types of each format, about how many bits a weight takes in each, and the modules that a format needs."""

from __future__ import annotations

import importlib.util

TYPES = {
    "gguf": ("q4_k_m", "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_s", "q4_0", "q3_k_m", "q2_k"),
    "onnx": ("int4", "fp32"), "adapter": (),
}  # fmt: skip
"""What each format can be written as, the default first."""
BITS = {
    "f32": 32, "fp32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q6_k": 6.6, "q5_k_m": 5.7, "q5_k_s": 5.5, "q4_k_m": 4.9, "q4_k_s": 4.6, "q4_0": 4.55,
    "q3_k_m": 3.9, "q2_k": 3.2, "int4": 5,
}  # fmt: skip
NEEDS = {"gguf": ("gguf", "llama_cpp"), "onnx": ("onnx", "onnx_ir", "onnxruntime", "onnxruntime_genai"), "adapter": ()}
"""The modules each format needs, which the extra of its name installs."""


def blocked_for(format: str) -> str | None:
    """Why a format cannot be made here, found without importing anything heavy."""
    missing = [name for name in NEEDS[format] if importlib.util.find_spec(name) is None]
    minutes = " (llama.cpp is compiled: some ten minutes)" if format == "gguf" else ""
    return f"{missing[0]} is not installed: pip install 'slmkit[{format}]'{minutes}" if missing else None
