"""The formats of the export step, a file each."""
