"""The verb `cost`: what models cost where they run, reckoned from the speed that an eval recorded. Nothing is measured or run here."""

from __future__ import annotations

import json as js
from typing import Annotated, Any

import typer

from slmkit.cli import out
from slmkit.cli.verbs import STORE, JsonOpt, StepOpt, StoreOpt, one_step
from slmkit.errors import UsageError

RefArg = Annotated[
    str, typer.Argument(metavar="REF[:MODEL]", show_default=False, help="The eval: recipe/step, a step's name, a path, …; or a recipe's file.")
]


def _option(name: str, metavar: str, help: str) -> Any:  # noqa: A002
    return Annotated[float | None, typer.Option(name, metavar=metavar, help=help)]


def cost(
    ref: RefArg, step: Annotated[str | None, typer.Argument(metavar="STEP", help="Which eval, where REF is a recipe with several.")] = None,
    step_: StepOpt = None,
    usd_per_hour: _option("--usd-per-hour", "USD", "Price of the machine that serves, an hour.") = None,
    idle: _option("--idle", "SHARE", "Share of the paid hours in which it has nothing to do. [default: 0]") = None,
    batch: Annotated[
        int | None, typer.Option("--batch", metavar="N", help="Requests served at once, a size that was measured. [default: the cheapest]")
    ] = None,
    input_tokens: _option("--input-tokens", "N", "Tokens of a prompt. [default: the tasks' mean]") = None,
    output_tokens: _option("--output-tokens", "N", "Tokens of an answer. [default: the mean of the model's]") = None,
    requests: _option("--requests", "N", "Requests over which the model's making is spread.") = None,
    requests_per_day: _option("--requests-per-day", "N", "Requests a day, for the days until it has paid.") = None,
    training_usd_per_hour: _option("--training-usd-per-hour", "USD", "Price of the machine that it was made on. [default: --usd-per-hour]") = None,
    one_off_usd: _option("--one-off-usd", "USD", "What making the model cost. [default: from the manifests of its steps]") = None,
    api_input: _option("--api-input", "USD", "The API's price of a million tokens of input. [default: the distill step's prices]") = None,
    api_output: _option("--api-output", "USD", "The same of output.") = None,
    api_cached: _option("--api-cached", "USD", "The same of input that it has in its cache.") = None,
    cached_share: _option("--cached-share", "SHARE", "Share of the input that it has in its cache.") = None,
    api_input_tokens: _option("--api-input-tokens", "N", "Tokens that a request sends to the API. [default: as here]") = None,
    api_output_tokens: _option("--api-output-tokens", "N", "Tokens of an answer of the API. [default: as here]") = None,
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="Only this model; as REF:NAME.")] = None,
    store: StoreOpt = STORE, json: JsonOpt = False,
) -> None:  # fmt: skip
    """Reckon what models cost: speed, dollars a million tokens and a thousand requests, and from which volume on they beat the API.

    \b
      slmkit cost banking/score                                             speed, and what the recipe's `cost:` block gave
      slmkit cost banking/score --usd-per-hour 1.20 --idle 0.3
      slmkit cost banking/score:int4 --usd-per-hour 1.20 --api-input 0.25 --api-output 2 --requests-per-day 50000
      slmkit cost recipe.yaml --json | jq '.models.int4.figures.break_even_requests'

    From what an eval with a `speed:` block measured, and from the manifests of the steps that made each model. Each figure has the interval that
    comes from the measured speed; a price that is not given is not assumed, and what depends on it is left out with the reason.
    With a recipe's file, its `cost:` block is read as it stands now; with an eval, as it stood when that was made.
    """  # fmt: skip
    from slmkit.cli import costing
    from slmkit.evidence import bill

    named, block = costing.find(store, ref, one_step(step, step_))
    api = {"input": api_input, "output": api_output, "cached": api_cached, "cached_share": cached_share, "input_tokens": api_input_tokens,
           "output_tokens": api_output_tokens}  # fmt: skip
    given = {"usd_per_hour": usd_per_hour, "idle": idle, "batch": batch, "input_tokens": input_tokens, "output_tokens": output_tokens,
             "requests": requests, "requests_per_day": requests_per_day, "training_usd_per_hour": training_usd_per_hour, "one_off_usd": one_off_usd,
             "api": api}  # fmt: skip
    if model is not None and named.model not in (None, model):
        raise UsageError(f"{ref} names one model and --model another", mend="leave one of them out")
    reckoned = costing.reckon(store, named, model or named.model, block, given)
    if json:
        return out.show(js.dumps(costing.record(named, reckoned), ensure_ascii=False))
    out.show("\n".join(bill.lines(named.artifact.manifest, reckoned)))


COMMANDS = {"cost": cost}
