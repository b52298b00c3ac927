"""Artifacts: folders with a manifest, their identity, and the store that holds them. Knows no recipe, no kind, no torch."""
