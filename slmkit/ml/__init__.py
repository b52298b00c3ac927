"""The torch side: data into tokens, models in and out of memory, training, quantizing, scoring.

Nothing here knows a recipe, a store or a plan. Steps import it inside `run()` only.
"""

import os

# Read at import by the libraries; a user's own setting wins.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as lm-eval's command does; forks after use would warn

from slmkit.ml import compiling  # noqa: E402

compiling.at_first_call()
