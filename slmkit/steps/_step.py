"""What a step kind is made of. A kind is one module in this folder (or an entry point of group `slmkit.steps`):

    \"\"\"One line for --help.  (The rest of the docstring is the verb's help.)\"\"\"
    VERSION = 1                                # raised when the same config should mean another artifact
    TAKES = {"model": Takes("model")}          # config fields that name inputs, and the types they accept
    GIVES = "adapter"                          # or a function of the config
    PINS = ()                                  # packages whose release changes what the config means
    class Config(StepConfig): ...              # identity: is hashed
    class Execution(StepExecution): ...        # time, memory, money: is never hashed
    def run(ctx: Context, config: Config) -> Result: ...

`run` imports torch and friends itself. It gets its inputs as local paths and writes its payload into `ctx.out`; it has
no store and no recipe, so it cannot depend on where it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

TYPES = ("model", "adapter", "dataset", "task", "scores", "code", "template", "tools", "gguf", "onnx")
"""Artifact and input types. model and adapter are Hugging Face folders; dataset is rows; task is an lm-eval YAML; scores is an eval;
gguf and onnx are exports for other runtimes; code is a Python file of the user's; template is a Jinja file; tools is a JSON file of functions on
offer."""

NAME = "<step>"
"""Stands for the step's name in what the hooks `estimate` and `blocked` say, which are told none; the plan puts it in."""


class _Frozen(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, validate_default=True
    )


class StepConfig(_Frozen):
    """Identity fields of a kind. Input fields (those in TAKES) hold references and are hashed by what they refer to."""


class StepExecution(_Frozen):
    """How a step runs. Changing any of these never changes the fingerprint."""


class Part(_Frozen):
    """A nested block of a Config, such as `lora:`."""


class Wrong(ValueError):
    """What a validator finds. mend: the help line. key: of the step, where the fault is another key's than the one that is validated."""

    def __init__(self, what: str, *, mend: str | None = None, key: str | None = None):
        super().__init__(what)
        self.mend, self.key = mend, key


_TALK = {"messages", "tools", "system"}
_PAIR = {"chosen", "rejected", "label"}
READ_BY_FORMAT = {
    "messages": _TALK | _PAIR, "sharegpt": _TALK | _PAIR, "alpaca": {"system"} | _PAIR, "glaive": set(), "text": {"text"},
    "completion": {"prompt", "completion", "tools"}, "columns": {"user", "assistant", "system", "tools"},
    "preference": _TALK | {"prompt", "chosen", "rejected"}, "label": _TALK | {"prompt", "completion", "label"},
}  # fmt: skip
"""Which keys of a mapping each format of rows reads. `columns` is what `user` and `assistant` make."""
FORMATS = tuple(f for f in READ_BY_FORMAT if f != "columns")


class Columns(Part):
    """Data with more said of it: `{path: train.csv, user: text, assistant: category}`. Keys that name a column say which one plays that part."""

    KEY: ClassVar[str] = "path"

    path: str
    """File, glob, folder or reference, as it would be written alone."""
    format: Literal["messages", "sharegpt", "alpaca", "glaive", "text", "completion", "preference", "label"] | None = None
    """How the rows are written; told by the first row if left out."""
    split: str | None = None
    """Which part of a folder or hub dataset: `train`, or `CONFIG/train`. hf:ID:SPLIT says the same."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """How many of the rows a pass holds: 0.5 is half of them (drawn by seed, none twice), 2 is each twice."""
    system: str | None = None
    """Fixed system message put before every row."""
    user: str | None = None
    """Column that holds what the user says."""
    assistant: str | None = None
    """Column that holds the answer to learn."""
    text: str | None = None
    """Column of plain text, instead of user and assistant."""
    prompt: str | None = None
    """Column of the prompt."""
    completion: str | None = None
    """Column of the completion."""
    messages: str | None = None
    """Column of the conversation."""
    tools: str | None = None
    """Column of the functions on offer."""
    chosen: str | None = None
    """Column of the better answer."""
    rejected: str | None = None
    """Column of the worse answer."""
    label: str | None = None
    """Column that says whether the answer is good."""

    @property
    def named(self) -> dict[str, str]:
        """part → column, for the keys that name one."""
        parts = ("user", "assistant", "text", "prompt", "completion", "messages", "tools", "chosen", "rejected", "label")
        return {k: v for k in parts if (v := getattr(self, k)) is not None}

    @property
    def rows_format(self) -> str | None:
        """The format that is named, or that the named columns leave no choice but."""
        if self.format:
            return self.format
        if self.user or self.assistant:
            return "columns"
        return "text" if self.text else None

    @model_validator(mode="after")
    def _all_read(self) -> Columns:
        if (self.user is None) != (self.assistant is None):
            raise ValueError("a column mapping names both `user` and `assistant`, or `text` alone")
        said = set(self.named) | ({"system"} if self.system is not None else set())
        known = [READ_BY_FORMAT[self.rows_format]] if self.rows_format else [r for f, r in READ_BY_FORMAT.items() if f != "columns"]
        if not any(said <= reads for reads in known):
            reads = f"format {self.rows_format} reads {', '.join(sorted(known[0])) or 'no mapping'}"
            why = reads if self.rows_format else "no format reads them together"
            ways = "a column mapping names `user` and `assistant`, or `text` alone, or the fields of one format"
            raise ValueError(f"{' and '.join(f'`{k}`' for k in sorted(said))}: {why}; {ways}")
        return self


@dataclass(frozen=True)
class Born:
    """Metadata of a field added after release: left out of the fingerprint while it equals `default`, so old artifacts stay valid.

    Use: `new_key: Annotated[int, Born(0)] = 0`.
    """

    default: Any


@dataclass(frozen=True)
class How:
    """Metadata of a field that stands in a Config because that is where people write it, and says nothing of what comes out: where a
    teacher's key is, what may be spent. It is never hashed; all else of that sort belongs into the kind's Execution.

    Use: `budget: Annotated[Budget | None, How()] = None`.
    """


class Fault(NamedTuple):
    """Something wrong at `where` (keys) in a step; of what a file says that stands for other keys, in that file, or, if `here`, in the step."""

    where: tuple
    what: str
    mend: str | None = None
    here: bool = False


@dataclass(frozen=True)
class Stands:
    """Metadata of an Execution field that names a file, YAML or JSON, which stands for other keys of execution. The loader reads the file and
    gives `read(what it says, its name, its sha256, the step's keys, those of its execution)`, which returns (keys of execution, faults).
    """

    read: Callable[[Any, str, str, dict, dict], tuple[dict, list[Fault]]]


@dataclass(frozen=True)
class Takes:
    """An input of a kind: the types it accepts, best first; whether it takes a list; whether it may be left out.

    `files` maps the named path to all the files whose content is its identity (an lm-eval YAML names data files, say);
    it may raise SlmkitError. `named` says that results are keyed by the input's label, which makes the label part of the identity.
    `bare` says whether a plain word (no path, no scheme) is a name with no file behind it,
    such as a built-in task of lm-eval: such a name is its own identity. `lone` says of a `many` that one reference may stand
    without a list, and is hashed as if there could be no list.
    `witness` is an input that no config field names and that changes nothing of what comes out: the recipe's other steps' inputs of
    these types, for checks (is a question of an eval's task among the training rows?). It is recorded, and not hashed. `of` narrows
    it to inputs of one role.
    `form` is what a mapping in place of a reference says, when it is more than columns of rows: a Part whose KEY names the data.
    `narrow` says which of the types a config leaves: what else is given is turned into one of those, or refused.
    """

    types: tuple[str, ...]
    many: bool = False
    optional: bool = False
    files: Callable[[Path], list[Path]] | None = None
    bare: Callable[[str], bool] | None = None
    named: bool = False
    witness: bool = False
    lone: bool = False
    of: str | None = None
    narrow: Callable[[Any], tuple[str, ...]] | None = None
    form: type[Part] | None = None

    def __init__(
        self, *types: str, many=False, optional=False, files=None, bare=None, named=False, witness=False, lone=False, of=None, narrow=None, form=None
    ):
        for key, value in {
            "types": types, "many": many, "optional": optional, "files": files, "bare": bare, "named": named, "witness": witness, "lone": lone,
            "of": of, "narrow": narrow, "form": form,
        }.items():
            object.__setattr__(self, key, value)

    def by_form(self) -> Takes:
        """What an input that is given in `form` may be: rows, of which the form says what they are for."""
        return Takes("dataset", many=self.many, optional=self.optional, named=self.named, witness=self.witness, lone=self.lone, of=self.of)


@dataclass(frozen=True)
class Given:
    """An input as a step receives it: a local path whose content was checked against what was planned.

    name: the label for people and result keys (`base`, `sft`, `int4`). uri: where it came from, without local folders for
    artifacts (`artifact:train-79ba67d04f54`, `hf:ID@commit`, `demo:student`, a path). digest: sha256 of the content.
    manifest: of an artifact, else None. base: of an adapter, the model it was trained on. columns: the mapping given with data, or the form
    (see Takes.form) that makes it something else.
    path is None only for a bare name (see Takes.bare). files: what a glob matched when it was planned.
    """

    role: str
    name: str
    type: str
    uri: str
    path: Path | None
    digest: str | None = None
    revision: str | None = None
    manifest: dict | None = None
    base: Given | None = None
    columns: Any = None
    files: tuple[Path, ...] | None = None

    @property
    def hub(self) -> tuple[str, str] | None:
        """(repo id, commit) when this came from the hub, else None."""
        if not self.uri.startswith("hf:"):
            return None
        repo, _, commit = self.uri[3:].partition("@")
        return repo, commit


class Progress(Protocol):
    """`progress(done, total, what, loss=…)`: cheap to call on every step; the screen is updated at its own pace."""

    def __call__(self, done: float, total: float | None, what: str, **numbers: float) -> None: ...


@dataclass(frozen=True)
class Context:
    """All that a step may touch. `out`: empty payload folder. `state`: survives kill and resume (checkpoints go here).

    `log(event, **fields)` writes one line of events.jsonl. `secret(name)` reads an environment variable, raises CannotRun if unset.
    `step` is the step's name in the recipe, for help lines that name a key; nothing else may depend on it.
    `ledgers`: the store's folder of teachers' answers, which all steps share; what is in it changes costs and never results.
    """

    out: Path
    state: Path
    inputs: dict[str, Given | tuple[Given, ...] | None]
    execution: StepExecution
    log: Callable[..., None]
    progress: Progress
    secret: Callable[[str], str]
    step: str = "STEP"
    ledgers: Path = Path("ledgers")


@dataclass(frozen=True)
class Card:
    """The model card: Hub metadata (front matter) and the text below it. No times, no local paths: it is part of the payload."""

    metadata: dict
    text: str


@dataclass(frozen=True)
class Check:
    """A check a step made on its own result: `expect` bounds, say. One that is not ok makes the command exit 3 after publishing.

    verdict: pass, fail or inconclusive, where the check is a judgement on samples; figures: what it was judged on.
    """

    name: str
    ok: bool
    detail: str
    verdict: str | None = None
    figures: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a step says of its artifact. values: small typed numbers and strings (JSON), noisy ones (tokens/s) too.

    cost: tokens, peak_memory_bytes … ; determinism: exact (same bytes again on this machine), seeded, or none.
    """

    values: dict = field(default_factory=dict)
    card: Card | None = None
    cost: dict = field(default_factory=dict)
    determinism: Literal["exact", "seeded", "none"] = "exact"
    seed: int | None = None
    checks: tuple[Check, ...] = ()
