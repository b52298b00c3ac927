"""The bare loops: as many calls at once as told, the answers into a file, and nothing else: no ledger, no budget, no retries.

    python loops.py sdk|httpx|aiohttp URL PROMPTS.jsonl OUT.jsonl CONCURRENCY
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

Call = Callable[[dict], Awaitable[str]]


async def workers(call: Call, prompts: Path, out: Path, concurrency: int) -> None:
    """Each worker takes the next row, asks, and writes the row's line."""
    with prompts.open() as rows, out.open("w") as lines:

        async def worker(left: Iterator[str]) -> None:
            for line in left:
                messages = [{"role": "user", "content": json.loads(line)["prompt"]}]
                said = await call({"model": "bench", "messages": messages, "max_tokens": 64})
                lines.write(json.dumps({"messages": [*messages, {"role": "assistant", "content": said}]}) + "\n")

        left = iter(rows)
        await asyncio.gather(*(worker(left) for _ in range(concurrency)))


async def sdk(url: str, prompts: Path, out: Path, concurrency: int) -> None:
    import openai

    async with openai.AsyncOpenAI(api_key="none", base_url=url, max_retries=0, http_client=openai.DefaultAioHttpClient()) as client:

        async def call(body: dict) -> str:
            return (await client.chat.completions.create(**body)).choices[0].message.content

        await workers(call, prompts, out, concurrency)


async def httpx(url: str, prompts: Path, out: Path, concurrency: int) -> None:
    import httpx2

    async with httpx2.AsyncClient(limits=httpx2.Limits(max_connections=concurrency), timeout=60) as client:

        async def call(body: dict) -> str:
            return (await client.post(url + "/chat/completions", json=body)).json()["choices"][0]["message"]["content"]

        await workers(call, prompts, out, concurrency)


async def aiohttp(url: str, prompts: Path, out: Path, concurrency: int) -> None:
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency)) as client:

        async def call(body: dict) -> str:
            async with client.post(url + "/chat/completions", json=body) as response:
                return (await response.json())["choices"][0]["message"]["content"]

        await workers(call, prompts, out, concurrency)


if __name__ == "__main__":
    name, url, prompts, out, concurrency = sys.argv[1:]
    asyncio.run({"sdk": sdk, "httpx": httpx, "aiohttp": aiohttp}[name](url, Path(prompts), Path(out), int(concurrency)))
