"""stdout is the artifact, stderr is the story. Both are owned here.

`own_stdout` keeps a private copy of fd 1 and points fd 1 at stderr, so that whatever a library prints, stdout holds exactly one
line or one JSON object. `Terminal` tells the story on a private copy of stderr: a bar on a terminal, else a plain line now and then.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from slmkit.errors import SlmkitError, Stopped, StoreError, _Problems

PLAIN_EVERY = 10.0  # seconds between progress lines where there is no terminal


def stop_on_signals() -> None:
    """Turn SIGINT, SIGTERM and SIGHUP (a terminal that was closed; not under nohup) into Stopped, once; a second one kills at once."""

    def stop(number: int, _frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Stopped(128 + number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, stop)


class Stdout:
    """The real stdout, kept apart from fd 1."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self.fd = os.dup(1)
        os.dup2(2, 1)

    def line(self, text: str) -> None:
        """Write one line. A reader that has gone away (`| head -0`) is no error: the work is done."""
        data = os.fsencode(text) + b"\n"
        try:
            while data:
                data = data[os.write(self.fd, data) :]
        except BrokenPipeError:
            pass
        except OSError as e:
            raise StoreError(f"cannot write to stdout: {e.strerror}") from None

    def object(self, value: Any) -> None:
        self.line(json.dumps(value, default=str, ensure_ascii=False))


def warn(error: SlmkitError) -> None:
    """Tell on stderr what was left out, and go on."""
    print(f"warning: {error.render()}", file=sys.stderr)


def open_closed_streams() -> None:
    """Give fds 0 to 2 that were closed (`2>&-`) to /dev/null, so that no file opened later takes their number and their text."""
    for fd, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.dup(fd), "r" if fd == 0 else "w"))


def show(text: str) -> None:
    """Print a report verb's answer on stdout; a closed pipe is no error."""
    try:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()
    except OSError as e:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the interpreter's own flush at exit stays silent
        if not isinstance(e, BrokenPipeError):
            raise StoreError(f"cannot write to stdout: {e.strerror}") from None


class Terminal:
    """The story on stderr. quiet: errors only. Implements engine.Screen."""

    def __init__(self, quiet: bool = False, verbose: bool = False):
        self.quiet, self.verbose = quiet, verbose
        self.stream = os.fdopen(os.dup(2), "w", buffering=1, errors="replace")
        dumb = os.environ.get("TERM") == "dumb" or os.environ.get("CI") or os.environ.get("GITHUB_ACTIONS")
        self.bars = self.stream.isatty() and not dumb and not quiet
        self.bar: Any = None
        self.task: Any = None
        self.last = 0.0

    def say(self, text: str) -> None:
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.console.print(text, markup=False, highlight=False)
        else:
            self._write(text)

    def event(self, step: str, event: str, fields: dict) -> None:
        """A line of events.jsonl, on the screen too with --verbose; a warning always."""
        if event == "warning":
            self.say(f"{step}: warning: {fields['what']}")
        elif self.verbose:
            self.say(f"{step}: {event}" + "".join(f"  {k}={v}" for k, v in fields.items()))

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a closed stderr must not break the work
            self.stream.write(text + "\n")

    def progress(self, step: str) -> Callable[..., None]:
        if self.quiet:
            return lambda *_a, **_k: None
        self.last, pace = time.monotonic(), _Pace()

        def plain(done: float, total: float | None, what: str, **numbers: float) -> None:
            pace.begin(what, done)
            if time.monotonic() - self.last < PLAIN_EVERY:
                return
            self.last = time.monotonic()
            of = f"{done:g}/{total:g}" if total else f"{done:g}"
            self._write(f"{step}: {what} {of}{_numbers(numbers)}{pace.left(what, done, total)}")

        def drawn(done: float, total: float | None, what: str, **numbers: float) -> None:
            if self.bar is None:
                self._draw()
            label = f"{step}: {what}"
            self.bar.update(self.task, completed=done, total=total, description=label, numbers=_numbers(numbers), visible=True)

        return drawn if self.bars else plain

    def _draw(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = [TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"), TimeElapsedColumn(),
                   TextColumn("left"), TimeRemainingColumn()]  # fmt: skip
        self.bar = Progress(*columns, console=Console(file=self.stream), transient=True, refresh_per_second=4)
        self.task = self.bar.add_task("", numbers="", visible=False)
        self.bar.start()

    def done(self, step: str) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def error(self, error: SlmkitError) -> None:
        self._write(f"error: {error.render()}" if not isinstance(error, _Problems) else error.render())
        if os.environ.get("GITHUB_ACTIONS"):
            for line in _annotations(error):
                self._write(line)


class _Pace:
    """How long what is being counted will take yet, by what it took since it was first told."""

    def __init__(self):
        self.what, self.done, self.since = "", 0.0, 0.0

    def begin(self, what: str, done: float) -> None:
        if what != self.what or done < self.done:
            self.what, self.done, self.since = what, done, time.monotonic()

    def left(self, what: str, done: float, total: float | None) -> str:
        if not total or done <= self.done:
            return ""
        seconds = (total - done) * (time.monotonic() - self.since) / (done - self.done)
        return f"  {datetime.timedelta(seconds=round(seconds))} left"


def _numbers(numbers: dict[str, float]) -> str:
    return "".join(f"  {name.replace('_', ' ')} {value:.4g}" for name, value in numbers.items())


def _annotations(error: SlmkitError) -> list[str]:
    problems = getattr(error, "problems", [])
    if not problems:
        return [f"::error::{_escape(error.what)}"]
    return [f"::error file={p.file},line={p.line or 1},col={p.column or 1}::{_escape(p.what)}" for p in problems]


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
