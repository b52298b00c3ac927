"""The quickstart's end: a report, and a table of what the base could do, what the teacher can, what the student learned, and what INT4 keeps."""

from __future__ import annotations

import time
from pathlib import Path

from slmkit.cli.given import load_and_plan
from slmkit.cli.out import Stdout, Terminal


def build_and_show(verbs, recipe: Path, store: Path, json: bool, quiet: bool) -> None:
    """Run the recipe, then print the table on stderr and the folder of the quantized model on stdout, and write report.html beside the store."""
    import sys

    from slmkit.cli import report
    from slmkit.engine import Engine
    from slmkit.errors import CheckFailed

    stdout, started = Stdout(), time.monotonic()
    verbs.quiet_libraries()
    made, home, _lock = load_and_plan(str(recipe), None, None, None, None, store, True)
    screen = Terminal(quiet)
    engine = Engine(made, home, screen, argv=tuple(sys.argv))
    failed = None
    try:
        engine.run()
    except CheckFailed as e:
        failed = e
    seconds = time.monotonic() - started
    by_name = {o.row.name: o for o in engine.outcomes}
    scored = by_name["score"].artifact
    screen.say(render(scored.manifest, by_name["teach"].artifact.manifest, seconds))
    if json:
        stdout.object(verbs.summary(by_name["int4"], engine.outcomes, seconds))
    else:
        stdout.line(str(by_name["int4"].artifact.path))
    page = store.parent / "report.html"
    report.write(page, report.render(store, [str(scored.path)], "html"))
    screen.say(f"all of it, with its proof: {page}")
    if failed:
        raise failed


def render(scored: dict, taught: dict, seconds: float) -> str:
    """The table as text, from the manifests of the eval and of the teaching: one row per model, exact match and field F1 with standard
    errors, size, speed; what the teacher cost; INT4 against the teacher."""
    result = scored["result"]
    lines = ["", f"{'model':<8} {'exact match':>16} {'field F1':>16} {'size':>10} {'tokens/s':>10}"]
    for model in (i["name"] for i in scored["inputs"] if i["role"] == "models"):
        scores = next(iter(result["scores"][model].values()))
        size = result["size_bytes"][model] / 1e6
        speed = result["speed"][model]["tokens_per_second"]
        lines.append(f"{model:<8} {_score(scores, 'exact_match'):>16} {_score(scores, 'field_f1'):>16} {size:>7.2f} MB {speed:>10.0f}")
    said = taught["result"]
    left_out = sum(said["dropped"].values())
    lines.append(f"the teacher wrote {said['rows']} rows ({left_out} dropped) with {said['tokens']} tokens")
    return "\n".join([*lines, _against(result, "int4", "teacher"), f"in {seconds:.0f} s", ""])


def _against(result: dict, one: str, other: str) -> str:
    """`int4 against teacher: -3.0 points, 0.11 × the size, 1.02 × the tokens/s`."""
    exact = [100 * next(iter(result["scores"][m].values()))["exact_match"] for m in (one, other)]
    size = result["size_bytes"][one] / result["size_bytes"][other]
    speed = result["speed"][one]["tokens_per_second"] / result["speed"][other]["tokens_per_second"]
    return f"{one} against {other}: {exact[0] - exact[1]:+.1f} points, {size:.2f} × the size, {speed:.2f} × the tokens/s"


def _score(scores: dict, name: str) -> str:
    error = scores.get(f"{name}_stderr")
    spread = f" ± {100 * error:.1f}" if isinstance(error, float) else ""
    return f"{100 * scores[name]:.1f} %{spread}"
