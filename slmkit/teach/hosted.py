"""A local teacher in a `slmkit serve` of its own for as long as it is asked: another process, so that asking and writing share no core."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from slmkit.errors import StepFailed
from slmkit.steps._step import Given

PARENT = "SLMKIT_SERVE_FOR"
"""Names the process for which a server runs: when that is gone, however it went, the server ends too."""


@contextlib.contextmanager
def server(local: Given, name: str, execution: Any) -> Iterator[str]:
    """Serve a model or adapter; yields the URL. Raises StepFailed with what the server said."""
    command = [sys.executable, "-m", "slmkit", "serve", str(local.path), "--name", name, "--port", "0", "--json",
               "--batch", str(execution.concurrency), "--device", execution.device]  # fmt: skip
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(  # a session of its own: Ctrl-C is for us, and the answers under way are still to come
            command, env=os.environ | {PARENT: str(os.getpid())}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said,
            start_new_session=True,
        )
        try:
            line = process.stdout.readline()
            if not line:
                process.wait()
                said.seek(0)
                told = said.read().decode(errors="replace").strip()[-2000:]
                raise StepFailed(f"the model could not be served: {told or f'it ended with {process.returncode}'}")
            yield json.loads(line)["url"]
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
