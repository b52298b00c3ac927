"""What each token adds to a text: its own bytes, and where it begins. Some tokens hold only a part of a character.

Two families of tokenizers cut characters up: byte-level BPE spells bytes as letters of its own (`Ã¤` is ä), SentencePiece falls back to tokens that
are one byte (`<0xC3>`). Alone such a token decodes to a replacement mark, which says neither its bytes nor their number. All other tokens are asked
for by decoding: SentencePiece's `▁time` is `time` where a text begins and ` time` where it goes on, which decoding it twice in a row tells.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

_PLAIN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # bytes that byte-level BPE spells as the character of their number
LETTERS = {chr(b): b for b in _PLAIN} | {chr(0x100 + k): b for k, b in enumerate(sorted(set(range(256)) - set(_PLAIN)))}
BROKEN = "\ufffd"


class Pieces:
    """Bytes and texts of a tokenizer's tokens."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        names = [f"<0x{b:02X}>" for b in range(256)]
        ids = tokenizer.convert_tokens_to_ids(names)
        there = [i is not None and tokenizer.convert_ids_to_tokens(i) == n and self._decode([i]) != n for n, i in zip(names, ids, strict=True)]
        self.single = {i: b for b, (i, known) in enumerate(zip(ids, there, strict=True)) if known}  # tokens that are one byte
        self.special: dict[int, bool] = {}
        self.found: dict[tuple[int, bool], bytes] = {}

    def text(self, ids: list[int], goes_on: bool = False, whole: bool = False) -> str:
        """The tokens' text. goes_on: it follows another, so that a space which begins it is kept. whole: with special tokens.

        Single bytes that are no characters are marked one by one: the tokenizer would mark all of the bytes beside them too, characters or not.
        """
        if self.single.keys().isdisjoint(ids):
            lead = next((self._lost(i).decode() for i in ids if whole or not self.left_out(i)), "") if goes_on else ""
            return lead + self._decode(ids, skip=not whole)
        out, first = b"", not goes_on
        for single, some in groupby((i for i in ids if whole or not self.left_out(i)), key=self.single.__contains__):
            part = list(some)
            if single:
                out += b"".join(self.bytes_of(i, first and k == 0) for k, i in enumerate(part))
            else:  # decoded alone, it may lack the space that it begins with
                out += (b"" if first else self._lost(part[0])) + self._decode(part).encode()
            first = False
        return out.decode("utf-8", "replace")

    def left_out(self, id_: int) -> bool:
        """Is this a special token, which stands in no answer?"""
        if id_ not in self.special:
            self.special[id_] = bool(self._decode([id_, id_])) and not self._decode([id_, id_], skip=True)
        return self.special[id_]

    def bytes_of(self, id_: int, first: bool) -> bytes:
        """What a token adds to a text that it begins (first) or that goes on with it."""
        if (id_, first) not in self.found:
            self.found[id_, first] = self._bytes(id_, first)
        return self.found[id_, first]

    def _lost(self, id_: int) -> bytes:
        """What decoding a token alone leaves out."""
        return self.bytes_of(id_, False).removesuffix(self.bytes_of(id_, True))

    def _bytes(self, id_: int, first: bool) -> bytes:
        alone = self._decode([id_])
        if id_ in self.single:
            return b"" if first and not alone else bytes([self.single[id_]])
        spelled = [LETTERS.get(c) for c in self.tokenizer.convert_ids_to_tokens(id_)] if BROKEN in alone else [None]
        if None not in spelled:
            return bytes(spelled)
        return (alone if first else self._decode([id_, id_])[len(alone) :]).encode()

    def _decode(self, ids: list[int], skip: bool = False) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)


class Spelling:
    """A text, token by token as it comes.

    at: characters before it. goes_on: it follows a text. whole: special tokens stand in it (a prompt's) and are not left out (an answer's).
    """

    def __init__(self, pieces: Pieces, at: int = 0, goes_on: bool = False, whole: bool = False):
        self.pieces, self.at, self.first, self.whole = pieces, at, not goes_on, whole
        self.open = b""  # of a character that has not ended

    def bytes_of(self, id_: int) -> bytes | None:
        """What this token adds here, or would add in place of the next one; None for one that is left out of the text."""
        return None if not self.whole and self.pieces.left_out(id_) else self.pieces.bytes_of(id_, self.first)

    def name(self, id_: int) -> str:
        r"""Its text here, with \xNN for what is no character yet."""
        own = self.bytes_of(id_)
        return (self.pieces.bytes_of(id_, True) if own is None else own).decode("utf-8", "backslashreplace")

    def is_text(self, id_: int) -> bool:
        """Is it whole characters?"""
        own = self.bytes_of(id_) or b""
        return own.decode("utf-8", "replace").encode() == own

    def add(self, id_: int) -> int:
        """Go on by this token. How many characters stand before it; of a token that begins inside a character, before that one."""
        own = self.bytes_of(id_)
        self.first = self.first and own is None
        if not own:
            return self.at
        if self.open and not _belongs(self.open, own[:1]):  # it will never end
            self.at, self.open = self.at + 1, b""
        start, some = self.at, self.open + own
        self.open = _unended(some)
        self.at += len(some[: len(some) - len(self.open)].decode("utf-8", "replace"))
        return start

    def end(self) -> int:
        """How many characters the text has if it ends here: one that has not ended is marked."""
        return self.at + bool(self.open)


def _belongs(some: bytes, byte: bytes) -> bool:
    """Is the byte of the character that these bytes begin?"""
    return len((some + byte).decode("utf-8", "replace")) == 1


def _unended(some: bytes) -> bytes:
    """What a character at the end has so far, if more of it may come. (An incremental decoder waits for more of what is none.)"""
    for k in (3, 2, 1):
        try:
            some[-k:].decode()
        except UnicodeDecodeError as e:
            if e.start == 0 and e.reason == "unexpected end of data":
                return some[-k:]
    return b""
