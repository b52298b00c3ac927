"""Text → Recipe, in the order a reader would check it: place the values, apply --set and --from, read each step's `kind`,
validate that kind's Config alone, then the references between steps. All problems are collected and shown at once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from slmkit.errors import Problem, RecipeError, UsageError
from slmkit.recipe import explain, overrides, secrets, standing, witnesses
from slmkit.recipe.located import COMMAND_LINE, Document, Where, parse, read
from slmkit.recipe.model import InputSpec, Recipe, StepSpec
from slmkit.sources import Source, type_of
from slmkit.sources import parse as parse_source
from slmkit.steps import _registry
from slmkit.steps._step import Columns

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}\Z")
REFERENCE = re.compile(r"\$([A-Za-z_][\w-]*)\Z")
BRIDGES = {("adapter", "model"): "merge"}  # (given, wanted) → the kind that turns one into the other


def load(
    path: Path, sets: Iterable[str] = (), froms: Iterable[tuple[str, str]] = (), pick: tuple[str, str | None] | None = None,
    below: Iterable[str] = (), raw: bytes | None = None,
) -> Recipe:  # fmt: skip
    """Load and validate a recipe.

    sets: `a.b=c` texts. froms: (role, reference) pairs for the step that `pick` = (kind, step name or None) chooses; below: `a=b` texts under
    that step. raw: the recipe's text, where there is no file; paths in it are relative to the folder of `path`.
    Raises RecipeError with every problem found, or UsageError when `pick` chooses no step or several.
    """
    doc = parse(raw, COMMAND_LINE) if raw is not None else parse(raw := read(path), str(path))
    sets, froms = list(sets), list(froms)
    for text in sets:
        overrides.apply_set(doc, text)
    _Loader(doc, path).root()
    name = chosen(doc, pick) if pick else None
    for text in below if name else ():
        sets.append(f"steps.{name}.{text}")
        overrides.apply_set(doc, sets[-1])
    if below and (found := secrets.find(doc)):
        raise RecipeError(found)
    if froms and name:
        overrides.apply_from(doc, name, froms, _registry.load(_kind(doc, name)).takes)
    loader = _Loader(doc, path)
    steps = loader.steps(check_unused=not froms)
    said = tuple(f"--set {s}" for s in sets) + tuple(f"--from {r}={v}" for r, v in froms)
    return Recipe(doc.data["recipe"], path.absolute(), raw, steps, said)


def _kind(doc: Document, step: str) -> str:
    body = doc.data["steps"].get(step)
    return (body or {}).get("kind", step) if isinstance(body or {}, dict) else step


def chosen(doc: Document, pick: tuple[str, str | None]) -> str:
    """The one step that a verb means. Raises UsageError, naming the candidates."""
    kind, step = pick
    of_kind = [s for s in doc.data["steps"] if _kind(doc, s) == kind]
    if step is None:
        if len(of_kind) == 1:
            return of_kind[0]
        what = f"the recipe has {len(of_kind)} steps of kind {kind}" if of_kind else f"the recipe has no step of kind {kind}"
        mend = f"name one: {', '.join(of_kind)}" if of_kind else f"its steps are {', '.join(doc.data['steps'])}"
        raise UsageError(what, where=doc.file, mend=mend)
    if step not in of_kind:
        mend = f"steps of kind {kind}: {', '.join(of_kind) or 'none'}"
        raise UsageError(f"`{step}` is no step of kind {kind}", where=doc.file, mend=mend)
    return step


def chosen_in(recipe: Recipe, kind: str, step: str | None) -> str:
    """The step of a loaded recipe that a verb means (the choice was checked by `load`)."""
    return step or next(s.name for s in recipe.steps.values() if s.kind.name == kind)


class _Loader:
    """Holds the document and the problems found so far."""

    def __init__(self, doc: Document, path: Path):
        self.doc, self.folder = doc, path.parent
        self.problems: list[Problem] = []
        self.moved: dict[Where, Where] = {}  # where a `$value` was put → where it came from
        self.labels: dict[Where, str] = {}
        self.used: set[str] = set()
        self.unfilled: set[Where] = set()  # inputs that were left out and could not be chosen

    def fault(self, where: Where, what: str, mend: str | None = None, key: bool = False) -> None:
        for end in range(len(where), 0, -1):
            if where[:end] in self.moved:
                where = self.moved[where[:end]] + where[end:]
                break
        self.problems.append(self.doc.problem(where, what, mend, key))

    def root(self) -> None:
        """The outer shape: what must hold before any step can be looked at."""
        data = self.doc.data
        if data is None or data == {}:
            raise RecipeError([Problem("the recipe is empty", self.doc.file, 1, 1, mend="`slmkit init` writes one to start from")])
        if not isinstance(data, dict):
            raise RecipeError([self.doc.problem((), f"a recipe is a mapping, this is {explain.named(data)}", "begin with `recipe: NAME`")])
        self.problems += secrets.find(self.doc)
        self._name()
        steps = data.get("steps")
        if "steps" not in data:
            near = difflib.get_close_matches("steps", data, 1)
            self.fault((near[0],) if near else (), "`steps` is missing", "`steps:` maps names to steps", key=True)
        elif not isinstance(steps, dict) or not steps:
            self.fault(("steps",), f"`steps` maps names to steps, this is {explain.named(steps)}", key=True)
        else:
            for name, body in steps.items():
                self._step_shape(name, body)
        if self.problems:
            raise RecipeError(self.problems)

    def _name(self) -> None:
        name = self.doc.data.get("recipe")
        if "recipe" not in self.doc.data:
            self.fault((), "`recipe` is missing", "give the recipe a name: `recipe: my-task`")
        elif not isinstance(name, str) or not NAME.match(name):
            self.fault(("recipe",), f"{explain.shown(name)} is no recipe name", "letters, digits, - and _, at most 40")

    def _step_shape(self, name: str, body: Any) -> None:
        where = ("steps", name)
        if not NAME.match(name) or not REFERENCE.match(f"${name}"):
            self.fault(where, f"{explain.shown(name)} is no step name", "a letter, then letters, digits, - and _, at most 40", key=True)
        if body is not None and not isinstance(body, dict):
            self.fault(where, f"a step is a mapping, this is {explain.named(body)}")
            return
        body = body or {}
        kind = body.get("kind", name)
        kinds = list(_registry.locations())
        if not isinstance(kind, str) or kind not in kinds:
            near = difflib.get_close_matches(str(kind), kinds, 1)
            mend = (f"did you mean `{near[0]}`? " if near else "") + f"kinds: {', '.join(kinds)}"
            if "kind" in body:
                self.fault((*where, "kind"), f"unknown kind {explain.shown(kind)}", mend)
            else:
                self.fault(where, f"`{name}` has no `kind`, and its name is no kind", mend, key=True)

    def steps(self, check_unused: bool = True) -> dict[str, StepSpec]:
        done: dict[str, StepSpec | None] = {}
        for name, body in self.doc.data["steps"].items():
            done[name] = self._step(name, dict(body or {}), done)
        for key in self.doc.data:
            if key not in ("recipe", "steps") and key not in self.used and check_unused:
                known = ["recipe", "base", "steps"]
                near = difflib.get_close_matches(key, known, 1)
                mend = f"did you mean `{near[0]}`?" if near and near[0] != key else f"use it as ${key} in a step, or remove it"
                self.fault((key,), f"nothing reads the key `{key}`", mend, key=True)
        if self.problems:
            raise RecipeError(self.problems)
        return {name: replace(spec, inputs=(*spec.inputs, *witnesses.of(spec, done))) for name, spec in done.items()}

    def _step(self, name: str, body: dict, done: dict[str, StepSpec | None]) -> StepSpec | None:
        where = ("steps", name)
        before = len(self.problems)
        kind = _registry.load(body.pop("kind", name))
        self._singular(kind, where, body)
        body = self._substitute(body, where, name, set(kind.takes))
        if expand := kind.hook("expand"):
            body, faults = expand(body, self.folder)
            for fault in faults:
                self.fault((*where, *fault.where), fault.what, fault.mend)
        filled = self._fill(kind, where, body, done)
        how, faults, elsewhere = standing.told(kind.module.Execution, self.folder, body, body.pop("execution", None) or {})
        for fault in faults:
            self.fault((*where, *fault.where), fault.what, fault.mend)
        self.problems += elsewhere
        execution = self._validate(kind.module.Execution, (*where, "execution"), how)
        config = self._validate(kind.module.Config, where, body)
        inputs = tuple(i for role in kind.takes for i in self._inputs(kind, role, where, body, name, done, role in filled))
        if len(self.problems) > before:
            return None
        mark = replace(self.doc.mark(where, key=True), below=lambda keys: self.doc.mark((*where, *keys)))
        return StepSpec(name, kind, config, execution, inputs, mark)

    def _singular(self, kind, where: Where, body: dict) -> None:
        """`model: X` where the kind takes `models: [...]`."""
        for role, takes in kind.takes.items():
            one = role.removesuffix("s")
            if takes.many and one != role and one in body and role not in body:
                body[role] = [body.pop(one)]
                self.moved[(*where, role, 0)] = (*where, one)

    def _substitute(self, value: Any, where: Where, step: str, roles: set[str], seen: tuple[str, ...] = ()) -> Any:
        """Replace `$name` of a top-level value; leave `$step` where an input may stand."""
        if isinstance(value, dict):
            return {k: self._substitute(v, (*where, k), step, roles, seen) for k, v in value.items()}
        if isinstance(value, list):
            return [self._substitute(v, (*where, i), step, roles, seen) for i, v in enumerate(value)]
        match = REFERENCE.match(value) if isinstance(value, str) else None
        if not match:
            return value
        name, data = match[1], self.doc.data
        if name in data["steps"]:
            if where[2] not in roles:
                self.fault(where, f"`{value}` is a step, and `{where[2]}` takes no step", "give a plain value")
            return value
        if name in data and name not in ("recipe", "steps"):
            if name in seen:
                self.fault(where, f"`{value}` goes round in a circle", "give one of the values in full")
                return value
            self.used.add(name)
            self.labels.setdefault(where, name)
            self.moved[where] = (name,)
            return self._substitute(data[name], where, step, roles, (*seen, name))
        known = [*data["steps"], *(k for k in data if k not in ("recipe", "steps"))]
        near = difflib.get_close_matches(name, known, 1)
        self.fault(where, f"`{value}` is neither a step nor a top-level value", _did_you_mean(near, known))
        return value

    def _fill(self, kind, where: Where, body: dict, done: dict) -> set[str]:
        """Left-out inputs: the nearest earlier output of the right type, else the base."""
        filled = set()
        for role, takes in kind.takes.items():
            if role in body or takes.optional:
                continue
            wanted = set(takes.types) | {given for (given, to) in BRIDGES if to in takes.types}
            names = [n for n, s in done.items() if s is not None and s.gives in wanted]
            if names:
                value = f"${names[-1]}"
            elif "model" in takes.types and isinstance(self.doc.data.get("base"), str):
                value = self.doc.data["base"]
                self.used.add("base")
                self.labels[(*where, role, 0) if takes.many and not takes.lone else (*where, role)] = "base"
            elif None in done.values():
                value = "-"  # an earlier step is broken and might have given it: its own problem is enough
                self.unfilled.add((*where, role))
            else:
                self.fault(where, f"`{role}` is missing, and no earlier step gives a {' or '.join(takes.types)}", key=True)
                value = "-"
                self.unfilled.add((*where, role))
            body[role] = [value] if takes.many and not takes.lone else value
            filled.add(role)
        return filled

    def _validate(self, model: type[BaseModel], where: Where, body: Any) -> Any:
        try:
            return model.model_validate(body)
        except ValidationError as e:
            for fault in explain.validation(e, model, where, body):
                self.fault(*fault)
            return None

    def _inputs(self, kind, role, where: Where, body: dict, step: str, done: dict, filled: bool) -> Iterable[InputSpec]:
        value, takes = body.get(role), kind.takes[role]
        if (*where, role) in self.unfilled:
            return
        items = enumerate(value) if takes.many and isinstance(value, list) else [(None, value)]
        for index, item in items:
            place = (*where, role) if index is None else (*where, role, index)
            columns, form = None, None
            if isinstance(item, dict):
                form = takes.form
                columns, item = _columns(item, form or Columns), item.get((form or Columns).KEY)
            if isinstance(item, str):
                found = self._input(takes.by_form() if form else takes, role, item, place, step, done, columns, filled)
                yield from (replace(one, label=columns.get("name") or one.label, form=form) if form else one for one in found)

    def _input(self, takes, role, text: str, place: Where, step: str, done: dict, columns, filled) -> Iterable[InputSpec]:
        mark = self.doc.mark(self.moved.get(place, place))
        match = REFERENCE.match(text)
        if match:
            if self._reference(takes, role, match[1], place, step, done):
                yield InputSpec(role, match[1], match[1], None, columns, mark, filled)
            return
        source = self._source(takes, text, place)
        if source and source.split:
            if columns and columns.get("split"):
                self.fault(place, f"{text} names a split, and `split` does too", "keep one")
            columns = (columns or {}) | {"split": source.split}
        if source:
            yield InputSpec(role, self.labels.get(place), None, source, columns, mark, filled)

    def _reference(self, takes, role: str, name: str, place: Where, step: str, done: dict) -> bool:
        if name == step:
            self.fault(place, f"`${name}` refers to the step itself", "name an earlier step")
        elif name not in self.doc.data["steps"]:
            return False  # said by _substitute
        elif name not in done:
            self.fault(place, f"`${name}` is a later step", f"move `{name}` before `{step}`")
        elif done[name] is not None:
            gives = done[name].gives
            if gives in takes.types or any((gives, t) in BRIDGES for t in takes.types):
                return True
            right = [n for n, s in done.items() if s is not None and s.gives in takes.types]
            mend = f"steps that give a {takes.types[0]}: {', '.join(right)}" if right else None
            self.fault(place, f"`{role}` takes a {' or '.join(takes.types)}, and `${name}` gives a {gives}", mend)
        return False

    def _source(self, takes, text: str, place: Where) -> Source | None:
        if takes.bare and takes.bare(text):
            return Source("bare", text)
        try:
            source = parse_source(text, self.folder)
        except UsageError as e:
            self.fault(place, e.what, e.mend)
            return None
        except (OSError, RuntimeError, ValueError) as e:
            self.fault(place, f"this cannot be a path: {e}")
            return None
        if (source.scheme == "url" or source.files is not None or source.split) and "dataset" not in takes.types:
            what = {"url": "a URL", "path": "a glob", "hf": "a split"}[source.scheme]
            self.fault(place, f"{text}: {what} can only be data, and a {' or '.join(takes.types)} is wanted here")
            return None
        if source.scheme != "path":
            return source
        if source.files is not None:
            if not source.files:
                self.fault(place, f"no file matches {text}", "paths are relative to the recipe; `**` goes down into folders")
                return None
            return source
        if not text or not _exists(source.path):
            beside = source.path.parent
            near = difflib.get_close_matches(source.path.name, [p.name for p in beside.iterdir()] if beside.is_dir() else [], 2)
            mend = f"did you mean {' or '.join(near)}?" if near else "paths are relative to the recipe; a hub name is hf:OWNER/NAME"
            self.fault(place, f"no such file or folder: {text}", mend)
            return None
        given = type_of(source.path, takes.types)
        if given not in takes.types and not any((given, t) in BRIDGES for t in takes.types):
            self.fault(place, f"{text} is a {given}, and a {' or '.join(takes.types)} is wanted here")
            return None
        return source


def _columns(item: dict, said: type[Columns]) -> dict:
    """What is said of data beside its path, without what says nothing; as it was written where it is not valid (which is told elsewhere)."""
    key = said.KEY
    try:
        return said.model_validate({**item, key: "-"}).model_dump(exclude_defaults=True, exclude={key})
    except ValidationError:
        return {k: v for k, v in item.items() if k != key and v is not None}


def _exists(path: Path) -> bool:
    """Is this a folder or a plain file?"""
    try:
        return path.is_dir() or path.is_file()  # pipes and devices have no content to identify
    except OSError:  # a name too long for any file
        return False


def _did_you_mean(near: list[str], known: list[str]) -> str:
    return f"did you mean `${near[0]}`?" if near else f"known: {', '.join('$' + k for k in known)}"
