"""A recipe written out of manifests: a chain as it was asked for, with every default, every input from outside named once at the top.

It asks for the same fingerprints as the recipe that the chain came from, wherever the inputs lie: `--set data.path=…` puts one elsewhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slmkit import plan
from slmkit.artifact.manifest import Artifact
from slmkit.artifact.store import Store
from slmkit.errors import CannotRun, SlmkitError
from slmkit.rebuild import recorded
from slmkit.recipe.load import load
from slmkit.recipe.lock import Lock


@dataclass(frozen=True)
class Outside:
    """An input that no step made: its name in the written recipe, and what it must hold. key: what --set changes to put it elsewhere."""

    label: str
    key: str
    type: str
    uri: str
    digest: str | None
    revision: str | None
    bytes: int | None

    @property
    def at_hand(self) -> bool:
        """Is it a file or folder of the user's, which has to be brought along?"""
        return not self.uri.startswith(("demo:", "hf:")) and "://" not in self.uri and self.digest is not None


@dataclass(frozen=True)
class Written:
    """A recipe's text, and what it needs from outside."""

    text: str
    outside: tuple[Outside, ...]

    def moved(self, folder: Path, chain: dict[str, Artifact]) -> list[str]:
        """Steps that this recipe would ask for otherwise than they were, as `step: what`; looked at where the inputs lie now. A sentence of
        its own where they are not here."""
        try:
            loaded = load(folder / "recipe.yaml", raw=self.text.encode())
            rows = {r.name: r for r in plan.make(loaded, Store(folder / "artifacts"), Lock(loaded.lock_path, frozen=True)).rows}
        except SlmkitError as e:
            return [f"not checked here: {e.what.splitlines()[0]}"]
        out = []
        for name, artifact in chain.items():
            row = rows.get(name)
            if row is None or row.fingerprint != artifact.fingerprint:
                why = plan.reasons(artifact.manifest["fingerprint_payload"], row) if row else ("it is not in the recipe",)
                out.append(f"{name}: {'; '.join(why)}")
        return out


def recipe(chain: dict[str, Artifact]) -> Written:
    """The recipe of a chain (by name, the root first), and its inputs from outside."""
    steps: dict[str, dict] = {}
    names = {artifact.fingerprint: name for name, artifact in chain.items()}
    outside: dict[tuple, Outside] = {}
    values: dict[str, Any] = {}
    for step, artifact in chain.items():
        kind = recorded.kind_of(artifact)
        config, execution = _quiet(recorded.config_of(artifact, kind), artifact), recorded.execution_of(artifact, kind)
        given = {i["role"] for i in artifact.manifest["inputs"]}
        body: dict[str, Any] = {"kind": kind.name}
        for role, takes in kind.takes.items():
            told = [_value(said, names, outside, values, takes) for said, _ in recorded.recorded_inputs(artifact) if said["role"] == role]
            if told:
                alone = isinstance(artifact.manifest["fingerprint_payload"]["inputs"].get(role), dict)
                body[role] = told[0] if alone else told
        body |= {k: v for k, v in config.model_dump(mode="json", exclude=given).items() if v is not None}
        how = execution.model_dump(mode="json", exclude_defaults=True)
        steps[step] = body | ({"execution": how} if how else {})
    target = list(chain.values())[-1]
    head = "".join([
        f"# {target.manifest['recipe']}/{target.name} as it was asked for, written by `slmkit reproduce` from its manifests: every default is\n",
        f"# written out. It gives {target.path.name}, digest {target.digest}.\n", *(_comment(o) for o in outside.values()),
    ])  # fmt: skip
    whole = {"recipe": target.manifest["recipe"], **values, "steps": steps}
    return Written(head + yaml.safe_dump(whole, sort_keys=False, allow_unicode=True, width=140), tuple(outside.values()))


def _quiet(config: Any, artifact: Artifact) -> Any:
    """With teachers out of reach, whose answers a ledger holds: nobody pays again by accident. One whose answers no ledger keeps has to be asked."""
    try:
        return recorded.asking_nobody(config, artifact)
    except CannotRun:
        return config


def _comment(one: Outside) -> str:
    held = f"sha256 {one.digest}" if one.digest else f"commit {one.revision}"
    return f"# ${one.label}: {one.uri}, {held}\n"


def _value(said: dict, names: dict[str, str], outside: dict[tuple, Outside], values: dict[str, Any], takes: Any) -> Any:
    """How the recipe names an input: a step, a name at the top, or (a built-in task) itself."""
    if said.get("fingerprint") in names:
        step = f"${names[said['fingerprint']]}"
        return {recorded.key_of(said, takes): step, **said["columns"]} if said.get("columns") else step
    if not said.get("digest") and not said.get("revision"):
        return said["uri"]
    known = (said["name"], said["uri"], str(said.get("columns")))
    if known not in outside:
        taken = {*values, *names.values(), "recipe", "steps"}
        label = _label(said["name"] or said["role"], taken)
        columns, key = said.get("columns"), recorded.key_of(said, takes)
        values[label] = {key: said["uri"], **columns} if columns else said["uri"]
        outside[known] = Outside(label, f"{label}.{key}" if columns else label, said["type"], said["uri"], said.get("digest"), said.get("revision"),
                                 said.get("bytes"))  # fmt: skip
    return f"${outside[known].label}"


def _label(name: str, taken: set[str]) -> str:
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:40]
    plain = plain if re.match(r"[A-Za-z_]", plain) else f"input-{plain}"
    return next(n for n in (plain, *(f"{plain}-{i}" for i in range(2, 10_000))) if n not in taken)
