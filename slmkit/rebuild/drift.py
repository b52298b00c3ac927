"""A rebuilt artifact against the recorded one: identical, within tolerance, or different, by what its step claims, and where it first drifted.

`exact` promises the same bytes on the same class of machine, and is held to it; where the machine or the packages are others it is judged as
`seeded` is: results number by number, weights by their relative error (see tolerance). `none` promises nothing, and is told.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from slmkit.artifact import digest
from slmkit.artifact.manifest import Artifact
from slmkit.plan import Row
from slmkit.rebuild import causes, tensors, texts, tolerance
from slmkit.rebuild.causes import Cause
from slmkit.rebuild.tolerance import Number

IDENTICAL, WITHIN, DIFFERENT, NOT_JUDGED = "identical", "within tolerance", "different", "not judged"
CARD = "README.md"
TOLD = (".md", ".png", ".svg", ".html", ".log")  # words and pictures of what is judged elsewhere


@dataclass(frozen=True)
class File:
    """A file that is not the same. ok: within tolerance, where bytes need not be the same; judged by its numbers, or by what it is."""

    path: str
    what: str
    ok: bool

    def told(self) -> str:
        return f"{self.path}: {self.what}"


@dataclass(frozen=True)
class Step:
    """How one step of the chain came out. claimed: what its manifest promises; judged: how it was held to it here."""

    name: str
    kind: str
    path: Path
    fingerprint: str
    claimed: str
    judged: str
    verdict: str
    recorded: str
    rebuilt: str
    causes: tuple[Cause, ...] = ()
    files: tuple[File, ...] = ()
    numbers: tuple[Number, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        return self.verdict != DIFFERENT

    @property
    def same_payload(self) -> bool:
        """Nothing that a later step reads is another: the card alone may be."""
        return all(f.path == CARD for f in self.files)

    def first_drift(self) -> str | None:
        """The first thing that is not as it was: an input, what was asked, the environment, else the first file (a tensor, key or line in it)."""
        if self.verdict == IDENTICAL:
            return None
        strong = [c for c in self.causes if c.area != causes.BESIDE]
        found = [*(c.told() for c in strong), *(f.told() for f in self.files), *(n.told() for n in self._off())]
        return f"{self.name}: {found[0]}" if found else None

    def _off(self) -> list[Number]:
        return sorted(self.numbers, key=lambda n: n.ok)

    def story(self) -> list[str]:
        """Lines for people."""
        how = self.claimed if self.claimed == self.judged else f"{self.claimed}, judged as {self.judged}"
        lines = [f"{self.name}: {self.verdict} ({self.kind}, claims {how})"]
        if self.verdict == IDENTICAL and not self.files and not self.numbers:
            shown = [c for c in self.causes if c.area != causes.BESIDE]
            return lines + [f"  though {c.told()}" for c in shown]
        lines += [f"  {c.told()}" for c in self.causes if c.area != causes.BESIDE]
        lines += [f"  {f.told()}" for f in self.files[:5]] + ([f"  … and {len(self.files) - 5} files more"] if len(self.files) > 5 else [])
        lines += [f"  result {n.told()}" for n in self._off()[:8]]
        lines += [f"  … and {len(self.numbers) - 8} numbers more"] if len(self.numbers) > 8 else []
        beside = [c.told() for c in self.causes if c.area == causes.BESIDE]
        lines += [f"  beside: {'; '.join(beside[:4])}" + (f"; {len(beside) - 4} more" if len(beside) > 4 else "")] if beside else []
        return lines + [f"  {n}" for n in self.notes]

    def record(self) -> dict:
        return {
            "name": self.name, "kind": self.kind, "path": str(self.path), "fingerprint": self.fingerprint, "claimed": self.claimed,
            "judged": self.judged, "verdict": self.verdict, "digest": {"recorded": self.recorded, "rebuilt": self.rebuilt},
            "causes": [vars(c) | {"explains": c.explains} for c in self.causes], "files": [vars(f) for f in self.files],
            "numbers": [vars(n) for n in self.numbers], "notes": list(self.notes),
        }  # fmt: skip


def compare(old: Artifact, new: Artifact, row: Row, before: dict[str, Step]) -> Step:
    """Compare. before: the steps that were rebuilt already, by fingerprint. Reads both payloads; raises StoreError for weights that are no file."""
    drifted = {f: s.rebuilt for f, s in before.items() if s.files and not s.same_payload}
    why = causes.of(old, new, row, drifted)
    claimed = old.manifest["determinism"]["claimed"]
    judged = "seeded" if claimed == "exact" and any(c.explains for c in why) else claimed
    there = digest.listing(old.path)
    bound = tolerance.weights(old.manifest["result"], any(c.area == causes.INPUT for c in why))
    files = tuple(_files(old, new, there, bound))
    numbers = tuple(tolerance.numbers(old.manifest["result"], new.manifest["result"], _questions(old.path)))
    if judged == "none" or causes.unseen(old, row):
        numbers = tuple(replace(n, allowed=None, ok=True) for n in numbers)
    notes = []
    if digest.of_listing(there) != old.digest:
        notes.append("its files are not what its own manifest says: they were altered after they were published")
    verdict = _verdict(files, numbers, judged, altered=bool(notes))
    digests = (old.digest, new.digest)
    return Step(row.name, old.kind, old.path, old.fingerprint, claimed, judged, verdict, *digests, tuple(why), files, numbers, tuple(notes))


def _verdict(files: tuple[File, ...], numbers: tuple[Number, ...], judged: str, altered: bool) -> str:
    if altered:
        return DIFFERENT
    if judged == "none":  # what it cost to ask is on its card, and says nothing of the rows
        return IDENTICAL if all(f.path == CARD for f in files) else NOT_JUDGED
    off = any(not n.ok for n in numbers)
    if not files:
        return DIFFERENT if off else IDENTICAL
    if judged == "exact":
        return DIFFERENT
    return DIFFERENT if off or any(not f.ok for f in files) else WITHIN


def _files(old: Artifact, new: Artifact, there: list[dict], bound: float) -> list[File]:
    was = {f["path"]: f["sha256"] for f in there}
    now = {f["path"]: f["sha256"] for f in new.manifest["outputs"]["files"]}
    names = sorted(was.keys() | now.keys(), key=lambda n: (n.endswith(TOLD), n))
    found = []
    for name in names:
        if was.get(name) == now.get(name):
            continue
        if name not in was or name not in now:
            found.append(File(name, f"is {'recorded' if name in was else 'rebuilt'} and not {'rebuilt' if name in was else 'recorded'}", False))
        else:
            found.append(_file(old, new, name, bound))
    return found


def _file(old: Artifact, new: Artifact, name: str, bound: float) -> File:
    one, two = old.path / name, new.path / name
    if name.endswith(".safetensors"):
        found = tensors.compare(one, two)
        within = found.shape is None and found.relative <= bound
        whole = "" if found.shape else f"; all its floats together {found.relative:.3g} (where bytes may differ, at most {bound:g})"
        return File(name, found.told() + whole, within)
    what = texts.first_difference(one, two)
    if name.endswith(TOLD) or (old.type == "scores" and name.startswith(("samples/", "results.json"))):
        return File(name, what, True)  # scores are judged as results
    if old.type in ("model", "adapter") and name.endswith(".json"):
        return File(name, what, name.endswith("xray.json") or texts.only_versions(one, two))
    return File(name, what, old.type in ("gguf", "onnx") and one.stat().st_size == two.stat().st_size)


def _questions(folder: Path) -> dict[str, int]:
    """`MODEL.TASK` → how many questions an eval kept the answers to."""
    found = {}
    for file in sorted(folder.glob("samples/*/*.jsonl")):
        with open(file, "rb") as f:
            found[f"{file.parent.name}.{file.stem}"] = sum(1 for _ in f)
    return found
