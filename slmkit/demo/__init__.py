"""The embedded default: a task, its data, and two tiny models, so that the whole chain runs offline in minutes.

The task turns messy delivery notes into JSON (notes.py and words.py make the data). `student` is a small Llama that
knows the talk of delivery notes but not the task; `teacher` is a larger one that does it well. scripts/demo_models.py
makes both. Importing this loads the standard library only.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).resolve().parent
_PATHS = {
    "student": "student",
    "teacher": "teacher",
    "prompts": "notes/prompts.jsonl",
    "train": "notes/train.jsonl",
    "validation": "notes/validation.jsonl",
    "test": "notes/test.jsonl",
    "notes": "notes/delivery_notes.yaml",
}
NAMES = tuple(_PATHS)


def path(name: str) -> Path:
    """Where a part of the demo lies: the models' folders, the splits (JSONL) and `notes`, the lm-eval task.

    Raises KeyError, with the names there are, for any other name.
    """
    try:
        return _FOLDER / _PATHS[name]
    except KeyError:
        raise KeyError(f"the demo has no {name!r}; it has {', '.join(NAMES)}") from None
