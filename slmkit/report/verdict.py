"""The verdict in a few sentences: what was asked, how good it is, and what it costs. A sentence whose figure does not exist is not said."""

from __future__ import annotations

from dataclasses import dataclass

from slmkit.report import words
from slmkit.report.facts import Check, Difference, Model, Score, Step, Teaching

TASKS = 4  # that the verdict speaks of


@dataclass(frozen=True)
class Roles:
    """Labels of the model that is spoken of, of the one it started from, of its teacher, and of those of its name in other evals."""

    subject: str | None = None
    base: str | None = None
    teacher: str | None = None
    others: tuple[str, ...] = ()


def headline(
    steps: list[Step], models: list[Model], roles: Roles, scores: list[Score], differences: list[Difference], checks: list[Check],
    teaching: list[Teaching],
) -> list[str]:  # fmt: skip
    told = [*_asked(steps, scores, teaching), *_good(roles, scores, differences), *_against(models, roles, scores, differences)]
    return [*told, *_checks(checks), *_pays(models, roles), *_cost(steps, teaching)]


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
        more = f" and {len(tasks) - TASKS} more tasks" if len(tasks) > TASKS else ""
        parts.append("scored on " + ", ".join(f"`{t}`" for t in tasks[:TASKS]) + more)
    return [f"Asked: {'; '.join(dict.fromkeys(parts))}."] if parts else []


def _name(given) -> str:
    return "?" if given is None else given.name if given.step else given.uri


def _good(roles: Roles, scores: list[Score], differences: list[Difference]) -> list[str]:
    out = []
    for own in [s for s in scores if s.model == roles.subject and s.main][:TASKS]:
        sure = f" (95 % interval {words.span(own.low, own.high, own.share)}" if own.low is not None else ""
        asked = f"{words.count(own.questions)} questions" if own.questions else ""
        inside = f"{sure}{', ' if asked else ''}{asked})" if sure else f" ({asked})" if asked else ""
        text = f"`{own.model}` reaches {words.score(own.value, own.share)} {own.metric} on `{own.task}`{inside}"
        other = _score(scores, roles.base, own) if roles.base != own.model else None
        if other is not None:
            text += f"; `{other.model}` has {words.score(other.value, other.share)}, a difference of {_difference(differences, other, own)}"
        out.append(text + ".")
    return out


def _score(scores: list[Score], model: str | None, like: Score) -> Score | None:
    return next((s for s in scores if (s.model, s.task, s.metric) == (model, like.task, like.metric)), None)


def _difference(differences: list[Difference], before: Score, after: Score) -> str:
    """after - before, with its interval where the two were paired, in whichever direction."""
    unit = " points" if after.share else ""
    told = words.points(after.value - before.value, after.share) + unit
    for d in differences:
        if (d.task, d.metric) != (after.task, after.metric) or d.low is None or {d.before, d.after} != {before.model, after.model}:
            continue
        low, high = (d.low, d.high) if d.before == before.model else (-d.high, -d.low)
        return f"{told} ({words.points_span(low, high, after.share)})"
    return told


def _against(models: list[Model], roles: Roles, scores: list[Score], differences: list[Difference]) -> list[str]:
    """The subject beside its teacher (or else what it started from), and beside those of its name in other evals: quality, size, speed, cost."""
    beside = [x for x in (roles.teacher or roles.base, *roles.others) if x not in (None, roles.subject)]
    names = {"size": "the size", "tokens_per_second": "the tokens/s", "written_per_second": "the tokens/s written",
             "usd_per_million_tokens": "the cost of a token"}  # fmt: skip
    out = []
    for other in beside:
        told = []
        for own in [s for s in scores if s.model == roles.subject and s.main][:TASKS] if other != roles.base else ():
            theirs = _score(scores, other, own)
            told += [f"{_difference(differences, theirs, own)} {own.metric} on `{own.task}`"] if theirs else []
        mine, its = ({m.key: m for m in next((x.measures for x in models if x.label == label), ())} for label in (roles.subject, other))
        skip = {"tokens_per_second"} if "written_per_second" in mine and "written_per_second" in its else set()  # measured, not by the way
        told += [f"{words.times(mine[k].value, its[k].value)} {names[k]}" for k in names if k not in skip and k in mine and k in its and its[k].value]
        out += [f"Against {'its teacher, ' if other == roles.teacher else ''}`{other}`: {', '.join(told)}."] if told else []
    return out


def _checks(checks: list[Check]) -> list[str]:
    if not checks:
        return []
    broken = [c for c in checks if not c.ok]
    if not broken:
        return ["The one bound that was set holds." if len(checks) == 1 else f"All {len(checks)} bounds that were set hold."]
    return [f"{len(broken)} of {len(checks)} bounds that were set {'does' if len(broken) == 1 else 'do'} not hold."]


def _pays(models: list[Model], roles: Roles) -> list[str]:
    """What a million tokens cost where they were measured, beside the API, by the prices that were given."""
    own = {m.key: m for m in next((x.measures for x in models if x.label == roles.subject), ())}
    here, api, even = (own.get(k) for k in ("usd_per_million_tokens", "api_usd_per_million_tokens", "break_even_requests"))
    if here is None:
        return []
    beside = f", at the API {words.usd(api.value)}" if api else ""
    pays = f"; it has paid for its making from request {words.count(even.value)} on" if even else ""
    return [f"At the prices given, a million tokens cost {words.usd(here.value)} with `{roles.subject}`{beside}{pays}."]


def _cost(steps: list[Step], teaching: list[Teaching]) -> list[str]:
    known = [s.seconds for s in steps if s.seconds is not None]
    if not known:
        return []
    parts = [f"{words.seconds(sum(known))} of work"]
    tokens = [t.tokens for t in teaching if t.tokens is not None]
    dollars = [t.usd for t in teaching if t.usd is not None]
    parts += [f"{words.count(sum(tokens))} tokens of the teacher" + (f" for {words.usd(sum(dollars))}" if dollars else "")] if tokens else []
    gone = sum(s.gone for s in steps)
    return [f"The chain took {' and '.join(parts)}" + (f", without what is gone ({gone} of {len(steps)} steps)" if gone else "") + "."]
