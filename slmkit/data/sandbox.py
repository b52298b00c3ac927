"""Jinja for templates that come from anywhere: a template reaches nothing beyond its values, and can use up neither time nor memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from slmkit.data.faults import Bad

MOST_STEPS = 100_000  # turns of all loops of one rendering: Jinja's own bound on `range`, which loops in loops would pass
MOST_CHARACTERS = 4_000_000  # of a rendering, and of a text that an operator makes: about the longest context there is
NO_METHODS = {"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map"}  # of strings: a width is a length to fill
NO_FILTERS = {"center", "format", "indent", "wordwrap", "pprint", "random", "slice", "batch", "attr"}


def compiled(environment, text: str, name: str | None = None, path: str | None = None):
    """A template whose loops are counted. Raises jinja2.TemplateError."""
    from jinja2 import nodes

    tree = environment.parse(text, name, path)
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
    return environment.from_string(tree)


def render(environment, template, values: dict[str, Any]) -> str:
    """The text of a template. Raises what Jinja raises, ValueError for a text that grows too long."""
    environment.steps = 0
    out, size = [], 0
    for piece in template.generate(**values):
        size += len(piece)
        if size > MOST_CHARACTERS:
            raise ValueError(f"it renders to more than {MOST_CHARACTERS:,} characters")
        out.append(piece)
    return "".join(out)


def of_columns(said: str, key: str) -> Callable[[dict], str]:
    """A function from a row to the text that a template makes of its columns; it raises Bad. Raises ValueError for what is no template."""
    import jinja2

    made = environment()
    try:
        template = compiled(made, said)
    except (jinja2.TemplateError, RecursionError) as e:
        raise ValueError(f"`{key}` is no template: {e}") from None

    def rendered(row: dict) -> str:
        try:
            return render(made, template, {k: v for k, v in row.items() if isinstance(k, str)})
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError, MemoryError) as e:
            raise Bad(f"the template of `{key}` does not fit: {e} (columns: {', '.join(map(str, row))})"[:300]) from None

    return rendered


def environment():
    """Jinja in which a template reaches nothing beyond its values, and can use up neither time nor memory."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

    class Bounded(ImmutableSandboxedEnvironment):
        """A sandbox in which loops are counted and no operator makes a text that is too long."""

        intercepted_binops = frozenset(["*", "**", "%"])
        steps = 0

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**" and not (abs(left) <= 1e6 and abs(right) <= 32):
                raise SecurityError("`**` makes too large a number")
            if operator == "%" and isinstance(left, str):
                raise SecurityError("`%` on a text is not allowed here; write the value where it belongs")
            sizes = [len(v) for v in (left, right) if isinstance(v, str | list | tuple)]
            if operator == "*" and sizes and max(sizes) * max([v for v in (left, right) if isinstance(v, int)], default=0) > MOST_CHARACTERS:
                raise SecurityError("`*` makes too long a text")
            return super().call_binop(context, operator, left, right)

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            return not (isinstance(obj, str) and attr in NO_METHODS) and super().is_safe_attribute(obj, attr, value)

        def counted(self, values: Iterable[Any]) -> Iterator[Any]:
            for value in values:
                self.steps += 1
                if self.steps > MOST_STEPS:
                    raise SecurityError(f"its loops take more than {MOST_STEPS:,} turns")
                yield value

    environment = Bounded(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    safe_range = environment.globals["range"]
    environment.globals = {"range": safe_range}
    for name in NO_FILTERS:
        environment.filters.pop(name)
    environment.filters["counted"] = environment.counted
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)  # Jinja's own writes `<` as \u003c, for web pages
    return environment
