"""The recipe: YAML text → located values → validated, frozen steps. Nothing here runs or fetches anything but `lock`."""
