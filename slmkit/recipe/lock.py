"""`<recipe>.lock.json` keeps what names meant: hub name and revision → 40-hex commit. A moved `main` changes nothing once locked."""

from __future__ import annotations

import json
import os
from pathlib import Path

from slmkit.errors import RecipeError, UsageError
from slmkit.recipe.located import Mark
from slmkit.sources import COMMIT, Source, resolve_hub

SCHEMA = "slmkit.lock/1"
AGAIN = "`slmkit lock RECIPE --refresh` writes it anew"


class Lock:
    """The lock file of one recipe. `frozen` (--locked) refuses to resolve anew; `found` holds what was newly resolved."""

    def __init__(self, path: Path, frozen: bool, refresh: bool = False):
        self.path, self.frozen = path, frozen
        self.known: dict[str, str] = {} if refresh else _read(path)
        self.found: dict[str, str] = {}

    def commit(self, source: Source, mark: Mark, repo_type: str = "model") -> str:
        """The commit of a hub source; a dataset's is kept as hf:datasets/ID@REVISION.

        Raises RecipeError (not locked, no such repository) or CannotRun (no network).
        """
        if COMMIT.match(source.revision):
            return source.revision
        name = f"hf:{'datasets/' if repo_type == 'dataset' else ''}{source.repo}@{source.revision}"
        if name in self.known:
            return self.known[name]
        if self.frozen:
            what = f"{name} is not in {self.path.name}, and --locked (the default under CI) resolves nothing anew"
            raise RecipeError([mark.problem(what, "run `slmkit lock RECIPE` and commit the lock file")])
        try:
            self.known[name] = self.found[name] = resolve_hub(source.repo, source.revision, repo_type)
        except UsageError as e:
            raise RecipeError([mark.problem(e.what, e.mend)]) from None
        return self.known[name]

    def save(self, always: bool = False) -> bool:
        """Write the file if something was resolved, or `always`. True when written."""
        if not self.found and not always:
            return False
        body = json.dumps({"schema": SCHEMA, "hub": dict(sorted(self.known.items()))}, indent=2) + "\n"
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text(body)
        os.replace(temporary, self.path)
        self.found = {}
        return True


def _read(path: Path) -> dict[str, str]:
    try:
        body = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as e:
        raise UsageError(f"the lock file is not valid JSON: {e}", where=path, mend=AGAIN) from None
    except OSError as e:
        raise UsageError(f"the lock file cannot be read: {e.strerror}", where=path) from None
    hub = body.get("hub") if isinstance(body, dict) and body.get("schema") == SCHEMA else None
    if not isinstance(hub, dict) or not all(isinstance(v, str) and COMMIT.match(v) for v in hub.values()):
        raise UsageError(f"not a lock file of schema {SCHEMA}", where=path, mend=AGAIN)
    return hub
