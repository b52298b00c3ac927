"""From tokens a second to dollars a million: what a model costs where it runs, what the API costs that it replaces, and from which volume on it pays.

    busy       = usd_per_hour / 3600 / (1 - idle)                      US dollars for a second of work
    input      = busy / (prompt tokens a second)                       for a token of a prompt
    output     = busy / (answer tokens a second)                       for a token of an answer after its first, which the prompt's pass gives
    request    = I · input + (O - 1) · output                          for I tokens of prompt and O of answer
    break-even = one-off / (api request - request)                     requests

Every figure has the interval that comes from the throughput's: its two ends are taken together, so it is rather too wide than too short. Prices and
volumes are as they are given. What is not given is not known, and makes what depends on it unknown: no price is ever assumed. Plain arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slmkit.evidence.figures import Figure, exactly, unknown
from slmkit.evidence.oneoff import OneOff
from slmkit.steps._speed import Cost

MILLION, THOUSAND, HOUR, DAY = 1e6, 1e3, 3600.0, 86400.0
NO_PRICE = "the price of the machine is not known: say usd_per_hour"


@dataclass(frozen=True)
class Reckoning:
    """One model's figures by name, and the assumptions behind them as sentences."""

    figures: dict[str, Figure]
    assumptions: tuple[str, ...]
    batch: int

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"batch": self.batch, "figures": {name: f.record() for name, f in self.figures.items()}, "assumptions": list(self.assumptions)}


@dataclass(frozen=True)
class Request:
    """The request that is priced: tokens of its prompt and its answer (None: not known), and the seconds of the machine that it takes."""

    prompt: float | None
    answer: float | None
    seconds: Figure

    def a_token(self, whole: Figure) -> Figure:
        """Of what a request costs, what falls on each of its tokens."""
        return whole.times(1 / (self.prompt + self.answer)) if whole.known and self.prompt is not None and self.answer is not None else whole


def reckon(measured: dict[str, Any], said: Cost, made: OneOff) -> Reckoning:
    """measured: a model's record of speed. said: prices and volumes. made: what making the model took. Raises KeyError for a batch not measured."""
    size, point = _point(measured["curve"], said.batch)
    mix = measured.get("mix", {})
    prompt, answer = said.input_tokens or mix.get("input_tokens"), said.output_tokens or mix.get("output_tokens")
    read, wrote = _seconds(point.get("input_tokens_per_second")), _seconds(point.get("output_tokens_per_second"))
    request = Request(prompt, answer, _request_seconds(read, wrote, prompt, answer))
    busy = said.usd_per_hour / HOUR / (1 - said.idle) if said.usd_per_hour is not None else None
    figures = {"seconds_per_request": request.seconds, "requests_per_day_of_a_machine": _capacity(request.seconds, 1 - said.idle)}
    figures |= _own(busy, read, wrote, request)
    figures |= _spread(figures, made.usd, said.requests, request)
    figures |= _against(figures["usd_per_thousand_requests"].times(1 / THOUSAND), made.usd, said, request)
    return Reckoning(figures, tuple(_assumptions(measured, size, said, request, made)), size)


def _point(curve: dict[str, Any], batch: int | None) -> tuple[int, dict[str, Any]]:
    """The size of batch that is reckoned with: the one asked for, or the one whose answers cost least."""
    if batch is not None:
        return batch, curve[str(batch)]
    key = "output_tokens_per_second" if all("output_tokens_per_second" in p for p in curve.values()) else "input_tokens_per_second"
    size = max(curve, key=lambda s: curve[s][key]["value"])
    return int(size), curve[size]


def _seconds(rate: dict[str, Any] | None) -> Figure:
    """Seconds of the machine for one token, from tokens a second."""
    if rate is None:
        return unknown("no answer was longer than a token, so the speed of writing is not known")
    return Figure(1 / rate["value"], 1 / rate["high"], 1 / rate["low"])


def _request_seconds(read: Figure, wrote: Figure, prompt: float | None, answer: float | None) -> Figure:
    if prompt is None:
        return unknown("how long a prompt is, is not known: say input_tokens")
    if answer is None:
        return unknown("the tasks' answers are chosen, not written, so how long an answer is, is not known: say output_tokens")
    return read.times(prompt).plus(wrote.times(answer - 1) if answer > 1 else exactly(0.0))


def _capacity(seconds: Figure, share: float) -> Figure:
    """Requests a day of one machine that works for a share of it."""
    if not seconds.known:
        return seconds
    return Figure(DAY * share / seconds.value, DAY * share / seconds.high, DAY * share / seconds.low)


def _own(busy: float | None, read: Figure, wrote: Figure, request: Request) -> dict[str, Figure]:
    """What serving costs, without what making the model took."""
    def priced(seconds: Figure, count: float) -> Figure:
        return seconds.times(busy * count) if busy is not None else unknown(NO_PRICE)

    return {
        "usd_per_million_input_tokens": priced(read, MILLION), "usd_per_million_output_tokens": priced(wrote, MILLION),
        "usd_per_thousand_requests": priced(request.seconds, THOUSAND),
        "usd_per_million_tokens": request.a_token(priced(request.seconds, MILLION)),
    }  # fmt: skip


def _spread(own: dict[str, Figure], one_off: Figure, requests: float | None, request: Request) -> dict[str, Figure]:
    """The same with what making the model took, spread over all requests."""
    why = "over how many requests the model's making is spread is not known: say requests"
    share = one_off.times(1 / requests) if requests is not None else unknown(why)
    return {
        "usd_one_off": one_off, "usd_per_thousand_requests_with_one_off": own["usd_per_thousand_requests"].plus(share.times(THOUSAND)),
        "usd_per_million_tokens_with_one_off": own["usd_per_million_tokens"].plus(request.a_token(share).times(MILLION)),
    }  # fmt: skip


def _against(own: Figure, one_off: Figure, said: Cost, request: Request) -> dict[str, Figure]:
    """The API's price of the same requests, and from which volume on the model is cheaper. own: of a request."""
    api = _api_request(said, request)
    even = break_even(one_off, own, api)
    tokens = (request.prompt or 0) + (request.answer or 0)
    return {
        "api_usd_per_thousand_requests": api.times(THOUSAND), "api_usd_per_million_tokens": request.a_token(api).times(MILLION),
        "break_even_requests": even, "break_even_tokens": even.times(tokens),
        "break_even_days": _days(even, said.requests_per_day),
        "break_even_requests_per_day_of_a_machine": _rented(said.usd_per_hour, api, request.seconds),
    }  # fmt: skip


def _days(even: Figure, a_day: float | None) -> Figure:
    if a_day is not None:
        return even.times(1 / a_day)
    return unknown("how many requests a day is not known: say requests_per_day" if even.known else even.why)


def _api_request(said: Cost, request: Request) -> Figure:
    """US dollars for a request at the API."""
    api = said.api
    if api is None:
        return unknown("the API's prices are not known: say api")
    sent = request.prompt if api.input_tokens is None else api.input_tokens
    answered = request.answer if api.output_tokens is None else api.output_tokens
    if sent is None or answered is None:
        return unknown("how long a prompt and an answer are at the API is not known: say input_tokens and output_tokens")
    share = api.cached_share or 0.0
    per_input = api.input * (1 - share) + (api.cached or 0.0) * share
    return exactly((sent * per_input + answered * api.output) / MILLION)


def break_even(one_off: Figure, own: Figure, api: Figure) -> Figure:
    """Requests from which on what was paid once and what each request costs here are less than what the API charges for them."""
    for part in (own, api, one_off):
        if not part.known:
            return unknown(part.why)
    best, worst = _after(one_off.low, own.low, api.high), _after(one_off.high, own.high, api.low)
    if own.value >= api.value:
        here = f"never: a request costs {own.value:.3g} USD here and {api.value:.3g} USD at the API"
        return Figure(None, best, None, here + (f"; at the good end of the interval from {best:,.0f} requests on" if best is not None else ""))
    return Figure(_after(one_off.value, own.value, api.value), best, worst, None if worst is not None else "at the bad end of the interval never")


def _after(one_off: float, own: float, api: float) -> float | None:
    return one_off / (api - own) if own < api else None


def _rented(usd_per_hour: float | None, api: Figure, seconds: Figure) -> Figure:
    """Requests a day from which on a machine that is paid around the clock costs less than the API, all else left out."""
    if usd_per_hour is None:
        return unknown(NO_PRICE)
    if not api.known or not seconds.known:
        return unknown(api.why or seconds.why)
    if not api.value:
        return unknown("never: the API charges nothing")
    wanted, most = usd_per_hour * 24 / api.value, _capacity(seconds, 1.0)
    if wanted > most.value:
        return unknown(f"never: {wanted:,.0f} requests a day would pay for a machine around the clock, and it can answer {most.value:,.0f}")
    return exactly(wanted)


def _assumptions(measured: dict[str, Any], size: int, said: Cost, request: Request, made: OneOff) -> list[str]:
    ran, point = measured.get("runtime", {}), measured["curve"][str(size)]
    machine = ", ".join(str(x) for x in (ran.get("name"), ran.get("dtype"), ran.get("device")) if x) or "the runtime that was measured"
    ends = "ended by the model" if measured["asked"].get("own_ends") else "all of one length"
    served = f"{size} requests are served at once by {machine}; the batch is always full, begins together and ends together"
    if ran.get("in_turn"):
        served = f"requests are answered one after another by {machine}, and the next is always there already"
    out = [
        served,
        f"a token costs what it took with prompts of {point['mean_input_tokens']:.0f} tokens on average and answers of "
        f"{point.get('mean_output_tokens', 1):.0f}, {ends}; the intervals are those of {point['batches']} batches on one machine",
    ]
    if request.prompt is not None:
        out.append(f"a prompt has {request.prompt:,.1f} tokens ({'as given' if said.input_tokens else 'the mean of the tasks'})")
    if request.answer is not None:
        out.append(f"an answer has {request.answer:,.1f} tokens ({'as given' if said.output_tokens else 'the mean of its own in the tasks'})")
    if said.usd_per_hour is not None:
        paid = f"of the paid hours {said.idle:.0%} are idle" if said.idle else "only hours of work are paid, none are idle"
        out.append(f"the machine that was measured costs {said.usd_per_hour:g} USD an hour; {paid}")
        out += _load(said, request.seconds)
    if said.api is not None:
        out += _api_said(said)
    return [*out, *made.assumptions, "what it takes to keep a server (people, traffic, storage, monitoring) is not in it"]


def _load(said: Cost, seconds: Figure) -> list[str]:
    """What the stated volume makes of one machine, where that is not the share that was assumed."""
    if not said.requests_per_day or not seconds.known:
        return []
    load, day = said.requests_per_day * seconds.value / DAY, f"{said.requests_per_day:,.0f} requests a day"
    if load > 1 - said.idle:
        return [f"{day} are the work of {load / (1 - said.idle):.1f} such machines"]
    return [f"{day} keep one machine busy for {load:.2%} of the day: were it paid around the clock, idle would be {1 - load:.4f}"]


def _api_said(said: Cost) -> list[str]:
    api = said.api
    cache = f", of which {api.cached_share:.0%} cached at {api.cached:g}" if api.cached is not None else ""
    out = [f"the API charges {api.input:g} USD for a million tokens of input{cache}, and {api.output:g} of output; it is as good for the task"]
    same = [name for name, x in (("prompt", api.input_tokens), ("answer", api.output_tokens)) if x is None]
    there = [f"{x:,.1f} tokens in {name}" for name, x in (("a prompt", api.input_tokens), ("an answer", api.output_tokens)) if x is not None]
    if there:
        out.append(f"it counts {' and '.join(there)}")
    if same:
        out.append(f"the {' and the '.join(same)} {'have' if len(same) > 1 else 'has'} as many tokens there as here")
    return out
