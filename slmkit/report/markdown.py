"""The report as Markdown for a pull request: verdict, bounds, quality and costs, differences, some of the worst answers, how to do it again."""

from __future__ import annotations

from slmkit.report import page, words
from slmkit.report.facts import Measure, Report, Sample
from slmkit.report.page import table

SHOWN = 4  # of the worst answers
LONGEST = 400  # characters of each text


def render(report: Report) -> str:
    names = {s.id: s.name for s in report.steps}
    parts = [f"## {_plain(report.title)}", "\n".join(f"{_told(s)}  " for s in report.headline), "\n".join(f"> {_told(n)}  " for n in report.notes)]
    bounds = [(f"**{_plain(c.verdict)}**", f"`{_code(c.bound)}`", words.number(c.value), words.span(c.low, c.high, False), words.count(c.questions))
              for c in report.checks]
    parts += [_table(("verdict", "bound", "value", "95 % to either side", "questions"), bounds)]
    parts += [_quality(report), _costs(report, "speed"), _costs(report, "cost"), _differences(report)]
    parts += [_table(("step", "kind", "time", "size", "tokens", "dollars"), [
        (_plain(s.name), "gone" if s.gone else s.kind, words.seconds(s.seconds), words.size(s.bytes), words.count(s.tokens), words.usd(s.usd))
        for s in report.steps
    ])]  # fmt: skip
    sure = [(_plain(names.get(f.step, f.step)), words.small(f.mean_kl), words.share(f.top1), words.number(f.perplexity_before),
             words.number(f.perplexity_after), f"{words.count(f.answers_identical)} of {words.count(f.answers)}") for f in report.fidelity]
    parts += [_table(("step", "mean KL", "top-1", "perplexity before", "after", "same answers"), sure)]
    parts += [f"**{_plain(names.get(x.step, x.step))}**, {_plain(level)}: {_told(what)}" for x in report.xrays for level, what in x.findings]
    parts += [_folded("The worst answers", "\n\n".join(_sample(s) for s in report.samples[:SHOWN]))] if report.samples else []
    for recipe in report.recipes:
        commands = "\n".join(recipe.commands)
        parts.append(_folded(f"How to do it again: {_plain(recipe.name)}", f"{_fenced(commands)}\n\n{_fenced(recipe.text, 'yaml')}"))
    return "\n\n".join(p for p in parts if p) + "\n"


def _quality(report: Report) -> str:
    columns, rows = table(report)
    costs, _ = page.costs(report, "quality")
    lines = []
    for model, scores, own in rows:
        told = [f"{words.score(s.value, s.share)} ({words.span(s.low, s.high, s.share)})" if s else words.UNKNOWN for s in scores]
        lines.append((_plain(model.label), *told, *(words.measure(own[k].value, own[k].unit) if k in own else words.UNKNOWN for k in costs)))
    return _table(("model", *(f"{_plain(metric)}, {_plain(task)}" for task, metric in columns), *costs.values()), lines)


def _costs(report: Report, name: str) -> str:
    labels, rows = page.costs(report, name)
    told = [(_plain(m.label), *(_measure(own.get(key)) for key in labels)) for m, own in rows]
    return _table(("model", *labels.values()), told)


def _measure(own: Measure | None) -> str:
    if own is None:
        return words.UNKNOWN
    span = words.measure_span(own.low, own.high, own.unit)
    return words.measure(own.value, own.unit) + (f" ({span})" if span else "")


def _differences(report: Report) -> str:
    head = ("from → to", "task, metric", "difference", "95 % interval", "p (Holm)", "better", "worse", "of")
    rows = [
        (f"{_plain(d.before)} → {_plain(d.after)}", f"{_plain(d.task)}, {_plain(d.metric)}", words.points(d.difference, d.share),
         words.points_span(d.low, d.high, d.share), words.p(d.corrected), words.count(d.up), words.count(d.down), words.count(d.questions))
        for d in report.differences
    ]  # fmt: skip
    return _table(head, rows)


def _sample(sample: Sample) -> str:
    said = [("asked", sample.question[-LONGEST:]), ("right", sample.target[:LONGEST])]
    said += [(f"{a.model} ({words.number(a.score)})", a.text[:LONGEST]) for a in sample.answers]
    return f"{_told(sample.why)}: {_plain(sample.task)}, question {sample.doc_id}\n\n" + _fenced("\n".join(f"{who}: {text}" for who, text in said))


def _table(head: tuple[str, ...], rows: list[tuple]) -> str:
    if not rows:
        return ""
    return "\n".join(f"| {' | '.join(str(c) for c in line)} |" for line in (head, ["---"] * len(head), *rows))


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"


def _fenced(text: str, language: str = "") -> str:
    """In a fence that is longer than any run of backticks inside: nothing of it is read as Markdown."""
    text = words.visible(text).rstrip("\n")
    longest = max((len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


MARKS = str.maketrans({c: f"\\{c}" for c in "\\*_[]#|~!"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;", "\n": " ", "`": "'", "@": "@\u200b"})


def _plain(text: str) -> str:
    """As words, in a table or out of one: nothing of it is Markdown, HTML, or a person's name that would be told."""
    return words.visible(text).translate(MARKS)


def _code(text: str) -> str:
    return words.visible(text).replace("\n", " ").replace("`", "'").replace("|", "\\|")


def _told(sentence: str) -> str:
    """A sentence of ours, with what stands in backticks as code."""
    return "".join(f"`{_code(part)}`" if i % 2 else _plain(part) for i, part in enumerate(sentence.split("`")))
