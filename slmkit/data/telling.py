"""Which format and form rows have: told by the fields of the first row, and held against the fields of every later one.

A format says how a row writes its conversation (messages, sharegpt, alpaca, …); the form says what the row is for: to learn
from (messages, completion, text), a preference pair, or an answer with a label. The three conversational formats can each
have every form. A later row that is of another form (a pair among conversations, a label where the first row has none) is
broken: read as the first, it would be learned although it may say that its answer is bad.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

from slmkit.data import conversation
from slmkit.data.faults import Bad
from slmkit.data.rows import Form
from slmkit.data.tables import Cells

TALKS = ("messages", "conversations", "conversation")
NAMES = ("messages", "completion", "alpaca", "sharegpt", "preference", "label", "text", "glaive")
FIELDS = {
    "messages": {"messages", "conversations", "conversation"}, "sharegpt": {"messages", "conversations", "conversation", "kto_tag"},
    "alpaca": {"instruction", "input", "output", "history", "kto_tag"}, "glaive": {"chat"}, "text": {"text"}, "completion": {"prompt", "completion"},
    "preference": {"prompt", "chosen", "rejected", "messages"}, "label": {"prompt", "completion", "messages", "label", "kto_tag"},
}  # fmt: skip
"""By which fields each format is told."""
ALL_FIELDS = set().union(*FIELDS.values())
UNKNOWN = (
    "no known format (found: {}); known are `messages`, `prompt` + `completion`, `instruction` + `output`, `conversations`, "
    "`chosen` + `rejected`, `text`; a column mapping can name the fields"
)


class Otherwise(Exception):
    """A later row shows that the first one was taken for the wrong form; all rows are to be read again, with `how` known."""

    def __init__(self, how: str):
        super().__init__(how)
        self.how = how


NO_VERDICTS, SYSTEMS = "labels are numbers beyond 0 and 1", "prompts have a system message"


def has(record: dict, *keys: str) -> bool:
    """Are these fields there, and not null (in a table: not an empty cell)?"""
    for key in keys:
        value = record.get(key)
        if value is None or (value == "" and isinstance(record, Cells)):
            return False
    return True


def talk(record: dict) -> str | None:
    """The field that holds the conversation."""
    for key in TALKS:
        if has(record, key):
            return key
    return None


def detect(record: dict, known: frozenset[str] = frozenset()) -> tuple[str, Form]:
    """(format, form) of a record. known: what later rows have shown. Raises Bad."""
    if has(record, "chosen", "rejected"):
        if talk(record) and is_sharegpt(record):
            return "sharegpt", "preference"
        return ("alpaca" if has(record, "instruction") else "preference"), "preference"
    labelled = has(record, "kto_tag") or label_of(record) == "bool" or (label_of(record) == "digit" and NO_VERDICTS not in known)
    if talk(record):
        if not labelled:
            return ("sharegpt" if is_sharegpt(record) else "messages"), "messages"
        return ("sharegpt" if is_sharegpt(record) else "label"), "label"
    if has(record, "instruction", "output") or ("instruction" in record and "output" in record):
        return "alpaca", "label" if labelled else "messages"
    if "prompt" in record and "completion" in record:
        return ("label", "label") if labelled else ("completion", _completion_form(record, known))
    if has(record, "chat") and isinstance(record["chat"], str):
        return "glaive", "messages"
    if "text" in record:
        return "text", "text"
    raise Bad(_unknown(record))


def named(format: str, record: dict, known: frozenset[str] = frozenset()) -> tuple[str, Form]:
    """(format, form) where the recipe named the format: the form still follows the fields."""
    plain: dict[str, Form] = {"text": "text", "preference": "preference", "label": "label", "glaive": "messages", "columns": "messages"}
    if format == "completion":
        return format, _completion_form(record, known)
    if format in plain:
        return format, plain[format]
    if has(record, "chosen", "rejected"):
        return ("preference" if format == "messages" else format), "preference"
    if has(record, "kto_tag") or label_of(record) == "bool":
        return ("label" if format == "messages" else format), "label"
    return format, "messages"


def unsure(first: dict, form: Form) -> bool:
    """Was it a 0 or a 1 that told a label? Later rows may show that it numbers classes."""
    return form == "label" and label_of(first) == "digit" and not has(first, "kto_tag")


def alike(first: dict, format: str, form: Form, known: frozenset[str]) -> Callable[[dict], None]:
    """The check of all rows for the fields of another form than the first's. It raises Bad, and Otherwise when it is the first that was mistaken."""
    doubtful = unsure(first, form)
    ordinary = NO_VERDICTS in known or label_of(first) in ("number", "other")
    labels = form in ("messages", "completion") and format != "glaive"

    def check(record: dict) -> None:
        if form != "preference" and has(record, "chosen", "rejected"):
            raise Bad(f"`chosen` and `rejected` are a pair, and the first row is none; {_mend(format)}")
        if doubtful and label_of(record) == "number":
            raise Otherwise(NO_VERDICTS)
        if labels and ("label" in record or "kto_tag" in record):
            found = "kto_tag" if has(record, "kto_tag") else "label"
            if found == "kto_tag" or label_of(record) == "bool" or (label_of(record) == "digit" and not ordinary):
                raise Bad(f"`{found}` says whether the answer is good, and the first row has none; {_mend(format)}")

    return check


def _mend(format: str) -> str:
    return f"split the file, or write `format: {format}` to read all rows without it"


def label_of(record: dict) -> str | None:
    """What a `label` is: `bool`, `digit` (0 or 1), `number` (another one), `other`; None where there is none. In text cells by what they say."""
    value = record.get("label")
    if value is None or isinstance(value, bool):
        return None if value is None else "bool"
    if isinstance(record, Cells) and isinstance(value, str):
        said = value.strip().lower()
        if said in ("", "true", "false"):
            return "bool" if said else None
        try:
            value = float(said)
        except ValueError:
            return "other"
    if isinstance(value, int | float):
        return "digit" if value in (0, 1) else "number"
    return "other"


def _unknown(record: dict) -> str:
    inner = next((k for k, v in record.items() if isinstance(v, list) and v and isinstance(v[0], dict)), None)
    wrapped = f"; do the rows lie under `{inner}`? `jq -c '.{inner}[]' FILE > rows.jsonl` takes them out" if inner and len(record) < 4 else ""
    return UNKNOWN.format(", ".join(map(str, record)) or "nothing") + wrapped


def is_sharegpt(record: dict) -> bool:
    key = talk(record)
    value = conversation.listed(record[key], key)
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and "from" in first and "role" not in first


def _completion_form(record: dict, known: frozenset[str]) -> Form:
    parts = [said(record, key, "completion") for key in ("prompt", "completion")]
    return "messages" if SYSTEMS in known or record.get("system") or any(isinstance(p, list) for p in parts) else "completion"


def need(record: dict, key: str, format: str) -> Any:
    if key not in record:
        raise Bad(f"no `{key}`, which rows of format {format} have (found: {', '.join(map(str, record)) or 'nothing'})")
    return record[key]


def said(record: dict, key: str, format: str) -> Any:
    """A prompt or an answer. In a text cell, a JSON list of messages is that list; elsewhere text is text, even if it looks like JSON."""
    value = need(record, key, format)
    if isinstance(record, Cells) and isinstance(value, str) and value.lstrip()[:1] == "[":
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(value)
            if found and all(isinstance(m, dict) and ("role" in m or "from" in m) for m in found):
                return found
    return value
