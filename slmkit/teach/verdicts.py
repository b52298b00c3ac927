"""What the judges of a grpo training will ask, said by `plan`: a verdict for each group of answers, again in another order for a share of them.

Which answers the model will write nobody knows, so all is at most: that no two of a group read the same (those cost nothing), that each answer is
as long as it may be, that every verdict is as long as it may be, and has to be asked for twice. `verdicts` alone is how many there are where each
can be read.
"""

from __future__ import annotations

from typing import Any

from slmkit.teach import judging, templates
from slmkit.teach.budget import Prices, bytes_of
from slmkit.teach.forecast import BYTES_PER_TOKEN


def asked(said: Any, groups: int, row: int) -> dict[str, int | str]:
    """said: the block `grpo`. groups: that are sampled, over all steps. row: tokens of a prompt with its own answer, about.
    {} where there is no judge. Dollars only where every judge has prices."""
    judges = [reward.judge for reward in said.rewards if reward.judge]
    out: dict[str, int | str] = {}
    usd, beyond = [], []
    for number, one in enumerate(judges, 1):
        likely, most = round(groups * (1 + one.consistency)), groups * (judging.TRIALS + (one.consistency > 0))
        input = _frame(one.rubric, said.generations) + row + said.generations * said.max_new_tokens
        tokens, prices = round(most * (input + one.max_tokens)), one.prices
        usd.append(most * Prices(prices.input, prices.output).of({"input": input, "output": one.max_tokens}) if prices else None)
        for key, value in (("verdicts", likely), ("verdicts_at_most", most), ("verdict_tokens_at_most", tokens)):
            out[key] = out.get(key, 0) + value
        beyond += _beyond(one.budget, "the judge" if len(judges) == 1 else f"judge {number}", likely, most, tokens, usd[-1]) if one.budget else []
    if judges and None not in usd:
        out["verdict_cost"] = f"at most ~{sum(usd):.2g} USD for verdicts"
    if beyond:
        out["beyond"] = ", and ".join(beyond)
    return out


def _frame(rubric: str, answers: int) -> float:
    """Tokens of what stands around the conversation and the answers."""
    known = {"prompt": "", "messages": [], "reference": "", "row": {}}
    messages = judging.ask_scores(templates.load("rank", None), "", known, [""] * answers, range(answers), rubric, judging.Scale(0, 10))
    return sum(bytes_of(m["content"]) for m in messages) / BYTES_PER_TOKEN


def _beyond(budget: Any, who: str, likely: int, most: int, tokens: int, usd: float | None) -> list[str]:
    out = []
    if budget.requests is not None and most > budget.requests:
        out.append(f"{'' if likely > budget.requests else 'perhaps '}more than {who}'s budget of {budget.requests} requests")
    if budget.tokens is not None and tokens > budget.tokens:
        out.append(f"perhaps more than {who}'s budget of {budget.tokens} tokens")
    if budget.usd is not None and usd > budget.usd:
        out.append(f"perhaps more than {who}'s budget of {budget.usd:g} USD")
    return out
