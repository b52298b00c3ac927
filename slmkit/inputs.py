"""An input of a step, planned: what it is, where it comes from, and the identity that goes into the fingerprint.

Identity follows content: an artifact is its fingerprint, a hub repository its commit, a path its sha256, a built-in name itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from slmkit import remote, sources
from slmkit.artifact import manifest
from slmkit.artifact.digest import Cache
from slmkit.artifact.store import Store
from slmkit.errors import InputChanged, RecipeError, SlmkitError, StoreError, UsageError
from slmkit.recipe.located import Mark
from slmkit.recipe.lock import Lock
from slmkit.recipe.model import InputSpec
from slmkit.sources import Source
from slmkit.steps._registry import Kind
from slmkit.steps._step import Columns, Given, Takes


@dataclass(frozen=True)
class Planned:
    """role, name, type, uri as in Given. step: the row that makes it, else None. fingerprint: of artifacts.

    digest: sha256 of the content where it is known before the run. base: of a plain adapter folder, the model below it.
    witness: checked against, no part of what comes out.
    format: of a dataset that is here, how its rows are written, as far as its head tells.
    """

    role: str
    name: str
    type: str
    uri: str
    identity: dict
    step: str | None = None
    path: Path | None = None
    files: tuple[Path, ...] | None = None
    fingerprint: str | None = None
    digest: str | None = None
    revision: str | None = None
    columns: dict | None = None
    base: Planned | None = None
    filled: bool = False
    witness: bool = False
    format: str | None = None
    form: type | None = None

    def said(self, **changes):
        """The mapping given with it, as its class reads it; None where there is none."""
        said = self.form or Columns
        return said(**{said.KEY: self.uri} | self.columns | changes) if self.columns else None

    def check_unchanged(self) -> None:
        """Hash a path again, in full. Raises InputChanged."""
        if self.path is None or self.digest is None or self.step or self.fingerprint:
            return
        try:
            now = sources.content(self.path, list(self.files) if self.files else None)
        except FileNotFoundError as e:
            raise InputChanged(f"`{self.role}` is gone: {e.filename}", where=self.path, mend="put it back, or plan anew") from None
        if now != self.digest:
            mend = "run the same command again: it starts from what is there now"
            raise InputChanged(f"`{self.role}` changed while the step was running", where=self.path, mend=mend)


def of_step(spec: InputSpec, takes: Takes, step: str, type_: str, fingerprint: str, folder: str) -> Planned:
    """An input made by an earlier step of the plan."""
    identity = {"type": type_, "fingerprint": fingerprint} | _extra(spec, takes, spec.label)
    return Planned(spec.role, spec.label, type_, f"artifact:{folder}", identity, step=step, fingerprint=fingerprint,
                   columns=spec.columns, filled=spec.filled, witness=spec.witness, form=spec.form)


def of_source(spec: InputSpec, takes: Takes, lock: Lock, store: Store, cache: Cache) -> Planned:
    """An input from outside the recipe. Raises RecipeError at the place where it was written."""
    try:
        return _of_source(spec, takes, lock, store, cache)
    except UsageError as e:
        raise RecipeError([spec.mark.problem(e.what, e.mend)]) from None
    except OSError as e:
        raise RecipeError([spec.mark.problem(f"cannot read {e.filename or spec.source.text}: {e.strerror or e}")]) from None
    except UnicodeError as e:
        raise RecipeError([spec.mark.problem(f"a file name in {spec.source.text} is not UTF-8: {e}", "rename it")]) from None


def _of_source(spec: InputSpec, takes: Takes, lock: Lock, store: Store, cache: Cache) -> Planned:
    source, label = spec.source, spec.label
    common = {"columns": spec.columns, "filled": spec.filled, "witness": spec.witness, "form": spec.form}
    if source.scheme == "bare":
        return Planned(spec.role, source.text, takes.types[0], source.text, {"type": takes.types[0], "name": source.text}, **common)
    if source.scheme == "artifact" or sources.artifact_folder(source.path):
        found = _named(source, store) if source.scheme == "artifact" else manifest.load(source.path.resolve())
        label = label or found.name
        identity = {"type": found.type, "fingerprint": found.fingerprint} | _extra(spec, takes, label)
        return Planned(spec.role, label, found.type, f"artifact:{found.path.name}", identity, path=found.path,
                       fingerprint=found.fingerprint, digest=found.digest, format=_format(found.type, found.path, None, spec), **common)
    if source.scheme == "hf":
        label, type_ = label or source.repo.rpartition("/")[2], takes.types[0]
        commit = lock.commit(source, spec.mark, "dataset" if type_ == "dataset" else "model")
        identity = {"type": type_, "hub": source.repo, "commit": commit} | _extra(spec, takes, label)
        return Planned(spec.role, label, type_, f"hf:{source.repo}@{commit}", identity, revision=commit, **common)
    if source.scheme == "url":
        source = remote.fetched(source)
    return _of_path(replace(spec, source=source), takes, lock, store, cache)


def _named(source: Source, store: Store) -> manifest.Artifact:
    """An `artifact:` reference: a path from the recipe's folder, else a name in the store."""
    return manifest.load(source.path.resolve()) if sources.artifact_folder(source.path) else store.resolve(source.ref)


def _of_path(spec: InputSpec, takes: Takes, lock: Lock, store: Store, cache: Cache) -> Planned:
    source, path = spec.source, spec.source.path
    files = tuple(takes.files(path)) if takes.files else source.files
    digest = sources.content(path, list(files) if files else None, cache)
    type_ = sources.type_of(path, takes.types)
    label = spec.label or (source.text.removeprefix("demo:") if source.scheme == "demo" else type_)
    identity = {"type": type_, "sha256": digest} | _extra(spec, takes, label)
    base = _base(spec, path, lock, store, cache) if type_ == "adapter" else None
    if base:
        identity["base"] = base.identity
    uri = source.text if source.scheme in ("demo", "url") else str(path)
    return Planned(spec.role, label, type_, uri, identity, path=path, files=files, digest=digest, columns=spec.columns, base=base,
                   filled=spec.filled, witness=spec.witness, form=spec.form, format=_format(type_, path, source.files, spec))


def _format(type_: str, path: Path, files: tuple[Path, ...] | None, spec: InputSpec) -> str | None:
    if type_ != "dataset" or spec.form:
        return None
    from slmkit.data import read

    return read.format_of(path, files, Columns(path="", **spec.columns) if spec.columns else None)


def _extra(spec: InputSpec, takes: Takes, label: str) -> dict:
    """What else is identity: the column mapping, and the label where results are keyed by it."""
    return ({"columns": spec.columns} if spec.columns else {}) | ({"name": label} if takes.named else {})


def _base(spec: InputSpec, adapter: Path, lock: Lock, store: Store, cache: Cache) -> Planned:
    """The base of an adapter folder that slmkit did not make, as its adapter_config.json names it."""
    try:
        config = json.loads((adapter / "adapter_config.json").read_text())
        name = config.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as e:
        raise UsageError(f"the adapter_config.json of {adapter.name} cannot be read: {e}") from None
    if not name:
        raise UsageError(f"{adapter.name} does not name its base model", mend="set base_model_name_or_path in its adapter_config.json")
    local = (adapter / name).exists()
    text = str(adapter / name) if local else f"hf:{name}" + (f"@{config['revision']}" if config.get("revision") else "")
    source = sources.parse(text, adapter)
    below = InputSpec("model", "base", None, source, None, spec.mark)
    return of_source(below, Takes("model"), lock, store, cache)


def given(planned: Planned, store: Store, made: dict[str, manifest.Artifact], weights: bool = True) -> Given:
    """Make an input ready on this machine: fetch, verify every byte, and find an adapter's base. Raises SlmkitError.

    Without `weights` a model of the hub comes without them: its config and tokenizer are all that is looked at.
    """
    columns = planned.said()
    plain = Given(planned.role, planned.name, planned.type, planned.uri, planned.path, planned.digest, planned.revision, columns=columns)
    if planned.step or planned.fingerprint:
        artifact = made.get(planned.step) if planned.step else manifest.load(planned.path)
        return replace(_given_artifact(planned.role, planned.name, artifact, store), columns=columns)
    if planned.revision:
        if planned.type == "dataset":
            path, files = sources.fetch_data(plain.hub[0], planned.revision, columns.split if columns else None)
            return replace(plain, path=path, files=files, columns=columns and columns.model_copy(update={"split": None}))
        wanted = None if weights or planned.type not in ("model", "adapter") else sources.SMALL_FILES
        return replace(plain, path=sources.fetch_hub(plain.hub[0], planned.revision, wanted=wanted))
    planned.check_unchanged()
    base = given(planned.base, store, made) if planned.base else None
    return replace(plain, base=base, files=planned.files)


def seen(planned: Planned) -> Given:
    """A planned input as a step would get it, as far as it is here already: for looking, not for work."""
    columns = planned.said()
    path = planned.path if not planned.step else None
    return Given(planned.role, planned.name, planned.type, planned.uri, path, planned.digest, planned.revision, columns=columns, files=planned.files)


def by_role(kind: Kind, ready: list[Given]) -> dict[str, Given | tuple[Given, ...] | None]:
    """Inputs as a step receives them: a tuple where the kind takes many, None for what was left out."""
    takes = kind.module.TAKES
    out: dict = {role: () if takes[role].many else None for role in takes}
    for one in ready:
        out[one.role] = (*out[one.role], one) if takes[one.role].many else one
    return out


def _given_artifact(role: str, name: str, artifact: manifest.Artifact, store: Store) -> Given:
    faults = artifact.faults()
    if faults:
        mend = f"remove that folder, and the same command builds it again (`slmkit verify {artifact.path.name}` shows all)"
        raise StoreError(f"`{role}` is not what its manifest says: {'; '.join(faults[:3])}", where=artifact.path, mend=mend)
    base = _recorded_base(artifact, store) if artifact.type == "adapter" else None
    uri = f"artifact:{artifact.path.name}"
    return Given(role, name, artifact.type, uri, artifact.path, artifact.digest, None, artifact.manifest, base)


def _recorded_base(adapter: manifest.Artifact, store: Store) -> Given:
    """The model an adapter of ours was trained on, found again by what its manifest recorded."""
    said = next((i for i in adapter.manifest["inputs"] if i["role"] == "model"), None)
    if said is None:
        raise StoreError("its manifest names no base model", where=adapter.path)
    if said.get("fingerprint"):
        found = store.by_fingerprint(said["fingerprint"]) or _beside(adapter.path, said["fingerprint"])
        if found is None:
            raise StoreError(f"the adapter's base {said['uri']} is not in the store", where=adapter.path, mend="build it again, or use its store")
        if found.type == "adapter":  # written anew by export: on the same base
            return _recorded_base(found, store)
        return _given_artifact("model", said["name"], found, store)
    if said["type"] == "adapter":
        raise StoreError(f"its base is that of {said['uri']}, which is no artifact", where=adapter.path, mend="give that adapter itself")
    if said.get("revision"):
        repo = said["uri"][3:].partition("@")[0]
        path = sources.fetch_hub(repo, said["revision"])
        return Given("model", said["name"], "model", said["uri"], path, None, said["revision"])
    try:
        path = sources.parse(said["uri"], Path("/")).path
        now = sources.content(path)
    except (FileNotFoundError, NotADirectoryError, SlmkitError):
        now, path = None, Path(said["uri"])
    if now != said["digest"]:
        what = f"the adapter's base is {'no longer there' if now is None else 'another model now'}"
        raise StoreError(what, where=path, mend="put the base back as it was when the adapter was trained")
    return Given("model", said["name"], "model", said["uri"], path, now)


def _beside(path: Path, fingerprint: str) -> manifest.Artifact | None:
    """Look in the store that an artifact lies in, which may be another than the one in use."""
    return Store(path.resolve().parent).by_fingerprint(fingerprint)


NOWHERE = Mark("", 0, 0)
