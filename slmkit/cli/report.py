"""The verb `report`: what is known of artifacts and of the chain behind them, as one page, Markdown or JSON."""

from __future__ import annotations

import json as js
import os
from pathlib import Path
from typing import Annotated

import typer

from slmkit.cli import out
from slmkit.cli.verbs import STORE, StoreOpt
from slmkit.errors import StoreError, UsageError

RefsArg = Annotated[
    list[str], typer.Argument(metavar="REF…", show_default=False, help="Artifacts: recipe/step, a step's name, a path, a fingerprint.")
]
FORMATS = ("html", "md", "json")


def report(
    refs: RefsArg,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where it is written; - is stdout. [default: report.html, .md or .json]")
    ] = None,
    format_: Annotated[str, typer.Option("--format", metavar="html|md|json", help="A page, Markdown for a pull request, or all figures.")] = "html",
    store: StoreOpt = STORE,
) -> None:
    """Write a report of artifacts and of the chain behind them: how good, how sure, how large, fast and dear, from what, and how to do it again.

    \b
      slmkit report banking/score                                   report.html: one page that loads nothing
      slmkit report banking/score banking/prod -o both.html         evals side by side
      slmkit report banking/score --format md -o - | gh pr comment --body-file -
      slmkit report banking/score --format json -o - | jq '.scores[] | select(.main)'

    An eval draws in all that its models came from. The same artifacts give the same bytes. What is gone from the store is said.
    """
    if format_ not in FORMATS:
        raise UsageError(f"--format {format_}: it is one of {', '.join(FORMATS)}", mend="leave it out for a page")
    text = render(store, refs, format_)
    if str(output) == "-":
        return out.show(text)
    path = output or Path(f"report.{format_}")
    write(path, text)
    out.show(str(path))


def render(store: Path, refs: list[str], format_: str) -> str:
    """The report's text. Raises UsageError for what is no artifact, CheckFailed for an eval whose files were altered."""
    from slmkit.cli import evals
    from slmkit.report.gather import gather

    asked = list({a.path: a for a in (evals.resolve(store, text) for text in refs)}.values())
    gathered = gather(asked, _finder(store, asked))
    if format_ == "json":
        return js.dumps(gathered.plain(), indent=1, allow_nan=False) + "\n"
    if format_ == "md":
        from slmkit.report import markdown

        return markdown.render(gathered)
    from slmkit.report import page

    return page.render(gathered)


def _finder(store: Path, asked: list):
    """Looks for fingerprints in the store, and beside the artifacts that were named by a path into another one."""
    from slmkit.artifact.store import Store

    roots = list(dict.fromkeys([store.absolute(), *(a.path.parent for a in asked)]))
    known = {a.fingerprint: a for root in reversed(roots) for a in Store(root).artifacts()}
    return known.get


def write(path: Path, text: str) -> None:
    """Whole or not at all: by a rename."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8", newline="\n")
        os.replace(part, path)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise StoreError(f"cannot write the report: {e.strerror}", where=path, mend="name another file with -o") from None


COMMANDS = {"report": report}
