"""How many rows were learned from or measured on, and how many were left out: said alike by every objective, in the log and in the result.

Left out are broken rows (`on_bad_row: skip`) and rows longer than max_length; of cut rows, those in which nothing was left to learn.
"""

from __future__ import annotations

from slmkit.data.rows import Rows
from slmkit.ml.examples import Fitted
from slmkit.steps._step import Context


def said(ctx: Context, rows: Rows, made: Fitted, count: int, of: str = "") -> dict:
    """What goes into the result. count: rows that are used. of: `validation_`, of rows whose loss is measured."""
    values: dict = {f"{of}rows": count, f"{of}rows_left_out": made.too_long.count}
    if made.too_long.count:
        ctx.log(f"{of}rows_left_out", why="longer than max_length", count=made.too_long.count, where=made.too_long.shown(rows.name))
    if rows.dropped:
        values[f"{of}rows_dropped"] = dict(rows.dropped)
    if made.cut:
        values |= {f"{of}cut_{key}": value for key, value in made.cut.items()}
        ctx.log(f"{of}rows_cut", **made.cut, where=made.answers_cut.shown(rows.name))
    if made.untrained.count:
        values[f"{of}rows_untrained"] = made.untrained.count
    return values


def held_out(ctx: Context, rows: Rows | None, made: Fitted | None, count: int) -> dict:
    """The same of the validation rows, if there are any."""
    return said(ctx, rows, made, count, "validation_") if rows is not None and made is not None else {}
