"""The teacher judges rows that were made: one verdict a row (or several, averaged), asked only for rows that the filters before let through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from statistics import fmean

from slmkit.teach import judging
from slmkit.teach.job import Job, Made
from slmkit.teach.judging import Scale, Unreadable, Verdict
from slmkit.teach.request import Request
from slmkit.teach.templates import Template


def scale(job: Job) -> Scale:
    return Scale(*job.config.judge.scale)


def request(job: Job, messages: list[dict], sample: int) -> Request:
    """A question to the judge: with its own temperature and length, where the recipe gives them."""
    said = job.config.judge
    return job.request(messages, sample, temperature=said.temperature, **{job.limit_key: said.max_tokens})


def stages(job: Job, rows: Callable[[], Iterable[Made]], template: Template | None = None, times: int = 1) -> Iterator[Callable]:
    """Stages that bring the verdicts on rows; a verdict that cannot be read is asked for once more. None where nothing is judged."""
    template = template or job.judge_template
    if template is None:
        return
    for trial in range(judging.TRIALS):
        yield lambda trial=trial: _requests(job, rows(), template, times, trial)


def _requests(job: Job, rows: Iterable[Made], template: Template, times: int, trial: int) -> Iterator[Request]:
    before = job.fresh("judge")
    for made in rows:
        if before.why(made) is not None:
            continue
        for number in range(times):
            if trial and _verdict(job, made, template, times, number, trial)[1] is None:
                continue
            yield _request(job, made, template, number + trial * times)


def _request(job: Job, made: Made, template: Template, sample: int) -> Request:
    messages = [m | {"content": m.get("content") or ""} for m in made.messages]
    good = None if job.config.mode == "rewrite" else made.reference  # what was to be improved is no example of a good answer
    known = {"prompt": made.question, "messages": messages, "reference": good, "row": made.more.get("fields", made.row)}
    asked = judging.ask_score(template, made.place, known, made.more.get("judged", made.answer), job.config.judge.rubric, scale(job))
    return request(job, job.led(asked) if job.config.mode == "judge" else asked, sample)


def _verdict(job: Job, made: Made, template: Template, times: int, number: int, trials: int) -> tuple[Verdict | None, str | None]:
    """(the verdict, why there is none) after so many trials."""
    why: str | None = "not asked"
    for trial in range(trials):
        answer, missing = job.found(_request(job, made, template, number + trial * times))
        if answer is None:
            return None, missing if not trial else why
        try:
            return judging.score(answer.text, scale(job)), None
        except Unreadable as e:
            why = str(e)
    return None, why


def rated(job: Job, rows: Iterable[Made], template: Template | None = None, times: int = 1) -> Iterator[Made]:
    """The rows with `score` and `reason` (or `unscored`: why not) in `more`; as they are where nothing is judged."""
    template = template or job.judge_template
    for made in rows:
        if template is None or made.why is not None:
            yield made
            continue
        found = [_verdict(job, made, template, times, number, judging.TRIALS) for number in range(times)]
        read = [verdict for verdict, _ in found if verdict is not None]
        if read:
            more = {"score": round(fmean(v.score for v in read), 4), "reason": read[0].reason}
        else:
            more = {"unscored": found[0][1]}
        yield replace(made, more=made.more | more)
