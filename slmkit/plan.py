"""Recipe × Lock × Store → Plan: for every step its fingerprint, what will happen (cached, build, resume, stale, blocked), and why.

The fingerprint of a whole chain is known before anything runs, because an artifact input is identified by its own fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from slmkit import hashed, inputs
from slmkit.artifact import fingerprint as fp
from slmkit.artifact.digest import Cache
from slmkit.artifact.manifest import Artifact
from slmkit.artifact.provenance import version
from slmkit.artifact.store import Store
from slmkit.errors import RecipeError
from slmkit.inputs import Planned
from slmkit.recipe.load import BRIDGES
from slmkit.recipe.located import Mark
from slmkit.recipe.lock import Lock
from slmkit.recipe.model import InputSpec, Recipe, StepSpec
from slmkit.steps import _registry
from slmkit.steps._estimate import Size, weights
from slmkit.steps._registry import Kind
from slmkit.steps._step import NAME


@dataclass(frozen=True)
class Row:
    """One step of the plan. `payload` is what was hashed into `fingerprint`; `why` are reasons in the user's fields."""

    name: str
    kind: Kind
    config: Any
    execution: Any
    inputs: tuple[Planned, ...]
    payload: dict
    fingerprint: str
    gives: str
    action: str
    why: tuple[str, ...]
    estimating: Callable[[], dict] = field(default=dict, compare=False)
    mark: Mark | None = None

    @cached_property
    def estimate(self) -> dict:
        """What it will take; found out when it is asked for, since it may read all prompts and a ledger."""
        return self.estimating()

    @property
    def folder(self) -> str:
        return f"{self.kind.name}-{self.fingerprint[:12]}"


@dataclass(frozen=True)
class Plan:
    """Frozen, ordered rows; the last row that was asked for is `target`."""

    recipe: Recipe
    rows: tuple[Row, ...]
    target: str


def make(recipe: Recipe, store: Store, lock: Lock, target: str | None = None) -> Plan:
    """Plan a recipe, or only what the step `target` needs. Raises RecipeError, CannotRun (a hub name without a network)."""
    wanted = _closure(recipe, target)
    cache = Cache(store.works / "digests.json")
    planner = _Planner(recipe, store, lock, cache)
    for name, spec in recipe.steps.items():
        if name in wanted:
            planner.add(spec)
    cache.save()
    if planner.problems:
        raise RecipeError(list(dict.fromkeys(planner.problems)))  # a task's fault is met by its eval and by each step that looks at it
    return Plan(recipe, tuple(planner.rows.values()), target or list(recipe.steps)[-1])


def _closure(recipe: Recipe, target: str | None) -> set[str]:
    if target is None:
        return set(recipe.steps)
    wanted, waiting = set(), [target]
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting += [i.step for i in recipe.steps[name].inputs if i.step]
    return wanted


class _Planner:
    def __init__(self, recipe: Recipe, store: Store, lock: Lock, cache: Cache):
        self.recipe, self.store, self.lock, self.cache = recipe, store, lock, cache
        self.rows: dict[str, Row] = {}
        self.problems: list = []

    def add(self, spec: StepSpec) -> None:
        planned = []
        for one in spec.inputs:
            try:
                planned.append(self._input(spec, one))
            except RecipeError as e:
                self.problems += e.problems
        if len(planned) == len(spec.inputs) and not self.problems:
            try:
                self._row(spec.name, spec.kind, spec.config, spec.execution, tuple(planned), spec.mark)
            except RecipeError as e:
                self.problems += e.problems

    def _input(self, spec: StepSpec, one: InputSpec) -> Planned:
        takes = one.takes(spec.kind.module.TAKES[one.role])
        if one.step:
            made = self.rows.get(one.step)
            if made is None:
                raise RecipeError([])
            planned = inputs.of_step(one, takes, one.step, made.gives, made.fingerprint, made.folder)
        else:
            planned = inputs.of_source(one, takes, self.lock, self.store, self.cache)
        types = takes.narrow(spec.config) if takes.narrow else takes.types
        if planned.type in types:
            return planned
        bridge = next((BRIDGES[planned.type, t] for t in types if (planned.type, t) in BRIDGES), None)
        if bridge is None:
            here = " here" if takes.narrow else ""
            what = f"`{one.role}` takes {'an' if types[0][0] in 'aeiou' else 'a'} {' or '.join(types)}{here}, and {planned.uri} is a {planned.type}"
            raise RecipeError([one.mark.problem(what)])
        return self._bridged(bridge, spec, one, takes, planned)

    def _bridged(self, bridge: str, spec: StepSpec, one: InputSpec, takes, planned: Planned) -> Planned:
        """Put a step of its own between an adapter and what wants a model."""
        name = f"{planned.step or planned.name}-{bridge}"
        kind = _registry.load(bridge)
        role = next(iter(kind.takes))
        config = kind.module.Config.model_validate({role: f"${planned.step}" if planned.step else planned.uri})
        if (known := self.rows.get(name)) and [i.identity for i in known.inputs if not i.witness] != [hashed.unnamed(planned)]:
            name = next(n for i in range(2, 1000) if (n := f"{name}-{i}") not in self.rows)
        if name in self.recipe.steps:
            mend = f"name it in `{one.role}:` if it is meant, or rename it"
            raise RecipeError([one.mark.problem(f"an adapter is merged on the way as step `{name}`, and the recipe has one of that name", mend)])
        below = replace(planned, role=role, identity=hashed.unnamed(planned))
        looked_at = tuple(self._input(spec, w) for w in spec.inputs if w.witness and w.role in kind.witnesses)
        row = self.rows.get(name) or self._row(name, kind, config, kind.module.Execution(), (below, *looked_at), one.mark)
        label = InputSpec(one.role, one.label or planned.name, name, None, one.columns, one.mark, one.filled)
        return inputs.of_step(label, takes, name, row.gives, row.fingerprint, row.folder)

    def _row(self, name: str, kind: Kind, config, execution, planned: tuple[Planned, ...], mark: Mark) -> Row:
        try:
            row = asked(name, kind, config, execution, planned, mark)
        except ValueError as e:  # an integer that JSON cannot hold
            raise RecipeError([mark.problem(f"{name}: {e}")]) from None
        action, why = self._action(row)
        row = replace(row, action=action, why=why)
        if action != "cached" and (refuse := kind.hook("refuse")) and (problems := refuse(config, self._sizes(planned))):
            raise RecipeError([p if p.file or mark is None else mark.problem(f"{name}: {p.what}", p.mend) for p in problems])
        row = replace(row, estimating=partial(self._estimate, row))
        self.rows[name] = row
        return row

    def _action(self, row: Row) -> tuple[str, tuple[str, ...]]:
        found = self.store.find(row.kind.name, row.fingerprint)
        if found:
            digests = {i.step: self._digest(i) for i in row.inputs if i.step}
            stale = no_hit(found, row, digests)
            return ("stale", stale) if stale else ("cached", ())
        upstream = [i.step for i in row.inputs if i.step and self.rows[i.step].action == "blocked"]
        if upstream:
            return "blocked", (f"`{upstream[0]}` is blocked",)
        blocked = row.kind.hook("blocked")
        reason = blocked(row.config, row.execution) if blocked else None
        if reason:
            return "blocked", (reason.replace(NAME, row.name),)
        before = self.store.ref(self.recipe.name, row.name)
        why = reasons(before.manifest["fingerprint_payload"], row) if before and before.kind == row.kind.name else ("never built",)
        if self.store.place(row.kind.name, row.fingerprint).exists():
            why = ("its folder lacks files, or its manifest cannot be read",)
        state = self.store.work(row.kind.name, row.fingerprint) / "state"
        if state.is_dir() and any(state.iterdir()):
            return "resume", ("an earlier attempt left its state", *(() if why == ("never built",) else why))
        return ("build" if why == ("never built",) else "stale"), why

    def _estimate(self, row: Row) -> dict:
        """What the step will take, by the kind's own hooks; of a teacher, less what the store's ledgers hold."""
        estimate, forecast = row.kind.hook("estimate"), row.kind.hook("forecast")
        said = _named(row.name, estimate(row.config, row.execution, self._sizes(row.inputs))) if estimate else {}
        if forecast is None or row.action in ("cached", "blocked"):
            return said
        given = inputs.by_role(row.kind, [inputs.seen(i) for i in row.inputs])
        state = self.store.work(row.kind.name, row.fingerprint) / "state"
        return said | forecast(row.config, row.execution, given, self.store.ledgers, state)

    def _sizes(self, planned: tuple[Planned, ...]) -> dict[str, tuple[Size, ...]]:
        """What is known of each role's inputs; of a step not built yet, the weights that it will start from."""
        out: dict[str, tuple[Size, ...]] = {}
        for one in planned:
            out[one.role] = (*out.get(one.role, ()), self._size(one))
        return out

    def _size(self, one: Planned) -> Size:
        if one.step:
            made = self.rows[one.step]
            place = self.store.place(made.kind.name, made.fingerprint)
            if made.gives == "dataset":
                rows = place / "train.jsonl"
                return Size(path=rows, columns=one.said()) if rows.is_file() else Size()
            if place.is_dir() and made.gives != "adapter":
                return weights(place)
            below = next((i for i in made.inputs if i.type in ("model", "adapter")), None)
            return self._size(below) if below else Size()
        if one.path is None:
            return Size()
        if one.type == "dataset":
            return Size(path=one.path, files=one.files, columns=one.said())
        if one.files:
            return Size(bytes=sum(f.stat().st_size for f in one.files), path=one.path if one.type == "task" else None)
        if one.path.is_dir():
            return weights(one.path)
        return Size(bytes=one.path.stat().st_size, path=one.path)

    def _digest(self, planned: Planned) -> str | None:
        made = self.rows[planned.step]
        found = self.store.find(made.kind.name, made.fingerprint)
        return found.digest if found else None


def asked(name: str, kind: Kind, config: Any, execution: Any, planned: tuple[Planned, ...], mark: Mark | None = None) -> Row:
    """A row with the fingerprint of what it asks for, before any store has been looked at. Raises ValueError for what JSON cannot hold."""
    pins = {p: version(p) for p in kind.pins}
    payload = fp.payload(kind.name, kind.version, hashed.of_config(config, kind), hashed.of_inputs(kind, planned, mark), pins)
    return Row(name, kind, config, execution, planned, payload, fp.fingerprint(payload), kind.gives(config), "build", (), mark=mark)


def _named(name: str, said: dict) -> dict:
    """The estimate with the step's name where its texts leave room for one."""
    return {k: v.replace(NAME, name) if isinstance(v, str) else v for k, v in said.items()}


def no_hit(found: Artifact, row: Row, digests: dict[str, str | None]) -> tuple[str, ...]:
    """Reasons why an artifact of the right fingerprint is no hit: it consumed other bytes than its inputs hold now, or is outside a bound that is
    asked for now (bounds are not hashed)."""
    out = []
    recorded = {i["fingerprint"]: i["digest"] for i in found.manifest["inputs"] if i.get("fingerprint")}
    for planned in row.inputs:
        if planned.witness:
            continue
        now = digests.get(planned.step) if planned.step else planned.digest if planned.fingerprint else None
        before = recorded.get(planned.fingerprint)
        if now is not None and before is not None and now != before:
            out.append(f"`{planned.name}` was rebuilt and came out different")
    unmet = row.kind.hook("unmet")
    return (*out, *(unmet(row.config, found.manifest["result"]) if unmet else ()))


def reasons(old: dict, row: Row) -> tuple[str, ...]:
    """What changed since the artifact that the name stands for: `lora.r 8 → 16`, `data changed (train.jsonl)`."""
    out = []
    for where, before, after in fp.differences(old, row.payload):
        area, _, path = where.partition(".")
        if area == "config":
            out.append(f"{path} {_short(before)} → {_short(after)}")
        elif area == "inputs":
            role = path.partition(".")[0].partition("[")[0]
            names = ", ".join(i.name for i in row.inputs if i.role == role)
            out.append(f"{role} changed ({names})" if names else f"{role} is no longer given")
        elif area == "pins":
            out.append(f"{path} {before} → {after}")
        else:
            out.append(f"{area} {_short(before)} → {_short(after)}")
    return tuple(dict.fromkeys(out)) or ("its folder is gone or lacks files",)


def _short(value: Any) -> str:
    text = {None: "none", True: "true", False: "false"}.get(value, str(value)) if isinstance(value, (bool, type(None))) else str(value)
    return text if len(text) <= 40 else text[:37] + "…"
