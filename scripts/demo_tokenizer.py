"""The one tokenizer of both demo models: byte-level BPE of 1,024 tokens that takes digits one by one.

The pre-tokenizer is SmolLM's (single digits, then GPT-2's pattern), which other runtimes know by that name. The chat
template is a bare sequence of turns, `<|user|>text<|end|><|assistant|>text<|end|>`. Every role mark is one special token,
so a prompt rendered with add_generation_prompt is an exact token prefix of the same prompt with its answer.
"""

from __future__ import annotations

import itertools

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from scripts.demo_talk import talk
from slmkit.demo.notes import compact, stream

VOCABULARY, SAMPLE, MAX_LENGTH = 1024, 12000, 1024
SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def sample():
    """Text to learn the merges from: the talk, and notes with their facts as JSON."""
    for turns in itertools.islice(talk(1, frozenset()), SAMPLE):
        for question, reply in turns:
            yield from (question, reply)
    for text, gold in itertools.islice(stream(3), SAMPLE):
        yield from (text, compact(gold))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, trained anew; the same every time."""
    core = Tokenizer(models.BPE())
    pieces = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    core.pre_tokenizer = pre_tokenizers.Sequence(pieces)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(sample(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>", chat_template=TEMPLATE, model_max_length=MAX_LENGTH,
        additional_special_tokens=SPECIAL[2:], clean_up_tokenization_spaces=False,
    )  # fmt: skip
