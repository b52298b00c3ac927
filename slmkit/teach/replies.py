"""JSON out of what a model writes when it was asked for JSON: in code fences, after a sentence, with thinking before it, or cut at the end.

Nothing is guessed: what is taken is JSON as it stands in the reply; what is not is left out, and the caller counts it.
"""

from __future__ import annotations

import json
import re
from typing import Any

THOUGHT = re.compile(r"\A\s*<think(?:ing)?>(.*?)(?:</think(?:ing)?>|\Z)", re.DOTALL)
"""At the beginning of a reply; one that does not end is all thinking."""
ENDED = re.compile(r"\A((?:(?!<think|```).)*?)^[ \t]*</think(?:ing)?>[ \t]*$", re.DOTALL | re.MULTILINE)
"""Of a reply whose prompt ended in `<think>` only the end is there, on a line of its own; where it was begun before, or code is shown, it is text."""
BLANK = re.compile(r"\A(?:[ \t]*\n)+")
FENCE = re.compile(r"^[ \t]*```[\w-]*[ \t]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
TRIALS = 64  # openings that are tried in one reply; a long text full of braces must not cost its square


class Unreadable(ValueError):
    """A reply that is not what was asked for, and why."""


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_constant)


def thought(text: str) -> tuple[str, str]:
    """(what stands in <think>…</think> at the beginning, the rest without the blank lines before it)."""
    found, rest = [], text
    while match := THOUGHT.match(rest):
        found.append(match[1].strip())
        rest = rest[match.end() :]
    if not found and "</think" in text and (match := ENDED.match(text)):
        found, rest = [match[1].strip()], text[match.end() :]
    if not found:
        return "", text
    apart = BLANK.sub("", rest)
    return "\n".join(filter(None, found)), apart if apart != rest else rest.lstrip(" \t")


def unfenced(text: str) -> str:
    """What stands in a code fence that is all of the text; the text as it is otherwise."""
    match = FENCE.fullmatch(text.strip())
    return match[1].strip() if match and "```" not in match[1] else text


def value(text: str) -> Any:
    """The first JSON object, or list of objects, in a reply (`as in [1]` is neither). Raises Unreadable."""
    for part in _parts(text):
        for start in _openings(part):
            try:
                found = _DECODER.raw_decode(part, start)[0]
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict) or any(isinstance(one, dict) for one in found):
                return found
    raise Unreadable("the reply holds no JSON")


def items(text: str) -> tuple[list[Any], str | None]:
    """(the objects of the list in a reply, why some of it could not be read). A list may be one field of an object (`{"rows": […]}`),
    or stand as one object a line; of one that was cut, the whole objects are kept."""
    try:
        found = value(text)
    except Unreadable:
        return _whole_ones(text)
    if isinstance(found, dict):
        lists = [v for v in found.values() if isinstance(v, list) and v and all(isinstance(one, dict) for one in v)]
        if len(lists) == 1:
            return lists[0], None
        return _whole_ones(text)
    return found, None


def _whole_ones(text: str) -> tuple[list[Any], str | None]:
    """Innermost-complete objects one after another, from the first that can be read."""
    _, text = thought(text)
    found, at, trials = [], 0, 0
    while (at := text.find("{", at)) >= 0 and trials < TRIALS:
        try:
            one, at = _DECODER.raw_decode(text, at)
            found.append(one)
        except (ValueError, RecursionError):
            at, trials = at + 1, trials + 1
    rest = "the reply holds no JSON" if not found else "a part of the reply is no JSON" if trials else None
    return found, rest


def _parts(text: str) -> list[str]:
    """Where JSON may stand: in the code fences first, then anywhere after the thinking."""
    _, text = thought(text)
    return [*(m[1] for m in FENCE.finditer(text)), text]


def _openings(text: str) -> list[int]:
    return [m.start() for _, m in zip(range(TRIALS), re.finditer(r"[\[{]", text), strict=False)]
