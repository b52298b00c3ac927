"""A manifest, read as a row of a plan: its config, its execution, and its inputs as they were recorded, found again and checked.

An input that is an artifact is its fingerprint and digest, a path its sha256, a hub repository its commit. What cannot be had as it was is a
`Problem`; nothing else than what was recorded is ever put in its place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from slmkit import hashed, inputs, plan, sources
from slmkit.artifact import fingerprint as fp
from slmkit.artifact.digest import Cache
from slmkit.artifact.manifest import FOLDER, Artifact
from slmkit.artifact.store import Store
from slmkit.errors import CannotRun, RecipeError, SlmkitError, UsageError
from slmkit.inputs import Planned
from slmkit.plan import Row
from slmkit.recipe import overrides
from slmkit.recipe.load import REFERENCE
from slmkit.recipe.located import parse
from slmkit.recipe.lock import Lock
from slmkit.recipe.model import InputSpec
from slmkit.steps import _registry
from slmkit.steps._registry import Kind
from slmkit.steps._teacher import Budget, Teacher

ELSEWHERE = ("trackers", "accelerate")
"""Execution that reaches out of this machine: a rebuild is no run to report, and what an accelerate config came to is in the other keys."""


@dataclass(frozen=True)
class Problem:
    """What keeps a step from being built again here. what: a sentence. input: the role it is about, if any."""

    step: str
    what: str
    input: str | None = None


def row(artifact: Artifact, name: str, store: Store, upstream: dict[str, Row]) -> tuple[Row | None, list[Problem]]:
    """The row that asks for this artifact again. upstream: fingerprint → the row that builds that input anew; others come from where they lie."""
    try:
        kind = kind_of(artifact)
        config, execution = config_of(artifact, kind), execution_of(artifact, kind)
        config = asking_nobody(config, artifact)
    except SlmkitError as e:
        return None, [Problem(name, e.what)]
    planned, problems = [], []
    for said, identity in recorded_inputs(artifact):
        try:
            planned.append(_input(said, identity, kind, artifact, store, upstream))
        except SlmkitError as e:
            if not said.get("witness"):  # a witness was only looked at, and changes nothing of what comes out
                problems.append(Problem(name, f"its input `{said['role']}` ({said['uri']}) {e.what}", said["role"]))
    return (None if problems else plan.asked(name, kind, config, execution, tuple(planned))), problems


def kind_of(artifact: Artifact) -> Kind:
    """Raises CannotRun when it is not installed."""
    if artifact.kind not in _registry.locations():
        raise CannotRun(f"the step kind `{artifact.kind}` is not installed")
    return _registry.load(artifact.kind)


def recorded_inputs(artifact: Artifact) -> list[tuple[dict, dict | None]]:
    """(what the manifest says of an input, what was hashed of it; None of a witness), in order."""
    hashed, taken, out = artifact.manifest["fingerprint_payload"].get("inputs", {}), {}, []
    for said in artifact.manifest["inputs"]:
        if said.get("witness"):
            out.append((said, None))
            continue
        of_role = hashed.get(said["role"])
        number = taken[said["role"]] = taken.get(said["role"], -1) + 1
        several = of_role if isinstance(of_role, list) else [of_role]
        out.append((said, several[number] if number < len(several) else None))
    return out


def config_of(artifact: Artifact, kind: Kind) -> Any:
    """The config that the manifest records, with what is hashed of nothing (bounds, keys' names) from the recipe beside it."""
    recorded = artifact.manifest["fingerprint_payload"]["config"]
    typed = said_by_recipe(artifact, kind)
    if typed is not None and not fp.differences(hashed.of_config(typed, kind), recorded):
        return typed
    return _validated(kind, recorded | _references(artifact, kind), artifact)


def said_by_recipe(artifact: Artifact, kind: Kind) -> Any | None:
    """The config as the recipe that is kept with the artifact asks for it; None where it does not say (a merge on the way, say)."""
    manifest = artifact.manifest
    try:
        doc = parse((artifact.path / FOLDER / "recipe.yaml").read_bytes(), "recipe.yaml")
        for text in manifest.get("overrides", ()):
            if text.startswith("--set "):
                overrides.apply_set(doc, text.removeprefix("--set "))
        body = doc.data["steps"][manifest["name"]] or {}
        body = {k: _substituted(v, doc.data) for k, v in body.items() if k not in ("kind", "execution")}
        return _validated(kind, {k: v for k, v in body.items() if k not in _roles(kind, artifact)} | _references(artifact, kind), artifact)
    except (OSError, KeyError, TypeError, SlmkitError):
        return None


def _roles(kind: Kind, artifact: Artifact) -> set[str]:
    """The input fields that were references, and their short forms."""
    roles = {role for role in kind.takes if any(i["role"] == role for i in artifact.manifest["inputs"])}
    return roles | {r.removesuffix("s") for r in roles}


def _substituted(value: Any, top: dict, depth: int = 0) -> Any:
    if isinstance(value, dict):
        return {k: _substituted(v, top, depth) for k, v in value.items()}
    if isinstance(value, list):
        return [_substituted(v, top, depth) for v in value]
    match = REFERENCE.match(value) if isinstance(value, str) else None
    known = match and match[1] in top and match[1] not in ("recipe", "steps") and depth < 20
    return _substituted(top[match[1]], top, depth + 1) if known else value


def _references(artifact: Artifact, kind: Kind) -> dict[str, Any]:
    """The input fields of the config, as references: what they refer to is given to the step beside it."""
    out: dict[str, Any] = {}
    for said, _ in recorded_inputs(artifact):
        takes = kind.takes.get(said["role"])
        if takes is None:
            continue
        one = {key_of(said, takes): said["uri"], **said["columns"]} if said.get("columns") else said["uri"]
        out[said["role"]] = [*out.get(said["role"], []), one] if takes.many and not _alone(artifact, said["role"]) else one
    return out


def form_of(said: dict, takes: Any) -> type | None:
    """What the mapping given with an input makes of it, such as a task; None where there is none, or it names columns."""
    return takes.form if said.get("columns") else None


def key_of(said: dict, takes: Any) -> str:
    """The key of that mapping under which the input itself stands."""
    form = form_of(said, takes)
    return form.KEY if form else "path"


def _alone(artifact: Artifact, role: str) -> bool:
    return isinstance(artifact.manifest["fingerprint_payload"].get("inputs", {}).get(role), dict)


def _validated(kind: Kind, body: dict, artifact: Artifact) -> Any:
    try:
        return kind.module.Config.model_validate(body)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"])) or "config"
        raise CannotRun(f"this slmkit's `{kind.name}` does not take its config: `{where}`: {first['msg']}", where=artifact.path) from None


def execution_of(artifact: Artifact, kind: Kind) -> Any:
    """How it ran, on this machine alone. Raises CannotRun."""
    body = {k: v for k, v in artifact.manifest["execution"].items() if k not in ELSEWHERE}
    try:
        return kind.module.Execution.model_validate(body)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CannotRun(f"this slmkit's `{kind.name}` does not take its `execution.{where}`: {first['msg']}", where=artifact.path) from None


def asking_nobody(config: Any, artifact: Artifact) -> Any:
    """The config with every teacher behind an endpoint out of reach: no key, and a budget that no request fits into. Answers that a ledger
    holds need neither. Raises CannotRun for a teacher whose answers no ledger keeps."""
    if isinstance(config, dict):
        return {k: asking_nobody(v, artifact) for k, v in config.items()}
    if not isinstance(config, BaseModel):
        return [asking_nobody(c, artifact) for c in config] if isinstance(config, list) else config
    if isinstance(config, Teacher) and "budget" in type(config).model_fields:  # one with a purse of its own
        return config.model_copy(update={"api_key_env": None, "budget": Budget(tokens=1)})
    changes = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Teacher) and "budget" not in type(value).model_fields:
            if "budget" not in type(config).model_fields:
                raise CannotRun(f"its teacher {value.model} at {value.base_url} would be asked again, and a rebuild asks nobody", where=artifact.path)
            changes |= {name: value.model_copy(update={"api_key_env": None}), "budget": Budget(tokens=1)}
        elif isinstance(value, BaseModel | list | dict) and (below := asking_nobody(value, artifact)) != value:
            changes[name] = below
    return config.model_copy(update=changes) if changes else config


def asks(config: Any) -> bool:
    """Is there a teacher behind an endpoint in this config?"""
    if isinstance(config, Teacher):
        return True
    if isinstance(config, BaseModel):
        return any(asks(getattr(config, n)) for n in type(config).model_fields)
    values = config if isinstance(config, list) else config.values() if isinstance(config, dict) else []
    return any(asks(v) for v in values)


def _input(said: dict, identity: dict | None, kind: Kind, artifact: Artifact, store: Store, upstream: dict[str, Row]) -> Planned:
    takes = (kind.takes | kind.witnesses)[said["role"]]
    common = {"columns": said.get("columns"), "witness": bool(said.get("witness")), "form": form_of(said, takes)}
    known = said.get("fingerprint")
    if known and known in upstream:
        made = upstream[known]
        return Planned(said["role"], said["name"], said["type"], said["uri"], identity or {}, step=made.name, fingerprint=known, **common)
    if known:
        found = lookup(store, artifact, known)
        if found is None:
            raise CannotRun("is not in the store any more")
        if found.digest != said["digest"]:
            raise CannotRun(f"was built anew since, and came out different: digest {found.digest[:12]}, {said['digest'][:12]} was consumed"
                            " (--deep builds it again, too)")  # fmt: skip
        return Planned(said["role"], said["name"], said["type"], said["uri"], identity or {}, path=found.path, fingerprint=known,
                       digest=found.digest, **common)  # fmt: skip
    return _from_outside(said, identity, takes, artifact, store)


def lookup(store: Store, artifact: Artifact, fingerprint: str) -> Artifact | None:
    """An artifact's input, in the store or beside the artifact itself."""
    near = Store(artifact.path.resolve().parent)
    return store.by_fingerprint(fingerprint) or (near.by_fingerprint(fingerprint) if near.root != store.root else None)


def _from_outside(said: dict, identity: dict | None, takes: Any, artifact: Artifact, store: Store) -> Planned:
    """An input that no step made: looked for where it was, by the same code that planned it, and compared with what was hashed then."""
    bare = takes.bare and not said.get("digest") and not said.get("revision") and takes.bare(said["uri"])
    source = sources.Source("bare", said["uri"]) if bare else sources.parse(said["uri"], Path("/"))
    if source.scheme == "path" and not source.files and not source.path.exists():
        raise CannotRun(f"is gone: sha256 {said['digest']} is wanted there")
    form = form_of(said, takes)
    spec = InputSpec(said["role"], said["name"], None, source, said.get("columns"), inputs.NOWHERE, witness=bool(said.get("witness")), form=form)
    try:
        found = inputs.of_source(spec, takes.by_form() if form else takes, Lock(Path("/nonexistent.lock.json"), frozen=True), store, Cache(None))
    except RecipeError as e:
        raise CannotRun(f"cannot be read: {e.problems[0].what}") from None
    except UsageError as e:
        raise CannotRun(f"cannot be read: {e.what}") from None
    if said.get("digest") and found.digest != said["digest"]:
        raise CannotRun(f"changed: its sha256 is {(found.digest or 'none')[:12]}, {said['digest'][:12]} was consumed")
    if identity is not None and (moved := fp.differences(identity, found.identity)):
        where, before, now = moved[0]
        raise CannotRun(f"is another one now: {where} {before} → {now}")
    return replace(found, witness=bool(said.get("witness")))
