"""The files that `slmkit reproduce --env` writes beside a recipe: `reproduce`, the script, and `check.py`, its eyes."""
