"""Every field of a step is a flag of its verb: `slmkit quantize demo:teacher --method rtn --group-size 64`.

Names are read off the kind's source, so that `--help` imports nothing for them. With a recipe, a flag is the same as --set on the verb's step,
or as --from where the field is an input. With a model (or what the kind takes first) in the recipe's place, the flags are the recipe:
it is written out, and kept with the artifact like any other.
"""

from __future__ import annotations

import ast
import difflib
from pathlib import Path
from typing import NamedTuple

from slmkit.errors import UsageError
from slmkit.steps import _registry

OWN = {"--step": 1, "--set": 1, "--from": 1, "--store": 1, "--json": 0, "-q": 0, "--quiet": 0, "-v": 0, "--verbose": 0, "--locked": 0,
       "--no-locked": 0, "--no-wait": 0, "--field": 1}  # fmt: skip
"""The options that every verb has, and how many words each takes."""


class Field(NamedTuple):
    """A field of a kind: its flag, what it says of itself, whether it is a switch, and whether it says how the step runs."""

    name: str
    help: str
    switch: bool
    execution: bool

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def path(self) -> str:
        return f"execution.{self.name}" if self.execution else self.name


def fields(kind: str) -> dict[str, Field]:
    """The fields of a kind's Config and Execution, by name, in the order of the source."""
    text = _registry.source(kind)
    found: dict[str, Field] = {}
    for node in ast.parse(text).body if text else []:
        if isinstance(node, ast.ClassDef) and node.name in ("Config", "Execution"):
            for here, after in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(here, ast.AnnAssign) and isinstance(here.target, ast.Name):
                    said = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
                    types = {n.id for n in ast.walk(here.annotation) if isinstance(n, ast.Name)}
                    found.setdefault(here.target.id, Field(here.target.id, " ".join(said.split()), "bool" in types, node.name == "Execution"))
    return found


def fold(kind: str, argv: list[str]) -> list[str]:
    """The words after a verb with its kind's flags turned into `--field PATH=VALUE`. Raises UsageError for an unknown flag."""
    known, out, words = fields(kind), [], list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if not word.startswith("-") or word == "-" or name in OWN:
            out += [word, *(words.pop(0) for _ in range(0 if equals else OWN.get(name, 0)) if words)]
            continue
        first, dot, rest = name.lstrip("-").replace("-", "_").partition(".")
        off = first.startswith("no_") and first not in known and first[3:] in known
        field = known.get(first[3:] if off else first)
        if field is None:
            near = difflib.get_close_matches(name, [*(f.flag for f in known.values()), *OWN], 1)
            raise UsageError(f"no such option: {name}", mend=f"did you mean {near[0]}?" if near else f"`slmkit {kind} --help` lists them")
        bare = not words or (words[0].startswith("-") and not _number(words[0]))
        if off or (field.switch and not equals and not dot and (bare or words[0].lower() not in ("true", "false"))):
            value = "false" if off else "true"
        elif not equals:
            if bare:
                raise UsageError(f"{name} wants a value", mend=f"for example {name}=VALUE; {field.help}")
            value = words.pop(0)
        out += ["--field", f"{field.path}{dot}{rest}={value}"]
    return out


def _number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


DATA = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz", ".zst")


def is_recipe(text: str) -> bool:
    """Is the word after a verb a recipe, and not what the step begins with?"""
    return text.endswith((".yaml", ".yml")) or (Path(text).is_file() and not text.endswith(DATA))


def split(kind: str, pairs: list[str]) -> tuple[list[str], list[str]]:
    """--field texts as (for --set below the step, for --from): a reference given as a flag is a path from here, not from the recipe."""
    takes = _registry.load(kind).takes
    sets, froms = [], []
    for text in pairs:
        path, _, value = text.partition("=")
        (froms if path in takes and value[:1] not in ("{", "[") and value not in ("", "null", "true", "false") else sets).append(text)
    return sets, froms


def recipe(kind: str, given: str, pairs: list[str]) -> bytes:
    """The recipe that a command without one stands for: one step of this kind. given: its first input."""
    import yaml

    from slmkit.recipe.located import parse

    takes = _registry.load(kind).takes
    role = next(iter(takes))
    body: dict = {role: [given] if takes[role].many else given}
    for text in pairs:
        path, _, value = text.partition("=")
        node, (*above, last) = body, path.split(".")
        for key in above:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise UsageError(f"--{path}: {key} has a value already", mend="give the block whole, or key by key")
        said = parse(value.encode(), f"--{path}").data if value.strip() else None
        if path in takes and takes[path].many and not isinstance(said, list):
            said = [*node.get(last, ()), said]  # `--tasks a --tasks b`; models beside the first
        node[last] = said
    head = f"# What `slmkit {kind}` was asked for on the command line.\n"
    return (head + yaml.safe_dump({"recipe": kind, "steps": {kind: body}}, sort_keys=False, allow_unicode=True)).encode()


def listed(kind: str) -> str:
    """The flags for --help, a line each."""
    made = [(f"  {f.flag} {'' if f.switch else 'VALUE'}".rstrip(), _first(f.help)) for f in fields(kind).values()]
    wide = min(34, max((len(left) for left, _ in made), default=0))
    lines = [f"{left:<{wide}}  {said}" if said else left for left, said in made]
    head = "Every key of the step is a flag. With a recipe it changes the step; with an input in the recipe's place it is the recipe:"
    return "\n".join(["\b", head, *lines])


def _first(said: str) -> str:
    line = said.partition(". ")[0].partition("; ")[0].rstrip(".")
    return line if len(line) <= 84 else line[:83] + "…"
