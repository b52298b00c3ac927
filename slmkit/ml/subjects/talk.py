"""Conversations as questions: lm-eval asks with one text; a task of conversations (`data/lm_eval_task.py`) puts messages and tools into it."""

from __future__ import annotations

import json

from slmkit.data.lm_eval_task import CONVERSATION


def unfolded(history: list[dict]) -> tuple[list[dict], list[dict]]:
    """(messages, tools) of what lm-eval wants rendered."""
    last = history[-1]["content"] if history else ""
    if not isinstance(last, str) or not last.startswith(CONVERSATION):
        return history, []
    body = json.loads(last.removeprefix(CONVERSATION))
    return [*history[:-1], *body["messages"]], body["tools"]
