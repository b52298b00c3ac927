"""Evidence that can be run again: an artifact built anew from its manifest and compared with what it was, and what recreates its environment."""
