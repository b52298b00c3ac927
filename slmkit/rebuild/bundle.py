"""What recreates an artifact elsewhere: its packages as they were installed, its machine in facts, its recipe, the hashes of what it needs, and a
script that makes the environment, checks all of it, runs the recipe and compares the digests.

Data is not copied: the folder says what must be at hand, with its sha256.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import slmkit
from slmkit.artifact import digest
from slmkit.artifact.manifest import FOLDER, MANIFEST, Artifact
from slmkit.artifact.store import Store
from slmkit.errors import StoreError, UsageError
from slmkit.rebuild import recorded, written
from slmkit.rebuild.chain import ledgers
from slmkit.rebuild.written import Outside, Written
from slmkit.recipe.located import parse
from slmkit.recipe.lock import SCHEMA
from slmkit.sources import parse as parse_source

KIT = Path(__file__).with_name("kit")
INDEX = "https://download.pytorch.org/whl/"
NOT_PINNED = ("pip", "slmkit")  # pip comes with the venv; slmkit is installed by its commit


@dataclass(frozen=True)
class Bundle:
    """A chain (by name, the root first; the last is what is wanted), its recipe, and the ledgers that hold its teachers' answers."""

    chain: dict[str, Artifact]
    recipe: Written
    ledgers: tuple[Path, ...]

    @property
    def target(self) -> Artifact:
        return list(self.chain.values())[-1]

    @property
    def title(self) -> str:
        return f"{self.target.manifest['recipe']}/{self.target.name}"

    @cached_property
    def requirements(self) -> list[str]:
        """`name==version` of every package, as it was recorded."""
        path = self.target.path / FOLDER / "requirements.txt"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as e:
            raise StoreError(f"the packages that it was made with cannot be read: {e.strerror}", where=path) from None
        return [line for line in lines if "==" in line and line.split("==")[0].lower() not in NOT_PINNED]

    @property
    def python(self) -> str:
        return self.target.manifest["environment"]["python"]

    @property
    def torch(self) -> str | None:
        return next((line for line in self.requirements if line.startswith("torch==")), None)

    @cached_property
    def facts(self) -> dict:
        """environment.json: the machine and the tools, of each step where they are not the target's."""
        own = self.target.manifest
        others = {name: {"environment": a.manifest["environment"], "tool": a.manifest["tool"]} for name, a in self.chain.items()
                  if (_machine(a), a.manifest["tool"]) != (_machine(self.target), own["tool"])}  # fmt: skip
        return {"artifact": self.target.path.name, "fingerprint": self.target.fingerprint, "digest": self.target.digest, "tool": own["tool"],
                "environment": own["environment"], "steps_made_elsewhere": others, "inputs": [_told(o) for o in self.recipe.outside],
                "ledgers": [{"file": p.name, "bytes": p.stat().st_size, "sha256": digest.of_file(p)} for p in self.ledgers]}  # fmt: skip

    @property
    def told(self) -> list[str]:
        """What keeps it from being exact, or has to be brought."""
        tool, out = self.target.manifest["tool"], []
        if tool.get("dirty"):
            out.append(f"note: slmkit had changes on top of commit {tool['commit'][:12]} that no commit holds; the script takes the commit")
        if not tool.get("commit"):
            out.append(f"note: slmkit {tool.get('slmkit')} was no checkout then: SLMKIT=… must name that release")
        for name, said in self.facts["steps_made_elsewhere"].items():
            out.append(f"note: {name} was made in another environment than {self.target.name}, and one is written: {_differs(said, self.target)}")
        out += [f"must be at hand: {o.label} = {o.uri}, sha256 {o.digest}" for o in self.recipe.outside if o.at_hand]
        return out + [f"must be at hand: ledgers/{p.name}, the teacher's answers" for p in self.ledgers]

    def commands(self) -> str:
        """The commands that make it again, with nothing written."""
        tool, m = self.target.manifest["tool"], self.target.manifest
        sets = [w for text in m.get("overrides", ()) for w in text.split(" ", 1)]
        home = self.target.path / FOLDER
        lines = [
            f"# {self.title}: {self.target.path.name}, digest {self.target.digest}", *(f"# {line}" for line in self.told),
            f"git -C SLMKIT checkout {tool['commit']}" if tool.get("commit") else f"# slmkit {tool.get('slmkit')}",
            f"python{_minor(self.python)} -m venv .venv          # Python {self.python}",
            *([f".venv/bin/python -m pip install --no-deps {self.torch}{_index(self.torch)}"] if self.torch else []),
            f"grep -v '^pip==\\|^slmkit==' {home / 'requirements.txt'} > requirements.txt",
            ".venv/bin/python -m pip install --no-deps -r requirements.txt SLMKIT",
            shlex.join(["slmkit", "run", str(home / "recipe.yaml"), self.target.name, *sets]) + "     # paths in it are relative to where it was",
            "# all of that in a folder, with a script:  slmkit reproduce REF --env", "# here and now:  slmkit verify REF --rebuild --deep",
        ]  # fmt: skip
        return "\n".join(lines)

    def write(self, folder: Path) -> Path:
        """Write the folder; returns it. Raises UsageError when something is there already."""
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder}: something is there already", mend="-o names a folder that is new or empty")
        folder.mkdir(parents=True, exist_ok=True)
        own = self.target.path / FOLDER
        _put(folder / "recipe.yaml", self.recipe.text)
        if (own / "recipe.yaml").is_file():
            (folder / "original.yaml").write_bytes((own / "recipe.yaml").read_bytes())
        _put(folder / "original.lock.json", json.dumps({"schema": SCHEMA, "hub": self.commits()}, indent=2) + "\n")
        _put(folder / "requirements.txt", self._pins())
        _put(folder / "environment.json", json.dumps(self.facts, indent=2, ensure_ascii=False) + "\n")
        _put(folder / "expected.json", json.dumps(self._expected(), indent=2, ensure_ascii=False) + "\n")
        for name, artifact in self.chain.items():
            (folder / "manifests").mkdir(exist_ok=True)
            (folder / "manifests" / f"{name}.json").write_bytes((artifact.path / MANIFEST).read_bytes())
        (folder / "check.py").write_bytes((KIT / "check.py").read_bytes())
        _put(folder / "reproduce", self._script())
        (folder / "reproduce").chmod(0o755)
        _put(folder / "README.md", self._readme(self.recipe.moved(folder, self.chain)))
        return folder

    def commits(self) -> dict[str, str]:
        """What the hub names of the original recipe meant, for its lock file."""
        known = {(i["uri"][3:].partition("@")[0], i["type"] == "dataset"): i["revision"]
                 for a in self.chain.values() for i in a.manifest["inputs"] if i.get("revision")}  # fmt: skip
        kept = self.target.path / FOLDER / "recipe.yaml"
        names = _hub_names(parse(kept.read_bytes(), "recipe.yaml").data) if kept.is_file() else []
        out = {}
        for text in names:
            source = parse_source(text, Path("/"))
            for data in (False, True):
                if commit := known.get((source.repo, data)):
                    out[f"hf:{'datasets/' if data else ''}{source.repo}@{source.revision}"] = commit
        return dict(sorted(out.items()))

    def _pins(self) -> str:
        head = f"# Every package that {self.target.path.name} was made with, Python {self.python}; install with --no-deps. slmkit: ./reproduce.\n"
        if index := _index(self.torch):
            head += f"# {self.torch} is not on PyPI by that name: it lies in {index.split()[-1]}, or where pip's find-links has its wheel.\n"
        return head + "".join(f"{line}\n" for line in self.requirements)

    def _expected(self) -> dict:
        steps = {
            name: {"kind": a.kind, "claimed": a.manifest["determinism"]["claimed"], "fingerprint": a.fingerprint, "digest": a.digest,
                   "files": {f["path"]: f["sha256"] for f in a.manifest["outputs"]["files"]}} for name, a in self.chain.items()
        }  # fmt: skip
        return {"steps": steps, "inputs": [_told(o) for o in self.recipe.outside]}

    def _script(self) -> str:
        tool, threads = self.target.manifest["tool"], self.target.manifest["environment"].get("threads")
        commit = tool.get("commit") or ""
        values = {
            "TITLE": self.title, "PYTHON_MINOR": _minor(self.python), "PYTHON": self.python, "COMMIT_SHORT": commit[:12] or "(none recorded)",
            "COMMIT": commit, "SLMKIT_VERSION": str(tool.get("slmkit")), "SLMKIT": shlex.quote(str(_checkout())) if _checkout() and commit else "",
            "LEDGERS": shlex.quote(str(self.ledgers[0].parent)) if self.ledgers else "",
            "LEDGERS_NOTE": "" if self.ledgers else ": not needed here",
            "TORCH": _install(self.torch), "THREADS": f"export OMP_NUM_THREADS={threads}" if threads else "",
            "ANSWERS": ANSWERS if self.ledgers else "",
        }  # fmt: skip
        text = (KIT / "reproduce.sh").read_text(encoding="utf-8")
        for name, value in values.items():
            text = text.replace(f"@{name}@", value)
        return text

    def _readme(self, moved: list[str]) -> str:
        own, facts = self.target.manifest, self.target.manifest["environment"]
        lines = [
            f"# {self.title}\n", f"What it takes to make `{self.target.path.name}` again (digest `{self.target.digest}`).\n", "    ./reproduce\n",
            "makes a virtual environment, checks packages, inputs and fingerprints, runs `recipe.yaml`, and compares the digests.\n",
            "| | |", "|---|---|", f"| Python | {self.python} |", f"| platform | {facts.get('platform')} |",
            f"| processor | {facts.get('processor') or 'not recorded'} ({facts.get('simd') or 'vector units not recorded'}), "
            f"{facts.get('cpus')} CPUs, {facts.get('threads') or '?'} threads |",
            f"| CUDA | {facts.get('cuda') or 'none'}, {', '.join(facts.get('gpus') or ()) or 'no GPU'} |",
            f"| slmkit | {own['tool'].get('slmkit')}, commit {own['tool'].get('commit') or 'not recorded'} |", "", "## What must be at hand\n",
        ]  # fmt: skip
        lines += [f"- {line}" for line in self.told] or ["Nothing but the packages: every input comes with slmkit or from the hub."]
        lines += ["", "## Inputs\n", "| name | from | sha256 or commit | bytes |", "|---|---|---|---|"]
        lines += [f"| {o.label} | `{o.uri}` | `{o.digest or o.revision}` | {o.bytes if o.bytes is not None else ''} |" for o in self.recipe.outside]
        lines += [
            "", "## Files\n", "`recipe.yaml` asks for the chain by its manifests, every default written out; `original.yaml` is the recipe it came",
            "from, with its hub names in `original.lock.json`; `manifests/` holds what was recorded; `environment.json` the machine;",
            "`requirements.txt` every package.", "",
        ]  # fmt: skip
        said = ["Looked at when this was written: `recipe.yaml` asks for the recorded fingerprints."] if not moved else [f"- {m}" for m in moved]
        return "\n".join(lines + said) + "\n"


ANSWERS = """\
if [[ -n "$LEDGERS" && -d "$LEDGERS" ]]; then
    mkdir -p artifacts/ledgers
    cp -n "$LEDGERS"/*.jsonl artifacts/ledgers/
else
    die "the teacher's answers are not here: LEDGERS=… names the ledgers/ of a store that has them (to ask and pay again: original.yaml)"
fi"""


def of(chain: dict[str, Artifact], store: Store) -> Bundle:
    """What recreates a chain."""
    asking = any(recorded.asks(recorded.config_of(a, recorded.kind_of(a))) for a in chain.values())
    kept = ledgers(store, list(chain.values())[-1]) if asking else None
    return Bundle(chain, written.recipe(chain), tuple(sorted(kept.glob("*.jsonl"))) if kept else ())


def _machine(artifact: Artifact) -> dict:
    """The environment but for what only a step that loaded torch knows."""
    return {k: v for k, v in artifact.manifest["environment"].items() if k not in ("threads", "simd", "cuda", "gpus")}


def _differs(said: dict, target: Artifact) -> str:
    from slmkit.artifact.fingerprint import differences

    found = differences(said["environment"], target.manifest["environment"]) + differences(said["tool"], target.manifest["tool"])
    return "; ".join(f"{where} {a} and {b}" for where, a, b in found if where not in ("threads", "simd"))[:200]


def _told(one: Outside) -> dict:
    return vars(one) | {"at_hand": one.at_hand}


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _index(pin: str | None) -> str:
    """` --extra-index-url …` for a build of torch that is named by what stands after its `+`."""
    label = pin.partition("+")[2] if pin else ""
    return f" --extra-index-url {INDEX}{label}" if label else ""


def _install(pin: str | None) -> str:
    if pin is None:
        return ""
    first = f'"${{pip[@]}}" install --quiet --no-deps {shlex.quote(pin)}'
    if "+" not in pin:
        return f'{first} || die "{pin} could not be installed"'
    index = INDEX + pin.partition("+")[2]
    return f'{first} 2>/dev/null ||\n        "${{pip[@]}}" install --quiet --no-deps --index-url {index} {shlex.quote(pin)} || ' \
        f'die "{pin} is neither in pip\'s indexes nor in {index}"'  # fmt: skip


def _checkout() -> Path | None:
    """Where this slmkit runs from, if it is a checkout."""
    top = Path(slmkit.__file__).parent.parent
    return top if (top / ".git").exists() else None


def _hub_names(value: object) -> list[str]:
    if isinstance(value, dict):
        return [n for v in value.values() for n in _hub_names(v)]
    if isinstance(value, list):
        return [n for v in value for n in _hub_names(v)]
    return [value] if isinstance(value, str) and value.startswith("hf:") else []


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
