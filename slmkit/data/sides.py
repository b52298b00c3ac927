"""The sides of a row, as plain text: what is asked, what is answered, and both; and the form in which texts are compared.

Comparing keeps punctuation, since `2 - 3` and `2 + 3` are not the same question; it folds case, width and white space.
"""

from __future__ import annotations

import json
import unicodedata

from slmkit.data.rows import Row, Rows


def normal(text: str) -> str:
    """Unicode's compatibility form, case folded, runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def content(message: dict) -> str:
    """All that a message says: reasoning, text, tool calls."""
    said = [message.get("reasoning_content"), message.get("content"), message.get("tool_calls")]
    return "\n".join(s if isinstance(s, str) else json.dumps(s, ensure_ascii=False, default=str) for s in said if s)


def questions(row: Row) -> list[str]:
    """What is asked: every user message, the prompt, or the text."""
    if row.messages:
        return [content(m) for m in row.messages if m["role"] == "user"]
    return [row.text or row.prompt]


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
    return None if "".join(questions(row)).strip() else "no question"
