"""The teacher answers n times and compares its own answers by a rubric: the best and the worst become a pair for preference training.

All answers to a prompt are judged in one reply, in a drawn order, once or several times in other orders. Answers that are the same are shown
once. Where the best does not lead by the margin, or no reply can be read, there is no pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import fmean

from slmkit.data import sides
from slmkit.teach import judging, rating
from slmkit.teach.filters import WHOLE
from slmkit.teach.job import Job, Made, samples
from slmkit.teach.judging import Unreadable
from slmkit.teach.request import Request

ROWS = "`prompt` with a `chosen` and a `rejected` answer, and their scores"


def _sample(job: Job, prompt, sample: int) -> Request:
    return job.request(job.asked(prompt), sample, response_format=job.schema)


def stages(job: Job) -> Iterator[Callable]:
    yield lambda: samples(job, lambda prompt, sample: _sample(job, prompt, sample))
    for trial in range(judging.TRIALS):
        yield lambda trial=trial: _questions(job, trial)


def _group(job: Job, prompt) -> tuple[list[str], str]:
    """The answers that are there, whole and different, in the order of their samples; and why some are not."""
    found, why, seen = [], "", set()
    for sample in range(job.config.n):
        answer, missing = job.found(_sample(job, prompt, sample))
        if answer is None:
            why = missing
        elif answer.finish not in WHOLE:
            why = "an answer was cut at max_tokens" if answer.finish == "length" else f"an answer ended with `{answer.finish}`"
        elif (text := job.said(answer)[0]).strip() and (mark := sides.normal(text)) not in seen:
            seen.add(mark)
            found.append(text)
    return found, why


def _questions(job: Job, trial: int) -> Iterator[Request]:
    for prompt in job.prompts:
        answers, _ = _group(job, prompt)
        for number in range(job.config.preference.orders) if len(answers) > 1 else ():
            if not trial or _scores(job, prompt, answers, number, trial)[1] is not None:
                yield _question(job, prompt, answers, number, trial)[0]


def _question(job: Job, prompt, answers: list[str], number: int, trial: int) -> tuple[Request, list[int]]:
    """(the request, the order in which it shows the answers)."""
    order = judging.shuffled(len(answers), job.config.seed or 0, trial, prompt.text, number=number)
    asked = job.student(prompt.messages)
    known = job.known(prompt) | {"messages": [m | {"content": m.get("content") or ""} for m in asked]}
    messages = judging.ask_scores(job.judge_template, prompt.place, known, answers, order, job.config.judge.rubric, rating.scale(job))
    return rating.request(job, messages, number + trial * job.config.preference.orders), order


def _scores(job: Job, prompt, answers: list[str], number: int, trials: int) -> tuple[list[float], str | None]:
    """(the scores of one order, why there are none)."""
    why: str | None = "not asked"
    for trial in range(trials):
        request, order = _question(job, prompt, answers, number, trial)
        reply, missing = job.found(request)
        if reply is None:
            return [], missing if not trial else why
        try:
            return [v.score for v in judging.scores(reply.text, order, rating.scale(job))], None
        except Unreadable as e:
            why = str(e)
    return [], why


def made(job: Job) -> Iterator[Made]:
    return (_made(job, prompt) for prompt in job.prompts)


def _made(job: Job, prompt) -> Made:
    answers, missing = _group(job, prompt)
    asked, said = job.student(prompt.messages), job.config.preference
    base = {"question": prompt.text, "reference": prompt.reference, "messages": tuple(asked)}
    if not answers:
        return Made(prompt.place, why=missing or "the answers are empty", **base)
    if len(answers) < 2:
        return Made(prompt.place, why=f"only one answer{f' ({missing})' if missing else ': all are the same'}", by="verdict", **base)
    read = [_scores(job, prompt, answers, number, judging.TRIALS) for number in range(said.orders)]
    lists = [scores for scores, why in read if why is None]
    if not lists:
        return Made(prompt.place, why=f"no ranking: {read[0][1]}", by="verdict", **base)
    scores = [round(fmean(of), 4) for of in zip(*lists, strict=True)]
    best, worst = max(scores), min(scores)
    if best == worst or best - worst < said.margin:
        return Made(prompt.place, why=f"a tie: the best leads the worst by {best - worst:g}", by="verdict", **base)
    chosen, rejected = (answers[scores.index(s)] for s in (best, worst))
    row = {
        "prompt": asked, "chosen": [{"role": "assistant", "content": chosen}], "rejected": [{"role": "assistant", "content": rejected}],
        "score_chosen": float(best), "score_rejected": float(worst),
    }  # fmt: skip
    return Made(prompt.place, row, chosen, more={"score": best}, **base)
