"""Rows into token ids and labels, with the tokenizer's own chat template: the names that the steps use.

`templates` (which template) → `render` (a conversation into prompts and answers) → `faithful` (nothing is lost) → `tokens` → `encode` (examples
for training), `pairs` (preferences, and prompts to generate from). docs/templates.md says what is trained and how it is found.
"""

from __future__ import annotations

from slmkit.ml.encode import encode
from slmkit.ml.examples import IGNORED, Encoded, Example
from slmkit.ml.pairs import Pair, Pairs, Prompt, Prompts, encode_pairs, prompts, refuse_form
from slmkit.ml.templates import TEMPLATES, set_template, template_hash

__all__ = [
    "IGNORED", "TEMPLATES", "Encoded", "Example", "Pair", "Pairs", "Prompt", "Prompts", "encode", "encode_pairs", "prompts", "refuse_form",
    "set_template", "template_hash",
]  # fmt: skip
