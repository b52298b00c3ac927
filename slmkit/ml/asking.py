"""What a step needs to ask an endpoint: its ledger, the budget, the desk before both, the route; opened from a recipe's block, closed in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from slmkit.steps._step import Context
from slmkit.teach import calls, ledger
from slmkit.teach.budget import Budget, Limits, Prices
from slmkit.teach.calls import Manners
from slmkit.teach.desk import Desk
from slmkit.teach.endpoint import Route
from slmkit.teach.request import Request

TIMEOUT = 120.0  # seconds for one answer


@dataclass(frozen=True)
class Asking:
    """One endpoint for one run."""

    book: ledger.Ledger
    desk: Desk
    route: Route

    def carry(self, requests: Iterator[Request], concurrency: int) -> None:
        """Bring the answers to all into the ledger. Raises CannotRun, OverBudget, UsageError."""
        calls.carry(self.desk, requests, self.route, Manners(concurrency=concurrency))

    def told(self) -> dict[str, Any]:
        """What was asked and paid so far, by earlier attempts too."""
        spent = self.desk.budget.spent
        out: dict[str, Any] = {"requests": spent.requests, "tokens": spent.tokens, "from_ledger": self.desk.hits}
        return out | ({"usd": round(spent.usd, 6)} if self.desk.budget.prices else {})

    def close(self) -> None:
        self.book.close()


def opened(
    ctx: Context, name: str, teacher: Any, budget: Any, prices: Any, told: Callable[[int, int], None] = lambda kept, tokens: None,
    key: str = "teacher",
) -> Asking:  # fmt: skip
    """teacher, budget, prices: blocks of a recipe (steps/_teacher.py). name: of the account in the state folder, which survives a kill. key: the
    block's place in the step, for errors."""
    secret = ctx.secret(teacher.api_key_env) if teacher.api_key_env else None
    account = ledger.account(ctx.state / f"account-{name}")
    book = ledger.Ledger(ledger.file_of(ctx.ledgers, ledger.identity(teacher.base_url, teacher.model)), account)
    limits = Limits(budget.usd, budget.tokens, budget.requests) if budget else Limits()
    paid = Prices(prices.input, prices.output, prices.cached) if prices else None
    return Asking(book, Desk(book, Budget(limits, paid, book.spent), told=told), Route(teacher.base_url, secret, teacher.api_key_env, TIMEOUT, key))
