"""A secret in a recipe is refused: secrets are named by environment variable (`api_key_env: OPENAI_API_KEY`), never written.

The offending value is masked in the message itself, so that the error does not spread what it warns of.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from slmkit.errors import Problem
from slmkit.recipe.located import Document, Where

_SHAPES = re.compile(
    r"(sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|AKIA[0-9A-Z]{16}"
    r"|AIza[0-9A-Za-z_-]{30,}|xox[abpr]-[A-Za-z0-9-]{10,}|glpat-[\w-]{16,}|-----BEGIN [A-Z ]*PRIVATE KEY)"
)
_LOGIN = re.compile(r"(\w+://)?[^/\s@]*:[^/\s@]*@")  # in the address of an endpoint; one of data is refused where it is read
_KEYS = re.compile(r"(.*[_-])?(api[_-]?key|secret|password|passwd|access[_-]?token|auth[_-]?token|bearer|token)\Z", re.I)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")  # of an environment variable: what stands in its place is the secret itself

MEND = "name the environment variable that holds it (`api_key_env: NAME`), and revoke this one"


def find(doc: Document) -> list[Problem]:
    """A Problem for every value that looks like a secret or stands under a key that names one."""
    found = list(_walk(doc, doc.data, ()))
    lines = {p.line for p in found if p.file == doc.file}
    for number, line in enumerate(doc.lines, 1):  # comments are kept with every artifact, too
        match = _SHAPES.search(line)
        if match and number not in lines:
            hidden = _SHAPES.sub(lambda m: "*" * len(m[0]), line)
            found.append(Problem("a literal secret", doc.file, number, match.start() + 1, hidden, len(match[0]), MEND))
    return found


def _walk(doc: Document, value: Any, where: Where):
    key = next((p for p in reversed(where) if isinstance(p, str)), "")
    if key == "api_key_env" and value is not None and not (isinstance(value, str) and _NAME.match(value)):
        yield _hidden(doc, where)
    elif isinstance(value, dict):
        for name, below in value.items():
            yield from _walk(doc, below, (*where, name))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _walk(doc, below, (*where, index))
    elif isinstance(value, str) and value and (_SHAPES.search(value) or _KEYS.match(key) or (key == "base_url" and _LOGIN.match(value))):
        yield _hidden(doc, where)


def _hidden(doc: Document, where: Where) -> Problem:
    """Nothing of the line is shown from the value on: it may be written with escapes, or in several parts."""
    problem = doc.mark(where).problem("a literal secret", MEND)
    return replace(problem, source=_SHAPES.sub("***", problem.source[: problem.column - 1]) + "***", width=3)
