"""slmkit turns a general small language model into a specialist, and proves it. Importing this loads nothing heavy."""

__version__ = "0.1.0"
