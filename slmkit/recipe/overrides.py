"""--set and --from edit the document before it is validated, each with a mark of its own, so an error in one points at it."""

from __future__ import annotations

import difflib
from typing import Any

from slmkit.errors import Problem, RecipeError
from slmkit.recipe.located import Document, Mark, Where, parse


def apply_set(doc: Document, text: str) -> None:
    """Apply one `a.b.c=value`. The value is YAML. Raises RecipeError for a malformed text or a path that leads nowhere."""
    file = "--set"
    path, equals, raw = text.partition("=")
    parts = path.split(".")
    if not equals or not all(parts):
        raise RecipeError([Problem("not of the form a.b=value", file, 1, 1, text, len(text), "for example steps.sft.lora.r=8")])
    value = parse(raw.encode(), file).data if raw.strip() else None
    if not isinstance(doc.data, dict):
        return  # the loader says what is wrong with the file itself
    where: Where = ()
    node: Any = doc.data
    column = 1
    for part in parts[:-1]:
        key: Any = int(part) if isinstance(node, list) and part.isdecimal() and part.isascii() else part
        if isinstance(node, dict) and len(where) != 1 and (len(where) >= 2 or key == "steps") and key not in node:
            node[key] = {}  # a block that was left out, such as lora: or execution:
            doc.keys[(*where, key)] = doc.values[(*where, key)] = Mark(file, 1, column, len(part), text)
        if isinstance(node, dict) and node.get(key, "") is None:
            node[key] = {}
        if not (isinstance(node, dict) and key in node) and not (isinstance(node, list) and isinstance(key, int) and key < len(node)):
            known = list(node) if isinstance(node, dict) else [str(i) for i in range(len(node))] if isinstance(node, list) else []
            near = difflib.get_close_matches(part, known, 1)
            mend = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(map(str, known)) or 'nothing'}"
            raise RecipeError([Problem(f"`{'.'.join(map(str, (*where, part)))}` does not exist", file, 1, column, text, len(part), mend)])
        where, node, column = (*where, key), node[key], column + len(part) + 1
    _put(doc, node, where, parts[-1], value, Mark(file, 1, column, len(parts[-1]), text), Mark(file, 1, len(path) + 2, max(1, len(raw)), text))


def _put(doc: Document, node: Any, where: Where, last: str, value: Any, key_mark: Mark, value_mark: Mark) -> None:
    key: Any = int(last) if isinstance(node, list) and last.isdecimal() and last.isascii() else last
    if isinstance(node, str) and node.startswith("$"):
        raise RecipeError([key_mark.problem(f"`{'.'.join(map(str, where))}` is `{node}` there", f"set {node[1:]}.{last} instead")])
    if isinstance(node, list) and (not isinstance(key, int) or key >= len(node)) or not isinstance(node, (dict, list)):
        raise RecipeError([key_mark.problem(f"`{last}` does not exist there", "give an index that exists, or set the whole list")])
    place = (*where, key)
    for marks in (doc.keys, doc.values):  # what stood below is gone with its marks
        for old in [w for w in marks if w[: len(place)] == place]:
            del marks[old]
    node[key] = value
    doc.keys[place], doc.values[place] = key_mark, value_mark


def apply_from(doc: Document, step: str, pairs: list[tuple[str, str]], takes: dict) -> None:
    """Put references given on the command line into a step's inputs. `model` means `models` where a kind takes a list."""
    body = doc.data["steps"][step] = dict(doc.data["steps"][step] or {})
    given: dict[str, list[str]] = {}
    for role, reference in pairs:
        many = f"{role}s" if role not in takes and f"{role}s" in takes else role
        if many not in takes:
            near = difflib.get_close_matches(role, list(takes), 1)
            mend = (f"did you mean `{near[0]}`? " if near else "") + f"inputs of `{step}`: {', '.join(takes)}"
            raise RecipeError([Problem(f"`{step}` has no input `{role}`", "--from", 1, 1, f"{role}={reference}", len(role), mend)])
        given.setdefault(many, []).append(reference)
        if len(given[many]) > 1 and not takes[many].many:
            raise RecipeError([Problem(f"`{role}` takes one reference, {len(given[many])} were given", "--from", 1, 1, f"{role}={reference}")])
    for role, references in given.items():
        if takes[role].many and role.endswith("s"):
            body.pop(role.removesuffix("s"), None)
        text = ", ".join(f"{role}={r}" for r in references)
        mark = Mark("--from", 1, 1, len(text), text)
        place = ("steps", step, role)
        for marks in (doc.keys, doc.values):
            for old in [w for w in marks if w[:3] == place]:
                del marks[old]
        mapping = _value(doc, body.get(role))
        if isinstance(mapping, dict):  # data with a column mapping keeps the mapping
            mapped = [{**mapping, "path": r} for r in references]
            body[role] = mapped if len(mapped) > 1 else mapped[0]
        else:
            body[role] = references if takes[role].many and not (takes[role].lone and len(references) == 1) else references[0]
        doc.keys[place] = doc.values[place] = mark


def _value(doc: Document, value: Any) -> Any:
    """What a `$name` of a top-level value stands for."""
    name = value[1:] if isinstance(value, str) and value.startswith("$") else None
    return doc.data.get(name, value) if name and name not in doc.data["steps"] else value
