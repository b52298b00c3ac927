"""The verbs that look and change nothing: show, ls, diff, verify, schema. Their answer goes to stdout."""

from __future__ import annotations

import json as js
from pathlib import Path
from typing import Annotated

import typer

from slmkit.cli import out
from slmkit.cli.verbs import STORE, JsonOpt, QuietOpt, StoreOpt

RefArg = Annotated[str, typer.Argument(metavar="REF", help="A path, recipe/step, folder name, or the first digits of a fingerprint.")]


def show(ref: RefArg, store: StoreOpt = STORE, json: JsonOpt = False) -> None:
    """Show an artifact: what was asked, from what, what came out, how it went.

    \b
      slmkit show banking/int4
      slmkit show artifacts/train-79ba67d04f54 --json | jq .result
    """
    artifact = _resolve(store, ref)
    if json:
        return out.show(js.dumps(artifact.manifest | {"path": str(artifact.path)}, ensure_ascii=False))
    m = artifact.manifest
    lines = [
        f"{m['recipe']}/{m['name']}: a {m['type']} by {m['kind']}",
        f"  path         {artifact.path}",
        f"  fingerprint  {m['fingerprint']}",
        f"  digest       {m['outputs']['digest']}",
        f"  made         {m['run']['finished']} in {m['run']['seconds']} s, attempt {m['run']['attempts']}",
        f"  determinism  {m['determinism']['claimed']}, seed {m['determinism']['seed']}",
    ]
    lines += [f"  input        {i['role']} = {i['name']} ({i['uri']})" for i in m["inputs"]]
    lines += [f"  config       {k} = {v}" for k, v in _flat(m["config"])]
    lines += [f"  result       {k} = {_number(v)}" for k, v in _flat(m["result"])]
    lines += [f"  file         {f['path']}  {f['bytes']:,} bytes" for f in m["outputs"]["files"]]
    out.show("\n".join(lines))


def ls(store: StoreOpt = STORE, json: JsonOpt = False) -> None:
    """List the store's artifacts, newest last, with the names that point at them.

    \b
      slmkit ls
      slmkit ls --json | jq -r '.[] | select(.kind == "eval") | .path'
    """
    home = _store(store)
    names: dict[str, list[str]] = {}
    for name, place in home.names():
        names.setdefault(place.name, []).append(name)
    rows = [
        {"path": str(a.path), "kind": a.kind, "type": a.type, "fingerprint": a.fingerprint, "bytes": a.manifest["outputs"]["bytes"],
         "finished": a.manifest["run"]["finished"], "names": names.get(a.path.name, [])}
        for a in home.artifacts(out.warn)
    ]
    if json:
        return out.show(js.dumps(rows))
    table = [f"{r['finished'][:19]}  {r['path'].rpartition('/')[2]:<24} {r['bytes']:>14,}  {' '.join(r['names'])}" for r in rows]
    out.show("\n".join(table) if table else f"no artifacts in {home.root}")


def diff(a: RefArg, b: Annotated[str, typer.Argument(metavar="REF")], store: StoreOpt = STORE, json: JsonOpt = False) -> None:
    """Say how two artifacts differ: what was asked, what it ran on, and what came out.

    \b
      slmkit diff banking/sft artifacts/train-0f3c7e1d2a4b
    """
    from slmkit.artifact.fingerprint import differences

    one, two = _resolve(store, a), _resolve(store, b)
    areas = ("kind", "fingerprint_payload", "execution", "environment", "tool", "outputs", "result")
    found = {area: differences(_plain(one.manifest[area]), _plain(two.manifest[area])) for area in areas}
    if json:
        return out.show(js.dumps({area: [{"path": p, "a": x, "b": y} for p, x, y in rows] for area, rows in found.items()}))
    names = {"fingerprint_payload": "asked", "outputs": "came out"}
    lines = [f"{names.get(area, area):<12} {path or '-'}: {_number(x)} → {_number(y)}" for area, rows in found.items() for path, x, y in rows]
    out.show("\n".join(lines) if lines else "no difference")


def verify(
    ref: RefArg, store: StoreOpt = STORE, json: JsonOpt = False, quiet: QuietOpt = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build it again from its manifest, apart from the store, and compare.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="With --rebuild: its whole chain too, each step from its rebuilt inputs.")] = False,
    keep: Annotated[Path | None, typer.Option("--keep", metavar="DIR", help="With --rebuild: build in DIR, and leave it there.")] = None,
) -> None:
    """Hash every file of an artifact again and compare with its manifest; with --rebuild, build it again. Exit 3 when anything differs.

    \b
      slmkit verify banking/int4
      slmkit verify banking/int4 --rebuild             identical, within tolerance, or different, and where it first drifted
      slmkit verify banking/score --rebuild --deep --json | jq '.steps[] | {name, verdict}'
      (cd artifacts/quantize-79ba67d04f54 && sha256sum -c .slmkit/SHA256SUMS)      the same without slmkit

    A rebuild uses the config and the inputs that the manifest records, and asks no teacher: answers come from the store's ledger. A step that claims
    `exact` must give the same bytes on the same class of machine; else, and where it claims `seeded`, scores may be off by their standard error,
    losses by 5 %, weights by half of their norm, and sizes by nothing. Exit 4: it cannot be built again here (an input is gone, say).
    """
    from slmkit.artifact.fingerprint import fingerprint
    from slmkit.errors import CheckFailed, UsageError

    if (deep or keep) and not rebuild:
        raise UsageError(f"{'--deep' if deep else '--keep'} says how to rebuild", mend="slmkit verify REF --rebuild")
    artifact = _resolve(store, ref)
    faults = artifact.faults()
    if fingerprint(artifact.manifest["fingerprint_payload"]) != artifact.fingerprint:
        faults.append("the manifest was altered: its payload does not give its fingerprint")
    if rebuild:
        from slmkit.cli import again

        return again.verify(artifact, _store(store), faults, again.How(deep, keep, json, quiet))
    if json:
        out.show(js.dumps({"path": str(artifact.path), "ok": not faults, "faults": faults}))
    if faults:
        raise CheckFailed("; ".join(faults), where=artifact.path, mend="remove the folder and run the recipe again: it is built anew")
    if not json:
        out.show(f"{artifact.path}: {len(artifact.manifest['outputs']['files'])} files as recorded")


def schema() -> None:
    """Print the JSON Schema of recipes, for editors.

    \b
      slmkit schema > recipe.schema.json
      # first line of a recipe:  # yaml-language-server: $schema=recipe.schema.json
    """
    from slmkit.recipe.schema import text

    out.show(text())


def _store(path):
    from slmkit.artifact.store import Store

    return Store(path)


def _resolve(store, ref: str):
    return _store(store).resolve(ref)


def _plain(value):
    """Lists of files by name, so that they compare name by name."""
    if isinstance(value, dict) and "files" in value:
        return value | {"files": {f["path"]: f["sha256"] for f in value["files"]}}
    return value


def _flat(value: dict, prefix: str = "") -> list[tuple[str, object]]:
    rows = []
    for key, below in value.items():
        rows += _flat(below, f"{prefix}{key}.") if isinstance(below, dict) else [(f"{prefix}{key}", below)]
    return rows


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


COMMANDS = {"show": show, "ls": ls, "diff": diff, "verify": verify, "schema": schema}
