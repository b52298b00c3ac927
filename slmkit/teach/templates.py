"""What a teacher is told, as Jinja in a sandbox: the templates of the modes, or a file of the user's in their place.

A template renders to the messages that are sent: a line `### system`, `### user` or `### assistant` begins a message, and text before
the first such line is one user message. It sees `prompt` (the last user message), `messages`, `reference`, the row's fields as `row`, and
what its mode adds.
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Any

from slmkit.errors import DataError, Problem, RecipeError

FOLDER = Path(__file__).with_name("templates")
TURN = re.compile(r"^### (system|user|assistant)[ \t]*\n", re.MULTILINE)


class Template:
    """A compiled template. name: for errors. Raises RecipeError when the text is no template."""

    def __init__(self, text: str, name: str):
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self.name, self.text = name, text
        self.environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        self.environment.globals = {"range": range, "loop_limit": 10_000}
        self.environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
        self.errors = jinja2.TemplateError
        nonce = secrets.token_hex(8)  # a row that holds `### system` begins no message
        self.turn = re.compile(f"\x1e{nonce}:(system|user|assistant)\n?")
        marked = TURN.sub(lambda m: f"\x1e{nonce}:{m[1]}\n", text)
        try:
            self.compiled = self.environment.from_string(marked)
        except jinja2.TemplateSyntaxError as e:
            source = text.splitlines()[e.lineno - 1] if 0 < e.lineno <= len(text.splitlines()) else ""
            raise RecipeError([Problem(f"no template: {e.message}", name, e.lineno, 1, source, len(source) or 1)]) from None

    def messages(self, place: str, **values: Any) -> list[dict]:
        """The messages that are sent for one row. Raises DataError, naming the row, when the template does not fit it."""
        try:
            text = self.compiled.render(**values)
        except (self.errors, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as e:
            raise DataError([Problem(f"the template {self.name} does not fit this row: {e}", place)]) from None
        parts = self.turn.split(text)
        found = [("user", parts[0]), *zip(parts[1::2], parts[2::2], strict=True)]
        messages = [{"role": role, "content": said.strip()} for role, said in found if said.strip()]
        if not messages:
            raise DataError([Problem(f"the template {self.name} renders to nothing for this row", place)])
        return messages


def load(name: str, given: Path | None) -> Template:
    """The user's file, else the mode's own."""
    path = given or FOLDER / f"{name}.jinja"
    return Template(path.read_text(encoding="utf-8"), path.name)
