"""The budget: for any order of reserving and settling, what is spent and what is held together never pass the limit."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from slmkit.teach.budget import Budget, Limits, Prices, most_input
from slmkit.teach.pace import Pace
from slmkit.teach.request import Request


def request(text: str, most: int) -> Request:
    return Request({"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": most})


@given(
    st.lists(st.tuples(st.text(max_size=200), st.integers(1, 500), st.floats(0, 1), st.floats(0, 1), st.sampled_from("klr")), max_size=60),
    st.integers(200, 5000), st.integers(1, 16), st.randoms(use_true_random=False),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_what_is_spent_never_passes_the_limit(work, limit, at_once, random):
    prices = Prices(2.0, 8.0)
    budget = Budget(Limits(tokens=limit, usd=limit * 4e-6, requests=30), prices)
    flying = []
    for text, most, share_in, share_out, fate in work:
        one = request(text, most)
        held = budget.most(one)
        while budget.fits(held) == "wait" or len(flying) >= at_once:
            land(budget, flying.pop(random.randrange(len(flying))))
        if budget.fits(held) == "never":
            break
        budget.reserve(held)
        flying.append((held, {"input": int(share_in * most_input(one)), "output": int(share_out * most), "cached": 0}, fate))
        check(budget, limit)
    while flying:
        land(budget, flying.pop())
    check(budget, limit)
    assert (budget.held.tokens, budget.flying) == (0, 0) and abs(budget.held.usd) < 1e-9


def land(budget, one) -> None:
    held, usage, fate = one
    {"k": lambda: budget.settle(held, usage), "l": lambda: budget.lose(held), "r": lambda: budget.release(held)}[fate]()


def check(budget, limit) -> None:
    spent = budget.spent
    assert spent.tokens + spent.lost_tokens + budget.held.tokens <= limit
    assert spent.usd + spent.lost_usd + budget.held.usd <= limit * 4e-6 + 1e-9
    assert spent.requests + spent.lost_requests + budget.flying <= 30


@given(st.text(max_size=300))
def test_the_bound_is_above_any_tokenizer_of_bytes(text):
    assert most_input(request(text, 1)) >= len(text.encode("utf-8", "surrogatepass")) + 16


def test_what_an_endpoint_adds_unseen_is_learned_from_its_first_answer():
    budget = Budget(Limits(tokens=10_000), None)
    one = request("hello", 10)
    held = budget.most(one)
    budget.reserve(held)
    assert budget.fits(held) == "wait"  # the first is waited for
    budget.settle(held, {"input": held.input + 700, "output": 1, "cached": 0})
    assert budget.fits(held) == "yes" and budget.most(one).input == held.input + 700


def test_prices_are_per_million_and_cached_input_has_its_own():
    usage = {"input": 1_000_000, "output": 500_000, "cached": 400_000}
    assert Prices(1.0, 10.0, 0.25).of(usage) == 0.6 + 0.1 + 5.0
    assert Prices(1.0, 10.0).of(usage) == 6.0


def test_the_pace_starts_alone_grows_by_one_an_answer_and_is_cut_once_a_round():
    pace = Pace(64)
    sent = pace.sent(1)
    assert pace.delay(1) is None  # the first goes alone
    pace.back()
    pace.answered()
    assert pace.delay(1) == 0.0 and pace.limit == 17
    old = [pace.sent(1) for _ in range(4)]
    for one in old:
        pace.back()
        pace.refused(one, None)
    assert 11 < pace.limit < 12 and sent <= old[0]
    pace.refused(pace.sent(1), 3.0)
    assert 2.5 < pace.delay(1) <= 3.0  # Retry-After stops all


def test_requests_a_minute_are_spread_by_a_window():
    pace = Pace(8, requests_per_minute=3)
    pace.answered()
    for _ in range(3):
        assert pace.delay(1) == 0.0
        pace.sent(1)
    assert 59 < pace.delay(1) <= 60
