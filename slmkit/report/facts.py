"""All that a report says, as plain frozen data. `gather` fills it, the page and the Markdown read it, and the JSON is it.

Numbers are raw here (shares, bytes, seconds, dollars) and None where none is known: nothing is worked out anew by whoever shows them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = "slmkit.report/1"


@dataclass(frozen=True)
class Input:
    """What a step was given. step: the id of the artifact it is, None for what came from outside. witness: looked at, not built on."""

    role: str
    name: str
    type: str
    uri: str
    revision: str | None
    digest: str | None
    bytes: int | None
    step: str | None
    witness: bool


@dataclass(frozen=True)
class Step:
    """An artifact of the chain. id: its folder's name. gone: it is not in the store any more, and what is said is what others recorded of it."""

    id: str
    name: str
    kind: str
    type: str
    gone: bool
    inputs: tuple[Input, ...] = ()
    recipe: str | None = None
    fingerprint: str | None = None
    digest: str | None = None
    bytes: int | None = None
    seconds: float | None = None
    tokens: int | None = None
    usd: float | None = None
    peak_memory_bytes: int | None = None
    finished: str | None = None
    attempts: int | None = None
    determinism: str | None = None
    seed: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    command: str | None = None
    slmkit: str | None = None
    commit: str | None = None
    machine: str | None = None
    packages: dict[str, str] = field(default_factory=dict)
    licence: str | None = None
    terms: str | None = None


@dataclass(frozen=True)
class Check:
    """A bound of the recipe, and what became of it."""

    eval: str
    bound: str
    verdict: str
    ok: bool
    detail: str
    value: float | None
    low: float | None
    high: float | None
    questions: int | None
    needed: int | None


@dataclass(frozen=True)
class Score:
    """A model's score. low, high: two-sided 95 %. share: lies between 0 and 1 and is told in percent. main: what the pictures show of its task."""

    eval: str
    model: str
    task: str
    metric: str
    value: float
    low: float | None
    high: float | None
    method: str
    questions: int | None
    share: bool
    lower_is_better: bool
    main: bool


@dataclass(frozen=True)
class Difference:
    """after - before on the same questions, two-sided 95 %. corrected: p after Holm, over all the rows of its eval."""

    before: str
    after: str
    task: str
    metric: str
    difference: float
    low: float | None
    high: float | None
    p: float | None
    corrected: float | None
    questions: int | None
    up: int | None
    down: int | None
    method: str
    share: bool


@dataclass(frozen=True)
class Measure:
    """Something that a model costs: see measures.py. unit: bytes, rate, seconds, latency, usd or count. axis: it is a picture's axis. table: quality,
    speed or cost, by which it is shown. low, high: its 95 % interval, None where it has none or an end is open."""

    key: str
    label: str
    unit: str
    value: float
    lower_is_better: bool
    axis: bool
    table: str = "quality"
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Batch:
    """Requests at once, and tokens a second then: read while prompts are read, written while answers are; 95 % intervals."""

    size: int
    read: float
    read_low: float | None
    read_high: float | None
    written: float | None
    written_low: float | None
    written_high: float | None


@dataclass(frozen=True)
class Model:
    """A model that an eval scored. label: its name, with the eval's before it where there are several. step: the artifact it is.
    assumptions: what its cost is reckoned with. unknown: why figures of cost are left out."""

    eval: str
    name: str
    label: str
    uri: str
    step: str | None
    measures: tuple[Measure, ...]
    batches: tuple[Batch, ...] = ()
    assumptions: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Curve:
    """The course of a training: [step, loss] (each the mean of `every` steps), and what else was measured."""

    step: str
    steps: int
    every: int
    loss: tuple[tuple[int, float], ...]
    validation: tuple[tuple[int, float], ...]
    reward: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Xray:
    """What a training's data held: lines of (name, value), findings, and how many rows have how many tokens."""

    step: str
    data: str
    rows: int
    lines: tuple[tuple[str, str], ...]
    findings: tuple[tuple[str, str], ...]
    edges: tuple[int, ...]
    counts: tuple[int, ...]
    max_length: int | None


@dataclass(frozen=True)
class Teaching:
    """What a teacher was asked, and what it took."""

    step: str
    teacher: str
    mode: str
    requests: int | None
    answered: int | None
    from_ledger: int | None
    rows: int | None
    dropped: dict[str, int]
    failures: dict[str, int]
    tokens: int | None
    usd: float | None
    seconds: float | None


@dataclass(frozen=True)
class Fidelity:
    """What a change of a model's form did to it, from its certificate. bounds: what the step was held to."""

    step: str
    kind: str
    probes: int | None
    source: str | None
    mean_kl: float | None
    p99_kl: float | None
    top1: float | None
    perplexity_before: float | None
    perplexity_after: float | None
    answers: int | None
    answers_identical: int | None
    worst_layer: str | None
    runtime: str | None
    bounds: dict[str, float]


@dataclass(frozen=True)
class Answer:
    """What one model said to a question, and what that scored. cut: characters left out."""

    model: str
    text: str
    cut: int
    score: float | None


@dataclass(frozen=True)
class Sample:
    """A question that went wrong, with the answers of all models. why: in a few words."""

    eval: str
    task: str
    metric: str
    why: str
    doc_id: int
    question: str
    question_cut: int
    target: str
    target_cut: int
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Recipe:
    """A recipe's text as it was run, the steps that it made, and the commands that make them again."""

    name: str
    text: str
    steps: tuple[str, ...]
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """The whole. refs: ids of the artifacts that were asked for. headline: the verdict in sentences; words in backticks are names."""

    schema: str
    slmkit: str
    title: str
    refs: tuple[str, ...]
    headline: tuple[str, ...]
    notes: tuple[str, ...]
    checks: tuple[Check, ...]
    steps: tuple[Step, ...]
    models: tuple[Model, ...]
    scores: tuple[Score, ...]
    differences: tuple[Difference, ...]
    curves: tuple[Curve, ...]
    xrays: tuple[Xray, ...]
    teaching: tuple[Teaching, ...]
    fidelity: tuple[Fidelity, ...]
    samples: tuple[Sample, ...]
    recipes: tuple[Recipe, ...]

    def plain(self) -> dict:
        """For JSON."""
        return asdict(self)
