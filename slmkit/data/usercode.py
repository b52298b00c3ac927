"""A file of the user's Python (rewards, a verifier): one of its functions, and at which of its lines it failed."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import slmkit
from slmkit.errors import Problem, RecipeError


def function(file: Path, name: str, what: str, example: str) -> Callable[..., Any]:
    """The function of that name. what: the file in words, example: a function that would do, for errors. Raises RecipeError for a file that
    cannot be run or lacks it."""
    called = getattr(_module(file, what), name, None)
    if inspect.iscoroutinefunction(called):
        raise RecipeError([Problem(f"`{name}` is `async`, and is called as it is", str(file), mend=f"write `{example}`")])
    if not callable(called):
        raise RecipeError([Problem(f"{file.name} has no function `{name}`", str(file), mend=f"write `{example}`")])
    return called


def _module(file: Path, what: str) -> ModuleType:
    name = f"slmkit_user_code_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file, loader=SourceFileLoader(name, str(file)))
    module, before = importlib.util.module_from_spec(spec), set(sys.modules)
    sys.modules[name] = module  # dataclasses look themselves up there
    try:
        spec.loader.exec_module(module)
    except SyntaxError as e:
        if e.filename != str(file):  # of what it runs
            raise RecipeError([Problem(f"{what} cannot be imported: SyntaxError: {e}", str(file), line(file, e))]) from e
        problem = Problem(f"this is no Python: {e.msg}", str(file), e.lineno or 0, e.offset or 0, (e.text or "").rstrip("\n"))
        raise RecipeError([problem]) from None
    except (Exception, SystemExit) as e:  # noqa: BLE001  the user's code may raise anything
        mend = f"install it: pip install {e.name}" if isinstance(e, ModuleNotFoundError) and e.name else None
        raise RecipeError([Problem(f"{what} cannot be imported: {type(e).__name__}: {e}", str(file), line(file, e), mend=mend)]) from e
    if beside := _beside(file, before):
        said = f"{what} imports {beside.name} beside it, which is no part of what the recipe names: a change in it would not be seen"
        raise RecipeError([Problem(said, str(file), mend="put it all into one file, or install the other as a package")])
    return module


def _beside(file: Path, before: set[str]) -> Path | None:
    """A file that came to be imported from the code's own folder, packages installed below it aside."""
    files = (Path(m.__file__) for n, m in list(sys.modules.items()) if n not in before and getattr(m, "__file__", None))
    near = (f for f in files if file.parent.resolve() in f.resolve().parents and not {"site-packages", "dist-packages"} & set(f.parts))
    return next((f for f in near if f.resolve() != file.resolve() and not f.is_relative_to(Path(slmkit.__file__).parent)), None)


def line(file: Path, error: BaseException) -> int:
    """The last of the file's lines that the error passed through, 0 if none."""
    lines = [number for frame, number in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == str(file)]
    return lines[-1] if lines else 0


def place(file: Path, error: BaseException) -> str:
    """FILE:LINE of an error."""
    return f"{file}:{line(file, error)}".removesuffix(":0")


def defined(file: Path, called: Any) -> str:
    """FILE:LINE of a function."""
    code = getattr(called, "__code__", None)
    return f"{file}:{code.co_firstlineno}" if code else str(file)
