"""pydantic's errors as sentences about the recipe: which key, what it should be, what was given, and the nearest right word."""

from __future__ import annotations

import difflib
import re
import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError

from slmkit.recipe.located import Where

_NAMES = {"NoneType": "empty", "str": "text", "int": "a number", "float": "a number", "bool": "true/false", "list": "a list", "dict": "a mapping"}


def named(value: Any) -> str:
    """`a list`, `text`, …: the kind of value in words."""
    return _NAMES.get(type(value).__name__, type(value).__name__)


def shown(value: Any) -> str:
    """A value in a message, short."""
    if isinstance(value, bool | None):  # 0 and 1 are equal to them
        return {None: "nothing", True: "true", False: "false"}[value]
    text = repr(value) if isinstance(value, str) else str(value) if isinstance(value, int | float) else named(value)
    return text if len(text) <= 60 else text[:57] + "…"


def validation(error: ValidationError, model: type[BaseModel], where: Where, body: Any) -> list[tuple[Where, str, str | None, bool]]:
    """One fault per place: the members of a union each complain, and are told as alternatives."""
    by_place: dict[Where, tuple] = {}
    for one in error.errors(include_url=False):
        fault = pydantic_error(one, model, where, body)
        first = by_place.get(fault[0])
        if first is None or fault[1] == first[1] or fault[0] == where:
            by_place[(*fault[0], fault[1]) if fault[0] == where else fault[0]] = fault
        elif one["type"] == "literal_error" and first[2] is None:
            by_place[fault[0]] = (first[0], first[1], f"or {fault[2]}", first[3])
    return list(by_place.values())


def pydantic_error(error: dict, model: type[BaseModel], where: Where, body: Any) -> tuple[Where, str, str | None, bool]:
    """(place, sentence, help, whether the key is meant) for one entry of ValidationError.errors()."""
    inside, last = _real(error["loc"], body)
    kind, given = error["type"], error.get("input")
    here = (*where, *inside)
    name = str(inside[-1]) if inside else str(where[-1])
    if isinstance(inside[-1] if inside else None, int):
        name = ".".join(str(p) for p in inside[-2:])
    if kind == "extra_forbidden":
        return here, f"unknown key `{name}`", _nearest(name, _fields(model, inside[:-1])), True
    if kind == "missing":
        return here, f"`{last}` is missing", _about(model, (*inside, last)), True
    if kind == "string_pattern_mismatch":
        return here, f"`{name}` cannot be {shown(given)}", _about(model, inside), False
    if kind == "literal_error":
        allowed = [a.strip(" '") for a in error["ctx"]["expected"].replace(" or ", ", ").split(",")]
        near = difflib.get_close_matches(str(given), allowed, 1)
        mend = (f"did you mean `{near[0]}`? " if near else "") + f"allowed: {', '.join(allowed)}"
        return here, f"`{name}` cannot be {shown(given)}", mend, False
    if kind == "value_error":
        fault = error["ctx"]["error"]
        key = getattr(fault, "key", None)  # steps/_step.py: Wrong
        return (*where, key) if key else here, str(fault), getattr(fault, "mend", None), bool(key) or not inside
    if kind == "finite_number":
        return here, f"`{name}` must be a finite number, not {shown(given)}", None, False
    if kind == "bool_type":
        return here, f"`{name}` must be true or false, not {shown(given)}", None, False
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return here, f"`{name}` is a mapping of keys, this is {named(given)}", None, False
    said = error["msg"].replace("Input should be", "must be").replace("Value should", "must")
    return here, f"`{name}` {said[0].lower() + said[1:]}, not {shown(given)}", None, False


def _real(loc: tuple, body: Any) -> tuple[Where, str]:
    """pydantic's loc without the union members it puts in; and its last element, which may name a missing key."""
    out, value = [], body
    for part in loc:
        if (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            out.append(part)
            value = value[part]
    return tuple(out), str(loc[-1]) if loc else ""


def _about(model: type[BaseModel], inside: Where) -> str | None:
    """What a key is, in its own words: the first sentence."""
    *above, name = inside
    models = _models_at(model, tuple(above))
    said = next((m.model_fields[name].description for m in models if name in m.model_fields), None)
    first = re.split(r"(?<=\.) (?=[A-Z])", " ".join(said.split()))[0].rstrip(".") if said else ""
    return first[:1].lower() + first[1:] or None


def _fields(model: type[BaseModel], inside: Where) -> list[str]:
    """The keys that are allowed at a place, following nested models through unions."""
    models = _models_at(model, inside)
    names = list(dict.fromkeys(name for m in models for name in m.model_fields))  # one mapping, or a list of them: the same keys
    return names + (["kind", "execution"] if not inside else [])


def _models_at(model: type[BaseModel], inside: Where) -> list[type[BaseModel]]:
    models = [model]
    for part in (p for p in inside if not isinstance(p, int)):  # members of a list are of its own models
        models = [m for one in models if part in one.model_fields for m in _models(one.model_fields[part].annotation)]
    return models


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated, list, tuple):
        return [m for arg in typing.get_args(annotation) for m in _models(arg)]
    return []


def _nearest(name: str, known: list[str]) -> str | None:
    initials = [k for k in known if len(name) > 1 and "".join(word[0] for word in k.split("_")) == name.lower()]  # lr, wd
    letters = [k for k in known if k == name[:1].lower()]  # rank for r
    near = initials or difflib.get_close_matches(name, known, 1, 0.6) or letters or difflib.get_close_matches(name, known, 1, 0.5)
    near = near or [k for k in known if name in k.split("_") or k in name][:1]
    if not known:
        return None
    return (f"did you mean `{near[0]}`? " if near else "") + f"known keys: {', '.join(known)}"
