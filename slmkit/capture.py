"""Sends everything that libraries print (file descriptors 1 and 2, native code included) to a log while a step runs.

The screen belongs to slmkit: progress and errors go to a private copy of stderr, so that no progress bar or banner of a
library can spoil the one line on stdout or the JSON object of --json.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def to_log(path: Path) -> Iterator[None]:
    """Redirect fd 1 and 2 into `path` (appending) and put them back afterwards."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # a full disk: what libraries printed is the least of it
                stream.flush()
        for fd, saved in enumerate(kept, start=1):
            os.dup2(saved, fd)
            os.close(saved)
