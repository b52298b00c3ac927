"""The desk over which every request goes, whatever carries it: the ledger first, then the budget; an answer is kept, then counted.

A carrier (chat calls, a batch, a model in this process) brings answers to the ledger and nothing else; what they become is read
from the ledger afterwards. So a killed run, another concurrency, or another carrier change nothing of the outcome.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain

from slmkit.errors import CannotRun
from slmkit.teach.budget import Budget, Held
from slmkit.teach.ledger import Ledger
from slmkit.teach.request import Answer, Request


@dataclass
class Desk:
    """ledger, budget: shared by all requests of a run. gave_up: key → why, of requests that got no answer this time.

    told: called after each answer with (kept so far, tokens of it). hits: requests that the ledger held already. kept: those that were answered.
    counted: which requests are in either, so that one that comes up again, in a later stage say, counts once.
    owed: requests that an earlier run sent; one whose answer has come is counted when it comes up among this run's.
    after: what the requests of this stage are followed by, for the error that says how much is left.
    """

    ledger: Ledger
    budget: Budget
    told: Callable[[int, int], None] = lambda kept, tokens: None
    gave_up: dict[str, str] = field(default_factory=dict)
    hits: int = 0
    kept: int = 0
    uncounted: int = 0
    asked: set[str] = field(default_factory=set)
    owed: set[str] = field(default_factory=set)
    observed: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    counted: set[int] = field(default_factory=set)
    after: str = ""

    def unanswered(self, requests: Iterator[Request]) -> Iterator[Request | None]:
        """Those that must be asked, each once. None: nothing new among many, so that an event loop gets its turn."""
        for number, request in enumerate(requests):
            if self.known(request):
                if number % 256 == 255:
                    yield None
            elif request.key not in self.asked and request.key not in self.gave_up:
                self.asked.add(request.key)
                yield request

    def known(self, request: Request) -> bool:
        """Does the ledger hold the answer? Counted as a hit, or as answered where it came of this run's own batch."""
        if request not in self.ledger:
            return False
        owed = request.key in self.owed
        self.owed.discard(request.key)
        self._count(request, owed)
        return True

    def _count(self, request: Request, answered: bool) -> None:
        """Each request once, as answered or as a hit."""
        if (mark := int(request.key[:15], 16)) in self.counted:  # 60 bits: a third of the memory that the key takes
            return
        self.counted.add(mark)
        self.gave_up.pop(request.key, None)
        self.kept, self.hits = self.kept + answered, self.hits + (not answered)

    def come_meanwhile(self, request: Request) -> bool:
        """Has another process brought the answer since?"""
        self.ledger.refresh()
        if request not in self.ledger:
            return False
        self._count(request, False)
        self.asked.discard(request.key)
        return True

    def reserve(self, request: Request, held: Held) -> None:
        """Before it is sent. Under a budget the reservation is written down too: a kill -9 leaves calls that may be billed."""
        if self.budget.limits:
            self.ledger.hold(request, held.tokens, held.usd if self.budget.prices else None)
        self.budget.reserve(held)

    def take_over(self, request: Request) -> None:
        """A request that an earlier run sent and whose answer is still to come: its reservation is no loss, it is held again."""
        self.asked.add(request.key)
        self.owed.add(request.key)
        self.budget.take_over(self.ledger.reopen(request.key), self.budget.most(request))

    def keep(self, request: Request, answer: Answer, held: Held) -> None:
        """An answer has come: into the ledger first. One whose tokens nobody counted is booked, under a budget, at the most that it can have had."""
        if answer.usage.get("uncounted"):
            self.uncounted += 1
            if self.budget.limits:
                answer = replace(answer, usage=answer.usage | {"input": held.input, "output": held.output})
        usd = self.budget.prices.of(answer.usage) if self.budget.prices else None
        self.ledger.add(request, answer, usd)
        self.budget.settle(held, answer.usage)
        self.asked.discard(request.key)
        if request.key not in self.owed:
            self._count(request, True)
        self.observed[" ".join(str(v) for v in answer.observed.values()) or "unnamed"] += 1
        self.told(self.kept, answer.usage["input"] + answer.usage["output"])

    def lose(self, request: Request, held: Held, why: str) -> None:
        """No answer, and perhaps a bill."""
        self.failures[why.partition(":")[0][:60]] += 1
        self.ledger.lose(request, why[:80], held.tokens, held.usd if self.budget.prices else None)
        self.budget.lose(held)

    def refused(self, request: Request, held: Held, why: str) -> None:
        """No answer and no bill."""
        self.failures[why.partition(":")[0][:60]] += 1
        if self.budget.limits:
            self.ledger.free(request)
        self.budget.release(held)

    def ask_again(self, request: Request) -> None:
        """What an earlier run sent was not answered: it is a request like any other."""
        self.asked.discard(request.key)
        self.owed.discard(request.key)

    def drop(self, request: Request, why: str) -> None:
        """No more trials: the row is left out, with the reason."""
        self.asked.discard(request.key)
        self.gave_up[request.key] = why


class OverBudget(CannotRun):
    """The budget does not allow another request. Everything that was answered is kept."""


def over_budget(desk: Desk, held: Held, rest: Iterator[Request | None]) -> OverBudget:
    """Says how far it got and what the rest would cost, by what the answers so far cost."""
    left = 1 + sum(r is not None for r in rest)
    spent = desk.budget.spent
    told = desk.budget.told()
    each = spent.tokens / spent.requests if spent.requests else held.tokens
    cost = f"about {round(left * each)} tokens"
    if desk.budget.prices:
        cost += f", {left * (spent.usd / spent.requests if spent.requests else held.usd):.4f} USD"
    done = desk.hits + desk.kept
    after = f"; {desk.after} come after them" if desk.after else ""
    cost += ", without what comes after" if desk.after else ""
    return OverBudget(
        f"the budget ({desk.budget.limit_told()}) is reached: {done} of {done + left + len(desk.gave_up)} requests are answered, with {told}{after}",
        mend=f"all answers are kept; the other {left} would take {cost}: raise `budget` and run the same command again",
    )


def first_unanswered(desk: Desk, requests: Iterator[Request]) -> tuple[bool, Iterator[Request]]:
    """Is there anything to ask? And the requests from there, those that the ledger holds counted as hits."""
    for one in requests:
        if not desk.known(one):
            return True, chain([one], requests)
    return False, iter(())
