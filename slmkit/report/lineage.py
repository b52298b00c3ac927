"""The chain behind artifacts, drawn in by fingerprints from the store. What is gone is said, and what others recorded of it stands for it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slmkit.artifact.manifest import Artifact
from slmkit.report.facts import Input, Step

PROGRAM = ("__main__.py", "slmkit")


def trace(asked: list[Artifact], find: Callable[[str], Artifact | None]) -> tuple[list[Step], dict[str, Artifact], list[str]]:
    """(steps, inputs before what is made of them; artifacts by step id; notes). find: fingerprint → artifact, None where it is gone."""
    steps: dict[str, Step] = {}
    there: dict[str, Artifact] = {}
    notes: list[str] = []

    def visit(artifact: Artifact) -> str:
        name = artifact.path.name
        if name in there:
            return name
        there[name] = artifact
        inputs = tuple(given(artifact, entry) for entry in artifact.manifest["inputs"])
        steps[name] = _step(artifact, inputs)
        return name

    def given(artifact: Artifact, entry: dict) -> Input:
        mark, step = entry.get("fingerprint"), None
        if mark:
            found = find(mark)
            step = visit(found) if found is not None else _gone(steps, entry, notes, artifact)
            if found is not None and found.digest != entry.get("digest"):
                notes.append(f"`{artifact.name}` was made of other bytes of `{found.name}` than lie in the store now")
        own = {k: entry.get(k) for k in ("revision", "digest", "bytes")}
        return Input(entry["role"], entry["name"], entry["type"], entry["uri"], **own, step=step, witness=bool(entry.get("witness")))

    for artifact in asked:
        visit(artifact)
    return list(steps.values()), there, list(dict.fromkeys(notes))


def _gone(steps: dict[str, Step], entry: dict, notes: list[str], by: Artifact) -> str:
    name = str(entry["uri"]).removeprefix("artifact:")
    kind = name.rpartition("-")[0] or entry["type"]
    if name not in steps:
        steps[name] = Step(name, entry["name"], kind, entry["type"], True, fingerprint=entry["fingerprint"], digest=entry.get("digest"),
                           bytes=entry.get("bytes"))
        what = f"`{name}`, of which `{by.name}` was made, is not in the store any more"
        notes.append(f"{what}: its times, its costs and what came before it are not known")
    return name


def _step(artifact: Artifact, inputs: tuple[Input, ...]) -> Step:
    m = artifact.manifest
    run, cost, tool = m["run"], m.get("cost") or {}, m["tool"]
    return Step(
        artifact.path.name, artifact.name, artifact.kind, artifact.type, False, inputs, m["recipe"], artifact.fingerprint, artifact.digest,
        m["outputs"].get("bytes"), run.get("seconds"), _whole(cost.get("tokens")), cost.get("usd"), _whole(cost.get("peak_memory_bytes")),
        run.get("finished"), run.get("attempts"), m["determinism"].get("claimed"), m["determinism"].get("seed"), dict(flat(m["config"])),
        tuple(m.get("overrides") or ()), _command(run.get("argv") or ()), tool.get("slmkit"), _commit(tool), _machine(m["environment"]),
        dict(m["environment"].get("packages") or {}), _licence(artifact.path), m["config"].get("terms"),
    )  # fmt: skip


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) else None


def flat(value: dict, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as a.b.c keys; empty ones and None are left out."""
    rows = []
    for key, below in value.items():
        if isinstance(below, dict):
            rows += flat(below, f"{prefix}{key}.")
        elif below is not None and below != []:
            rows.append((f"{prefix}{key}", below))
    return rows


def _command(argv: tuple[str, ...] | list[str]) -> str | None:
    """The command line, with the program by its name wherever it lay."""
    if not argv:
        return None
    first = "slmkit" if Path(argv[0]).name in PROGRAM else argv[0]
    return shlex.join([first, *argv[1:]])


def _commit(tool: dict) -> str | None:
    return f"{tool['commit'][:12]}{' with changes' if tool.get('dirty') else ''}" if tool.get("commit") else None


def _machine(environment: dict) -> str | None:
    said = [str(environment[k]) for k in ("platform",) if environment.get(k)]
    said += [f"Python {environment['python']}"] if environment.get("python") else []
    said += [f"{environment['cpus']} CPUs"] if environment.get("cpus") else []
    said += [*environment.get("gpus", ()), *([f"CUDA {environment['cuda']}"] if environment.get("cuda") else [])]
    return ", ".join(said) or None


def _licence(folder: Path) -> str | None:
    """What the card's front matter says; a model that was brought along may have one."""
    import yaml

    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    front = text.split("---\n", 2)[1] if text.startswith("---\n") and text.count("---\n") >= 2 else ""
    try:
        body = yaml.safe_load(front)
    except yaml.YAMLError:
        return None
    said = body.get("license_name") or body.get("license") if isinstance(body, dict) else None
    return str(said) if said else None
