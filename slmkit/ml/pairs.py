"""Prompts and continuations apart: for preference training (DPO, KTO), and prompts to generate from (GRPO).

A continuation is exactly the tokens that the model would have to write after the prompt, with the end of turn: the same rendering and the
same checks as in `encode`.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from slmkit.data import faults
from slmkit.data.rows import Row, Rows, place
from slmkit.errors import DataError, Problem
from slmkit.ml import faithful, tokens
from slmkit.ml.encode import Problems, answer_span, each, is_chat
from slmkit.ml.examples import TOO_LONG_SHARE, Fitted
from slmkit.ml.render import Fault, Renderer, Thinking, Turn


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with a chosen and a rejected continuation, or (rejected None) with one that is good or bad. Ids are array('i')."""

    line: int
    prompt: array
    chosen: array
    rejected: array | None = None
    label: bool | None = None
    file: str = ""
    begins: int = 0

    def place(self, name: str) -> str:
        return place(self.file or name, self.line, self.begins)

    @property
    def trained(self) -> int:
        """Tokens of its continuations: both are learned from."""
        return len(self.chosen) + len(self.rejected or ())

    @property
    def prompt_ids(self) -> list[int]:
        return self.prompt.tolist()

    @property
    def chosen_ids(self) -> list[int]:
        return self.chosen.tolist()

    @property
    def rejected_ids(self) -> list[int]:
        return self.rejected.tolist() if self.rejected is not None else []

    @property
    def completion_ids(self) -> list[int]:
        """Of a row with a label."""
        return self.chosen.tolist()

    def __len__(self) -> int:
        """Tokens of the longer of its sequences."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected or ()))


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked: messages, their rendering with the generation prompt, its ids; answer: the row's own, None if it has none."""

    line: int
    text: str
    ids: array
    messages: tuple[dict, ...]
    answer: str | None
    tools: tuple[dict, ...] = ()
    file: str = ""
    begins: int = 0

    def place(self, name: str) -> str:
        return place(self.file or name, self.line, self.begins)

    @property
    def prompt_ids(self) -> list[int]:
        return self.ids.tolist()

    @property
    def row(self) -> str:
        """Where it came from, as `place` has it."""
        return self.place("") if self.file else f"line {self.line}"

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class Pairs(Fitted):
    """All pairs that fit; `lengths` are those of the longer sequence."""

    pairs: list[Pair]

    @property
    def tokens(self) -> int:
        """Of both sequences of each, the prompt in both."""
        return sum(p.trained + len(p.prompt) * (1 if p.rejected is None else 2) for p in self.pairs)

    @property
    def trained(self) -> int:
        return sum(self.trained_each())

    def trained_each(self) -> list[int]:
        return [p.trained for p in self.pairs]


@dataclass
class Prompts(Fitted):
    """All prompts that fit."""

    prompts: list[Prompt]

    @property
    def tokens(self) -> int:
        return sum(len(p) for p in self.prompts)

    def trained_each(self) -> None:
        return None


FORMS = {"dpo": ("preference",), "kto": ("label",), "grpo": ("messages", "completion")}
"""The forms of rows that an objective learns from; sft and gkd from all others."""


def refuse_form(data: Rows, objective: str) -> None:
    """Raise DataError for rows of a form that the objective does not learn from."""
    forms = FORMS.get(objective, ("messages", "completion", "text"))
    if data.form not in forms:
        what = f"objective {objective} learns from rows of form {' or '.join(forms)}, and these are of form {data.form}"
        fits = {"preference": "dpo", "label": "kto"}.get(data.form, "sft")
        classes = "; where `label` numbers classes, `data: {path: …, format: completion}` (or messages, alpaca) reads the rows without it"
        raise DataError([Problem(what, data.name, mend=f"give such rows, or write `objective: {fits}`{classes if fits == 'kto' else ''}")])


def encode_pairs(
    data: Rows, tokenizer, *, max_length: int, ends: set[int], thinking: Thinking = "keep", allow_truncation: bool = False
) -> Pairs:
    """Encode rows of form `preference` or `label`. max_length: tokens of prompt and continuation; longer rows are left out.

    Raises DataError naming rows that cannot be rendered, or when more than 5 % are too long (unless allow_truncation).
    """
    is_chat(data, tokenizer)
    if data.form not in ("preference", "label"):
        raise DataError([Problem(f"rows of form `{data.form}` hold no preferences", data.name, mend="give rows with `chosen` and `rejected`")])
    renderer, problems = Renderer(tokenizer, thinking), Problems(data)
    pairs: list[Pair] = []
    for part in tokens.batches(data):
        rendered = each(part, problems, lambda row: _continuations(row, renderer))
        texts = (text for _, turns in rendered for _, _, turn in turns for text in (turn.before, turn.text))
        ids = tokens.ids_of(tokenizer, texts)
        pairs += [pair for _, pair in each(rendered, problems, lambda row, turns, ids=ids: _pair(row, turns, renderer, ids, ends))]
    problems.raise_if_any()
    made = Pairs([], notes=renderer.notes)
    made.pairs = _fitting(data, pairs, max_length, allow_truncation, made)
    return made


def _continuations(row: Row, renderer: Renderer) -> list[tuple[str, list[dict], Turn]]:
    """For each continuation: its name, the messages with it, the turn."""
    prompt = [renderer.message(m, f"messages[{k}]") for k, m in enumerate(row.messages)]
    found = []
    for name, given in (("chosen", row.chosen), ("rejected", row.rejected)):
        if not given and name == "rejected" and row.label is not None:
            continue
        if len(given) != 1 or given[0].get("role") != "assistant":
            raise Fault(f"{name} should be one assistant message, this is {len(given)}", "move what both have in common into `messages`")
        messages = [*prompt, renderer.message(given[0], f"{name}[0]")]
        found.append((name, messages, renderer.turn(messages, len(prompt), row.tools)))
    return found


def _pair(row: Row, turns: list[tuple[str, list[dict], Turn]], renderer: Renderer, ids: dict[str, array], ends: set[int]) -> Pair:
    prompt, written = array("i"), {}
    for name, messages, turn in turns:
        whole, (start, end) = answer_span(renderer, turn, messages[-1], ids, ends, f"{name}[0]")
        tokens.refuse_two_bos(renderer.tokenizer, whole, "mend the chat template, which writes it twice")
        faithful.check_context(messages, row.tools, turn.text)
        prompt, written[name] = whole[:start], whole[start:end]
    if "rejected" in written and written["chosen"] == written["rejected"]:
        raise Fault("chosen and rejected are the same", "remove the row: there is nothing to prefer")
    return Pair(row.line, prompt, written["chosen"], written.get("rejected"), row.label, row.file, row.begins)


def prompts(data: Rows, tokenizer, *, max_length: int, thinking: Thinking = "keep", allow_truncation: bool = False) -> Prompts:
    """Prompts to generate from, of rows of form `messages` or `completion`. max_length: tokens of a prompt; longer ones are left out.

    A row's last message, where it is the assistant's, is its answer; what comes before is the prompt. Raises DataError as `encode_pairs` does.
    """
    chat = is_chat(data, tokenizer)
    if data.form not in ("messages", "completion"):
        raise DataError([Problem(f"rows of form `{data.form}` hold no prompts", data.name, mend="give `messages`, or `prompt` and `completion`")])
    renderer, problems = Renderer(tokenizer, thinking), Problems(data)
    found: list[Prompt] = []
    for part in tokens.batches(data):
        asked = each(part, problems, lambda row: _asked(row, renderer, chat))
        ids = tokens.ids_of(tokenizer, (text for _, (text, _, _) in asked), special=not chat)
        found += [prompt for _, prompt in each(asked, problems, lambda row, given, ids=ids: _prompt(row, *given, renderer, ids))]
    problems.raise_if_any()
    made = Prompts([], notes=renderer.notes)
    made.prompts = _fitting(data, found, max_length, allow_truncation, made)
    return made


def _asked(row: Row, renderer: Renderer, chat: bool) -> tuple[str, tuple[dict, ...], str | None]:
    """The prompt's text and messages, and the row's answer."""
    messages = renderer.messages(row)
    answer = messages.pop()["content"] if messages[-1]["role"] == "assistant" else None
    if not messages:
        raise Fault("the row is an answer without a question", "put a `user` message first")
    text = renderer.prompt(messages, row.tools) if chat else row.prompt
    faithful.check_context(messages, row.tools, text)
    return text, tuple(messages), answer


def _prompt(row: Row, text: str, messages: tuple[dict, ...], answer: str | None, renderer: Renderer, ids: dict[str, array]) -> Prompt:
    tokens.refuse_two_bos(renderer.tokenizer, ids[text], "mend the chat template, which writes it twice")
    return Prompt(row.line, text, ids[text], messages, answer, row.tools, row.file, row.begins)


def _fitting(data: Rows, items: list, max_length: int, allowed: bool, made: Fitted) -> list:
    """Those within max_length; the others go to `made`."""
    made.lengths = array("I", map(len, items))
    fitting = [item for item in items if len(item) <= max_length]
    for item in items if len(fitting) < len(items) else ():
        if len(item) > max_length:
            made.too_long.add(item)
    lost = made.too_long.count
    if (lost > TOO_LONG_SHARE * len(data) and not allowed) or not fitting:
        problems = [faults.of_row(f"longer than max_length ({max_length} tokens)", item, data.name) for item in made.too_long.first]
        summary = f"{lost} of {len(data)} rows are longer than max_length: {max_length}; raise `max_length`, or shorten the rows"
        raise DataError(problems, summary)
    return fitting
