"""The x-ray for people: as lines of styled text for a terminal, as plain text, and as one HTML page that needs nothing else."""

from __future__ import annotations

from pathlib import Path

BARS = "▁▂▃▄▅▆▇█"
STYLES = {"error": "bold red", "warning": "yellow", "allowed": "dim", "head": "bold", "dim": "dim", "trained": "green"}
Line = list[tuple[str, str]]
"""Pieces of (text, style); style is a key of STYLES or empty."""


def lines(step: str, facts: dict, brackets: bool) -> list[Line]:
    """The report of one step. brackets: trained tokens stand in ⟦ ⟧, for where there is no colour."""
    data = facts["data"]
    out: list[Line] = [[(f"{step}", "head"), (f"  {data['rows']:,} rows, {data['format'] or data['form']}", ""), (f"  {data['name']}", "dim")]]
    out += [[(f"  {name:<11} ", "dim"), (value, "")] for name, value in table(facts)]
    out.append([])
    out += _findings(step, facts["findings"])
    for sample in facts.get("samples", []):
        head = f"{sample['place']}  {sample['why']}, {sample['tokens']:,} tokens, {sample['trained']:,} trained"
        out += [[(head, "head")], *_sample(sample["pieces"], brackets), []]
    return out


def table(facts: dict) -> list[tuple[str, str]]:
    """(name, value) of what was measured, in order."""
    out = []
    if held := facts.get("validation"):
        said = [f"{held['rows']:,} rows of {held['name']}", *([_lost(held, held["rows"])] if "left_out" in held else [])]
        out.append(("validation", " · ".join(said + ([f"dropped: {_dropped(held)}"] if held.get("dropped") else []))))
    if tokens := facts.get("tokens"):
        if tokens.get("sum"):
            out += _tokens(tokens)
        out.append(("lost", _lost(tokens, facts["data"]["rows"])))
        if tokens["trained"] is not None:
            out.append(("untrained", f"{tokens['untrained']['rows']:,} rows without a trained token"))
    if facts["data"]["dropped"]:
        out.append(("dropped", _dropped(facts["data"])))
    if facts["roles"]:
        out.append(("roles", " · ".join(f"{role} {n:,}" for role, n in facts["roles"].items())))
    total = max(1, sum(facts["languages"].values()))
    top = [f"{k} {n / total:.0%}" for k, n in list(facts["languages"].items())[:5] if n / total >= 0.01]
    out.append(("languages", " · ".join(top) + (f" (of {total:,} rows looked at)" if total < facts["data"]["rows"] else "")))
    out.append(("duplicates", " · ".join(f"{v['rows']:,} {k}" for k, v in facts["duplicates"].items())))
    for leak in facts["leaks"]:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in leak["kinds"].items() if n)
        out.append(("leaks", f"{leak['leaked']:,} of {leak['questions']:,} questions of {leak['against']}" + (f" ({kinds})" if kinds else "")))
    if facts["tasks_not_read"]:
        out.append(("not checked", f"{', '.join(facts['tasks_not_read'])}: their data is not local"))
    out.append(("personal", " · ".join(f"{kind} {v['rows']:,}" for kind, v in facts["personal"].items()) or "none found"))
    return out


def _lost(tokens: dict, rows: int) -> str:
    """What max_length costs."""
    left = tokens["left_out"]["rows"]
    sides = "".join(f" · {n:,} cut at the {side}" for side, n in tokens["cut"].items() if side in ("left", "right") and n)
    answers = f" · {tokens['cut']['answers_cut']:,} answers cut" if tokens["cut"].get("answers_cut") else ""
    return f"{left:,} rows left out ({left / max(1, rows):.1%}) at max_length {tokens['max_length']:,}{sides}{answers}"


def _dropped(source: dict) -> str:
    return " · ".join(f"{n:,} {why}" for why, n in source["dropped"].items())


def _tokens(tokens: dict) -> list[tuple[str, str]]:
    spread = f"min {tokens['min']:,} · median {tokens['median']:,} · p95 {tokens['p95']:,} · max {tokens['max']:,}"
    edges, counts = tokens["histogram"]["edges"], tokens["histogram"]["counts"]
    top = max(counts)
    bars = "".join(BARS[round(n / top * (len(BARS) - 1))] if n else " " for n in counts)
    if tokens["trained"] is None:
        said = f"{tokens['sum']:,} of prompts; the model samples what it is trained on"
    else:
        said = f"{tokens['sum']:,}, of which {tokens['trained']:,} trained ({tokens['trained'] / max(1, tokens['sum']):.0%})"
    return [
        ("tokens", said),
        ("a row", spread),
        ("", f"{edges[0]:,} {bars} {edges[-1] - 1:,}"),
    ]


def _findings(step: str, found: list[dict]) -> list[Line]:
    from slmkit.data.xray import MENDS

    out: list[Line] = []
    for one in found:
        out.append([(f"{one['level']:<8}", one["level"]), (f" {one['what']}", "")])
        out += [[(f"           {_visible(place)}", "dim")] for place in one["where"]]
        if one["level"] == "error":
            out.append([(f"           help: {MENDS[one['kind']]}; or allow it: --set 'steps.{step}.{one['allow']}'", "dim")])
    return [*out, []] if out else [[("nothing found", "dim")], []]


def _sample(pieces: list[dict], brackets: bool) -> list[Line]:
    """A rendered row behind a gutter, trained pieces in colour or brackets."""
    out: list[Line] = [[("  │ ", "dim")]]
    for piece in pieces:
        text = f"⟦{_visible(piece['text'])}⟧" if piece["trained"] and brackets else _visible(piece["text"])
        for i, part in enumerate(text.split("\n")):
            if i:
                out.append([("  │ ", "dim")])
            out[-1].append((part, "trained" if piece["trained"] else ""))
    return out


def _visible(text: str) -> str:
    """Control characters as what they are called: a row must not steer the terminal that shows it."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def plain(report: list[Line]) -> str:
    return "\n".join("".join(text for text, _ in line).rstrip() for line in report)


def html(recipe: str, steps: dict[str, dict]) -> str:
    """The page: every value is escaped by the template engine, and the page may load nothing."""
    from jinja2 import Environment, StrictUndefined

    from slmkit.data.xray import MENDS

    source = Path(__file__).with_name("xray.html.jinja").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(source)
    return template.render(recipe=recipe, steps=steps, table=table, mends=MENDS)
