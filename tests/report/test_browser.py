"""The page in a real browser: it renders, complains of nothing, loads nothing, fits a phone and paper, and no model's answer can do a thing in it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from slmkit.artifact.store import Store
from slmkit.cli.report import render, write
from slmkit.report import markdown
from slmkit.report.gather import gather
from tests.support import browser, chains
from tests.support.browser import Browser
from tests.support.chains import build, finder

pytestmark = pytest.mark.skipif(browser.PROGRAM is None, reason="no chromium or google-chrome on PATH")
HOSTILE = (
    "<script>window.touched = 'script'</script>", "</pre><img src=x onerror=\"window.touched = 'img'\">", "x" * 100_000, "\n```\n# out <b>of</b> it",
    "\u202etxt.exe\u2066 \u200f \x1b[31m \ud800", "{{ 7 * 7 }} `code` @someone | <!-- -->", "]]></style><style>body { display: none }",
    "<svg onload=\"window.touched = 'svg'\">", "javascript:window.touched='url'", "مرحبا بالعالم", "&lt;b&gt; &#60;script&#62;",
)  # fmt: skip
NAME, METRIC = "t<b>$\\frac{x$&\"'", "m<i>$\\frac{x$"


@pytest.fixture(scope="module")
def open_browser():
    one = Browser()
    yield one
    one.close()


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    store = Store(tmp_path_factory.mktemp("good") / "artifacts")
    build(store)
    path = store.root.parent / "report.html"
    write(path, render(store.root, ["shop/score"], "html"))
    return path


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Store:
    """An eval whose task, questions and answers are meant to break a page."""
    store = Store(tmp_path_factory.mktemp("bad") / "artifacts")

    def spoil(out: Path) -> None:
        for shift, file in enumerate(sorted((out / "samples").rglob("*.jsonl"))):
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            for row in rows:
                told, asked, right = (HOSTILE[(row["doc_id"] + by) % len(HOSTILE)] for by in (3 * shift, 0, 1))
                row |= {"filtered_resps": [told], "prompt": asked, "target": right}
            file.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode().replace(b"javascript", b"\xff\xfe javascript"))

    models = {m: {NAME: v["notes"]} for m, v in chains.questions(12).items()}
    for m in models:
        models[m][NAME] = {METRIC: [0.0] * 10 + [1.0] * 2}
    models["int4"][NAME][METRIC] = [0.0] * 12
    build(store, models, spoil=spoil)
    return store


@pytest.mark.parametrize(("wide", "dark", "shown"), [(1280, False, "across"), (390, False, "down"), (390, True, "down")])
def test_it_renders_and_fits(open_browser, good, wide, dark, shown):
    look = open_browser.look(good, wide, dark)
    assert look.errors == [] and look.loaded == []
    assert look.seen["headings"][:4] == ["shop/score", "The chain", "Bounds", "Quality, size, speed and cost"]
    assert "Lineage" in look.seen["headings"] and "How to do it again" in look.seen["headings"]
    assert look.seen["scroll"] <= look.seen["client"] == wide and look.seen["outside"] == []
    assert look.seen["shown"] == [shown] and look.seen["pictures"] == 6 and look.seen["small"] >= 9
    light = [sum(map(int, look.seen[k].removeprefix("rgb(").rstrip(")").split(","))) for k in ("paper", "ink")]
    assert (light[0] < 150 and light[1] > 600) if dark else (light[0] > 700 and light[1] < 200)


def test_it_prints(open_browser, good):
    look = open_browser.look(good, 688, dark=True, paper=True)
    assert look.printed.startswith(b"%PDF-") and len(look.printed) > 30_000
    assert look.seen["paper"] == "rgb(255, 255, 255)" and look.seen["scroll"] <= 688 and look.seen["shown"] == ["across"]
    assert "recipe: shop" in look.seen["text"], "what is folded on the screen is open on paper"


def test_answers_can_do_nothing(open_browser, hostile, tmp_path):
    file = tmp_path / "r.html"
    write(file, render(hostile.root, ["shop/score"], "html"))
    look = open_browser.look(file, 390)
    assert look.seen["touched"] == "undefined" and look.seen["scripts"] == 0 and look.errors == [] and look.loaded == []
    changed = ("\ufffd\ufffd javascript", "\\u202etxt.exe\\u2066 \\u200f \\x1b[31m \\ud800")
    for text in (*HOSTILE[:2], *HOSTILE[5:8], *HOSTILE[9:], NAME, METRIC, *changed):
        assert text in look.seen["text"]
    assert look.seen["scroll"] <= 390 and look.seen["outside"] == [] and file.stat().st_size < 400_000
    assert "\u202e" not in look.seen["text"] and "characters" in look.seen["text"]


def test_a_page_that_would_run_something_is_caught(open_browser, tmp_path):
    """The test of the tests: what they look for is seen where it is."""
    file = tmp_path / "bad.html"
    file.write_text("<meta name=viewport content='width=device-width'><h1>x</h1><div style='width: 900px'>wide</div>"
                    "<script>window.touched = 1; console.error('no')</script><img src='http://127.0.0.1:9/x.png'>")
    look = open_browser.look(file, 390)
    assert look.seen["touched"] == "1" and look.seen["scripts"] == 1 and look.errors and look.loaded == ["http://127.0.0.1:9/x.png"]
    assert look.seen["outside"]


def test_markdown_holds_hostile_answers_too(hostile):
    told = markdown.render(gather([hostile.resolve("shop/score")], finder(hostile)))
    outside, fence = [], ""
    for line in told.splitlines():
        if fence:
            fence = "" if line == fence else fence
        elif line.startswith("```"):
            fence = "`" * (len(line) - len(line.lstrip("`")))
        else:
            outside.append(line)
    plain = re.sub(r"`[^`\n]*`", "", "\n".join(outside))
    assert fence == "" and not [w for w in ("<script", "<b>", "<img", "@someone", "`") if w in plain]
