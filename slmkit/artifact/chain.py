"""What an artifact was made from: the artifacts of its inputs, and of theirs, as their manifests say; found again in a store."""

from __future__ import annotations

from collections.abc import Callable

from slmkit.artifact.manifest import Artifact
from slmkit.artifact.store import Store


def below(store: Store, inputs: list[dict]) -> tuple[list[Artifact], list[str]]:
    """`behind`, in a store."""
    return behind({a.fingerprint: a for a in store.artifacts()}.get, inputs)


def behind(find: Callable[[str], Artifact | None], inputs: list[dict]) -> tuple[list[Artifact], list[str]]:
    """(all artifacts that these inputs were made from, their own first, each once; what is recorded and no longer there).

    find: fingerprint → artifact. inputs: entries of a manifest's `inputs`. What was only looked at (a witness) made nothing.
    """
    found: dict[str, Artifact] = {}
    missing: dict[str, str] = {}
    waiting = list(inputs)
    while waiting:
        one = waiting.pop(0)
        mark = one.get("fingerprint")
        if not mark or one.get("witness") or mark in found or mark in missing:
            continue
        made = find(mark)
        if made is None:
            missing[mark] = f"{one['name']} ({one['uri']})"
        else:
            found[mark] = made
            waiting += made.manifest["inputs"]
    return list(found.values()), list(missing.values())
