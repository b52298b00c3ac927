"""An endpoint's batch API through the official SDK: what its errors mean, and a batch that is created once, whatever becomes of the answer."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from slmkit.errors import CannotRun, SlmkitError, UsageError
from slmkit.teach.endpoint import NO_MONEY, Route
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

    url, status, key = route.base_url, getattr(e, "status_code", None), route.key_of("api_key_env")
    if isinstance(e, openai.APIConnectionError):
        return CannotRun(f"{url}: {e.__cause__ or e}", mend="check the network; the same command goes on", key=route.key_of("base_url"))
    if status in (401, 403):
        mend = f"check the key in {route.key_name}" if route.key_name else f"name the key's variable: `{key}`"
        return CannotRun(f"{url}: {e}", mend=mend, key=key)
    if status == 404:
        return CannotRun(f"{url} has no batch API: {e}", mend="set `execution.transport: auto`", key="execution.transport")
    if status == 429 and "insufficient_quota" in (e.code, e.type):
        return CannotRun(f"{url}: {e}", mend=NO_MONEY, key=key)
    if status is None or status >= 500 or status in UNSURE:
        return CannotRun(f"{url}: {e}", mend="the endpoint cannot just now; everything is kept, and the same command goes on", key=route.block)
    return UsageError(f"{url}: {e}", mend="the endpoint does not take this batch: see what it says", key=route.block)


def field(response: Any, name: str) -> str:
    """A field that the batch API must say. Raises CannotRun where something else answered: a proxy's page, say, with status 200."""
    found = getattr(response, name, None)
    if not isinstance(found, str) or not found:
        what = f"the batch API answered without `{name}`: {' '.join(str(response).split())[:120]}"
        mend = "everything is kept, and the same command goes on; where it stays so, set `execution.transport: auto`"
        raise CannotRun(what, mend=mend, key="teacher")
    return found


def find(client: Any, batch: Batch) -> tuple[bool, str | None]:
    """(whether the endpoint can tell, the name of the batch that was created with this token)."""
    import openai

    try:
        listed = client.batches.list(limit=100)
        if not isinstance(getattr(listed, "data", None), list):
            return False, None
        for one in islice(listed, LISTED):
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
            made = once.batches.create(
                input_file_id=batch.upload, endpoint="/v1/chat/completions", completion_window="24h", metadata={"slmkit": batch.token}
            )
            return field(made, "id")
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


def content(client: Any, name: str) -> Iterator[dict] | None:
    """The answers in a file, None where it is gone. Raises CannotRun for what are no such lines."""
    import openai

    try:
        return _read(client.files.content(name).iter_lines(), name)
    except openai.NotFoundError:
        return None


def _read(lines: Iterator[str], name: str) -> Iterator[dict]:
    for line in lines:
        if not line.strip():
            continue
        try:
            said = json.loads(line)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            mend = "everything is kept, and the same command goes on"
            raise CannotRun(f"the file of answers {name} is no JSON lines: {line[:120]}", mend=mend, key="teacher")
        yield said
