"""An endpoint's batch API through the official SDK: what its errors mean, and a batch that is created once, whatever becomes of the answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from slmkit.errors import CannotRun, SlmkitError, UsageError
from slmkit.teach.endpoint import Route
from slmkit.teach.underway import Batch

PAUSES = (1.0, 3.0)  # between trials to create a batch
UNSURE = (408, 409, 425, 429)  # with all from 500 on: the same request may succeed later
NO_LIST = (404, 405, 501)  # what endpoints answer that cannot list batches
LISTED = 1000  # of the newest batches, so many are looked through


@contextmanager
def connected(route: Route) -> Iterator[Any]:
    """The SDK, its errors as slmkit's."""
    import openai

    client = openai.OpenAI(api_key=route.key or "none", base_url=route.base_url, max_retries=5, timeout=route.timeout)
    try:
        yield client
    except openai.APIError as e:
        raise _meaning(e, route) from None
    finally:
        client.close()


def _meaning(e: Exception, route: Route) -> SlmkitError:
    """What an error of the SDK means once its own trials are over."""
    import openai

    url, status = route.base_url, getattr(e, "status_code", None)
    if isinstance(e, openai.APIConnectionError):
        return CannotRun(f"{url}: {e.__cause__ or e}", mend="check the network; the same command goes on")
    if status in (401, 403):
        mend = f"check the key in {route.key_name}" if route.key_name else "name the key's variable: `teacher.api_key_env`"
        return CannotRun(f"{url}: {e}", mend=mend)
    if status == 404:
        return CannotRun(f"{url} has no batch API: {e}", mend="set `execution.transport: auto`")
    if status == 429 and "insufficient_quota" in (e.code, e.type):
        return CannotRun(f"{url}: {e}", mend="the account has no money left: top it up and run the same command again")
    if status is None or status >= 500 or status in UNSURE:
        return CannotRun(f"{url}: {e}", mend="the endpoint cannot just now; everything is kept, and the same command goes on")
    return UsageError(f"{url}: {e}", mend="the endpoint does not take this batch: see what it says")


def find(client: Any, batch: Batch) -> tuple[bool, str | None]:
    """(whether the endpoint can tell, the name of the batch that was created with this token)."""
    import openai

    try:
        for one in islice(client.batches.list(limit=100), LISTED):
            if (one.metadata or {}).get("slmkit") == batch.token or one.input_file_id == batch.upload:
                return True, one.id
    except openai.APIStatusError as e:
        if e.status_code not in NO_LIST:
            raise
        return False, None
    return True, None


def create(client: Any, batch: Batch) -> str:
    """Create it once: not by the SDK's trials, which know nothing of a batch whose creation was not answered in time."""
    import openai

    once = client.with_options(max_retries=0)
    for pause in (*PAUSES, None):
        try:
            return once.batches.create(
                input_file_id=batch.upload, endpoint="/v1/chat/completions", completion_window="24h", metadata={"slmkit": batch.token}
            ).id
        except openai.APIError as e:
            status = getattr(e, "status_code", 500)
            if status < 500 and status not in UNSURE or "insufficient_quota" in (e.code, e.type):
                batch.note.unlink()  # refused
                raise
            known, name = find(client, batch)
            if name:
                return name
            if pause is None or not (known or status == 429):
                raise
            time.sleep(pause)
    raise AssertionError


def content(client: Any, name: str) -> Iterator[str] | None:
    """The lines of a file, None where it is gone."""
    import openai

    try:
        return client.files.content(name).iter_lines()
    except openai.NotFoundError:
        return None
