"""A step's config and inputs as they are hashed into its fingerprint: what is in it, and what is left out for a reason."""

from __future__ import annotations

from typing import Any

from slmkit.errors import RecipeError, UsageError
from slmkit.inputs import Planned
from slmkit.recipe.located import Mark
from slmkit.steps._registry import Kind
from slmkit.steps._step import Born, Columns, How, Part


def of_config(config: Any, kind: Kind) -> dict:
    """The config as it is hashed: defaults written out, inputs left out (they have identities), Born fields out at their default, How out."""
    inputs_named = {role for role in kind.takes if _names_input(getattr(config, role, None))}
    body = config.model_dump(mode="json", exclude=inputs_named)
    return _without_born(body, config)


def _names_input(value: Any) -> bool:
    """Does a role's value stand for an input? `validation: 0.1` and `teacher: {model: …, base_url: …}` do not: they are config."""
    return not isinstance(value, int | float) and (isinstance(value, Columns) or not isinstance(value, Part))


def unnamed(planned: Planned) -> dict:
    """What an input is, without the label under which one step keys its results."""
    return {k: v for k, v in planned.identity.items() if k != "name"}


def _without_born(body: dict, config: Any) -> dict:
    out = {}
    for key, value in body.items():
        metadata = type(config).model_fields[key].metadata
        born = next((m for m in metadata if isinstance(m, Born)), None)
        if any(isinstance(m, How) for m in metadata) or (born is not None and value == born.default):
            continue
        out[key] = _below(value, getattr(config, key))
    return out


def _below(value: Any, config: Any) -> Any:
    """A value as it is hashed: a block, or a list or mapping that may hold blocks."""
    if isinstance(config, list):
        return [_below(v, c) for v, c in zip(value, config, strict=True)]
    if isinstance(config, dict):
        return {k: _below(v, config[k]) for k, v in value.items()}
    return _without_born(value, config) if hasattr(type(config), "model_fields") else value


def of_inputs(kind: Kind, planned: tuple[Planned, ...], mark: Mark | None) -> dict:
    """The inputs by role. Raises RecipeError (UsageError without a recipe) for two of one name under which results would be keyed."""
    out: dict = {}
    for one in planned:
        if one.witness:
            continue
        takes = kind.takes[one.role]
        if takes.many and not (takes.lone and sum(i.role == one.role for i in planned) == 1):
            out.setdefault(one.role, []).append(one.identity)
        else:
            out[one.role] = one.identity
    names = [i.get("name") for role, takes in kind.takes.items() if takes.named for i in out.get(role, [])]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice:
        what = f"two inputs are called `{twice}`, and results are keyed by name"
        mend = "give each a name at the top of the recipe, and use it as $name"
        raise RecipeError([mark.problem(what, mend)]) if mark else UsageError(what, mend=mend)
    return out
