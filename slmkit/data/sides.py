"""The sides of a row, as plain text: what is asked, what is answered, and both; and the form in which texts are compared.

Comparing keeps punctuation, since `2 - 3` and `2 + 3` are not the same question; it folds case, width and white space.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence

from slmkit.data.rows import Row, Rows

WORDS = 8  # a run of so many words is hardly ever the same by chance


def normal(text: str) -> str:
    """Unicode's compatibility form, case folded, runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def content(message: dict) -> str:
    """All that a message says: reasoning, text, tool calls."""
    said = [message.get("reasoning_content"), message.get("content"), message.get("tool_calls")]
    return "\n".join(s if isinstance(s, str) else json.dumps(s, ensure_ascii=False, default=str) for s in said if s)


def asked(messages: Sequence[dict]) -> list[str]:
    """What a conversation asks: its one user message; of several, all that was said up to the last, and its beginning.

    The beginning ends with the user message by which the user has said eight words: `Hi` and `Thank you!` are nobody's own.
    """
    users = [i for i, m in enumerate(messages) if m["role"] == "user"]
    if len(users) < 2:
        return [content(messages[i]) for i in users]
    words, ends = 0, []
    for i in users:
        words += len(content(messages[i]).split())
        if words >= WORDS:
            ends.append(i)
            break
    ends += [users[-1]] if users[-1] not in ends else []
    return ["\n".join(content(m) for m in messages[: end + 1] if m["role"] not in ("system", "developer")) for end in ends]


def questions(row: Row) -> list[str]:
    """What a row asks, the prompt, or the text."""
    return asked(row.messages) if row.messages else [row.text or row.prompt]


def heard(row: Row) -> list[str]:
    """All of a row that may be somebody's question: what it asks, its first user message, and each later one of eight words or more."""
    users = [content(m) for m in row.messages if m["role"] == "user"]
    return list(dict.fromkeys([*questions(row), *users[:1], *(u for u in users[1:] if len(u.split()) >= WORDS)]))


def answer(row: Row) -> str:
    """What is learned: all assistant messages (of a preference, the chosen ones), or the completion. Of plain text, nothing."""
    if row.chosen:
        return "\n".join(map(content, row.chosen))
    return "\n".join(content(m) for m in row.messages if m["role"] == "assistant") or row.completion


def whole(row: Row) -> str:
    """All text of a row."""
    said = [*(content(m) for m in (*row.messages, *row.chosen, *row.rejected)), row.prompt, row.completion, row.text]
    return "\n".join(s for s in said if s)


def place(rows: Rows, row: Row) -> str:
    """`file:line` of a row."""
    return row.place(rows.name)


def lacks(row: Row) -> str | None:
    """Which side of a row is empty: `nothing to learn`, `no question`, `no difference`; or None."""
    if row.text or not (row.messages or row.prompt or row.completion or row.chosen):
        return None if row.text.strip() else "nothing to learn"
    if not answer(row).strip() or (row.rejected and not "".join(map(content, row.rejected)).strip()):
        return "nothing to learn"
    if row.rejected and normal("\n".join(map(content, row.rejected))) == normal("\n".join(map(content, row.chosen))):
        return "no difference between chosen and rejected"
    return None if "".join(heard(row)).strip() else "no question"
