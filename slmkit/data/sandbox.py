"""Jinja for templates that come from anywhere: a template reaches nothing beyond its values, and can use up neither time nor memory.

Everything that a template does is counted (`meter`), and what it may call is a list (`bounded`). Jinja's sandbox hands over calls, attributes
and arithmetic; what it compiles into plain Python (loops, comparisons, slices, lists, `~`) is rewritten here into filters that count.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from typing import Any

from slmkit.data import bounded
from slmkit.data.faults import Bad
from slmkit.data.meter import CALL, MOST_CHARACTERS, STEP, Meter, refused

FAULTS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError, MemoryError)  # of a rendering, beside Jinja's own
COMPARED = {"eq": "eq", "ne": "ne", "lt": "lt", "lteq": "le", "gt": "gt", "gteq": "ge", "in": "in", "notin": "in"}  # Jinja's tests of these names
TURNS, SPENT, MADE, BUILT, WRITTEN, WEIGHED = (f"slmkit {what}" for what in ("turns", "spent", "made", "built", "written", "weighed"))
MOST_RANGE = 2**60  # numbers below it are their own hashes: no two of a set fall on one another
SYNTAX = "`{{ prompt }}` writes a value, `{% if … %} … {% endif %}` and `{% for x in … %} … {% endfor %}` stand around what they are about"
BOUNDS = "a template writes a text of its values, and has bounds: docs/distill.md lists them under Templates"


def compiled(environment, text: str, name: str | None = None, path: str | None = None):
    """A template of which everything is counted. Raises jinja2.TemplateError."""
    from jinja2 import TemplateSyntaxError, nodes

    try:
        tree = environment.parse(text, name, path)
        environment.size = sum(1 for _ in tree.find_all(nodes.Node))
        return environment.from_string(_rewritten(tree))
    except (RecursionError, MemoryError, SyntaxError):  # of Python, which compiles it in the end
        raise TemplateSyntaxError("it is nested too deeply", 1) from None


def help_with(environment, error: Exception) -> str:
    """The help line for a text that is no template."""
    for what, there in (("filter", environment.filters), ("test", environment.tests)):
        if f"No {what} named" in str(error):
            return f"a template has the {what}s {', '.join(sorted(name for name in there if name[0].isalpha() and ' ' not in name))}"
    return SYNTAX


def render(environment, template, values: dict[str, Any]) -> str:
    """The text of a template. Raises what Jinja raises (SecurityError where a bound is passed), and FAULTS."""
    environment.meter = Meter()
    out, size = [], 0
    for piece in template.generate(**values):
        size += len(piece)
        if size > MOST_CHARACTERS:
            raise refused(f"it renders to more than {MOST_CHARACTERS:,} characters")
        out.append(piece)
    return "".join(out)


def bounded_by(error: Exception) -> bool:
    """Is it a bound that a rendering came to, and not a value that was not there?"""
    from jinja2.sandbox import SecurityError

    return isinstance(error, SecurityError | OverflowError)


def of_columns(said: str, key: str) -> Callable[[dict], str]:
    """A function from a row to the text that a template makes of its columns; it raises Bad. Raises ValueError for what is no template."""
    import jinja2

    made = environment()
    try:
        template = compiled(made, said)
    except jinja2.TemplateError as e:
        raise ValueError(f"`{key}` is no template: {e}; {help_with(made, e)}") from None

    def rendered(row: dict) -> str:
        try:
            return render(made, template, {k: v for k, v in row.items() if isinstance(k, str)})
        except (jinja2.TemplateError, *FAULTS) as e:
            raise Bad(f"the template of `{key}` does not fit: {e} (columns: {', '.join(map(str, row))})"[:300]) from None

    return rendered


def environment(**settings: Any):
    """Jinja in which a template reaches nothing beyond its values, and can use up neither time nor memory. settings: of Jinja's Environment."""
    import jinja2
    from jinja2.runtime import BlockReference, LoopContext, Macro
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Bounded(ImmutableSandboxedEnvironment):
        """A sandbox in which everything is counted."""

        intercepted_binops = frozenset(["+", "-", "*", "/", "//", "**", "%"])
        meter, size = Meter(), 1

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            bounded.binary(self.meter, operator, left, right)
            return super().call_binop(context, operator, left, right)

        def getitem(self, obj: Any, argument: Any) -> Any:
            self.meter.weigh(argument)  # it is hashed
            return super().getitem(obj, argument)

        def getattr(self, obj: Any, attribute: str) -> Any:
            self.meter.step()
            return super().getattr(obj, attribute)

        def wrap_str_format(self, value: Any) -> None:
            """`format` of a text is a method like others, and not allowed."""

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: B902, N805
            meter, of = __self.meter, getattr(__obj, "__self__", None)
            meter.step(CALL)
            told = {k: kwargs.pop(k) for k in ("_loop_vars", "_block_vars") if k in kwargs}  # Jinja's own, for the context
            if isinstance(of, str) or isinstance(__obj, types.BuiltinMethodType):
                return bounded.method(meter, __obj, args, kwargs)
            if isinstance(__obj, LoopContext):
                args = (meter.turned(args[0], __self.size * STEP), *args[1:]) if args else args
            elif isinstance(of, LoopContext) or __obj is _range:
                meter.weigh(*args)
            elif callable(__obj) and not isinstance(__obj, Macro | BlockReference | jinja2.Undefined):
                raise refused("it calls what is no function of a template")
            meter.deeper()
            found = __context.call(__obj, *args, **kwargs, **told)
            meter.depth -= 1
            if isinstance(found, str):
                meter.make(len(found))
            return found

    @jinja2.pass_context
    def written(context: Any, value: Any) -> str:
        text = context.environment.meter.text(value)
        context.environment.meter.make(len(text))
        return text

    made = Bounded(**{"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True} | settings, finalize=written)
    made.globals = {"range": _range}
    made.filters, made.tests = bounded.filters(made.filters) | _counting(), bounded.tests(made.tests)
    return made


def _range(*args: int) -> range:
    from jinja2.sandbox import safe_range

    if any(abs(a) > MOST_RANGE for a in args):
        raise OverflowError("Range too big")
    return safe_range(*args)


def _counting() -> dict[str, Callable]:
    """The filters that count for what Jinja compiles into plain Python. Their names cannot be written behind a `|`."""
    from jinja2 import pass_context

    def turns(meter: Meter, values: Iterable[Any], work: int = 0) -> Iterable[Any]:
        return meter.turned(values, STEP * (1 + abs(work)))

    def spent(meter: Meter, _: Any, nodes: int = 0, characters: int = 0) -> None:
        meter.make(abs(characters))
        meter.step(STEP * abs(nodes))

    def made(meter: Meter, value: Any) -> Any:
        meter.make(len(value) if isinstance(value, str) else 10 * len(value))
        return value

    def built(meter: Meter, value: Any) -> Any:
        meter.make(meter.weigh(value))
        return value

    def text(meter: Meter, values: list) -> str:
        return bounded.joined(meter, values)

    def weighed(meter: Meter, value: Any) -> Any:
        meter.weigh(value)
        return value

    def of(function: Callable) -> Callable:
        return pass_context(lambda context, *args: function(context.environment.meter, *args))

    return {TURNS: of(turns), SPENT: of(spent), MADE: of(made), BUILT: of(built), WRITTEN: of(text), WEIGHED: of(weighed)}


def _rewritten(tree):
    """A parsed template with what is not counted by itself put through the filters above."""
    from jinja2 import TemplateSyntaxError, nodes
    from jinja2.visitor import NodeTransformer

    def through(node: Any, name: str, *args: int) -> Any:
        return nodes.Filter(node, name, [nodes.Const(a) for a in args], [], None, None, lineno=node.lineno)

    def size(*parts: Any) -> int:
        return sum(1 for part in parts for _ in part.find_all(nodes.Node)) + len(parts)

    class Rewriter(NodeTransformer):
        def generic_visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
            super().generic_visit(node, *args, **kwargs)
            if isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock | nodes.Block):
                data = sum(len(d.data) for part in node.body for d in part.find_all(nodes.TemplateData))
                spent = through(nodes.Const(None, lineno=node.lineno), SPENT, size(*node.body), data)
                node.body.insert(0, nodes.ExprStmt(spent, lineno=node.lineno))
            if isinstance(node, nodes.For):
                node.iter = through(node.iter, TURNS, size(node.test) if node.test else 0)
            if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
                return through(node, MADE)
            if isinstance(node, nodes.List | nodes.Dict) or isinstance(node, nodes.Tuple) and node.ctx == "load":
                return through(node, BUILT)
            if isinstance(node, nodes.Concat):
                return through(nodes.List(node.nodes, lineno=node.lineno), WRITTEN)
            return compared(node) if isinstance(node, nodes.Compare) else node

    def compared(node: Any) -> Any:
        operators = [o.op for o in node.ops]
        if len(operators) == 1:
            test = nodes.Test(node.expr, COMPARED[operators[0]], [node.ops[0].expr], [], None, None, lineno=node.lineno)
            return nodes.Not(test, lineno=node.lineno) if operators == ["notin"] else test
        if {"in", "notin"} & set(operators):
            raise TemplateSyntaxError("`in` stands in a chain of comparisons; put brackets around it", node.lineno)
        for operand in node.ops:
            operand.expr = through(operand.expr, WEIGHED)
        return node

    return Rewriter().visit(tree)
