"""The JSON Schema of recipes, for editors: made from the kinds' Config and Execution models, checked in, kept current by a test."""

from __future__ import annotations

import json
from typing import Any

from slmkit.steps import _registry

VALUE = {"type": "string", "pattern": r"^\$[A-Za-z_]", "description": "A step's output or a top-level value."}


def build() -> dict:
    """The schema as an object (JSON Schema 2020-12)."""
    kinds = {name: _registry.load(name) for name in _registry.locations()}
    definitions: dict[str, Any] = {}
    for name, kind in kinds.items():
        definitions[name] = _kind(name, kind, definitions)
    by_kind = [
        {"if": {"properties": {"kind": {"const": name}}, "required": ["kind"]}, "then": {"$ref": f"#/$defs/{name}"}} for name in kinds
    ]
    named = {name: {"if": {"not": {"required": ["kind"]}}, "then": {"$ref": f"#/$defs/{name}"}} for name in kinds}
    step = {"type": ["object", "null"], "properties": {"kind": {"enum": list(kinds), "description": "What the step does."}}, "allOf": by_kind}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "slmkit recipe", "type": "object",
        "required": ["recipe", "steps"],
        "properties": {
            "recipe": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$", "description": "The recipe's name."},
            "base": {"type": "string", "description": "The base model: hf:ID[@revision], a path, artifact:REF, or demo:student."},
            "steps": {
                "type": "object", "minProperties": 1, "additionalProperties": step,
                "properties": {n: {"allOf": [step, s]} for n, s in named.items()},
            },
        },
        "$defs": definitions,
    }


def _kind(name: str, kind, definitions: dict) -> dict:
    config = kind.module.Config.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
    execution = kind.module.Execution.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
    for below in (config, execution):
        for model, body in below.pop("$defs", {}).items():
            definitions[f"{name}.{model}"] = body
    properties = {key: _or_value(body) for key, body in config["properties"].items()}
    for role, takes in kind.takes.items():
        if takes.many and role.endswith("s"):
            properties.setdefault(role[:-1], {"type": "string", "description": f"Short for {role}: [X]."})
    properties["kind"] = {"const": name}
    properties["execution"] = {k: v for k, v in execution.items() if k != "title"}
    description = _registry.doc(name).splitlines()[0]
    return {"type": ["object", "null"], "description": description, "properties": properties, "additionalProperties": False}


def _or_value(body: dict) -> dict:
    """Any key may hold `$name` of a top-level value."""
    described = {k: body[k] for k in ("description", "default") if k in body}
    rest = {k: v for k, v in body.items() if k not in ("description", "default", "title")}
    return described | {"anyOf": [rest, VALUE]}


def text() -> str:
    return json.dumps(build(), indent=1, ensure_ascii=False)
