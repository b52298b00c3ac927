"""Does another runtime read texts as the tokenizer does, and render conversations as the model's template does? Asked before anything is published.

What a model is given is what it learned only if the ids are the same, one by one: on texts that tell tokenizers apart, on special tokens among
words, with and without what is put around a text; and if a conversation comes out as the same text, in the few shapes that templates treat apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from jinja2 import TemplateError

from slmkit.errors import StepFailed

TEXTS = (
    "The quick brown fox jumps over the lazy dog.", "Dr. O'Neill's dog DIDN'T bark; we'll see, they've said -- I'M sure he'd.",
    " leading, double  and   triple spaces and trailing ", "\ttabs\t\tand\nlines\n\nof\r\ntext \n  indented\n",
    "1 22 333 4444 55555 3.14159 1,000,000 ½ ² ٣٤ 四", "Größe, naïve café, Ñandú, Øresund, Žižek, ĲSSELMEER, ǅ",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם. مرحبا بالعالم", "你好，世界。こんにちは世界！안녕하세요 세계", "नमस्ते दुनिया สวัสดีชาวโลก",
    "emoji 🙂👍🏽👨\u200d👩\u200d👧 flags 🇦🇹, math ∑∫√≤≥≠ and arrows →⇒", "def f(x):\n    return {'a': [x**2, 0xFF], \"b\": None}  # comment",
    "{\"city\": \"Graz\", \"items\": [{\"id\": 7, \"n\": -1.5e-3}], \"ok\": true}",
    "https://example.org/a?b=c&d=%20#e user@example.org C:\\path\\to", "aaaaaaaaaaaaaaaaaaaaaaaaa !!!???... ------ ____ ((([[[{{{",
    "<s> </s> <unk> [INST] <|x|> <0x41> ▁ Ġ", "zero\u200bwidth\u00a0nbsp\u3000wide\ufeffbom\u2028line", "a", " ", "\n",
)  # fmt: skip
TALKS = (
    [{"role": "user", "content": "Where does parcel 7 go?"}],
    [{"role": "system", "content": "Say where."}, {"role": "user", "content": "  Parcel 8?\n"}],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "{{ x }} {% y %} <b>&\"'"}],
)  # fmt: skip
SPECIAL = 50  # special tokens that are tried, the first by id


def same_ids(tokenizer: Any, read: Callable[[str, bool], list[int]], name: str, more: Iterable[str] = (), around: bool = True) -> int:
    """read: (text, with BOS and EOS?) → ids in the runtime called `name`; around: can it put them there? Gives how many texts were tried; raises
    StepFailed at the first that is read otherwise."""
    special = [t.content for _, t in sorted(tokenizer.added_tokens_decoder.items())][:SPECIAL]
    texts = [*TEXTS, *special, *(f"one{t} two\n{t}three {t}" for t in special), "".join(special), *more]
    texts = [t for t in dict.fromkeys(texts) if t]
    for text in texts:
        for whole in (False, True) if around else (False,):
            ours = tokenizer(text, add_special_tokens=whole, verbose=False)["input_ids"]
            theirs = read(text, whole)
            if ours != theirs:
                at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
                raise StepFailed(
                    f"{name} reads {text[:60]!r} otherwise than the tokenizer: at token {at} {theirs[at : at + 3]}, and not {ours[at : at + 3]}",
                    mend="this tokenizer cannot be exported: what the model would be given is not what it learned",
                )
    return len(texts)


def same_talks(tokenizer: Any, render: Callable[[list[dict]], str | None], name: str) -> int:
    """Gives how many conversations came out as the same text (none without a template); raises StepFailed at the first that does not."""
    if not tokenizer.chat_template:
        return 0
    same = 0
    for talk in TALKS:
        try:
            ours = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        except TemplateError:
            continue  # a template that refuses a system message, say
        theirs = render(talk)
        if ours != theirs:
            raise StepFailed(f"{name} renders a conversation otherwise than the tokenizer: {theirs!r}, and not {ours!r}")
        same += 1
    return same
