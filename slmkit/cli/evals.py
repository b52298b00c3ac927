"""What `compare` and `gate` name: an eval (`banking/score`, `score`, `refs/banking/prod`, a path, a fingerprint), or one model in it (`REF:int4`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from slmkit.errors import SlmkitError, UsageError


@dataclass(frozen=True)
class Named:
    """An eval that was found, and which of its models was meant (None: all)."""

    text: str
    artifact: object
    model: str | None


def find(store: Path, text: str) -> Named:
    """Raises UsageError when it is no eval, or has no such model. A colon may stand in a path or a model's name: the whole is tried first."""
    cuts = [len(text), *(i for i, c in reversed(list(enumerate(text))) if c == ":")]
    first: SlmkitError | None = None
    for cut in cuts:
        try:
            artifact = resolve(store, text[:cut])
        except UsageError as e:
            first = first or e
            continue
        if artifact.type != "scores":
            raise UsageError(f"{text[:cut]} is a {artifact.type} by {artifact.kind}, not an eval", mend="`slmkit ls` lists the kinds")
        models = list(artifact.manifest["result"].get("scores", {}))
        model = text[cut + 1 :] or None
        if model is not None and model not in models:
            raise UsageError(f"{text[:cut]} did not score `{model}`", mend=f"its models are {', '.join(models)}")
        return Named(text[:cut], artifact, model)
    raise first or UsageError("an empty reference", mend="`slmkit ls` lists what is there")


def resolve(store: Path, text: str):
    """As everywhere, and `refs/NAME`, and a step's name alone where one recipe has it."""
    from slmkit.artifact.store import Store

    home = Store(store)
    same = [name for name, _ in home.names() if name.partition("/")[2] == text]
    if len(same) == 1:
        return home.resolve(same[0])
    if len(same) > 1:
        raise UsageError(f"`{text}` is ambiguous", mend=f"one of {', '.join(same)}")
    if text.startswith("refs/") and not Path(text).exists():
        text = text.removeprefix("refs/")
    return home.resolve(text)


def evidence(named: Named):
    """The scores and samples of an eval, its models in the recipe's order; hashed again first: a verdict on altered answers is none."""
    from slmkit.errors import CheckFailed
    from slmkit.evidence import samples

    faults = named.artifact.faults()
    if faults:
        raise CheckFailed("; ".join(faults[:3]), where=named.artifact.path, mend="it is not what was published: remove it and run the eval again")
    found = samples.of_folder(named.artifact.path)
    told = [i["name"] for i in named.artifact.manifest["inputs"] if i["role"] == "models"]
    order = dict.fromkeys([*(m for m in told if m in found.scores), *found.scores])  # the recipe's: files hold models by the alphabet
    return replace(found, scores={m: found.scores[m] for m in order})


def other_ground(one: Named, other: Named) -> list[str]:
    """What else was not the same in two evals: the harness's release, the task files."""
    a, b = one.artifact.manifest, other.artifact.manifest
    pins = sorted((a.get("pins") or {}).items() ^ (b.get("pins") or {}).items())
    said = [f"{package} {release} in one alone" for package, release in pins]
    tasks = [{i["name"]: i["digest"] for i in m["inputs"] if i["role"] == "tasks"} for m in (a, b)]
    said += [f"the files of task {t}" for t in tasks[0].keys() & tasks[1].keys() if tasks[0][t] != tasks[1][t]]
    return [f"{one.text} and {other.text} were not measured alike: {'; '.join(said)}"] if said else []
