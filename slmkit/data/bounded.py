"""What a template may call: Jinja's filters and tests, and the methods of texts, lists and mappings, each bounded before it works.

What is not named here is not there. Left out are those that fill a width that the template names (`center`, `ljust`, `format`, `indent`, `wordwrap`,
`batch`, `slice`), those that reach for names (`attr`), those of chance (`random`), and those for web pages whose work grows with the square of the
text (`striptags`, `urlize`, `xmlattr`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from slmkit.data.meter import BITS, CALL, CELL, MOST_CHARACTERS, Meter, is_undefined, refused

WORD = re.compile(r"\w+")
PIECES, PARTS = 100_000, 100  # of a text that is split; of the path to an attribute
FINE = {
    "str": {
        "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit",
        "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper", "join", "lower", "lstrip", "partition",
        "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith",
        "strip", "swapcase", "title", "upper",
    },
    "list": {"copy", "count", "index"}, "tuple": {"count", "index"}, "dict": {"copy", "get", "items", "keys", "values"},
    "float": {"is_integer"}, "datetime": {"date", "isoformat", "time"}, "date": {"isoformat"}, "time": {"isoformat"},
}  # fmt: skip
BACKWARDS = {"rfind", "rindex", "rpartition", "rsplit", "strip", "lstrip", "rstrip"}  # Python's search from the end may compare all with all
TEXTS = ("capitalize", "e", "escape", "forceescape", "lower", "safe", "string", "truncate", "upper")  # a text, and one of about its length
CHEAP = ("abs", "count", "d", "default", "filesizeformat", "first", "float", "items", "last", "length")
WHOLE = ("groupby", "max", "min", "sort", "unique")  # all entries, compared with one another
LAZY = ("map", "reject", "rejectattr", "select", "selectattr")  # an entry at a time; what is done to it is counted where it is done
WRITTEN = ("lower", "upper")  # tests that look at `str(value)`


def sought(meter: Meter, text: str, part: str, backwards: bool = False) -> None:
    """The work of looking for a part: Python compares all with all in short texts, and from the end."""
    meter.step(len(text) + len(part) * (len(text) if backwards else min(len(text), 30_000)) // 16)


def replaced(meter: Meter, text: str, old: str, new: str, count: int | None = None) -> str:
    text, old, new = meter.text(text), meter.text(old), meter.text(new)
    sought(meter, text, old)
    found = text.count(old) if count is None or count < 0 else min(count, text.count(old))
    meter.make(len(text) + found * max(0, len(new) - len(old)))
    return text.replace(old, new, -1 if count is None else count)


def joined(meter: Meter, values: Iterable[Any], between: Any = "") -> str:
    """The texts of the values. Raises before it is written what is too long."""
    between, size, pieces = meter.text(between), 0, []
    for value in values:
        pieces.append(meter.text(value))
        size += len(pieces[-1]) + len(between)
        if size > MOST_CHARACTERS + len(between):
            meter.make(size)
    meter.make(max(0, size - len(between)))
    return between.join(pieces)


def method(meter: Meter, called: Any, args: tuple, kwargs: dict) -> Any:
    """A method of a value of a row. Raises SecurityError for one that is not among those above."""
    of, name = called.__self__, called.__name__
    kind = next((k.__name__ for k in type(of).__mro__ if k.__name__ in FINE), "")
    if name not in FINE.get(kind, ()):
        there = f"; there are {', '.join(sorted(FINE[kind]))}" if kind else ""
        raise refused(f"`{name}` of a {type(of).__name__} is not allowed in a template{there}")
    if kind != "str":
        meter.weigh(*args, *kwargs.values())
        if name in ("count", "index"):
            meter.weigh(of)
        return called(*args, **kwargs)
    meter.weigh(of, *(a for a in args if not hasattr(a, "__next__")), *kwargs.values())
    if name == "replace":
        return replaced(meter, of, *args, **kwargs)
    if name == "join":
        values = list(meter.counted(*args))
        if not all(isinstance(v, str) for v in values):
            raise TypeError("`join` of a text takes texts alone; the filter `| join` writes other values too")
        return joined(meter, values, of)
    for part in (p for a in args for p in (a if isinstance(a, tuple) else (a,)) if isinstance(p, str)):
        sought(meter, of, part, name in BACKWARDS)
    if name in ("split", "rsplit"):
        return _split(meter, called, *args, **kwargs)
    if name == "splitlines":
        meter.make(CELL * sum(of.count(c) for c in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"))
    found = called(*args, **kwargs)
    meter.make(meter.weigh(found) if not isinstance(found, str) else len(found))
    return found


def _split(meter: Meter, called: Any, sep: str | None = None, maxsplit: int = -1) -> list[str]:
    found = called(sep, PIECES if maxsplit < 0 else min(maxsplit, PIECES))
    if len(found) > PIECES:
        raise refused(f"it splits a text into more than {PIECES:,} pieces")
    meter.make(len(called.__self__) + CELL // 5 * len(found))
    return found


def binary(meter: Meter, operator: str, left: Any, right: Any) -> None:
    """Raise before an operator makes what is too much."""
    meter.step()
    if any(isinstance(v, int) and v.bit_length() > BITS for v in (left, right)):
        raise refused(f"`{operator}` works on too large a number")
    if operator == "**" and not (abs(left) <= 1e6 and abs(right) <= 32):
        raise refused("`**` makes too large a number")
    if operator == "%" and isinstance(left, str):
        raise refused("`%` on a text is not allowed here; write the value where it belongs")
    series = [v for v in (left, right) if isinstance(v, str | list | tuple)]
    if series and operator in "+*":
        times = max([v for v in (left, right) if isinstance(v, int)], default=1) if operator == "*" else 1
        sizes = [len(v) if isinstance(v, str) else meter.weigh(v) for v in series]
        meter.make(sum(sizes) * max(0, times))


@dataclass(frozen=True)
class Own:
    """Jinja's own filter or test, called from a place in a template. It looks up what it needs in the sandbox."""

    function: Callable
    context: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        of, wanted = self.context, getattr(getattr(self.function, "jinja_pass_arg", None), "name", None)
        first = {"context": (of,), "eval_context": (of.eval_ctx,), "environment": (of.environment,)}.get(wanted, ())
        return self.function(*first, *args, **kwargs)

    def each(self, values: Iterable[Any], attribute: Any) -> Iterable[Any]:
        """An attribute of each of the values."""
        return self.context.environment.call_filter("map", values, kwargs={"attribute": attribute}, context=self.context)


def _wrapped(function: Callable, own: Callable) -> Callable:
    from jinja2 import pass_context

    @pass_context  # which keeps Jinja from working it out when the template is compiled, uncounted
    def called(context: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        meter = context.environment.meter
        meter.step(CALL)
        return function(Own(own, context), meter, value, *args, **kwargs)

    return called


def filters(jinja: dict[str, Callable]) -> dict[str, Callable]:
    """Filters by their names."""
    own = {
        "dictsort": _dictsort, "int": _int, "join": _join, "list": lambda call, meter, value: meter.listed(value), "replace": _replace,
        "reverse": _reverse, "round": _round, "sum": _sum, "title": _title,
        "urlencode": _urlencode, "tojson": _tojson, "trim": _trim, "wordcount": _wordcount,
    }  # fmt: skip
    groups = {**dict.fromkeys(TEXTS, _text), **dict.fromkeys(CHEAP, _cheap), **dict.fromkeys(WHOLE, _whole), **dict.fromkeys(LAZY, _lazy)}
    return {name: _wrapped(function, jinja[name]) for name, function in (groups | own).items()}


def _text(call: Own, meter: Meter, value: Any, *args: Any, **kwargs: Any) -> Any:
    meter.weigh(*args, *kwargs.values())
    found = call(meter.text(value), *args, **kwargs)
    meter.make(len(found))
    return found


def _title(call: Own, meter: Meter, value: Any) -> str:
    text = meter.text(value)
    meter.make(CELL // 2 * len(text))  # it takes every word for itself
    return call(text)


def _urlencode(call: Own, meter: Meter, value: Any) -> str:
    return meter.written(value, call)


def _trim(call: Own, meter: Meter, value: Any, chars: str | None = None) -> str:
    text = meter.text(value)
    sought(meter, text, chars or "", backwards=True)
    return _text(call, meter, text, chars)


def _wordcount(call: Own, meter: Meter, value: Any) -> int:
    text = meter.text(value)
    meter.step(10 * len(text))
    return sum(1 for _ in WORD.finditer(text))


def _cheap(call: Own, meter: Meter, value: Any, *args: Any, **kwargs: Any) -> Any:
    return call(value, *args, **kwargs)


def _int(call: Own, meter: Meter, value: Any, default: Any = 0, base: int = 10) -> Any:
    if isinstance(value, str) and len(value) > BITS // 4:
        raise refused("`int` makes too large a number")
    return call(value, default, base)


def _round(call: Own, meter: Meter, value: Any, precision: int = 0, method: str = "common") -> Any:
    if abs(precision) > 30:
        raise refused("`round` takes a precision up to 30")
    return call(value, precision, method)


def _path(*said: Any) -> None:
    """Raise for an attribute of attributes without an end: `0.0.0.…` of a text is always there."""
    if any(isinstance(a, str) and a.count(".") + a.count(",") > PARTS for a in said):
        raise refused(f"it names an attribute of more than {PARTS} parts")


def _whole(call: Own, meter: Meter, value: Any, *args: Any, **kwargs: Any) -> Any:
    _path(*args, *kwargs.values())
    values = value if is_undefined(value) else meter.listed(value)
    if not is_undefined(value):
        meter.step(meter.weigh(values, *args, *kwargs.values()) * len(values).bit_length())
    return call(values, *args, **kwargs)


def _dictsort(call: Own, meter: Meter, value: Any, *args: Any, **kwargs: Any) -> Any:
    meter.step(meter.weigh(value) * 17)
    return call(value, *args, **kwargs)


def _lazy(call: Own, meter: Meter, value: Any, *args: Any, **kwargs: Any) -> Any:
    _path(*args[:1], kwargs.get("attribute"))
    return call(value if is_undefined(value) or not value else meter.counted(value), *args, **kwargs)


def _reverse(call: Own, meter: Meter, value: Any) -> Any:
    if isinstance(value, str):
        meter.make(len(value))
        return value[::-1]
    return call(value if hasattr(value, "__reversed__") or is_undefined(value) else meter.listed(value))


def _join(call: Own, meter: Meter, value: Any, d: Any = "", attribute: Any = None) -> str:
    return joined(meter, meter.counted(value) if attribute is None else call.each(value, attribute), d)


def _replace(call: Own, meter: Meter, value: Any, old: str, new: str, count: int | None = None) -> str:
    return replaced(meter, value, old, new, count)


def _sum(call: Own, meter: Meter, value: Any, attribute: Any = None, start: Any = 0) -> Any:
    total = start
    for one in meter.counted(value) if attribute is None else call.each(value, attribute):
        binary(meter, "+", total, one)
        total = total + one
    return total


def _tojson(call: Own, meter: Meter, value: Any) -> str:
    return meter.written(value, lambda v: json.dumps(v, ensure_ascii=False))  # Jinja's own writes `<` as \u003c, for web pages


def tests(jinja: dict[str, Callable]) -> dict[str, Callable]:
    """Tests by their names, and with them what compares: `==` and the like are written as tests."""
    return {name: _wrapped(_in if name == "in" else _written if name in WRITTEN else _test, function) for name, function in jinja.items()}


def _test(call: Own, meter: Meter, value: Any, *args: Any, **kwargs: Any) -> Any:
    if args or kwargs:
        meter.weigh(value, *args, *kwargs.values())
    return call(value, *args, **kwargs)


def _written(call: Own, meter: Meter, value: Any) -> bool:
    return call(meter.text(value))


def _in(call: Own, meter: Meter, value: Any, series: Any) -> bool:
    if isinstance(value, str) and isinstance(series, str):
        sought(meter, series, value)
    elif hasattr(series, "__next__"):
        return value in meter.counted(series, meter.weigh(value))
    else:
        meter.weigh(value) if isinstance(series, dict) else meter.weigh(value, series)
    return value in series
