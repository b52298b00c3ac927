"""The verdict in a few sentences: what was asked, how good it is, and what it costs. A sentence whose figure does not exist is not said."""

from __future__ import annotations

from slmkit.report import words
from slmkit.report.facts import Check, Difference, Model, Score, Step, Teaching

Roles = tuple[str | None, str | None, str | None]  # labels of the model that is spoken of, of the one it started from, of the teacher


def headline(
    steps: list[Step], models: list[Model], roles: Roles, scores: list[Score], differences: list[Difference], checks: list[Check],
    teaching: list[Teaching],
) -> list[str]:  # fmt: skip
    told = [*_asked(steps, scores, teaching), *_good(roles, scores, differences), *_against(models, roles, scores, differences)]
    return [*told, *_checks(checks), *_cost(steps, teaching)]


def _asked(steps: list[Step], scores: list[Score], teaching: list[Teaching]) -> list[str]:
    parts, taught = [], {t.step: t.teacher for t in teaching}
    for step in steps:
        config, source = step.config, {i.role: i for i in step.inputs}
        if step.kind == "train" and not step.gone:
            method = str(config.get("method")) + (f" ({config['objective']})" if config.get("objective") else "")
            data = source.get("data")
            wrote = taught.get(data.step) if data and data.step else None
            parts.append(f"`{_name(source.get('model'))}` trained by {method} on `{_name(data)}`" + (f", written by `{wrote}`" if wrote else ""))
        elif step.kind == "distill" and step.id not in {i.step for s in steps for i in s.inputs if not i.witness}:
            parts.append(f"`{taught.get(step.id)}` wrote the dataset `{step.name}`")
        elif step.kind == "quantize" and not step.gone:
            bits = f" to {config['bits']} bits" if config.get("bits") else ""
            parts.append(f"`{_name(source.get('model'))}` quantized{bits} by {config.get('method')}")
        elif step.kind == "export" and not step.gone:
            kind = " ".join(str(config[k]) for k in ("format", "type") if config.get(k))
            parts.append(f"`{_name(source.get('model'))}` exported to {kind}")
    tasks = list(dict.fromkeys(s.task for s in scores))
    if tasks:
        parts.append("scored on " + ", ".join(f"`{t}`" for t in tasks[:4]) + (f" and {len(tasks) - 4} more tasks" if len(tasks) > 4 else ""))
    return [f"Asked: {'; '.join(parts)}."] if parts else []


def _name(given) -> str:
    return "?" if given is None else given.name if given.step else given.uri


def _good(roles: Roles, scores: list[Score], differences: list[Difference]) -> list[str]:
    subject, base, _ = roles
    out = []
    for own in [s for s in scores if s.model == subject and s.main][:4]:
        sure = f" (95 % interval {words.span(own.low, own.high, own.share)}" if own.low is not None else ""
        asked = f"{words.count(own.questions)} questions" if own.questions else ""
        inside = f"{sure}{', ' if asked else ''}{asked})" if sure else f" ({asked})" if asked else ""
        text = f"`{own.model}` reaches {words.score(own.value, own.share)} {own.metric} on `{own.task}`{inside}"
        other = next((s for s in scores if (s.model, s.task, s.metric) == (base, own.task, own.metric)), None) if base != subject else None
        if other is not None:
            text += f"; `{other.model}` has {words.score(other.value, other.share)}" + _difference(differences, other, own)
        out.append(text + ".")
    return out


def _difference(differences: list[Difference], before: Score, after: Score) -> str:
    row = next((d for d in differences if (d.before, d.after, d.task, d.metric) == (before.model, after.model, after.task, after.metric)), None)
    if row is None or row.low is None:
        return ""
    unit = " points" if row.share else ""
    return f", a difference of {words.points(row.difference, row.share)}{unit} ({words.points_span(row.low, row.high, row.share)})"


def _against(models: list[Model], roles: Roles, scores: list[Score], differences: list[Difference]) -> list[str]:
    """The subject beside its teacher, or else beside what it started from: quality (of the teacher), size, speed, cost."""
    subject, base, teacher = roles
    other = teacher or base
    if subject is None or other is None or other == subject:
        return []
    told = []
    if teacher:
        for own in [s for s in scores if s.model == subject and s.main][:4]:
            theirs = next((s for s in scores if (s.model, s.task, s.metric) == (teacher, own.task, own.metric)), None)
            if theirs is not None:
                off, unit = words.points(own.value - theirs.value, own.share), " points" if own.share else ""
                row = next((d for d in differences if (d.before, d.after, d.task, d.metric) == (teacher, subject, own.task, own.metric)), None)
                sure = f" ({words.points_span(row.low, row.high, row.share)})" if row and row.low is not None else ""
                told.append(f"{off}{unit}{sure} {own.metric} on `{own.task}`")
    mine, its = ({m.key: m for m in next((x.measures for x in models if x.label == label), ())} for label in (subject, other))
    names = {"size": "the size", "tokens_per_second": "the tokens/s", "usd_per_million": "the cost of a token"}
    told += [f"{words.times(mine[k].value, its[k].value)} {names[k]}" for k in names if k in mine and k in its and its[k].value]
    return [f"Against {'its teacher, ' if teacher else ''}`{other}`: {', '.join(told)}."] if told else []


def _checks(checks: list[Check]) -> list[str]:
    if not checks:
        return []
    broken = [c for c in checks if not c.ok]
    if not broken:
        return ["The bound of the recipe holds." if len(checks) == 1 else f"All {len(checks)} bounds of the recipe hold."]
    return [f"{len(broken)} of {len(checks)} bounds of the recipe {'does' if len(broken) == 1 else 'do'} not hold."]


def _cost(steps: list[Step], teaching: list[Teaching]) -> list[str]:
    known = [s.seconds for s in steps if s.seconds is not None]
    if not known:
        return []
    parts = [f"{words.seconds(sum(known))} of work"]
    tokens = [t.tokens for t in teaching if t.tokens is not None]
    dollars = [t.usd for t in teaching if t.usd is not None]
    parts += [f"{words.count(sum(tokens))} tokens of the teacher" + (f" for {words.usd(sum(dollars))}" if dollars else "")] if tokens else []
    gone = sum(s.gone for s in steps)
    return [f"The chain took {' and '.join(parts)}" + (f", without {gone} steps that are gone" if gone else "") + "."]
