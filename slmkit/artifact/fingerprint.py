"""The fingerprint says what was asked: sha256 of canonical JSON of {schema, kind, version, config, inputs, pins}.

Canonical means sorted keys, no spaces, UTF-8, no NaN; anything that is no JSON raises instead of being guessed at.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

SCHEMA = "slmkit.fingerprint/1"


def canonical(value: Any) -> bytes:
    """The one JSON text of a value; -0.0 is 0.0. Raises TypeError or ValueError for what JSON cannot hold exactly."""
    _check(value, "$")
    value = _plus_zero(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _plus_zero(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plus_zero(below) for key, below in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plus_zero(below) for below in value]
    return 0.0 if isinstance(value, float) and value == 0 else value


def _check(value: Any, where: str) -> None:
    if value is None or isinstance(value, (bool, str)):
        return
    if isinstance(value, int):
        if abs(value) > 1 << 53:
            raise ValueError(f"{where}: an integer beyond 2^53 is not exact in JSON")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where}: {value} is no JSON number")
    elif isinstance(value, dict):
        for key, below in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where}: a key of type {type(key).__name__}")
            _check(below, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, below in enumerate(value):
            _check(below, f"{where}[{index}]")
    else:
        raise TypeError(f"{where}: {type(value).__name__} is no JSON")


def payload(kind: str, version: int, config: dict, inputs: dict, pins: dict) -> dict:
    """The exact object that is hashed; kept whole in the manifest, so any drift can be explained field by field."""
    return {"schema": SCHEMA, "kind": kind, "version": version, "config": config, "inputs": inputs, "pins": pins}


def fingerprint(body: dict) -> str:
    """64 hex digits of the payload's canonical JSON."""
    return hashlib.sha256(canonical(body)).hexdigest()


def differences(old: Any, new: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """(path, old, new) for every leaf that differs between two JSON values; a missing one is None."""
    if isinstance(old, dict) and isinstance(new, dict):
        out = []
        for key in sorted(old.keys() | new.keys()):
            out += differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
        return out
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, (a, b) in enumerate(zip(old, new, strict=True)) for d in differences(a, b, f"{where}[{i}]")]
    same = type(old) is type(new) and old == new
    return [] if same else [(where, old, new)]
