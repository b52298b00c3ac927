"""Which files a dataset is: a file, what a glob matched, a folder, one split of a folder or of a hub repository.

Splits follow the Hub: what the README's `configs` say, else the words in names (`train-00000.parquet`, `data/validation.jsonl`).
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from slmkit.data.containers import PACKED, SUFFIXES, suffix
from slmkit.data.faults import broken_file

ALONE = ("train.jsonl", "data.jsonl", "train.csv")
"""A folder that holds one of these (an artifact of slmkit holds the first) means it."""
WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
NO_ROWS = re.compile(r"(^|/)(dataset_infos?|dataset_dict|state|config|.*\.index|package|manifest)\.json$")
"""JSON files that say something of a folder and hold no rows."""


def is_data(name: str) -> bool:
    path = Path(name)
    return suffix(path) in SUFFIXES and not NO_ROWS.search(name) and not any(part.startswith(".") for part in path.parts)


def of(path: Path, matched: tuple[Path, ...] | None, split: str | None, name: str) -> list[Path]:
    """The files to read, in order. Raises DataError when there is no telling, or a split that cannot be."""
    try:
        return _of(path, matched, split, name)
    except PermissionError as e:
        raise broken_file(name, f"cannot be read: {e.strerror}", "check who may read the file and the folders above it") from None


def _of(path: Path, matched: tuple[Path, ...] | None, split: str | None, name: str) -> list[Path]:
    if matched is not None:
        found = [f for f in matched if f.is_file()]
        if split:
            found = [Path(n) for n in choose([str(f) for f in found], split, None, name)]
        return found
    if not path.is_dir():
        if split:
            raise broken_file(name, f"`split: {split}` chooses from a folder or a hub dataset, and this is one file", "remove `split`")
        return [path]
    if saved := _saved(path, split, name):
        return saved
    if split is None and (alone := next((path / n for n in ALONE if (path / n).is_file()), None)):
        return [alone]
    names = _below(path)
    readme = path / "README.md"
    card = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else None
    return [path / n for n in choose(names, split, card, name)]


def _below(folder: Path) -> list[str]:
    """Names of all files below a folder, through links too, each folder once: the files whose content is its identity."""
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        found += [p.relative_to(folder).as_posix() for n in names if (p := Path(place, n)).is_file()]
    return found


def _saved(folder: Path, split: str | None, name: str) -> list[Path] | None:
    """A folder of `datasets.save_to_disk`: state.json names the Arrow files in order."""
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json", name).get("splits", [])
        wanted = _wanted(split, splits, name)
        return _saved(folder / wanted, None, f"{name}/{wanted}")
    if not (folder / "state.json").is_file() or not (folder / "dataset_info.json").is_file():
        return None
    if split:
        raise broken_file(name, f"`split: {split}` chooses from several, and this saved dataset has one", "remove `split`")
    try:
        return [folder / f["filename"] for f in _json(folder / "state.json", name)["_data_files"]]
    except (KeyError, TypeError):
        raise broken_file(f"{name}/state.json", "does not name the files of the dataset", "save the dataset anew") from None


def _json(path: Path, name: str) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise broken_file(f"{name}/{path.name}", f"cannot be read: {e}", "save the dataset anew") from None
    return found if isinstance(found, dict) else {}


def choose(names: Iterable[str], split: str | None, card: str | None, name: str) -> list[str]:
    """Which of a folder's files are the rows. names: relative, all of the folder's. card: the text of its README."""
    found = sorted(n for n in names if is_data(n))
    if not found:
        raise broken_file(name, "no data file in this folder", f"rows are {', '.join(SUFFIXES)}, plain or with {' or '.join(PACKED[:2])}")
    config, _, part = (split or "").rpartition("/")
    splits = _by_card(found, card, config, name) or _by_name([n for n in found if not config or n.startswith(config + "/")])
    if config and not splits:
        raise broken_file(name, f"no config `{config}`", f"it holds {', '.join(found[:8])}")
    if not part and set(splits) == {""}:
        return _one_kind(found, name)
    return splits[_wanted(part or None, list(splits), name)]


def _wanted(split: str | None, splits: list[str], name: str) -> str:
    if split in splits:
        return split
    if split is None and (len(splits) == 1 or "train" in splits):
        return "train" if "train" in splits else splits[0]
    what = f"no split `{split}`" if split else "which split is meant?"
    named = ", ".join(s or "(unnamed)" for s in splits)
    raise broken_file(name, what, f"it has {named}: write `split:`, or name a file")


def _one_kind(found: list[str], name: str) -> list[str]:
    """All files of a folder are its rows, if they are of one kind."""
    kinds = {suffix(Path(n)) for n in found}
    if len(kinds) > 1:
        raise broken_file(name, f"no one data file in this folder (found: {', '.join(found[:8])})", f"name the file, or write a glob: {name}/*.jsonl")
    return found


def _by_name(found: list[str]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for n in found:
        words = set(re.split(r"[^a-z0-9]+", n.lower()))
        out.setdefault(next((s for s, known in WORDS.items() if words & set(known)), ""), []).append(n)
    if len(out) > 1:
        out.pop("", None)  # beside files that bear a split's name, the others are none
    return out


def _by_card(found: list[str], card: str | None, config: str, name: str) -> dict[str, list[str]]:
    """Splits as the dataset card's `configs` list them: {config_name, data_files: path | [path] | [{split, path}]}."""
    configs = _configs(card)
    if not configs:
        return {}
    names = [c["config_name"] for c in configs]
    chosen = next((c for c in configs if c["config_name"] == config), None)
    if config and chosen is None:
        raise broken_file(name, f"no config `{config}`", f"its card has {', '.join(names)}")
    if chosen is None:
        chosen = configs[0] if len(configs) == 1 else next((c for c in configs if c.get("default") or c["config_name"] == "default"), None)
    if chosen is None:
        raise broken_file(name, "which config is meant?", f"its card has {', '.join(names)}: write `split: {names[0]}/train`")
    files = chosen.get("data_files")
    files = [files] if isinstance(files, str | dict) else files or []
    out: dict[str, list[str]] = {}
    for one in files:
        split, paths = (one.get("split", "train"), one.get("path")) if isinstance(one, dict) else ("train", one)
        for pattern in [paths] if isinstance(paths, str) else paths or []:
            out.setdefault(split, []).extend(n for n in found if fnmatch.fnmatch(n, pattern))
    return {split: files for split, files in out.items() if files}


def _configs(card: str | None) -> list[dict]:
    parts = card.split("---", 2) if card and card.startswith("---") else []
    if len(parts) < 3:
        return []
    import yaml

    try:
        body = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return []
    configs = body.get("configs") if isinstance(body, dict) else None
    return [c for c in configs if isinstance(c, dict) and isinstance(c.get("config_name"), str)] if isinstance(configs, list) else []


