"""From artifacts to one Report: the chain behind them, scores with intervals, costs, curves, certificates, the worst answers, how to do it again.

Nothing is scored or measured anew, and nothing is taken from elsewhere than the artifacts, so the same artifacts give the same report.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import slmkit
from slmkit.artifact.manifest import Artifact
from slmkit.errors import CheckFailed
from slmkit.evidence import samples
from slmkit.evidence.paired import better_when_lower
from slmkit.report import answers, lineage, measures, quality, records, verdict
from slmkit.report.facts import SCHEMA, Check, Difference, Model, Recipe, Report, Sample, Score, Step
from slmkit.steps._expect import look_up

Answered = dict[tuple[str, str], dict[str, answers.Answers]]


@dataclass
class _Found:
    """What is known while the evals are read, by labels of models."""

    models: list[Model] = field(default_factory=list)
    scores: dict[str, dict[str, dict]] = field(default_factory=dict)
    rows: list[Score] = field(default_factory=list)
    answered: Answered = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def gather(asked: list[Artifact], find: Callable[[str], Artifact | None]) -> Report:
    """find: fingerprint → artifact, or None.

    Raises CheckFailed where an eval's files were altered.
    """
    steps, there, notes = lineage.trace(asked, find)
    evals = [there[s.id] for s in steps if s.type == "scores" and s.id in there]
    found = _Found()
    names = _labels(evals)
    for artifact in evals:
        _read(artifact, names[artifact.path.name], steps, found, find)
    teaching = [records.teaching(there[s.id]) for s in steps if s.kind == "distill" and s.id in there]
    roles = _roles(found, steps)
    _compare(evals, names, found, roles)
    _show(found, roles)
    made, more = _records(steps, there)
    told = verdict.headline(steps, found.models, roles, found.rows, found.differences, found.checks, teaching)
    unread = [f"`{s.name}` lacks files that its manifest lists" for s in steps if s.id in there and not there[s.id].present()]
    curves, xrays, certificates = made
    return Report(
        schema=SCHEMA, slmkit=slmkit.__version__, title=" and ".join(f"{a.manifest['recipe']}/{a.name}" for a in asked),
        refs=tuple(a.path.name for a in asked), headline=tuple(told), notes=(*notes, *unread, *found.notes, *more), checks=tuple(found.checks),
        steps=tuple(steps), models=tuple(found.models), scores=tuple(found.rows), differences=tuple(found.differences), curves=curves, xrays=xrays,
        teaching=tuple(teaching), fidelity=certificates, samples=tuple(found.samples), recipes=tuple(_recipes(asked, steps, there)),
    )  # fmt: skip


def _labels(evals: list[Artifact]) -> dict[str, str]:
    """Folder → the eval's name before its models; the folder itself where two have the same, nothing where there is one."""
    if len(evals) < 2:
        return {a.path.name: "" for a in evals}
    told = [f"{a.manifest['recipe']}/{a.name}" for a in evals]
    return {a.path.name: f"{name if told.count(name) == 1 else a.path.name}:" for a, name in zip(evals, told, strict=True)}


def _read(artifact: Artifact, prefix: str, steps: list[Step], found: _Found, find: Callable[[str], Artifact | None]) -> None:
    """An eval's models, scores, checks, and the numbers of its answers. Its files are hashed first: a report of altered answers is none."""
    faults = artifact.faults()
    if faults:
        raise CheckFailed("; ".join(faults[:3]), where=artifact.path, mend="it is not what was published: remove it and run the eval again")
    evidence = samples.of_folder(artifact.path)
    result, own = artifact.manifest["result"], artifact.path.name
    given = {i.name: i for i in next(s for s in steps if s.id == own).inputs if i.role == "models"}
    order = [m for m in given if m in evidence.scores] + [m for m in evidence.scores if m not in given]
    bills = measures.bills(artifact, find)
    for model in order:
        source, label = given.get(model), prefix + model
        told, named = bills.get(model), (source.uri, source.step) if source else ("", None)
        priced = (measures.batches(told), told.reckoned.assumptions, measures.unknown(told)) if told else ()
        found.models.append(Model(own, model, label, *named, measures.of_model(result, model, told), *priced))
        found.scores[label] = evidence.scores[model]
        for task, told in evidence.scores[model].items():
            metrics, broken = answers.read(artifact.path, model, task)
            if broken:
                found.notes.append(f"{broken} answers of `{label}` to `{task}` cannot be read and are left out")
            if any(a.twice for a in metrics.values()):
                found.notes.append(f"`{task}` was asked several times of `{label}`, so its answers are not paired and not shown")
            found.answered[label, task] = metrics
            found.rows += _scores(own, label, task, told, metrics)
    _mark(artifact, own, found)
    for check in result.get("checks") or ():
        figures = check.get("figures") or {}
        keys = ("value", "low", "high", "questions", "needed")
        bound = f"{check.get('name')} {figures.get('bound', '')}".strip()
        found.checks.append(Check(own, bound, str(check.get("verdict") or ("pass" if check.get("ok") else "fail")), bool(check.get("ok")),
                                  str(check.get("detail", "")), *(figures.get(k) for k in keys)))


def _scores(eval_: str, label: str, task: str, told: dict, metrics: dict[str, answers.Answers]) -> list[Score]:
    rows = []
    for metric, value in told.items():
        if metric.endswith("_stderr") or not isinstance(value, int | float) or not math.isfinite(value):
            continue
        own = metrics.get(metric)
        low, high, method = quality.interval(metric, float(value), told.get(f"{metric}_stderr"), own)
        lower = better_when_lower(metric)
        rows.append(Score(eval_, label, task, metric, float(value), low, high, method, len(own.ids) if own is not None else None,
                          not lower and 0 <= value <= 1, lower, False))
    return rows


def _mark(artifact: Artifact, own: str, found: _Found) -> None:
    """Which metric of each task the pictures show: one that a bound names, else one that is right or wrong, else the first. And a metric is told
    in percent only where all models' values are shares."""
    scores = {m.name: found.scores[m.label] for m in found.models if m.eval == own}
    words = [word for text in artifact.manifest["config"].get("expect") or {} for word in text.split()]
    bounds = [hit[1:] for word in words if not isinstance(hit := look_up(word, scores), str)]
    mine = [r for r in found.rows if r.eval == own]
    for task in dict.fromkeys(r.task for r in mine):
        names = list(dict.fromkeys(r.metric for r in mine if r.task == task))
        named = next((n for n in names if (task, n) in bounds), None)
        exact = next((n for n in names if any(r.metric == n and r.task == task and r.method == "exact" for r in mine)), None)
        main = named or exact or names[0]
        shares = {n for n in names if all(r.share for r in mine if (r.task, r.metric) == (task, n))}
        found.rows = [replace(r, main=r.metric == main, share=r.metric in shares) if (r.eval, r.task) == (own, task) else r for r in found.rows]


def _roles(found: _Found, steps: list[Step]) -> verdict.Roles:
    """Of the first eval: the model that is spoken of is the last that a step made and that is no teacher, the one before it is the first."""
    if not found.models:
        return verdict.Roles()
    first = [m for m in found.models if m.eval == found.models[0].eval]
    digests = {i.digest or i.uri for s in steps if s.kind == "distill" for i in s.inputs if i.role == "teacher"}
    given = {(s.id, i.name): i.digest or i.uri for s in steps for i in s.inputs if i.role == "models"}
    teachers = [m for m in first if given.get((m.eval, m.name)) in digests]
    pupils = [m for m in first if m not in teachers] or first
    subject = ([m for m in pupils if m.step] or pupils)[-1]
    teacher = next((t.label for t in teachers if t not in (subject, first[0])), None)
    return verdict.Roles(subject.label, first[0].label, teacher, tuple(m.label for m in found.models if m.name == subject.name and m not in first))


def _compare(evals: list[Artifact], names: dict[str, str], found: _Found, roles: verdict.Roles) -> None:
    """Each eval's models against its first, those of further evals against the same name in the first eval, the subject against its teacher."""
    pairs: list[tuple[str, str]] = []
    for artifact in evals:
        own = [m for m in found.models if m.eval == artifact.path.name]
        pairs += [(own[0].label, m.label) for m in own[1:]]
        if artifact is not evals[0]:
            pairs += [(x.label, m.label) for m in own for x in found.models if x.eval == evals[0].path.name and x.name == m.name]
    if roles.teacher:
        pairs.append((roles.teacher, roles.subject))
    shares = {r.metric for r in found.rows if r.share} - {r.metric for r in found.rows if not r.share}
    triples = [(a, b, task) for a, b in dict.fromkeys(pairs) for task in found.scores[a] if task in found.scores[b]]
    found.differences, notes = quality.differences(triples, found.scores, found.answered, shares)
    found.notes += notes


def _show(found: _Found, roles: verdict.Roles) -> None:
    """The worst answers, of each eval's tasks, as long as there is room."""
    for eval_ in dict.fromkeys(m.eval for m in found.models):
        labels = [m.label for m in found.models if m.eval == eval_]
        subject = roles.subject if roles.subject in labels else labels[-1]
        base = labels[0]
        for row in [r for r in found.rows if r.eval == eval_ and r.model == subject and r.main]:
            own = found.answered[subject, row.task].get(row.metric)
            if own is None or own.twice or row.metric not in own.values:
                continue
            theirs = {m: a for m in labels if (a := found.answered.get((m, row.task), {}).get(row.metric)) and row.metric in a.values}
            beside = {m: a for m, a in theirs.items() if own.same_questions(a)}
            first = base if base in beside else subject
            found.samples += answers.worst(eval_, row.task, row.metric, beside, subject, first, answers.MOST - len(found.samples))


def _records(steps: list[Step], there: dict[str, Artifact]) -> tuple[tuple, list[str]]:
    curves, xrays, certificates, notes = [], [], [], []
    for artifact in (there[s.id] for s in steps if s.id in there):
        curve = records.curve(artifact) if artifact.kind == "train" else None
        seen, unseen = records.xray(artifact)
        sure, unsure = records.fidelity(artifact)
        for kept, one in ((curves, curve), (xrays, seen), (certificates, sure), (notes, unseen), (notes, unsure)):
            if one is not None:
                kept.append(one)
    return (tuple(curves), tuple(xrays), tuple(certificates)), notes


def _recipes(asked: list[Artifact], steps: list[Step], there: dict[str, Artifact]) -> list[Recipe]:
    """Each recipe's text once, with what makes its steps again."""
    by_text: dict[tuple[str, tuple[str, ...]], list[Step]] = {}
    for step in steps:
        text = records.recipe(there[step.id]) if step.id in there else None
        if text is not None:
            by_text.setdefault((text, step.overrides), []).append(step)
    out = []
    for (text, overrides), made in by_text.items():
        changed = "".join(f" {word} {shlex.quote(value)}" for word, _, value in (o.partition(" ") for o in overrides))
        wanted = [s for s in made if s.id in {a.path.name for a in asked}] or made[-1:]
        commands = ["slmkit lock recipe.yaml"] if "hf:" in text else []
        commands += [f"slmkit run recipe.yaml {s.name}{changed}" for s in wanted]
        commands += [f"slmkit verify {s.id}" for s in made]
        commands += [f"slmkit reproduce {s.id} --env" for s in wanted]
        out.append(Recipe(made[0].recipe or "", text, tuple(s.id for s in made), tuple(commands)))
    return out
