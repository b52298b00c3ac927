"""The torch side: data into tokens, models in and out of memory, training, quantizing, scoring.

Nothing here knows a recipe, a store or a plan. Steps import it inside `run()` only.
"""

import os

# Read at import by the libraries; a user's own setting wins.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as lm-eval's command does; forks after use would warn
# oneDNN, and torch's layer over it, each keep 1024 compiled bf16 matrix products, 0.75 MB a piece, by shape: a training on rows of many lengths took
# 2.3 GB instead of 1.3. One length needs 31, eight packed ones 84 to 100. Read at the first product.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
os.environ.setdefault("LRU_CACHE_CAPACITY", "1")

from slmkit.ml import compiling  # noqa: E402

compiling.at_first_call()
