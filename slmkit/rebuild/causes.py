"""What is not as it was when an artifact was made: its inputs, what was asked, the machine and the packages, slmkit itself.

Some of it `explains` other bytes: a package that does the sums, the CPU's vector units, the number of threads, a GPU. Then bytes that were promised
exactly are judged as seeded ones are. The rest (a kernel's release, a package beside) is told, and excuses nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from slmkit import hashed
from slmkit.artifact import fingerprint as fp
from slmkit.artifact.manifest import FOLDER, Artifact
from slmkit.plan import Row
from slmkit.rebuild import recorded

INPUT, ASKED, ENVIRONMENT, BESIDE = "input", "asked", "environment", "beside"
ORDER = (INPUT, ASKED, ENVIRONMENT, BESIDE)


@dataclass(frozen=True)
class Cause:
    """One difference from then. area: one of ORDER. where: `packages.torch`, `config.seed`, `data`."""

    area: str
    where: str
    recorded: Any
    now: Any

    @property
    def explains(self) -> bool:
        return self.area in (INPUT, ENVIRONMENT) or (self.area == ASKED and not self.where.startswith(("config.", "manifest")))

    def told(self) -> str:
        named = {"input": "input", "asked": "", "environment": "", "beside": ""}[self.area]
        where = self.where.replace("packages.", "package ").replace("pins.", "pinned package ").replace("config.", "config ")
        return f"{named} {where}: {_short(self.recorded)} (recorded) → {_short(self.now)}".strip()


def of(old: Artifact, new: Artifact, row: Row, drifted: dict[str, str]) -> list[Cause]:
    """All of them, in the order of ORDER. drifted: fingerprint of an input → the digest that it was rebuilt with, where that is another."""
    found = [*_inputs(old, drifted), *unseen(old, row), *_asked(old, row), *_tool(old, new), *_requirements(old, new)]
    return sorted([*environment(old.manifest["environment"], new.manifest["environment"]), *found], key=lambda c: ORDER.index(c.area))


def _inputs(old: Artifact, drifted: dict[str, str]) -> list[Cause]:
    said = {(i["name"] or i["role"]): i for i in old.manifest["inputs"] if i.get("fingerprint") in drifted}
    return [Cause(INPUT, f"`{name}`", f"digest {i['digest'][:12]}", drifted[i["fingerprint"]][:12]) for name, i in said.items()]


def unseen(old: Artifact, row: Row) -> list[Cause]:
    """Witnesses that are gone or changed. They change nothing of what comes out, but figures may have been measured on them."""
    there = {(i.role, i.uri) for i in row.inputs if i.witness}
    gone = [i for i in old.manifest["inputs"] if i.get("witness") and (i["role"], i["uri"]) not in there]
    return [Cause(BESIDE, f"`{i['role']}` ({i['uri']}), looked at only", "there", "gone or changed; figures are told, not judged") for i in gone]


def _asked(old: Artifact, row: Row) -> list[Cause]:
    """The manifest against itself, against the recipe kept beside it, and against what this slmkit makes of it."""
    manifest, out = old.manifest, []
    payload = manifest["fingerprint_payload"]
    if fp.fingerprint(payload) != old.fingerprint:
        out.append(Cause(ASKED, "manifest fingerprint", old.fingerprint[:12], fp.fingerprint(payload)[:12]))
    typed = recorded.said_by_recipe(old, row.kind)
    if typed is not None:
        moved = fp.differences(hashed.of_config(typed, row.kind), payload["config"])
        out += [Cause(ASKED, f"config.{where}", f"{_short(before)} in the recipe kept with it", f"{_short(now)} in the manifest")
                for where, before, now in moved]  # fmt: skip
    for where, before, now in fp.differences(payload, row.payload):
        if not where.startswith("inputs"):
            out.append(Cause(ASKED, {"version": "kind_version"}.get(where, where), before, now))
    if named := re.fullmatch(rf"{re.escape(old.kind)}-([0-9a-f]{{12}})", old.path.name):
        if named[1] != old.fingerprint[:12]:
            out.append(Cause(ASKED, "manifest fingerprint", f"{named[1]} in the folder's name", f"{old.fingerprint[:12]} in it"))
    return out


def environment(then: dict, now: dict) -> list[Cause]:
    """What of the machine and the packages that do sums is another."""
    out = []
    packages = (then.get("packages") or {}, now.get("packages") or {})
    for where, before, after in fp.differences(*packages):
        out.append(Cause(ENVIRONMENT, f"packages.{where}", before, after))
    for key in ("python", "processor", "simd", "threads", "cuda", "gpus"):
        if key in then and key in now and then[key] != now[key]:
            out.append(Cause(BESIDE if key == "python" and _minor(then[key]) == _minor(now[key]) else ENVIRONMENT, key, then[key], now[key]))
    before, after = str(then.get("platform")), str(now.get("platform"))
    if before != after:
        same = _class(before) == _class(after)
        out.append(Cause(BESIDE if same else ENVIRONMENT, "platform", before, after))
    return out


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _class(platform: str) -> tuple[str, ...]:
    """`Linux-6.18.44-x86_64-with-glibc2.36` without the kernel's release."""
    system, _, rest = platform.partition("-")
    machine = re.search(r"x86_64|aarch64|arm64|ppc64le|s390x|riscv64|AMD64", rest)
    return system, machine[0] if machine else rest, platform.rpartition("-with-")[2] if "-with-" in platform else ""


def _tool(old: Artifact, new: Artifact) -> list[Cause]:
    then, now = old.manifest["tool"], new.manifest["tool"]
    if then.get("slmkit") != now.get("slmkit"):
        return [Cause(ENVIRONMENT, "slmkit", then.get("slmkit"), now.get("slmkit"))]
    known = then.get("tree") and now.get("tree")
    if known and (then["tree"], then.get("dirty")) != (now["tree"], now.get("dirty")):
        said = [f"commit {t['commit'][:12]}{' with changes' if t.get('dirty') else ''}" for t in (then, now)]
        return [Cause(BESIDE, "slmkit", *said)]
    return []


def _requirements(old: Artifact, new: Artifact) -> list[Cause]:
    """Packages that do no sums themselves."""
    then, now = (_pins(a) for a in (old, new))
    main = set(old.manifest["environment"].get("packages") or ()) | set(new.manifest["environment"].get("packages") or ())
    if not then or not now:
        return []
    known = {name.replace("_", "-") for name in main}
    return [Cause(BESIDE, f"packages.{name}", before, after) for name, before, after in fp.differences(then, now) if name not in known]


def _pins(artifact: Artifact) -> dict[str, str]:
    """name → version, of .slmkit/requirements.txt."""
    try:
        text = (artifact.path / FOLDER / "requirements.txt").read_text(encoding="utf-8")
    except OSError:
        return {}
    pins = (line.split("==", 1) for line in text.splitlines() if "==" in line)
    return {name.strip().lower().replace("_", "-"): version.strip() for name, version in pins}


def _short(value: object) -> str:
    text = "none" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 90 else text[:89] + "…"
