"""Every failure slmkit foresees: what was wrong, where, the mend, and the exit code.

    SlmkitError                 1   a step failed
    ├── StepFailed              1   the work itself broke (the traceback is in the attempt's log)
    ├── StoreError              1   disk full, read-only store, a torn or altered artifact
    ├── InputChanged            1   a file changed while a step was reading it
    ├── UsageError              2   the command line is wrong
    ├── RecipeError             2   the recipe is wrong; carries every problem, sorted by line
    ├── DataError               2   rows of the user's data are wrong; carries the first offenders
    ├── CheckFailed             3   a check said no (verify, an expectation)
    ├── CannotRun               4   this machine lacks something: an extra, a GPU, a key, the network
    └── Busy                   75   another process holds the work and --no-wait was given
"""

from __future__ import annotations

from dataclasses import dataclass


class SlmkitError(Exception):
    """A foreseen failure. `what` is one sentence; `where` a file:line or a folder; `mend` the key or command that helps; `key` the step's key
    that it is about (`teacher.base_url`), whose place in the recipe becomes `where`."""

    code = 1

    def __init__(self, what: str, *, where: object = None, mend: str | None = None, key: str | None = None):
        super().__init__(what)
        self.what, self.where, self.mend, self.key = what, str(where) if where is not None else None, mend, key

    def render(self) -> str:
        """The text for the screen: `where: what`, then the help line."""
        head = f"{self.where}: {self.what}" if self.where else self.what
        return head + (f"\n  help: {self.mend}" if self.mend else "")

    def record(self) -> dict:
        """The same as data, for failure.json and --json."""
        said = {"error": type(self).__name__, "what": self.what, "where": self.where, "mend": self.mend, "exit": self.code}
        return said | ({"key": self.key} if self.key else {})


class StepFailed(SlmkitError):
    """The work of a step broke."""


class StoreError(SlmkitError):
    """The store cannot be read or written, or an artifact in it is not what its manifest says."""


class InputChanged(SlmkitError):
    """What a step consumed is no longer what was planned."""


class UsageError(SlmkitError):
    """The command line is wrong."""

    code = 2


class CheckFailed(SlmkitError):
    """A check said no."""

    code = 3


class CannotRun(SlmkitError):
    """This machine lacks something the step needs."""

    code = 4


class Busy(SlmkitError):
    """Another process holds this work."""

    code = 75


class Stopped(SystemExit):
    """SIGINT, SIGTERM or SIGHUP: passes through libraries as SystemExit does, and carries the exit code 130, 143 or 129."""


@dataclass(frozen=True)
class Problem:
    """One fault in a file: its place (line and column count from 1), the sentence, the offending line, the help."""

    what: str
    file: str = ""
    line: int = 0
    column: int = 0
    source: str = ""
    width: int = 1
    mend: str | None = None

    def render(self) -> str:
        place = ":".join(str(p) for p in (self.file, self.line, self.column) if p)
        text = f"{place}: {self.what}" if place else self.what
        if self.source:
            gutter = f"{self.line:>5} | "
            caret = " " * (self.column - 1) + "^" * max(1, self.width)
            text += f"\n{gutter}{self.source}\n{' ' * 5} | {caret}"
        return text + (f"\n  help: {self.mend}" if self.mend else "")


class _Problems(SlmkitError):
    code = 2

    def __init__(self, problems: list[Problem], summary: str = ""):
        self.problems = sorted(problems, key=lambda p: (p.file, p.line, p.column))
        self.summary = summary
        super().__init__("\n".join(p.what for p in self.problems) or summary)

    def render(self) -> str:
        return "\n".join([p.render() for p in self.problems] + ([self.summary] if self.summary else []))

    def record(self) -> dict:
        return super().record() | {"problems": [vars(p) for p in self.problems], "summary": self.summary}


class RecipeError(_Problems):
    """The recipe is wrong. Every problem found is in `problems`."""


class DataError(_Problems):
    """The user's data is wrong. `problems` holds the first offenders, `summary` the count of all of them."""
