"""The entry: finds the verb, builds only that command, and turns every failure into one message and an exit code.

Nothing heavier than typer and the standard library is imported before a verb has been chosen; verbs of step kinds come from
file names and docstrings, which are read without importing the kinds.
"""

from __future__ import annotations

import os
import sys

import typer

from slmkit import __version__
from slmkit.cli import again, compare, cost, data, flags, gate, look, report, serve, tend, verbs
from slmkit.cli.out import Terminal, open_closed_streams, stop_on_signals
from slmkit.errors import SlmkitError, UsageError
from slmkit.steps import _registry

ABOUT = """Turn a general small language model into a specialist, and prove it.

\b
  slmkit quickstart                     the whole chain, offline, on a CPU, in minutes
  slmkit run recipe.yaml                all steps; finished ones are not done again
  slmkit plan recipe.yaml               what would happen, and why
  slmkit train r.yaml | slmkit quantize r.yaml --from model=- | slmkit eval r.yaml --from model=- --json

stdout holds the path of what was made (or one JSON object with --json); progress and errors go to stderr.
Exit: 0 done, 1 a step failed, 2 wrong command line or recipe, 3 a check said no, 4 cannot run here, 75 busy, 130/143 interrupted.
"""
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
OTHERS = {
    **verbs.COMMANDS, **data.COMMANDS, **serve.COMMANDS, **look.COMMANDS, **again.COMMANDS, **compare.COMMANDS, **cost.COMMANDS, **gate.COMMANDS,
    **report.COMMANDS, **tend.COMMANDS,
}  # fmt: skip


def main(argv: list[str]) -> int:
    """Run one command line; returns the exit code."""
    try:
        open_closed_streams()
        stop_on_signals()
        if {"--help", "-h"} & set(argv) or not argv:
            return _help(_app(argv), argv)
        if argv == ["--version"]:
            print(__version__)
            return 0
        if argv[0] not in OTHERS and argv[0] in _registry.locations():
            argv = [argv[0], *flags.fold(argv[0], argv[1:])]
        return _app(argv)(args=argv, prog_name="slmkit", standalone_mode=True) or 0
    except SlmkitError as e:
        Terminal().error(e)
        return e.code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as e:  # noqa: BLE001  the last resort: the traceback goes to a file, one line to the screen
        return _unforeseen(e)


def _app(argv: list[str]) -> typer.Typer:
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, help=ABOUT, no_args_is_help=True,
                      context_settings=SETTINGS)
    app.callback()(_root)
    word = next((a for a in argv if not a.startswith("-")), None)
    kinds = list(_registry.locations()) if word not in OTHERS else []
    if word is not None and argv[0] == word and word not in OTHERS and word not in kinds:
        raise _no_such(word)
    for name in [k for k in kinds if word in (k, None)]:
        help_ = verbs.kind_help(name) if word else None
        app.command(name, help=help_, short_help=_first(_registry.doc(name)))(verbs.kind_verb(name) if word else _listed)
    for name, function in OTHERS.items():
        if word in (name, None):
            app.command(name, short_help=_first(function.__doc__))(function if word else _listed)
    return app


def _no_such(word: str) -> UsageError:
    import difflib

    near = difflib.get_close_matches(word, [*_registry.locations(), *OTHERS], 1)
    return UsageError(f"no such command: {word}", mend=f"did you mean `slmkit {near[0]}`?" if near else "`slmkit --help` lists them")


def _listed() -> None:
    """Stands for a command in the list of all: its own options are built only when it is chosen."""



def _help(app: typer.Typer, argv: list[str]) -> int:
    """Print help without parsing the rest: typer's own way loads pydantic to coerce what is then not used."""
    from slmkit.cli.out import show

    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="slmkit", **SETTINGS)
    word = next((a for a in argv if not a.startswith("-")), None)
    if word is not None:
        command = command.get_command(context, word)
        if command is None:
            raise _no_such(word)
        context = typer.Context(command, parent=context, info_name=word, **SETTINGS)
    show(command.get_help(context))
    return 0 if argv else 2


def _first(doc: str) -> str:
    """The first line of a docstring up to its colon or full stop: the line of the command list."""
    line = doc.splitlines()[0]
    return line.partition(":")[0].partition(". ")[0].rstrip(".") if len(line) > 60 else line.rstrip(".")


def _root(version: bool = typer.Option(False, "--version", help="Print the version.", is_eager=True)) -> None:
    if version:
        print(__version__)
        raise typer.Exit()


def _unforeseen(error: Exception) -> int:
    import tempfile
    import traceback

    handle, path = tempfile.mkstemp(prefix="slmkit-", suffix=".log")
    with os.fdopen(handle, "w") as f:
        f.write(f"slmkit {__version__}\n")
        traceback.print_exception(error, file=f)
    line = (str(error).strip().splitlines() or [""])[0][:300]
    print(f"error: {type(error).__name__}: {line}\n  help: this is a fault of slmkit; the traceback is in {path}", file=sys.stderr)
    return 1
