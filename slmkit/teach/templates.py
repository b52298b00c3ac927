"""What a teacher is told, as Jinja in a sandbox: the templates of the modes, or a file of the user's in their place.

A template renders to the messages that are sent: a line `### system`, `### user` or `### assistant` begins a message, and text before
the first such line is one user message. It sees `prompt` (the last user message), `messages`, `reference`, the row's fields as `row`, and
what its mode adds. A recipe may come from anywhere, so a template reaches nothing beyond its values, and can use up neither time nor memory.
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Any

from slmkit.data import sandbox
from slmkit.data.read import shown
from slmkit.errors import DataError, Problem, RecipeError

FOLDER = Path(__file__).with_name("templates")
TURN = re.compile(r"^### (system|user|assistant)[ \t]*\n", re.MULTILINE)


class Template:
    """A compiled template. path: of its file, for errors. Raises RecipeError when the text is no template."""

    def __init__(self, text: str, path: Path | str):
        import jinja2

        self.path, self.name, self.text = str(path), Path(path).name, text
        self.environment, self.errors = sandbox.environment(), jinja2.TemplateError
        nonce = secrets.token_hex(8)  # a row that holds `### system` begins no message
        self.turn = re.compile(f"\x1e{nonce}:(system|user|assistant)\n?")
        try:
            self.compiled = sandbox.compiled(self.environment, TURN.sub(lambda m: f"\x1e{nonce}:{m[1]}\n", text), self.name, self.path)
        except jinja2.TemplateError as e:
            raise RecipeError([self._problem(f"no template: {e}", getattr(e, "lineno", 0) or 0, sandbox.help_with(self.environment, e))]) from None

    def _problem(self, what: str, line: int, mend: str | None = None) -> Problem:
        lines = self.text.splitlines()
        source = lines[line - 1] if 0 < line <= len(lines) else ""
        return Problem(what, self.path, line, 1 if line else 0, source, len(source) or 1, mend)

    def messages(self, place: str, **values: Any) -> list[dict]:
        """The messages that are sent for one row. Raises DataError, naming the template's line and the row, when it does not fit."""
        try:
            text = sandbox.render(self.environment, self.compiled, values)
        except (self.errors, *sandbox.FAULTS) as e:
            said = f"{e}" if isinstance(e, self.errors) else f"{type(e).__name__}: {e}"
            mend = sandbox.BOUNDS if sandbox.bounded_by(e) else f"a template here knows {', '.join(f'`{name}`' for name in values)}"
            raise DataError([self._problem(f"the template does not fit {place}: {said[:300]}", _line_of(e), mend)]) from None
        parts = self.turn.split(text)
        found = [("user", parts[0]), *zip(parts[1::2], parts[2::2], strict=True)]
        messages = [{"role": role, "content": said.strip()} for role, said in found if said.strip()]
        if not messages:
            mend = f"write what the teacher is told; a template here knows {', '.join(f'`{name}`' for name in values)}"
            raise DataError([self._problem(f"the template renders to nothing for {place}", 0, mend)])
        return messages


def load(name: str, given: Path | None) -> Template:
    """The user's file, else the mode's own."""
    path = given or FOLDER / f"{name}.jinja"
    try:
        return Template(path.read_text(encoding="utf-8"), shown(path))
    except UnicodeDecodeError as e:
        what = f"no template: it is not UTF-8 ({e.reason} at byte {e.start})"
        raise RecipeError([Problem(what, shown(path), mend="save it as UTF-8")]) from None


def _line_of(error: BaseException) -> int:
    """The template's line at which it happened, 0 if unknown: Jinja puts frames that stand for template lines into the traceback."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if "__jinja_exception__" in trace.tb_frame.f_globals:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
