"""Writes the embedded default as a project of one's own: the recipe, and for `init` its data and task as files beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

from slmkit import demo
from slmkit.errors import UsageError
from slmkit.recipe.schema import text as schema_text

RECIPE = Path(__file__).with_name("quickstart.yaml")
FILES = {"train": "data/train.jsonl", "test": "tasks/test.jsonl", "notes": "tasks/delivery_notes.yaml"}


def write(folder: Path, keep: bool = False) -> Path:
    """Write recipe.yaml (and its schema) into `folder`, with data and task as files unless `keep`; returns the recipe's path.

    Raises UsageError when a recipe is there already, but with `keep` leaves the same recipe alone.
    """
    recipe = folder / "recipe.yaml"
    body = RECIPE.read_text()
    if not keep:
        for name, place in FILES.items():
            body = body.replace(f"demo:{name}\n", f"{place}\n").replace(f"demo:{name}]", f"{place}]")
        body = body.replace("recipe: quickstart", f"recipe: {_name(folder)}")
    if recipe.exists() and not (keep and recipe.read_text() == body):
        raise UsageError("a recipe is there already", where=recipe, mend="choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    if not keep:
        for name, place in FILES.items():
            source, target = demo.path(name), folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        shutil.copyfile(demo.path("notes").with_name("metrics.py"), folder / "tasks/metrics.py")
    (folder / "recipe.schema.json").write_text(schema_text() + "\n")
    recipe.write_text(body)
    return recipe


def _name(folder: Path) -> str:
    """A recipe name from the folder's name."""
    word = "".join(c if c.isalnum() and c.isascii() or c in "-_" else "-" for c in folder.absolute().name).strip("-_")
    return word[:40] or "my-task"
