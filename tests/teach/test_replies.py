"""Thinking is taken from before an answer, and nothing of an answer with it."""

from __future__ import annotations

import pytest

from slmkit.teach.replies import thought, unfenced

SHOWN = "Models write their thoughts like this:\n\n<think>\nlet me see\n</think>\n\nand then the answer."
FENCED = "Write:\n```xml\n</think>\n<answer>4</answer>\n```\nThat is all."
CODE = "def answer():\n    return 4"


@pytest.mark.parametrize(("reply", "thinking", "rest"), [
    ("<think>\nHm.\n</think>\n\nfour", "Hm.", "four"), ("<thinking>a</thinking> four", "a", "four"), ("Hm.\n</think>\n\nfour", "Hm.", "four"),
    ("<think></think>six", "", "six"), ("<think>a</think>\n<think>b</think>\nfour", "a\nb", "four"), ("<think>a", "a", ""),
    (f"<think>a</think>\n\n    {CODE}", "a", f"    {CODE}"), ("four", "", "four"), ("Close it with </think> then", "", "Close it with </think> then"),
    (SHOWN, "", SHOWN), (FENCED, "", FENCED), (f"  {CODE}\n", "", f"  {CODE}\n"),
])  # fmt: skip
def test_what_was_thought_stands_apart(reply, thinking, rest):
    assert thought(reply) == (thinking, rest)


def test_only_a_fence_around_all_of_an_answer_is_none_of_it():
    assert unfenced("```json\n{}\n```") == unfenced("\n```\n{}\n```  ") == "{}"
    assert unfenced(FENCED) == FENCED and unfenced("```\na\n```\n\n```\nb\n```") == "```\na\n```\n\n```\nb\n```"
