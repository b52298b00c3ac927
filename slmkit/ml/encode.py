"""Rows into examples: token ids, and which of them are learned.

A chain is one example that holds several turns of a row. It grows as long as what was trained up to the end of a turn is, token for token, the
beginning of the next turn's prompt. Where a template rewrites earlier turns (Qwen 3 strips their thinking), the chain ends and
another begins, in which only later turns are trained. So every turn is trained once, after exactly the tokens it will follow in use.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

from slmkit.data import faults
from slmkit.data.rows import SHOWN, Row, Rows
from slmkit.errors import DataError, Problem
from slmkit.ml import faithful, tokens
from slmkit.ml.examples import Encoded, Example, Span, TooLong, fitted, refuse_losses
from slmkit.ml.render import Fault, Renderer, Thinking, Turn


class Chain:
    """An example that grows turn by turn."""

    def __init__(self, turn: Turn, ids: array, span: Span):
        self.turn, self.ids, self.spans = turn, ids, [span]

    def takes(self, turn: Turn, ids: array, span: Span) -> bool:
        """Add a turn, if its prompt begins with all up to the last end of turn."""
        end = self.spans[-1][1]
        if end > span[0] or ids[:end] != self.ids[:end]:
            return False
        self.turn, self.ids = turn, ids
        self.spans.append(span)
        return True


def encode(
    data: Rows, tokenizer, *, loss_on: str, max_length: int, ends: set[int], thinking: Thinking = "keep",
    too_long: TooLong = "drop", allow_truncation: bool = False,
) -> Encoded:  # fmt: skip
    """Encode every row. Raises DataError naming the rows that cannot be.

    loss_on: `assistant` or `all` (each token once, even where a row becomes several examples). ends: ids that end a turn (models.end_ids).
    thinking: `strip` takes reasoning out first. too_long: what happens to examples above max_length tokens. Losing more than 5 % of the rows,
    or of their answers, to it is an error unless allow_truncation.
    """
    chat = is_chat(data, tokenizer)
    renderer = Renderer(tokenizer, thinking)
    encoded = Encoded([], notes=renderer.notes)
    if chat and data.form == "completion":
        encoded.notes["prompt_as_messages"] = True
    problems = Problems(data)
    for part in tokens.batches(data):
        found = _chats(part, renderer, loss_on, ends, problems) if chat else _plain(part, data.form, renderer, loss_on, problems)
        for _, examples in found:
            encoded.examples += fitted(examples, max_length, too_long, tokenizer.bos_token_id, encoded)
    problems.raise_if_any()
    if not allow_truncation or not encoded.examples:
        refuse_losses(data, encoded, max_length)
    first, bos = encoded.examples[0].ids[0], tokenizer.bos_token_id
    if bos is not None and chat and first != bos:
        # lm-eval tokenises a rendered prompt with special tokens: such a tokenizer adds a BOS that training never saw.
        encoded.notes["bos_added_outside_template"] = tokenizer("x")["input_ids"][0] == bos
    return encoded


class Problems:
    """Faults of rows: the first are kept, all are counted."""

    def __init__(self, data: Rows):
        self.data, self.kept, self.count = data, [], 0

    def add(self, row: Row, fault: Fault) -> None:
        self.count += 1
        if len(self.kept) < SHOWN:
            self.kept.append(faults.of_row(str(fault), row, self.data.name, fault.mend))

    def raise_if_any(self) -> None:
        if self.count:
            more = f"; the first {SHOWN} are shown" if self.count > SHOWN else ""
            raise DataError(self.kept, f"{self.count} of {len(self.data)} rows cannot be rendered{more}")


def is_chat(data: Rows, tokenizer) -> bool:
    """Are the rows rendered with a chat template? Raises DataError when they must be, and there is none."""
    has = bool(tokenizer.chat_template)
    if data.form in ("messages", "preference", "label") and not has:
        mend = "write `chat_template: plain` (or Jinja text), or give `prompt` and `completion` rows"
        raise DataError([Problem("these rows are chats, and the model has no chat template", data.name, mend=mend)])
    return has and data.form != "text"


def each(rows: list, problems: Problems, work: Callable) -> list:
    """[(row, work(row))] of the rows that can be done; the others' faults go to `problems`. rows: rows, or pairs that begin with one."""
    done = []
    for item in rows:
        row, *given = item if isinstance(item, tuple) else (item,)
        try:
            done.append((row, work(row, *given)))
        except Fault as fault:
            problems.add(row, fault)
    return done


def _chats(rows: list[Row], renderer: Renderer, loss_on: str, ends: set[int], problems: Problems) -> list[tuple[Row, list[Example]]]:
    rendered = each(rows, problems, lambda row: _rendered(row, renderer, loss_on))
    texts = (text for _, (_, turns, whole) in rendered for turn in turns for text in (turn.before, turn.text, whole or turn.text))
    ids = tokens.ids_of(renderer.tokenizer, texts)
    return each(rendered, problems, lambda row, given: _examples(row, *given, renderer, ids, loss_on, ends))


def _rendered(row: Row, renderer: Renderer, loss_on: str) -> tuple[list[dict], list[Turn], str | None]:
    """The messages, the assistant's turns, and the whole text where messages follow the last turn and are to be learned."""
    messages = renderer.messages(row)
    turns = renderer.turns(messages, row.tools)
    if not turns:
        raise Fault("no assistant message: there is no answer to learn")
    whole = None
    if turns[-1].index < len(messages) - 1:
        renderer.count("rows_with_unanswered_messages")
        whole = renderer.text(messages, row.tools, False) if loss_on == "all" else None
    return messages, turns, whole


def _examples(
    row: Row, messages: list[dict], turns: list[Turn], whole: str | None, renderer: Renderer, ids: dict[str, array], loss_on: str, ends: set[int]
) -> list[Example]:
    chains: list[Chain] = []
    for turn in turns:
        found, span = answer_span(renderer, turn, messages[turn.index], ids, ends, f"messages[{turn.index}]")
        if not (chains and chains[-1].takes(turn, found, span)):
            chains.append(Chain(turn, found, span))
    tokens.refuse_two_bos(renderer.tokenizer, chains[0].ids, "mend the chat template, which writes it twice")
    for chain in chains:
        faithful.check_context(messages[: chain.turn.index + 1], row.tools, chain.turn.text)
    if len(chains) > 1:
        renderer.count("rows_split")
    if loss_on == "assistant":
        examples = [Example(row.line, c.ids, tuple(c.spans), row.file, row.begins) for c in chains]
    else:
        parts = [c.ids for c in chains]
        examples = _all(row, [*parts, ids[whole]] if whole is not None else parts)
    if not examples or not all(e.trained for e in examples):
        raise Fault("no token of this row is trained")
    return examples


def _all(row: Row, parts: list[array]) -> list[Example]:
    """Everything is learned, but what two examples of a row have in common at their beginning is learned in the first."""
    examples: list[Example] = []
    before = array("i")
    for ids in parts:
        shared = _shared(before, ids)
        if examples and shared == len(before):  # this one only goes on
            shared = examples.pop().spans[0][0]
        examples.append(Example(row.line, ids, ((shared, len(ids)),), row.file, row.begins))
        before = ids
    return [e for e in examples if e.trained]


def _shared(one: array, other: array) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def answer_span(renderer: Renderer, turn: Turn, message: dict, ids: dict[str, array], ends: set[int], name: str) -> tuple[array, Span]:
    """Ids of prompt and turn, and where in them the model's own tokens are, up to and with the end of turn. All of the turn must be there."""
    before = ids[turn.before]
    whole, merged = tokens.joined(renderer.tokenizer, before, ids[turn.text], turn.answer)
    if merged:
        renderer.count("boundary_merges")
    end = tokens.end_of_turn(renderer.tokenizer, whole, len(before), ends, name)
    head, mark, _ = turn.answer.partition(renderer.tokenizer.decode([whole[end]]))
    faithful.check_answer(message, turn.index, head + mark, turn.answer)
    return whole, (len(before), end + 1)


def _plain(rows: list[Row], form: str, renderer: Renderer, loss_on: str, problems: Problems) -> list[tuple[Row, list[Example]]]:
    """Text, or prompt + completion, with EOS appended; the prompt is tokenised as it will be when the model is used."""
    texts = (t for row in rows for t in ((row.text,) if form == "text" else (row.prompt, row.prompt + row.completion)))
    ids = tokens.ids_of(renderer.tokenizer, texts, special=True)
    return each(rows, problems, lambda row: [_plain_example(row, form, renderer, ids, loss_on)])


def _plain_example(row: Row, form: str, renderer: Renderer, ids: dict[str, array], loss_on: str) -> Example:
    tokenizer = renderer.tokenizer
    if tokenizer.eos_token_id is None:
        raise Fault("the tokenizer has no EOS token: the model would never learn to stop")
    eos = array("i", [tokenizer.eos_token_id])
    if form == "text":
        before, whole = array("i"), _without(ids[row.text], eos)
    else:
        before = _without(ids[row.prompt], eos)
        whole, merged = tokens.joined(tokenizer, before, _without(ids[row.prompt + row.completion], eos), row.completion)
        if merged:
            renderer.count("boundary_merges")
    tokens.refuse_two_bos(tokenizer, whole, "take the BOS token out of the text; the tokenizer adds it")
    example = Example(row.line, whole + eos, ((0 if loss_on == "all" else len(before), len(whole) + 1),), row.file, row.begins)
    if not example.trained:
        raise Fault("no token of this row is trained")
    return example


def _without(ids: array, end: array) -> array:
    return ids[:-1] if ids[-1:] == end else ids
