"""The plots, by matplotlib, as SVG that lies in the page: colours are the page's variables (so that dark and print follow), texts are texts, ids are
unique to a figure, and the same numbers give the same bytes."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable

from markupsafe import Markup

from slmkit.report import words
from slmkit.report.facts import Curve, Model, Score, Xray

INK, DIM, LINE = "#010203", "#040506", "#070809"  # stand-ins, see _themed
SERIES = tuple(f"#0a0b{i:02x}" for i in range(1, 9))
MARKERS = "osD^vPX*"
THEME = {INK: "var(--ink)", DIM: "var(--dim)", LINE: "var(--line)", **{c: f"var(--s{i})" for i, c in enumerate(SERIES, 1)}}
SIZE = (4.6, 3.1)  # inches: small, so that text is readable at a phone's width
HEIGHT = 0.19  # inches of a line of the legend
LEGEND, LABEL = 52, 40  # characters: in a line of the legend, in a label
TOO_MANY = 24  # models in one picture


def tradeoffs(models: list[Model], scores: list[Score]) -> list[tuple[str, Markup]]:
    """(title, picture) for each task and each measure that is an axis: quality upward with its interval, the measure along."""
    out = []
    main = [s for s in scores if s.main]
    axes = {m.key: m for model in models for m in model.measures if m.axis}
    for task in list(dict.fromkeys(s.task for s in main))[:4]:
        rows = {s.model: s for s in main if s.task == task}
        for key, axis in axes.items():
            scored = [(i, m) for i, m in enumerate(models) if m.label in rows]
            points = [(m.label, own.value, rows[m.label], i) for i, m in scored for own in m.measures if own.key == key]
            if len(points) > 1 and len(points) <= TOO_MANY:
                name = next(iter(rows.values())).metric
                out.append((f"{name} on {task} against {axis.label}", _scatter(f"{task}-{key}", name, axis, points)))
    return out


def _scatter(name: str, metric: str, axis, points: list[tuple[str, float, Score, int]]) -> Markup:
    from matplotlib.ticker import LogLocator

    columns = max(1, min(4, len(points), LEGEND // (4 + min(LABEL, max(len(label) for label, *_ in points)))))

    def draw(figure) -> None:
        ax = figure.add_subplot()
        scale = 100 if all(s.share for _, _, s, _ in points) else 1
        for label, x, s, i in points:
            colour, marker = SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]
            if s.low is not None:
                reach = [[scale * max(0.0, s.value - s.low)], [scale * max(0.0, s.high - s.value)]]
                ax.errorbar([x], [scale * s.value], reach, color=colour, capsize=3, linewidth=1.3)
            ax.plot([x], [scale * s.value], color=colour, marker=marker, markersize=7, linestyle="none", label=_short(label))
        values = [x for _, x, _, _ in points]
        if min(values) > 0 and max(values) / min(values) > 8:
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) / min(values) < 200 else (1,)))
        else:
            ax.set_xlim(0, 1.15 * max(values) or 1)
        ax.xaxis.set_major_formatter(lambda v, _: words.measure(v, axis.unit) if v else "0")
        ax.xaxis.set_minor_formatter(lambda *_: "")
        if scale == 100:
            ax.set_ylim(-4, 104)
        ax.set_ylabel(f"{metric}{' (%)' if scale == 100 else ''}")
        ax.set_xlabel(f"{axis.label} ({'less' if axis.lower_is_better else 'more'} is better)")
        figure.legend(loc="outside upper center", ncols=columns, frameon=False, handletextpad=0.1, columnspacing=1.0)
        _plain(ax)

    return _svg(name, draw, math.ceil(len(points) / columns))


def throughput(models: list[Model]) -> Markup | None:
    """Tokens written a second (read, where nothing was written) by how many requests are there at once, with their intervals; None for one size."""
    told = [(i, m) for i, m in enumerate(models) if len(m.batches) > 1][:TOO_MANY]
    if not told:
        return None
    wrote = all(b.written is not None for _, m in told for b in m.batches)
    columns = max(1, min(4, len(told), LEGEND // (4 + min(LABEL, max(len(m.label) for _, m in told)))))

    def draw(figure) -> None:
        ax = figure.add_subplot()
        for i, m in told:
            points = [(b.written, b.written_low, b.written_high) if wrote else (b.read, b.read_low, b.read_high) for b in m.batches]
            sizes, values = [b.size for b in m.batches], [v for v, _, _ in points]
            reach = [[0.0 if low is None else v - low for v, low, _ in points], [0.0 if high is None else high - v for v, _, high in points]]
            ax.errorbar(sizes, values, reach, color=SERIES[i % len(SERIES)], marker=MARKERS[i % len(MARKERS)], markersize=5, capsize=3, linewidth=1.3,
                        label=_short(m.label))  # fmt: skip
        sizes = sorted({b.size for _, m in told for b in m.batches})
        ax.set_xscale("log", base=2)
        ax.set_xticks(sizes, [f"{s:,}" for s in sizes])
        ax.set_xticks([], minor=True)
        lowest, highest = (f(b.written if wrote else b.read for _, m in told for b in m.batches) for f in (min, max))
        if lowest > 0 and highest / lowest > 8:
            ax.set_yscale("log")
            ax.yaxis.set_minor_formatter(lambda *_: "")
        else:
            ax.set_ylim(0, None)
        ax.yaxis.set_major_formatter(lambda v, _: words.rate(v) if v else "0")
        ax.set_xlabel("requests at once")
        ax.set_ylabel(f"tokens {'written' if wrote else 'read'} a second")
        figure.legend(loc="outside upper center", ncols=columns, frameon=False, handletextpad=0.3, columnspacing=1.0)
        _plain(ax)

    return _svg("throughput", draw, math.ceil(len(told) / columns))


def loss(curve: Curve) -> Markup:
    """Training loss, its running mean, validation loss, and the reward where there is one."""
    from matplotlib.ticker import LogLocator

    def draw(figure) -> None:
        ax = figure.add_subplot()
        steps, values = zip(*curve.loss, strict=True)
        ax.plot(steps, values, color=SERIES[0], linewidth=1.0, alpha=0.45, label="training loss")
        ax.plot(steps, _smooth(values), color=SERIES[0], linewidth=1.8, label="running mean")
        if curve.validation:
            ax.plot(*zip(*curve.validation, strict=True), color=SERIES[1], marker="o", markersize=4, linewidth=1.4, label="validation loss")
        if min(values) > 0 and max(values) / min(values) > 20:
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_minor_formatter(lambda *_: "")
            ax.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
        ax.set_xlabel("step")
        ax.set_ylabel("loss (nats a token)")
        if curve.reward:
            right = ax.twinx()
            right.plot(*zip(*curve.reward, strict=True), color=SERIES[2], linewidth=1.3, label="reward")
            right.set_ylabel("reward")
            _plain(right)
        figure.legend(loc="outside upper center", ncols=4, frameon=False, handlelength=1.2, columnspacing=1.0)
        _plain(ax)

    return _svg(f"loss-{curve.step}", draw)


def _smooth(values: tuple[float, ...]) -> list[float]:
    """Means over a fortieth of the run around each point: it does not lag behind."""
    reach = max(1, len(values) // 80)
    around = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in around]


def tokens(seen: Xray) -> Markup:
    """Rows by number of tokens, and where max_length cuts."""

    def draw(figure) -> None:
        ax = figure.add_subplot()
        edges = seen.edges
        ax.bar(edges[:-1], seen.counts, [b - a for a, b in zip(edges, edges[1:], strict=False)], align="edge", color=SERIES[0], linewidth=0)
        if seen.max_length and seen.max_length < 1.5 * edges[-1]:
            ax.axvline(seen.max_length, color=SERIES[1], linewidth=1.3, label=f"max_length {seen.max_length:,}")
            ax.legend(frameon=False)
        ax.set_xlabel("tokens in a row")
        ax.set_ylabel("rows")
        _plain(ax)

    return _svg(f"tokens-{seen.step}", draw)


def _plain(ax) -> None:
    ax.grid(alpha=1, color=LINE, linewidth=0.6)
    ax.set_axisbelow(True)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(DIM)


def _short(label: str) -> str:
    text = words.visible(label)
    return text if len(text) <= LABEL else f"{text[: LABEL // 2]}…{text[-LABEL // 2 + 1 :]}"


def _svg(name: str, draw: Callable, told: int = 1) -> Markup:
    """told: lines of the legend, for which the figure grows."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings = {"svg.hashsalt": name, "svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "axes.unicode_minus": True, "text.color": INK,
                "axes.labelcolor": INK, "xtick.color": DIM, "ytick.color": DIM, "axes.edgecolor": DIM, "font.family": "DejaVu Sans"}  # fmt: skip
    with rc_context(settings):
        figure = Figure(figsize=(SIZE[0], SIZE[1] + HEIGHT * (told - 1)), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Markup(_themed(file.getvalue(), name))


def _themed(svg: str, name: str) -> str:
    """A drawing made to lie in a page: no prolog, no style of its own, ids of its own, the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    prefix = re.sub(r"[^a-zA-Z0-9]+", "-", name)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'url\(#([^)]+)\)', rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    svg = re.sub(r'font: ([0-9.]+)px [^;"]*', r"font-size: \1px", svg)
    svg = re.sub(r'font-family: [^;"]*', "font-family: inherit", svg)
    svg = re.sub(r'^<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg class="plot" viewBox="\1" role="img">', svg)
    for stand_in, variable in THEME.items():
        svg = svg.replace(stand_in, variable)
    return re.sub(r"\n\s*", "\n", svg).strip()
