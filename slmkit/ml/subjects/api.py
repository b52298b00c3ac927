"""A model behind an OpenAI-compatible endpoint, such as the teacher that is to be replaced. Its answers go over the same desk and ledger as a
distill's: what was asked once, by a killed eval or by another recipe, is not paid again.

It answers conversations, and nothing tells how likely it finds a given text: tasks that rank choices are not for it.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from lm_eval.api.model import LM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from slmkit.errors import StepFailed, UsageError
from slmkit.evidence import timing
from slmkit.ml import asking
from slmkit.ml.subjects import talk
from slmkit.steps._step import Context
from slmkit.teach.job import sent
from slmkit.teach.request import Request

MOST_STOPS = 4  # that OpenAI's endpoints take; all are applied here again
LIKELIHOOD = "`{name}` is an endpoint, and none tells how likely it finds a given text: `{task}` cannot be asked"


class Asked(str):
    """A conversation on its way through lm-eval, as JSON text: {messages, tools}."""


class Endpoint(LM):
    """said: the recipe's block. The counts of what was asked are in `told()`."""

    def __init__(self, ctx: Context, name: str, said: Any, report: Callable[[float, float], None]):
        super().__init__()
        self.name, self.said, self.report = name, said, report
        self.started, self.tokens, self.seconds, self.batch_size = time.perf_counter(), 0, 0.0, said.concurrency
        self.usage: dict[str, dict[str, int]] = {}
        self.timed: dict[str, tuple[float, int]] = {}
        self.asking = asking.opened(ctx, name, said, said.budget, said.prices, self._told, f"apis.{name}")

    def _told(self, kept: int, tokens: int) -> None:
        self.tokens += tokens
        self.report(self.tokens, self.tokens / max(time.perf_counter() - self.started, 1e-9))

    @property
    def tokenizer_name(self) -> str:
        return f"{self.said.base_url} {self.said.model}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return "" if chat_template else None  # the endpoint's own, which it does not tell

    def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> str:
        messages, tools = talk.unfolded(chat_history)
        return Asked(json.dumps({"messages": messages, "tools": tools}, ensure_ascii=False, sort_keys=True))

    def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list:
        raise UsageError(
            LIKELIHOOD.format(name=self.name, task=requests[0].task_name), mend="leave it out, or ask this model for written answers"
        )

    loglikelihood_rolling = loglikelihood

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        started = time.perf_counter()
        seen: Counter[str] = Counter()
        asked = []
        for context, settings in (request.args for request in requests):  # one that comes again is another sample, where samples differ
            asked.append(self._request(context, settings, seen[context] if settings.get("do_sample") else 0))
            seen[context] += 1
        self.asking.carry((request for request, _ in asked), self.said.concurrency)
        self.seconds += time.perf_counter() - started
        return [self._answer(*one) for one in asked]

    def _request(self, context: str, settings: dict, sample: int) -> tuple[Request, list[str]]:
        kwargs = normalize_gen_kwargs(dict(settings), 256)
        stops = [s for s in handle_stop_sequences(kwargs.pop("until", None), eos=None) if s]
        talk_ = json.loads(context)
        messages = [sent(m) for m in talk_["messages"]]
        body: dict[str, Any] = {"model": self.said.model, "messages": messages, self.said.limit_key: kwargs["max_gen_toks"]}
        if kwargs.get("do_sample"):
            body["temperature"] = float(kwargs.get("temperature") or 1.0)
        elif self.said.temperature is not None:
            body["temperature"] = self.said.temperature
        if stops:
            body["stop"] = stops[:MOST_STOPS]
        if talk_["tools"]:
            body["tools"] = talk_["tools"]
        return Request(body | dict(self.said.extra), sample), stops

    def _answer(self, request: Request, stops: list[str]) -> str:
        answer = self.asking.book.find(request)
        if answer is None:
            why = self.asking.desk.gave_up.get(request.key, "not asked")
            raise StepFailed(f"{self.name} did not answer a question: {why}", mend="all answers so far are kept: run the same command again")
        self.usage[request.key] = answer.usage
        if answer.seconds is not None:
            self.timed[request.key] = answer.seconds, answer.usage["output"]
        text = answer.text or ""
        if made := answer.message.get("tool_calls"):
            text += "".join(f"<tool_call>{json.dumps(_call(c), ensure_ascii=False)}</tool_call>" for c in made)
        return postprocess_generated_text(generation=text, stop=stops, think_end_token=None)

    def told(self) -> dict[str, Any]:
        """What was asked and paid, what the endpoint said it was, its prices, and how many tokens a request has there, as it counts them."""
        out = self.asking.told() | {"observed": dict(self.asking.desk.observed.most_common(8))}
        if self.said.prices is not None:
            out["prices"] = self.said.prices.model_dump(mode="json", include={"input", "output"})
        means = {f"{side}_tokens": sum(u[side] for u in self.usage.values()) / max(len(self.usage), 1) for side in ("input", "output")}
        return out | ({"mean": means} if all(means.values()) else {})

    def speed(self) -> dict[str, Any]:
        """How long its answers took, as its clients met it when they were asked; {} where no call was timed."""
        if not self.timed:
            return {}
        seconds, written = zip(*self.timed.values(), strict=True)
        return timing.of_answers(list(seconds), list(written))

    def close(self) -> None:
        self.asking.close()


def _call(made: dict) -> dict:
    return {"name": made["function"]["name"], "arguments": made["function"]["arguments"]}

