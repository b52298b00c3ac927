"""Writes the embedded default as a project of one's own: the recipe, and for `init` its data and task as files beside it."""

from __future__ import annotations

from pathlib import Path

from slmkit import demo
from slmkit.errors import UsageError
from slmkit.recipe.schema import text as schema_text

RECIPE = Path(__file__).with_name("quickstart.yaml")
FILES = {"prompts": "data/prompts.jsonl", "test": "tasks/test.jsonl", "notes": "tasks/delivery_notes.yaml"}


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
    files = {recipe: body.encode(), folder / "recipe.schema.json": (schema_text() + "\n").encode()}
    if not keep:
        files |= {folder / place: demo.path(name).read_bytes() for name, place in FILES.items()}
        files[folder / "tasks/metrics.py"] = demo.path("notes").with_name("metrics.py").read_bytes()
    try:
        taken = next((p for p, content in files.items() if p.exists() and not (keep and p.read_bytes() == content)), None)
        if taken:
            raise UsageError("something is there already, and is not overwritten", where=taken, mend="choose another folder")
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as e:
        raise UsageError(f"cannot write the project: {e.strerror}", where=e.filename or folder, mend="choose another folder") from None
    return recipe


def _name(folder: Path) -> str:
    """A recipe name from the folder's name."""
    word = "".join(c if c.isalnum() and c.isascii() or c in "-_" else "-" for c in folder.absolute().name).strip("-_")
    return word[:40] or "my-task"
