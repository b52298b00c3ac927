"""The eyes of `reproduce`: are the packages, the inputs, what is asked and what came out as they were recorded? Needs the standard library, and
for the inputs the slmkit that was installed beside it.

    check.py packages                  every version against requirements.txt
    check.py inputs [NAME=PATH …]      every input by its sha256
    check.py sets [NAME=PATH …]        the --set arguments that put inputs elsewhere
    check.py asked plan.json           every fingerprint
    check.py outputs made.json         every digest, and the first file of each artifact that is another

Exit 3 when something is not as recorded.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent


def expected() -> dict:
    return json.loads((HERE / "expected.json").read_text(encoding="utf-8"))


def packages() -> list[str]:
    faults = []
    for line in (HERE / "requirements.txt").read_text(encoding="utf-8").splitlines():
        name, pinned, wanted = line.partition("==")
        if not pinned or line.startswith("#"):
            continue
        try:
            found = metadata.version(name.strip())
        except metadata.PackageNotFoundError:
            found = "not installed"
        if found != wanted.strip():
            faults.append(f"{name}: {found}, {wanted.strip()} was recorded")
    return faults


def places(words: list[str]) -> dict[str, str]:
    """Input's name → where it lies here."""
    said = dict(word.partition("=")[::2] for word in words)
    known = {one["label"] for one in expected()["inputs"] if one["at_hand"]}
    if unknown := [name for name in said if name not in known]:
        sys.exit(f"no input is called {unknown[0]}; those that must be at hand: {', '.join(sorted(known)) or 'none'}")
    return said


def inputs(words: list[str]) -> list[str]:
    from slmkit.artifact import digest

    said, faults = places(words), []
    for one in expected()["inputs"]:
        if not one["at_hand"] or one["type"] == "task" or any(c in one["uri"] for c in "*?["):
            continue  # of several files: what they hold is checked by the fingerprint
        path = Path(said.get(one["label"], one["uri"]))
        if not path.exists():
            faults.append(f"{one['label']}: {path} is not there; sha256 {one['digest']}, {one['bytes']} bytes: ./reproduce {one['label']}=PATH")
        elif (found := digest.of_path(path)) != one["digest"]:
            faults.append(f"{one['label']}: {path} has sha256 {found}, {one['digest']} was recorded")
    return faults


def sets(words: list[str]) -> None:
    keys = {one["label"]: one["key"] for one in expected()["inputs"]}
    for name, path in places(words).items():
        print(f"--set={keys[name]}={Path(path).absolute()}")


def asked(file: str) -> list[str]:
    rows = {row["name"]: row["fingerprint"] for row in json.loads(Path(file).read_text(encoding="utf-8"))["steps"]}
    why = "an input, the config or a pinned package is another"
    return [f"{name}: fingerprint {rows.get(name, 'none')[:12]}, {one['fingerprint'][:12]} was recorded: {why}"
            for name, one in expected()["steps"].items() if rows.get(name) != one["fingerprint"]]  # fmt: skip


def outputs(file: str) -> list[str]:
    made = {row["name"]: row for row in json.loads(Path(file).read_text(encoding="utf-8"))["steps"]}
    faults = []
    for name, one in expected()["steps"].items():
        if name not in made:
            faults.append(f"{name}: it was not built")
            continue
        found = made[name]["digest"]
        print(f"{name}: digest {found[:12]}, {'as recorded' if found == one['digest'] else one['digest'][:12] + ' was recorded'} "
              f"({one['kind']}, claims {one['claimed']})")  # fmt: skip
        if found != one["digest"]:
            where = first_file(Path(made[name]["path"]), one["files"])
            if one["claimed"] == "none":  # a teacher: what asking cost is on the card; other rows make what follows differ, which is told below
                print(f"  {where}", "(the card alone: the rows are the same)" if where.startswith("README.md") else "")
            else:
                faults.append(f"{name}: {where}")
    return faults


def first_file(folder: Path, recorded: dict[str, str]) -> str:
    for name, wanted in sorted(recorded.items(), key=lambda pair: (pair[0].endswith(".md"), pair[0])):
        if not (folder / name).is_file():
            return f"{name} is missing"
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != wanted:
            return f"{name} is the first file that is another"
    return "it has a file more than was recorded"


def main(verb: str, words: list[str]) -> int:
    if verb == "sets":
        sets(words)
        return 0
    faults = {"packages": packages, "inputs": lambda: inputs(words), "asked": lambda: asked(words[0]), "outputs": lambda: outputs(words[0])}[verb]()
    for fault in faults:
        print(re.sub(r"\s+", " ", fault), file=sys.stderr)
    return 3 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
