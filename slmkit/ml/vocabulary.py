"""Do student and teacher number the same tokens alike? Asked before anything is loaded: a distribution over other tokens teaches nonsense.

Ids and the tokens they stand for are compared, not sizes: embeddings are often padded to more rows than there are tokens, and two vocabularies
of one size may share nothing. Of an endpoint, whose tokenizer is out of reach, it is asked how it reads tokens given by number.
"""

from __future__ import annotations

from collections.abc import Iterable

from slmkit.errors import Problem, RecipeError, UsageError
from slmkit.teach import logprobs
from slmkit.teach.endpoint import Route

PROBED, AT_ONCE = 1024, 128  # ids that an endpoint is asked about: those most used, and as many spread over all; a prompt's length
SHOWN = 3
MEND = "distil by answers instead, which needs no common vocabulary: a `distill` step with this teacher, and `objective: sft` on what it writes"


def known(tokenizer) -> int:
    """How many ids there are, from 0: the rows of an embedding beyond them only pad it."""
    return max(tokenizer.get_vocab().values()) + 1


def compare(student, teacher) -> None:
    """Raises RecipeError unless both tokenizers give every id the same token."""
    mine, theirs = ({i: t for t, i in one.get_vocab().items()} for one in (student, teacher))
    apart = sorted(i for i in mine.keys() | theirs.keys() if mine.get(i) != theirs.get(i))
    if apart:
        shown = [(i, mine.get(i), theirs.get(i)) for i in apart[:SHOWN]]
        _refuse(f"{len(apart)} of {len(mine.keys() | theirs.keys())} ids stand for other tokens", shown)


def probe(student, route: Route, model: str, used: Iterable[int]) -> None:
    """The same of a teacher behind an endpoint, by a sample of ids. used: ids of the rows, the most frequent first. Raises RecipeError."""
    count = known(student)
    some = list(dict.fromkeys(list(used)[: PROBED // 2]))
    step = max(1, count // (PROBED // 2))
    ids = list(dict.fromkeys([*some, *range(count - 1, -1, -step)]))
    texts = [ids[i : i + AT_ONCE] for i in range(0, len(ids), AT_ONCE)]
    try:
        read = [t for one in logprobs.read(route, model, texts) for t in one]
    except UsageError as e:  # numbers beyond its vocabulary, or a server that takes texts alone
        if e.key != route.block:
            raise
        what = f"teacher: it takes no tokens by the numbers that the student's tokenizer gives ({e.what[:160]}): its vocabulary is another"
        raise RecipeError([Problem(what, mend=MEND)]) from e
    mine = [student.decode([i], clean_up_tokenization_spaces=False) for i in ids]
    apart = [(i, a, b) for i, a, b in zip(ids, mine, read, strict=True) if not _alike(a, b)]
    if apart:
        _refuse(f"{len(apart)} of {len(ids)} ids that it was asked about stand for other tokens", apart[:SHOWN])


def _alike(one: str, other: str) -> bool:
    """Servers write a token's space as itself, as Ġ or ▁, or not at all, and parts of a character as they please."""
    plain = [t.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n").strip() for t in (one, other)]
    return plain[0] == plain[1] or "\ufffd" in one + other or not all(plain)


def _refuse(what: str, apart: list[tuple]) -> None:
    said = "; ".join(f"{i} is {mine!r} here and {theirs!r} there" for i, mine, theirs in apart)
    raise RecipeError([Problem(f"teacher: student and teacher have different vocabularies: {what} ({said})", mend=MEND)])
