"""The formulas of cost on cases worked out by hand, what is unknown and what never pays, and the intervals of medians and percentiles."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from slmkit.evidence import bill, cost, oneoff, timing
from slmkit.evidence.figures import exactly, unknown
from slmkit.evidence.oneoff import OneOff
from slmkit.evidence.timing import Batch, quantile
from slmkit.steps._speed import Charges, Cost, Speed


def rate(value: float, low: float, high: float) -> dict:
    return {"value": value, "low": low, "high": high, "level": 0.96}


def point(read: tuple, wrote: tuple | None) -> dict:
    out = {"input_tokens_per_second": rate(*read), "batches": 9, "mean_input_tokens": 200.0}
    return out | ({"output_tokens_per_second": rate(*wrote), "mean_output_tokens": 64.0} if wrote else {})


MEASURED = {
    "asked": {"own_ends": False}, "mix": {"input_tokens": 200.0, "output_tokens": 11.0, "questions": 5, "answers": 5},
    "runtime": {"name": "transformers", "device": "cpu", "dtype": "float32"},
    "curve": {"1": point((1000, 900, 1100), (20, 19, 21)), "8": point((2000, 1000, 4000), (100, 50, 200))},
}  # fmt: skip
SAID = {"usd_per_hour": 3.6, "idle": 0.5, "requests_per_day": 5000, "requests": 1_000_000, "api": {"input": 2, "output": 10}}
ELEVEN = OneOff(exactly(11.0))


def figures(said: dict, made: OneOff = ELEVEN, measured: dict = MEASURED) -> dict[str, tuple]:
    found = cost.reckon(measured, Cost.model_validate(said), made).figures
    return {k: (f.value, f.low, f.high) for k, f in found.items()}


def near(*values: float | None) -> tuple:
    return tuple(v if v is None else pytest.approx(v, rel=1e-12) for v in values)


def test_golden_case() -> None:
    """3.60 USD an hour at half idle is 0.002 USD a second of work. At batch 8 a prompt's token takes 1/2000 s, an answer's later token 1/100 s.
    A request of 200 tokens with 11 of answer takes 0.1 + 10/100 = 0.2 s (0.1 to 0.4), which is 0.0004 USD; at the API 200 × 2 + 11 × 10 = 510
    millionths."""
    found = figures(SAID)
    assert found["usd_per_million_input_tokens"] == near(1.0, 0.5, 2.0)
    assert found["usd_per_million_output_tokens"] == near(20.0, 10.0, 40.0)
    assert found["seconds_per_request"] == near(0.2, 0.1, 0.4)
    assert found["usd_per_thousand_requests"] == near(0.4, 0.2, 0.8)
    assert found["usd_per_million_tokens"] == near(400 / 211, 200 / 211, 800 / 211)
    assert found["requests_per_day_of_a_machine"] == near(216_000, 108_000, 432_000)
    assert found["usd_one_off"] == near(11, 11, 11)
    assert found["usd_per_thousand_requests_with_one_off"] == near(0.411, 0.211, 0.811)
    assert found["usd_per_million_tokens_with_one_off"] == near(411 / 211, 211 / 211, 811 / 211)
    assert found["api_usd_per_thousand_requests"] == near(0.51, 0.51, 0.51)
    assert found["api_usd_per_million_tokens"] == near(510 / 211, 510 / 211, 510 / 211)
    assert found["break_even_requests"] == near(100_000, 11 / 0.00031, None)
    assert found["break_even_tokens"] == near(21_100_000, 211 * 11 / 0.00031, None)
    assert found["break_even_days"] == near(20, 11 / 0.00031 / 5000, None)
    assert found["break_even_requests_per_day_of_a_machine"] == near(*[3.6 * 24 / 0.00051] * 3)


def test_what_is_said_of_the_api_and_of_requests_is_read() -> None:
    api = {"input": 2, "output": 10}
    cached = figures(SAID | {"api": api | {"cached": 0.2, "cached_share": 0.75}})
    assert cached["api_usd_per_thousand_requests"][0] == pytest.approx((200 * (0.25 * 2 + 0.75 * 0.2) + 110) / 1000, rel=1e-12)
    longer = figures(SAID | {"api": api | {"input_tokens": 1000, "output_tokens": 20}})
    assert longer["api_usd_per_thousand_requests"][0] == pytest.approx(2.2, rel=1e-12)
    assert longer["usd_per_thousand_requests"] == figures(SAID)["usd_per_thousand_requests"]
    other = figures(SAID | {"input_tokens": 400, "output_tokens": 21})
    assert other["seconds_per_request"][0] == pytest.approx(0.4, rel=1e-12)
    one = figures(SAID | {"output_tokens": 1})["seconds_per_request"]
    assert one[0] == pytest.approx(0.1, rel=1e-12), "an answer of one token is the prompt's pass"
    alone = figures(SAID | {"batch": 1})
    assert alone["usd_per_million_output_tokens"] == near(100, 0.002e6 / 21, 0.002e6 / 19)
    with pytest.raises(KeyError):
        figures(SAID | {"batch": 3})


@pytest.mark.parametrize(("key", "gone", "why"), [
    ("usd_per_hour", {"usd_per_thousand_requests", "usd_per_million_tokens", "usd_per_million_input_tokens", "usd_per_million_output_tokens",
                      "break_even_requests", "usd_per_thousand_requests_with_one_off", "break_even_requests_per_day_of_a_machine"},
     "say usd_per_hour"),
    ("api", {"api_usd_per_thousand_requests", "api_usd_per_million_tokens", "break_even_requests", "break_even_days",
             "break_even_requests_per_day_of_a_machine"}, "say api"),
    ("requests", {"usd_per_thousand_requests_with_one_off", "usd_per_million_tokens_with_one_off"}, "say requests"),
    ("requests_per_day", {"break_even_days"}, "say requests_per_day"),
])  # fmt: skip
def test_a_missing_price_is_a_missing_cost(key: str, gone: set[str], why: str) -> None:
    said = Cost.model_validate({k: v for k, v in SAID.items() if k != key})
    found, whole = cost.reckon(MEASURED, said, ELEVEN).figures, cost.reckon(MEASURED, Cost.model_validate(SAID), ELEVEN).figures
    for name in gone:
        assert found[name].value is None and why in found[name].why and whole[name].known
    untouched = {k for k, f in found.items() if f == whole[k]}
    assert untouched >= {"seconds_per_request", "usd_one_off"} and not untouched & gone


def test_unknown_answers_and_unknown_making_stay_unknown() -> None:
    chosen = MEASURED | {"mix": {"input_tokens": 200.0, "questions": 5}}
    found = cost.reckon(chosen, Cost.model_validate(SAID), ELEVEN).figures
    assert "say output_tokens" in found["usd_per_thousand_requests"].why and found["usd_per_million_output_tokens"].known
    found = cost.reckon(MEASURED, Cost.model_validate(SAID), OneOff(unknown("the teacher has no price"))).figures
    assert found["break_even_requests"].why == "the teacher has no price" and found["usd_per_thousand_requests"].known
    assert found["usd_per_million_tokens_with_one_off"].why == "the teacher has no price"


def test_what_never_pays_is_said() -> None:
    found = cost.reckon(MEASURED, Cost.model_validate(SAID | {"api": {"input": 1, "output": 10}}), ELEVEN).figures
    even = found["break_even_requests"]
    assert even.value is None and even.why.startswith("never: a request costs 0.0004 USD here and 0.00031 USD at the API; at the good end")
    assert even.low == pytest.approx(11 / 0.00011) and even.high is None
    found = cost.reckon(MEASURED, Cost.model_validate(SAID | {"api": {"input": 0.1, "output": 1}}), ELEVEN).figures
    assert found["break_even_requests"].low is None and "good end" not in found["break_even_requests"].why
    assert found["break_even_requests_per_day_of_a_machine"].why.startswith("never: 2,787,097 requests a day would pay")
    assert cost.break_even(exactly(5.0), exactly(0.3), exactly(0.3)).why.startswith("never"), "as dear as the API is no gain"
    assert cost.break_even(exactly(0.0), exactly(0.1), exactly(0.3)).value == 0


prices = st.floats(0.01, 100)


@given(prices, st.floats(0, 0.9), st.floats(0, 0.9), prices, prices, st.floats(0, 1000), st.lists(st.floats(0.5, 1), min_size=2, max_size=2))
@settings(max_examples=150, deadline=None)
def test_more_idle_is_dearer_and_intervals_hold_their_figure(price, idle, more, read, wrote, one_off, below) -> None:
    measured = MEASURED | {"curve": {"4": point((read, read * below[0], read * 1.5), (wrote, wrote * below[1], wrote * 1.2))}}
    said = SAID | {"usd_per_hour": price}
    one, two = (cost.reckon(measured, Cost.model_validate(said | {"idle": i}), OneOff(exactly(one_off))).figures for i in sorted((idle, more)))
    for name, f in one.items():
        if f.known:
            assert f.low <= f.value <= (math.inf if f.high is None else f.high), name
            if name.startswith("usd_per"):
                assert two[name].value >= f.value and two[name].high >= f.high
            if name == "break_even_requests" and two[name].known:
                assert two[name].value >= f.value


def step(kind: str, name: str, seconds: float, config: dict | None = None, attempts: int = 1, **result) -> dict:
    return {"kind": kind, "name": name, "run": {"seconds": seconds, "attempts": attempts}, "config": config or {}, "result": result}


ENDPOINT = {"teacher": {"model": "big", "base_url": "https://api"}}


def test_what_making_took_is_hours_and_what_teachers_were_paid() -> None:
    chain = [
        step("quantize", "int4", 900), step("train", "sft", 1800, {"grpo": {"rewards": [{"judge": ENDPOINT}]}}, attempts=2, judge_usd=0.25),
        step("distill", "teach", 7200, ENDPOINT, usd=3.5, usd_perhaps_billed=0.5, from_ledger=7, prices={"input": 0.25, "output": 2.0, "batch": 0.5}),
    ]  # fmt: skip
    made = oneoff.of_chain(chain, [], 2.0)
    assert (made.usd.value, made.usd.low, made.usd.high) == near(0.5 + 1.0 + 0.25 + 3.5, 5.25, 5.75), "waiting for an API is no hour of the machine"
    assert oneoff.prices(chain) == {"input": 0.25, "output": 2.0, "batch": 0.5}
    assert oneoff.prices([*chain, step("distill", "more", 1, prices={"input": 1.0, "output": 2.0})]) is None, "two teachers are not one API"
    told = " ".join(made.assumptions)
    assert "2 attempts" in told and "7 answers were in the ledger" in told and "0.750 hours" in told
    local = oneoff.of_chain([step("distill", "teach", 3600, {"teacher": "demo:teacher"})], [], 2.0)
    assert local.usd.value == 2.0, "a teacher that runs here takes the machine's hours"
    assert oneoff.of_chain([], [], None).usd.value == 0.0
    assert oneoff.given(5.0).usd.value == 5.0


def test_the_api_that_the_eval_scored_has_its_own_prices_and_counts() -> None:
    """The teacher of the chain charges 0.25 / 2; the endpoint that was scored charges 1 / 10 for 400 tokens of prompt and 20 of answer."""
    taught = {"int4": ([step("distill", "teach", 1, ENDPOINT, prices={"input": 0.25, "output": 2.0})], [])}
    scored = {"gpt": {"prices": {"input": 1.0, "output": 10.0}, "mean": {"input_tokens": 400.0, "output_tokens": 20.0}}}

    def per_thousand(asked: dict, api: dict | None = None) -> float:
        said = Cost.model_validate({"usd_per_hour": 1.0} | ({"api": api} if api else {}))
        (one,) = bill.draw_up({"result": {"asked": asked}}, {"int4": MEASURED}, taught, said)
        return one.reckoned.figures["api_usd_per_thousand_requests"].value

    mix = MEASURED["mix"]
    here = lambda price, answer: (mix["input_tokens"] * price + mix["output_tokens"] * answer) / 1000  # noqa: E731
    assert per_thousand(scored) == pytest.approx(0.6) and per_thousand({}) == pytest.approx(here(0.25, 2))
    assert per_thousand(scored | {"other": {}}) == pytest.approx(here(0.25, 2)), "of two endpoints none is the one"
    assert per_thousand(scored, {"input": 2, "output": 0}) == pytest.approx(0.8), "its prices as said, its tokens as counted"
    assert per_thousand(scored, {"input": 2, "output": 0, "input_tokens": 100}) == pytest.approx(0.2)


@pytest.mark.parametrize(("chain", "missing", "price", "why"), [
    ([step("distill", "teach", 1, ENDPOINT)], [], 1.0, "distill `teach` asked big without `prices`"),
    ([step("train", "sft", 1)], ["teach (artifact:distill-1)"], 1.0, "teach (artifact:distill-1) is no longer in the store"),
    ([step("train", "sft", 1)], [], None, "say training_usd_per_hour"),
])  # fmt: skip
def test_what_the_manifests_do_not_say_is_not_made_up(chain, missing, price, why) -> None:
    made = oneoff.of_chain(chain, missing, price)
    assert made.usd.value is None and why in made.usd.why


def test_an_interval_lies_between_two_measurements() -> None:
    nine = quantile([float(x) for x in (9, 1, 8, 2, 7, 3, 6, 4, 5)])
    assert (nine["value"], nine["low"], nine["high"]) == (5, 2, 8) and nine["level"] == pytest.approx(1 - 20 / 512)
    six, five = quantile([1.0, 2, 3, 4, 5, 6]), quantile([1.0, 2, 3, 4, 5])
    assert (six["low"], six["high"]) == (1, 6) and six["level"] == pytest.approx(1 - 2 / 64)
    assert (five["low"], five["high"]) == (1, 5) and five["level"] == pytest.approx(1 - 2 / 32), "too few: all of them, and how sure that is"
    many = [float(x) for x in range(72)]
    assert quantile(many, 0.95)["high"] == 71 and quantile(many[:71], 0.95)["high"] is None and quantile(many[:71], 0.95)["level"] is None
    assert quantile(many, 0.95)["value"] == pytest.approx(np.quantile(many, 0.95))


def test_the_interval_holds_the_true_median_as_often_as_it_says() -> None:
    rng, within = np.random.default_rng(3), 0
    for _ in range(2000):
        found = quantile(rng.lognormal(size=9).tolist())
        within += found["low"] <= 1.0 <= found["high"]
    assert within / 2000 == pytest.approx(found["level"], abs=0.015)


def test_whole_answers_are_timed_by_who_asked_and_many_of_them_in_no_time() -> None:
    seconds = [0.5] * 30_000 + [2.0] * 30_000 + [8.0]
    found = timing.of_answers(seconds, [0] * 30_000 + [10] * 30_001)
    assert found["answers"] == 60_001 and found["seconds"]["p50"]["value"] == found["seconds"]["p95"]["value"] == 2.0
    assert found["seconds"]["p50"]["low"] == 0.5 and found["output_tokens_per_second"]["value"] == 5.0, "what no tokens are told of has no rate"
    assert "output_tokens_per_second" not in timing.of_answers([1.0], [0])


def test_tokens_a_second_are_those_of_the_phase_that_makes_them() -> None:
    """Two requests of 10 and 30 tokens, read in 0.2 s; their answers' later 3 + 5 tokens take the 0.8 s after it."""
    batch = Batch(first=(0.1, 0.2), last=(0.6, 1.0), read=(10, 30), wrote=(4, 6))
    found = timing.throughput([batch])
    assert found["input_tokens_per_second"]["value"] == pytest.approx(200) and found["output_tokens_per_second"]["value"] == pytest.approx(10)
    assert (found["mean_input_tokens"], found["mean_output_tokens"]) == (20, 5)
    turns = Batch(first=(0.1, 0.7), last=(0.6, 1.2), read=(10, 30), wrote=(6, 6), in_turn=True)
    found = timing.throughput([turns])
    assert found["output_tokens_per_second"]["value"] == pytest.approx(10), "one after another: both answers' seconds, not those of the last"
    assert found["input_tokens_per_second"]["value"] == pytest.approx(200)
    single = timing.latency([Batch((0.2,), (1.0,), (10,), (5,))])
    assert single["time_to_first_token"]["p50"]["value"] == 0.2 and single["time_per_token"]["p50"]["value"] == pytest.approx(0.2)
    assert "output_tokens_per_second" not in timing.throughput([Batch((0.2,), (0.2,), (10,), (1,))])


@pytest.mark.parametrize(("part", "said", "why"), [
    (Speed, {"batch_sizes": [2, 4]}, "lacks 1"), (Speed, {"batch_sizes": [1, 4, 2]}, "go up"),
    (Charges, {"input": 1, "output": 1, "cached": 1}, "belong together"), (Cost, {"idle": 1.0}, "less than 1"),
    (Speed, {"new_tokens": 1}, "greater than or equal to 2"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(part, said, why) -> None:
    with pytest.raises(ValidationError, match=why):
        part(**said)
