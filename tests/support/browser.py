"""A real browser, looked into over its DevTools protocol: what a page shows, what it complains of, and what it tries to load."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

PROGRAM = next((p for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable") if (p := shutil.which(name))), None)
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-extensions", "--hide-scrollbars", "--remote-debugging-port=0")  # fmt: skip
SEEN = """(() => {
  const wide = document.documentElement.clientWidth;
  const own = [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('svg'));
  const out = own.filter(e => e.getBoundingClientRect().right > wide + 1);
  return JSON.stringify({
    title: document.title, text: document.body.innerText, headings: [...document.querySelectorAll('h1, h2')].map(e => e.textContent),
    scroll: document.documentElement.scrollWidth, client: wide, outside: out.map(e => e.outerHTML.slice(0, 120)),
    scripts: document.scripts.length, touched: String(window.touched), pictures: document.querySelectorAll('svg').length,
    shown: [...document.querySelectorAll('svg.chain')].filter(e => e.getBoundingClientRect().width > 0).map(e => e.classList[1]),
    paper: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
    small: Math.min(...[...document.querySelectorAll('svg.plot text')].map(e => e.getBoundingClientRect().height)),
  });
})()"""


@dataclass
class Look:
    """What was seen of one page. errors: the console's, and exceptions. loaded: addresses that it asked for, beside itself."""

    seen: dict = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    picture: bytes = b""
    printed: bytes = b""


class Browser:
    """One headless process; close() ends it."""

    def __init__(self):
        self.home = tempfile.mkdtemp(prefix="slmkit-browser-")
        words = [PROGRAM, *QUIET, f"--user-data-dir={self.home}", "about:blank"]
        self.process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        told, until = Path(self.home, "DevToolsActivePort"), time.monotonic() + 60
        while not (told.is_file() and "\n" in told.read_text()):
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("the browser does not listen")
            time.sleep(0.05)
        self.address = f"127.0.0.1:{told.read_text().splitlines()[0]}"

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        shutil.rmtree(self.home, ignore_errors=True)

    def look(self, page: Path, wide: int, dark: bool = False, paper: bool = False) -> Look:
        """Open a file at a width in CSS pixels. paper: as it is printed, and as a PDF too."""
        return asyncio.run(asyncio.wait_for(self._look(page.resolve().as_uri(), wide, dark, paper), 60))

    async def _look(self, url: str, wide: int, dark: bool, paper: bool) -> Look:
        async with aiohttp.ClientSession() as session:
            async with session.put(f"http://{self.address}/json/new?about:blank") as answer:
                target = await answer.json(content_type=None)
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                talk = _Talk(socket)
                for domain in ("Page", "Runtime", "Log", "Network"):
                    await talk(f"{domain}.enable")
                await talk("Emulation.setDeviceMetricsOverride", width=wide, height=900, deviceScaleFactor=1, mobile=wide < 600)
                scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
                await talk("Emulation.setEmulatedMedia", media="print" if paper else "", features=[scheme])
                await talk("Page.navigate", url=url)
                await talk.until("Page.loadEventFired")
                found = Look(json.loads((await talk("Runtime.evaluate", expression=SEEN))["result"]["value"]))
                shot = await talk("Page.captureScreenshot", captureBeyondViewport=True)
                found.picture = base64.b64decode(shot["data"])
                if paper:
                    found.printed = base64.b64decode((await talk("Page.printToPDF", printBackground=True))["data"])
                found.errors, found.loaded = _told(talk.events, url)
            async with session.get(f"http://{self.address}/json/close/{target['id']}"):
                return found


class _Talk:
    def __init__(self, socket):
        self.socket, self.events, self.number = socket, [], 0

    async def __call__(self, method: str, **params) -> dict:
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": params})
        while True:
            said = await self.socket.receive_json()
            if said.get("id") == self.number:
                assert "error" not in said, said["error"]
                return said["result"]
            self.events.append(said)

    async def until(self, event: str) -> None:
        while not any(e.get("method") == event for e in self.events):
            self.events.append(await self.socket.receive_json())


def _told(events: list[dict], own: str) -> tuple[list[str], list[str]]:
    errors, loaded = [], []
    for event in events:
        method, params = event.get("method"), event.get("params", {})
        if method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            errors.append(json.dumps(params)[:300])
        elif method == "Log.entryAdded":
            errors.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent" and params["request"]["url"] != own and not params["request"]["url"].startswith("data:"):
            loaded.append(params["request"]["url"])
    return errors, loaded
