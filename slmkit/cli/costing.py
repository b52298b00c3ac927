"""Behind the verb `cost`: which eval and which `cost:` block are meant, the flags laid over it, and the steps that made each model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slmkit.cli import evals
from slmkit.cli.evals import Named
from slmkit.errors import UsageError

ANEW = "add `speed: {}` to the eval step and run it again: its scores come out the same"


def find(store: Path, ref: str, step: str | None) -> tuple[Named, dict[str, Any]]:
    """(the eval, its block of prices): a recipe's file has the block as it stands now, an eval as it was. Raises UsageError."""
    if not (ref.endswith((".yaml", ".yml")) and Path(ref).is_file()):
        if step is not None:
            raise UsageError(f"{ref} is no recipe, so it has no step `{step}`", mend="slmkit cost RECIPE.yaml [STEP], or slmkit cost REF")
        named = evals.find(store, ref)
        return named, named.artifact.manifest["result"].get("cost") or {}
    from slmkit.cli.given import load_and_plan

    made, home, _ = load_and_plan(ref, "eval", step, None, None, store, None)
    row = next(r for r in made.rows if r.name == made.target)
    artifact = home.find(row.kind.name, row.fingerprint)
    if artifact is None or row.action != "cached":
        raise UsageError(f"{row.name} is not made yet, or not as the recipe has it now: {'; '.join(row.why)}", mend=f"slmkit eval {ref} {row.name}")
    block = row.config.cost
    return Named(f"{made.recipe.name}/{row.name}", artifact, None), block.model_dump(mode="json", exclude_none=True) if block else {}


def reckon(store: Path, named: Named, model: str | None, block: dict[str, Any], flags: dict[str, Any]) -> list:
    """A Bill for each model (or the one that is named) whose speed was measured. Raises UsageError."""
    from slmkit.artifact.chain import below
    from slmkit.artifact.store import Store
    from slmkit.evidence import bill

    manifest = named.artifact.manifest
    result = manifest["result"]
    if model is not None and model not in result["scores"]:
        raise UsageError(f"{named.text} did not score `{model}`", mend=f"its models are {', '.join(result['scores'])}")
    speeds = {n: measured for n, measured in bill.measured_in(manifest).items() if model in (n, None)}
    if not speeds:
        raise UsageError(f"the speed of {model or 'no model'} was{' not' if model else ''} measured in {named.text}", mend=ANEW)
    said, home = parsed(laid_over(block, flags)), Store(named.artifact.path.parent)
    for name, measured in speeds.items():
        if said.batch is not None and str(said.batch) not in measured["curve"]:
            raise UsageError(f"batch {said.batch} was not measured of {name}", mend=f"the sizes are {', '.join(measured['curve'])}")
    chains = {}
    for n in result["scores"]:
        steps, missing = below(home, [i for i in manifest["inputs"] if i["role"] == "models" and i["name"] == n])
        chains[n] = [a.manifest for a in steps], missing
    return bill.draw_up(manifest, speeds, chains, said)


def laid_over(block: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """The recipe's block with the flags that were given over it, those of the API one by one."""
    api = (block.get("api") or {}) | {k: v for k, v in flags["api"].items() if v is not None}
    return block | {k: v for k, v in flags.items() if v is not None and k != "api"} | ({"api": api} if api else {})


def parsed(given: dict[str, Any]) -> Any:
    """A Cost. Raises UsageError that names the flag."""
    from pydantic import ValidationError

    from slmkit.steps._speed import Cost

    try:
        return Cost.model_validate(given)
    except ValidationError as e:
        first = e.errors()[0]
        flag = "--" + "-".join(str(p) for p in first["loc"]).replace("_", "-")
        what = f"{flag.replace('api-cached-share', 'cached-share')}: {first['msg'].removeprefix('Value error, ')}"
        raise UsageError(what, mend="`slmkit cost --help` says what each is") from None


def record(named: Named, bills: list) -> dict[str, Any]:
    """What --json prints."""
    return {"path": str(named.artifact.path), "models": {b.name: b.record() for b in bills}}
