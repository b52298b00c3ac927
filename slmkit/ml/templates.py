"""Chat templates: the named ones, the one a tokenizer has, its hash, and its date.

A template that prints today's date would make training depend on the day it ran on. Its calls of `strftime_now` are replaced by the
date that stock Llama templates fall back to, and the run says so.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re

from slmkit.errors import DataError, Problem

TEMPLATES = {
    "plain": (
        "{{ bos_token }}{% for m in messages %}### {{ m['role'] }}\n{{ m['content'] | trim }}"
        "{{ eos_token if m['role'] == 'assistant' }}{{ '\n' }}{% endfor %}"  # a newline after a block would be trimmed
        "{% if add_generation_prompt %}### assistant\n{% endif %}"
    ),
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}
DATE = datetime.date(2024, 7, 26)
_TODAY = re.compile(r"""strftime_now\(\s*("[^"]*"|'[^']*')\s*\)""")


def set_template(tokenizer, template: str | None) -> None:
    """Give the tokenizer a named or inline template. Raises DataError when its tokens are not in the vocabulary."""
    if template is None:
        return
    if template == "chatml":
        unknown = [t for t in ("<|im_start|>", "<|im_end|>") if t not in tokenizer.get_vocab()]
        if unknown:
            mend = "write `chat_template: plain`, which needs no tokens of its own"
            raise DataError([Problem(f"chat_template chatml needs {' and '.join(unknown)}, which the tokenizer lacks", mend=mend)])
    tokenizer.chat_template = TEMPLATES.get(template, template)


def template_hash(tokenizer) -> str | None:
    """sha256 (hex) of the chat template's text; of canonical JSON where a tokenizer has several by name; None without one."""
    template = tokenizer.chat_template
    if not template:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def dated(tokenizer) -> bool:
    """Does the template print today's date?"""
    template = tokenizer.chat_template or ""
    texts = template.values() if isinstance(template, dict) else [template]
    return any("strftime_now(" in text for text in texts)


def chosen(tokenizer, tools: bool) -> str:
    """The text to render with: the tokenizer's template (the one for tools, where it has two) with its date fixed to DATE."""
    text = tokenizer.get_chat_template(None, [{}] if tools else None)
    text = _TODAY.sub(lambda call: repr(DATE.strftime(call[1][1:-1])), text)
    if "strftime_now(" in text:
        what = "the chat template prints the date in a format that is not written out in it, so training would depend on the day"
        raise DataError([Problem(what, mend="give the template's text as `chat_template`, with a fixed date")])
    return text
