"""The judge of grpo: a teacher sees all answers to one prompt at once and scores them against each other by a rubric (the idea of RULER).

Answers that read the same are shown once and earn the same. They stand in an order drawn from the seed and from what they say, so that the same
group is the same request: whatever was judged once, before a kill too, is found in the ledger and not paid again. A verdict that cannot
be read, or lacks an answer, is asked for once more in another order; then the group is dropped: all of it earns the same, and teaches
nothing. A share of the groups is judged in the opposite order as well, which tells how far the judge goes by what it sees first.

A judge that gives no verdict teaches nothing at all, and is paid for it: until the first one is read, no more than PROVEN groups are asked about.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from slmkit.errors import StepFailed
from slmkit.ml import asking
from slmkit.steps._step import Context
from slmkit.teach import draws, judging, templates
from slmkit.teach.replies import Unreadable
from slmkit.teach.request import Request

CONCURRENCY = 32
PROVEN = 8  # groups, each asked about twice; of a judge whose replies are no verdicts half the time, one in 65,000 trainings ends by chance
REPLIES = 3  # that were no verdicts, in the log
SCALE = judging.Scale(0, 10)
FIRST, RETRIED, AGAIN = 0, 1, 2  # trials, and the sample numbers of their requests
COUNTS = ("judged", "alike", "dropped", "retried", "twice", "pairs", "pairs_agreed")


@dataclass(frozen=True)
class Group:
    """A prompt and all answers to it. reference: the row's own answer, which the judge is shown. place: FILE:LINE of the row, for errors."""

    messages: tuple[dict, ...]
    texts: tuple[str, ...]
    reference: str | None = None
    place: str = ""


class Judge:
    """One judge for one run. `scores` may be called again and again; close it in the end."""

    def __init__(self, ctx: Context, said: Any, name: str, seed: int, key: str):
        """key: where it stands in the step, for errors."""
        self.said, self.seed, self.template, self.name, self.key, self.log = said, seed, templates.load("rank", None), name, key, ctx.log
        self.asking = asking.opened(ctx, name, said.teacher, said.budget, said.prices, key=f"{key}.teacher")
        self.book, self.desk = self.asking.book, self.asking.desk
        self.proven, self.silent, self.why, self.logged = False, 0, "", 0

    def scores(self, groups: list[Group]) -> tuple[list[list[float]], dict[str, int]]:
        """What the answers of each group earn, from 0 to 1, and what happened (COUNTS). Raises CannotRun, OverBudget, UsageError; StepFailed when
        the judge gives no verdict."""
        counts = dict.fromkeys(COUNTS, 0)
        found: dict[str, list[float]] = {}
        texts = {_digest(g): sorted(set(g.texts)) for g in groups}
        open_ = {_digest(g): g for g in groups if len(set(g.texts)) > 1}
        twice = {d: g for d, g in open_.items() if draws.by("twice", self.seed, d).random() < self.said.consistency}
        few = self._few(open_)
        self._ask([(d, g, FIRST) for d, g in few.items()], texts)
        unread = self._settle(few, texts, found)
        self._prove(few, found)
        rest = {d: g for d, g in open_.items() if d not in few}
        twice = {d: g for d, g in twice.items() if d in found or d in rest}
        self._ask([*((d, g, FIRST) for d, g in rest.items()), *((d, g, AGAIN) for d, g in twice.items())], texts)
        unread |= self._settle(rest, texts, found)
        for d, g in twice.items():
            other = self._read(d, g, texts[d], AGAIN)
            if d in found and other is not None:
                counts["twice"] += 1
                pairs = list(combinations(range(len(other)), 2))
                counts["pairs"] += len(pairs)
                counts["pairs_agreed"] += sum(_sign(found[d], p) == _sign(other, p) for p in pairs)
                found[d] = [(a + b) / 2 for a, b in zip(found[d], other, strict=True)]
        of_text = {d: dict(zip(texts[d], one, strict=True)) for d, one in found.items()}
        counts["retried"], counts["dropped"] = len(unread), len(open_) - len(found)
        counts["judged"], counts["alike"] = len(found), sum(_digest(g) not in open_ for g in groups)
        return [[of_text[_digest(g)][t] if _digest(g) in of_text else 0.0 for t in g.texts] for g in groups], counts

    def _few(self, open_: dict[str, Group]) -> dict[str, Group]:
        """Those that are asked about alone, to see whether it gives verdicts: none of them once it gave one."""
        return {} if self.proven else dict(list(open_.items())[: PROVEN - self.silent])

    def _prove(self, few: dict[str, Group], found: dict[str, list[float]]) -> None:
        """Raises StepFailed when it has given no verdict on PROVEN groups."""
        self.proven, self.silent = self.proven or bool(found), self.silent + len(few)
        if not self.proven and self.silent >= PROVEN:
            raise self.mute(f"any of the first {self.silent} groups of answers")

    def mute(self, groups: str) -> StepFailed:
        """The error of a judge that gave no verdict on so many groups."""
        what = f"the judge {self.said.teacher.model} gave no verdict that can be read on {groups}; the last reason: {self.why or 'no reply'}"
        logged = "see its replies in events.jsonl (`no_verdict`), and " if self.logged else ""
        change = f"change `rubric`, `max_tokens` (now {self.said.max_tokens}) or the model of `teacher`"
        mend = f"{logged}{change}: what was paid for is kept, and not asked again"
        return StepFailed(what, mend=mend, key=self.key)

    def _settle(self, open_: dict[str, Group], texts: dict[str, list[str]], found: dict[str, list[float]]) -> dict[str, Group]:
        """The verdicts on groups that were asked about, into `found`; those that cannot be read are asked for again. Returns the latter's groups."""
        unread = {d: g for d, g in open_.items() if (one := self._read(d, g, texts[d], FIRST)) is None or found.update({d: one})}
        self._ask([(d, g, RETRIED) for d, g in unread.items()], texts)
        for d, g in unread.items():
            if (one := self._read(d, g, texts[d], RETRIED)) is not None:
                found[d] = one
        return unread

    def _ask(self, wanted: list[tuple[str, Group, int]], texts: dict[str, list[str]]) -> None:
        if wanted:
            self.asking.carry(iter([self._request(d, g, texts[d], trial)[0] for d, g, trial in wanted]), CONCURRENCY)
            self.why = next(reversed(self.desk.gave_up.values()), self.why)
            self.desk.gave_up.clear()  # of this call; a group that comes again may be asked about again

    def _request(self, digest: str, group: Group, texts: list[str], trial: int) -> tuple[Request, list[int]]:
        """The request, and the order in which it shows the answers."""
        order = judging.shuffled(len(texts), self.seed, digest)
        if trial == RETRIED:
            order = order[1:] + order[:1]
        if trial == AGAIN:
            order = order[::-1]
        messages = [dict(m) for m in group.messages]
        known = {"prompt": messages[-1]["content"], "messages": messages, "reference": group.reference, "row": {}}
        messages = judging.ask_scores(self.template, group.place, known, texts, order, self.said.rubric, SCALE)
        teacher = self.said.teacher
        body: dict[str, Any] = {"model": teacher.model, "messages": messages, teacher.limit_key: self.said.max_tokens}
        if self.said.temperature is not None:
            body["temperature"] = self.said.temperature
        return Request(body | dict(teacher.extra), trial), order

    def _read(self, digest: str, group: Group, texts: list[str], trial: int) -> list[float] | None:
        """The scores of a verdict, from 0 to 1; None where there is none that can be read."""
        request, order = self._request(digest, group, texts, trial)
        answer = self.book.find(request)
        if answer is None:
            return None
        try:
            verdicts = judging.scores(answer.text, order, SCALE)
        except Unreadable as e:
            cut = f", and was cut at `max_tokens: {self.said.max_tokens}`" if answer.finish == "length" else ""
            self.why = f"{e}{cut}"
            if self.logged < REPLIES:
                self.logged += 1
                self.log("no_verdict", judge=self.name, why=self.why, reply=answer.text[:1000], row=group.place)
            return None
        return [(v.score - SCALE.least) / (SCALE.most - SCALE.least) for v in verdicts]

    def told(self, name: str) -> dict[str, int | float]:
        """What this run has paid for verdicts so far, earlier attempts of it too."""
        return {f"{name}_{key}": value for key, value in self.asking.told().items()}

    def close(self) -> None:
        self.asking.close()


def dropped(sums: dict[str, float]) -> tuple[int, int]:
    """(groups that were dropped, groups that were asked about) of COUNTS."""
    return int(sums["dropped"]), int(sums["dropped"] + sums["judged"])


def summary(name: str, sums: dict[str, float]) -> dict[str, float]:
    """What is reported of the COUNTS of a whole run."""
    values: dict[str, float] = {f"{name}_{k}": int(sums[k]) for k in ("judged", "alike", "dropped", "retried", "twice")}
    return values | ({f"{name}_consistency": sums["pairs_agreed"] / sums["pairs"]} if sums["pairs"] else {})


def _digest(group: Group) -> str:
    """What a group says: the same answers in another order are the same group."""
    text = json.dumps([list(group.messages), group.reference, sorted(set(group.texts))], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _sign(scores: list[float], pair: tuple[int, int]) -> int:
    a, b = scores[pair[0]], scores[pair[1]]
    return (a > b) - (a < b)
