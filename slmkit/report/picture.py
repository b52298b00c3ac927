"""The chain as a picture: boxes and arrows in SVG, laid out twice, from left to right for a screen and from top to bottom for a phone.

Across, a box stands one column after the last of what it was made of, and lines that pass columns have a place of their own in each, so that none
runs through a box. Down, there is a box a row, and lines that skip rows run in lanes at the left. Colours are the page's style sheet's.
"""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup, escape

from slmkit.report import words
from slmkit.report.facts import Step

WIDE, TALL, GAP, ROW, LANE = 158, 68, 44, 16, 12
THIN = 14  # height of a line that passes a column
FITS = 22  # characters of a title
TITLES = {"distill": "teacher's data", "train": "training", "eval": "evaluation"}


@dataclass(frozen=True)
class Box:
    """A step, or what came from outside. lines: under the title."""

    id: str
    kind: str
    title: str
    lines: tuple[str, ...]
    look: str


def graph(steps: list[Step]) -> tuple[list[Box], list[tuple[str, str]]]:
    """(boxes in an order in which each follows what it is made of, arrows). What was only looked at draws no arrow."""
    boxes: dict[str, Box] = {}
    arrows = []
    for step in steps:
        for given in step.inputs:
            if given.witness:
                continue
            source = given.step or f"{given.type}:{given.uri}"
            if source not in boxes and not given.step:
                boxes[source] = Box(source, given.type, _short(given.uri), (words.size(given.bytes),) if given.bytes else (), "source")
            arrows.append((source, step.id))
        boxes[step.id] = _box(step, f" · {step.recipe}" if len({s.recipe for s in steps if s.recipe}) > 1 and step.recipe else "")
    return list(boxes.values()), [a for a in dict.fromkeys(arrows) if a[0] in boxes]


def _short(uri: str) -> str:
    """A source's name in its box: of a path what it ends in, since the whole is in the lineage."""
    return uri.rstrip("/").rpartition("/")[2] if uri.startswith("/") else uri


def _box(step: Step, of: str) -> Box:
    if step.gone:
        return Box(step.id, step.kind, step.name, ("gone from the store",), "gone")
    took = [words.seconds(step.seconds)] if step.seconds is not None else []
    took += [words.size(step.bytes)] if step.bytes is not None else []
    spent = [f"{words.count(step.tokens)} tokens"] if step.tokens is not None else []
    spent += [words.usd(step.usd)] if step.usd is not None else []
    return Box(step.id, step.kind + of, step.name, tuple(" · ".join(line) for line in (took, spent) if line), "step")


def across(steps: list[Step]) -> Markup:
    """Left to right."""
    boxes, arrows = graph(steps)
    columns, routes = _columns(boxes, arrows)
    named = {b.id: b for b in boxes}
    heights = [sum(TALL if n in named else THIN for n in column) + ROW * (len(column) - 1) for column in columns]
    place: dict[str, tuple[float, float]] = {}
    for i, column in enumerate(columns):
        y = (max(heights) - heights[i]) / 2
        for name in column:
            tall = TALL if name in named else THIN
            place[name] = i * (WIDE + GAP), y + tall / 2
            y += tall + ROW
    lines = [_through([place[n] for n in route]) for route in routes]
    drawn = [_rect(b, place[b.id][0], place[b.id][1] - TALL / 2, WIDE) for b in boxes]
    return _svg("across", len(columns) * (WIDE + GAP) - GAP, max(heights), lines, drawn)


def _columns(boxes: list[Box], arrows: list[tuple[str, str]]) -> tuple[list[list[str]], list[list[str]]]:
    """Names by column, top to bottom, and each arrow as the names that it passes (`a>b@2` in column 2)."""
    at: dict[str, int] = {}
    for box in boxes:
        at[box.id] = max((at[a] + 1 for a, b in arrows if b == box.id), default=0)
    for box in boxes:  # what came from outside stands right before its first use
        if not any(b == box.id for _, b in arrows):
            at[box.id] = max(0, min((at[b] for a, b in arrows if a == box.id), default=1) - 1)
    columns: list[list[str]] = [[] for _ in range(max(at.values(), default=0) + 1)]
    for box in boxes:
        columns[at[box.id]].append(box.id)
    routes = []
    for a, b in arrows:
        passed = [(f"{a}>{b}@{i}", i) for i in range(at[a] + 1, at[b])]
        for name, i in passed:
            columns[i].append(name)
        routes.append([a, *(name for name, _ in passed), b])
    _order(columns, routes)
    return columns, routes


def _order(columns: list[list[str]], routes: list[list[str]]) -> None:
    """Barycenters, forth and back: each name where its neighbours are on the mean, so that lines cross little."""
    beside: dict[str, tuple[set[str], set[str]]] = {}
    for route in routes:
        for a, b in zip(route, route[1:], strict=False):
            beside.setdefault(a, (set(), set()))[1].add(b)
            beside.setdefault(b, (set(), set()))[0].add(a)
    for sweep in range(6):
        forth = sweep % 2 == 0
        for i in range(1, len(columns)) if forth else range(len(columns) - 2, -1, -1):
            fixed = columns[i - 1 if forth else i + 1]
            where = {n: k / max(1, len(fixed) - 1) if len(fixed) > 1 else 0.5 for k, n in enumerate(fixed)}
            near = {n: [where[m] for m in beside.get(n, (set(), set()))[0 if forth else 1] if m in where] for n in columns[i]}
            rank = {n: k for k, n in enumerate(columns[i])}
            columns[i].sort(key=lambda n, near=near, rank=rank: (sum(near[n]) / len(near[n]) if near[n] else 0.5, rank[n]))


def _through(points: list[tuple[float, float]]) -> str:
    """A smooth line from the right of the first box, over the places passed, to the left of the last."""
    x, y = points[0][0] + WIDE, points[0][1]
    path = [f"M{x:g} {y:g}"]
    for i, (nx, ny) in enumerate(points[1:]):
        half = (nx - x) / 2
        path.append(f"C{x + half:g} {y:g} {nx - half:g} {ny:g} {nx:g} {ny:g}")
        if i < len(points) - 2:
            path.append(f"H{nx + WIDE:g}")
            nx += WIDE
        x, y = nx, ny
    return " ".join(path)


def down(steps: list[Step]) -> Markup:
    """Top to bottom, a box a row; what comes from outside stands right above its first use."""
    boxes, arrows = graph(steps)
    row = {b.id: i for i, b in enumerate(boxes)}
    lanes: dict[str, int] = {}
    free: list[int] = []  # the row until which each lane is taken
    for box in boxes:
        ends = [row[b] for a, b in arrows if a == box.id and row[b] > row[box.id] + 1]
        if ends:
            lane = next((i for i, until in enumerate(free) if until <= row[box.id]), len(free))
            free[lane : lane + 1] = [max(ends)]
            lanes[box.id] = lane
    left = LANE * (len(free) + 1) + 4
    step = TALL + 22
    lines = []
    for a, b in arrows:
        if row[b] == row[a] + 1:
            lines.append(f"M{left + 60:g} {row[a] * step + TALL:g} V{row[b] * step:g}")
        else:
            x = left - LANE * (lanes[a] + 1)
            top, bottom = row[a] * step + TALL * 0.62, row[b] * step + TALL * 0.38
            corner, back = f"Q{x:g} {top:g} {x:g} {top + 6:g}", f"Q{x:g} {bottom:g} {x + 6:g} {bottom:g}"
            lines.append(f"M{left:g} {top:g} H{x + 6:g} {corner} V{bottom - 6:g} {back} H{left:g}")
    wide = 336 - left
    drawn = [_rect(b, left, row[b.id] * step, wide) for b in boxes]
    return _svg("down", 336, len(boxes) * step - 22, lines, drawn)


def _rect(box: Box, x: float, y: float, wide: float) -> str:
    title = box.title if len(box.title) <= FITS else box.title[: FITS - 1] + "…"
    texts = [("kind", box.kind), ("title", title), *(("line", line) for line in box.lines[:2])]
    placed = zip((16, 33, 48, 61), texts, strict=False)
    inner = "".join(f'<text x="{x + 10:g}" y="{y + dy:g}" class="{name}">{escape(words.visible(text))}</text>' for dy, (name, text) in placed)
    told = escape(words.visible(f"{box.kind} {box.title}: {', '.join(box.lines)}"))
    return f'<g class="{box.look}"><title>{told}</title><rect x="{x:g}" y="{y:g}" width="{wide:g}" height="{TALL}" rx="8"/>{inner}</g>'


def _svg(name: str, wide: float, tall: float, lines: list[str], drawn: list[str]) -> Markup:
    size = 'viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
    head = f'<marker id="tip-{name}" {size} orient="auto"><path d="M0 0L8 4L0 8z"/></marker>'
    paths = "".join(f'<path class="arrow" d="{d}" marker-end="url(#tip-{name})"/>' for d in lines)
    return Markup(
        f'<svg class="chain {name}" viewBox="-2 -2 {wide + 4:g} {tall + 4:g}" style="--wide: {wide + 4:g}px" role="img" '
        f'aria-label="The chain of steps"><defs>{head}</defs>{paths}{"".join(drawn)}</svg>'
    )
