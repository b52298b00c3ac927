"""Verdicts told: lines for a terminal, JUnit's XML for a build server, Markdown for a pull request, annotations for GitHub."""

from __future__ import annotations

from slmkit.evidence.judge import FAIL, INCONCLUSIVE, PASS, Verdict
from slmkit.evidence.paired import Row


def lines(verdicts: list[Verdict]) -> list[str]:
    """One line each: the verdict and what it was judged on."""
    return [f"{v.verdict:<12} {v.detail}" for v in verdicts]


def told(verdicts: list[Verdict]) -> str:
    """`2 pass, 1 inconclusive`."""
    counts = {name: sum(v.verdict == name for v in verdicts) for name in (PASS, FAIL, INCONCLUSIVE)}
    return ", ".join(f"{n} {name}" for name, n in counts.items() if n)


def junit(name: str, verdicts: list[Verdict], inconclusive: str) -> str:
    """A test suite with a case for each bound. An inconclusive one that passes is a skipped test, else a failed one."""
    from xml.etree import ElementTree as tree

    failed = [v for v in verdicts if not v.holds(inconclusive)]
    skipped = [v for v in verdicts if v.verdict == INCONCLUSIVE and v.holds(inconclusive)]
    counts = {"tests": str(len(verdicts)), "failures": str(len(failed)), "skipped": str(len(skipped)), "errors": "0"}
    suites = tree.Element("testsuites", {"name": "slmkit gate", **counts})
    suite = tree.SubElement(suites, "testsuite", {"name": _printable(name), **counts})
    for v in verdicts:
        case = tree.SubElement(suite, "testcase", {"classname": _printable(name), "name": _printable(f"{v.text} {v.bound}"), "time": "0"})
        if v in failed:
            tree.SubElement(case, "failure", {"type": v.verdict, "message": _printable(v.detail)}).text = _printable(v.detail)
        elif v in skipped:
            tree.SubElement(case, "skipped", {"message": _printable(v.detail)})
        else:
            tree.SubElement(case, "system-out").text = _printable(v.detail)
    tree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tree.tostring(suites, encoding="unicode") + "\n"


def markdown(name: str, verdicts: list[Verdict], inconclusive: str, against: str | None = None) -> str:
    """A table for a pull request."""
    ok = all(v.holds(inconclusive) for v in verdicts)
    beside = f" against `{_cell(against)}`" if against else ""
    head = f"### slmkit gate: {'holds' if ok else 'does not hold'}\n\n`{_cell(name)}`{beside}: {told(verdicts)}\n"
    table = ["| verdict | bound | value | 95 % to either side | questions | judged |", "|---|---|---|---|---|---|"]
    for v in verdicts:
        i = v.interval
        span = f"{i.low:.4g} … {i.high:.4g}" if i and i.low == i.low else ""
        more = f", about {v.needed:,} would decide" if v.needed else ""
        count = f"{i.questions:,}{more}" if i and i.questions else ""
        value = f"{v.value:.4g}" if v.value is not None else ""
        judged = i.method if i else "on the point" if v.value is not None else v.detail
        table.append(f"| **{v.verdict}** | `{_cell(v.text)}` {_cell(v.bound)} | {value} | {span} | {count} | {_cell(judged)} |")
    return "\n".join([head, *table, ""])


def github(verdicts: list[Verdict], inconclusive: str) -> list[str]:
    """`::error` for what does not hold, `::warning` for what passes undecided."""
    out = []
    for v in verdicts:
        if v.verdict != PASS:
            level = "warning" if v.holds(inconclusive) else "error"
            title = f"gate {v.verdict}".replace(",", "%2C").replace(":", "%3A")
            out.append(f"::{level} title={title}::" + v.detail.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A"))
    return out


def comparison(rows: list[Row]) -> list[str]:
    """The table of `slmkit compare`, and under it the answers that turned."""
    table = [("task", "metric", "before", "after", "difference", "95 % interval", "p", "p (Holm)", "up", "down", "of", "judged by")]
    for r in rows:
        p, corrected = (_p(x) for x in (r.p, r.corrected))
        span = f"[{r.low:+.4f}, {r.high:+.4f}]" if r.low == r.low else "unknown"
        counts = ["" if x is None else f"{x:,}" for x in (r.up, r.down, r.questions)]
        named = [f"{m} {v:.4f}" for m, v in zip((r.before, r.after), r.values, strict=True)]
        table.append((r.task, r.metric, *named, f"{r.difference:+.4f}", span, p, corrected, *counts, r.method))
    wide = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    out = ["  ".join(cell.ljust(w) for cell, w in zip(line, wide, strict=True)).rstrip() for line in table]
    seen = set()
    for r in rows:
        for f in r.flips:
            if (r.before, r.after, r.task, f.doc_id) in seen:  # another metric has shown it
                continue
            seen.add((r.before, r.after, r.task, f.doc_id))
            out += ["", f"{r.task} {r.metric}, question {f.doc_id}: {f.scores[0]:.4g} → {f.scores[1]:.4g}", f"  asked   {f.question}",
                    f"  right   {f.target}", f"  {r.before}: {f.before}", f"  {r.after}: {f.after}"]
    return out


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}" if value < 0.001 else f"{value:.3f}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("`", "'")


def _printable(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return "".join(c if c in "\t\n\r" or (c >= " " and c not in "\ufffe\uffff" and not "\ud800" <= c <= "\udfff") else "\ufffd" for c in text)
