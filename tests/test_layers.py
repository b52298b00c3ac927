"""Who may know whom: the import rules of the architecture, held by reading every module's syntax tree.

Imports are told apart by when they happen: at the top of a module (its importer pays) or inside a function (its caller pays).
Each layer is a prefix of module names with what its modules may import of slmkit; the longest prefix that fits decides.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "peft", "trl", "datasets", "bitsandbytes", "lm_eval", "accelerate", "gptqmodel", "optimum"}
HEAVY |= {"huggingface_hub", "safetensors", "numpy", "pandas", "pyarrow", "fsspec", "scipy", "sklearn"}


@dataclass(frozen=True)
class Layer:
    """anywhere: what may be imported at the top or in functions. inside: what may be imported in functions only."""

    anywhere: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    heavy_at_top: bool = False
    heavy_inside: bool = True


REGISTRY = "slmkit.steps._"  # a prefix: _registry, _step and what else the kinds share
PLANS = ("slmkit.plan", "slmkit.hashed", "slmkit.inputs", "slmkit.recipe", "slmkit.sources", "slmkit.remote", "slmkit.artifact",
         "slmkit.errors", REGISTRY)  # fmt: skip
LAYERS = {
    "slmkit": Layer(),
    "slmkit.errors": Layer(heavy_inside=False),
    "slmkit.events": Layer(("slmkit.errors",), heavy_inside=False),
    "slmkit.artifact": Layer(("slmkit.artifact", "slmkit.errors"), heavy_inside=False),
    "slmkit.sources": Layer(("slmkit.artifact", "slmkit.errors"), ("slmkit.demo", "slmkit.data")),
    "slmkit.remote": Layer(("slmkit.sources", "slmkit.errors")),
    "slmkit.steps": Layer(("slmkit.errors", REGISTRY), ("slmkit.ml", "slmkit.data", "slmkit.teach", "slmkit.evidence")),
    REGISTRY: Layer(("slmkit.errors", REGISTRY), ("slmkit.evidence.power",)),  # arithmetic that `plan` can afford
    "slmkit.evidence": Layer(("slmkit.evidence", "slmkit.errors", REGISTRY)),
    "slmkit.report": Layer(("slmkit.report", "slmkit.evidence", "slmkit.artifact", "slmkit.errors", REGISTRY), ("slmkit.data",)),
    "slmkit.recipe": Layer(("slmkit.recipe", "slmkit.sources", "slmkit.artifact", "slmkit.errors", REGISTRY)),
    "slmkit.inputs": Layer(("slmkit.recipe", "slmkit.sources", "slmkit.remote", "slmkit.artifact", "slmkit.errors", REGISTRY), ("slmkit.data",)),
    "slmkit.hashed": Layer(("slmkit.inputs", "slmkit.recipe", "slmkit.errors", REGISTRY)),
    "slmkit.plan": Layer(PLANS),
    "slmkit.capture": Layer(heavy_inside=False),
    "slmkit.engine": Layer((*PLANS, "slmkit.engine", "slmkit.capture", "slmkit.events")),
    "slmkit.rebuild": Layer((*PLANS, "slmkit.rebuild", "slmkit.engine")),
    "slmkit.data": Layer(("slmkit.data", "slmkit.errors", REGISTRY)),
    "slmkit.teach": Layer(("slmkit.teach", "slmkit.data", "slmkit.errors", "slmkit.events", REGISTRY), ("slmkit.ml",)),
    "slmkit.ml": Layer(("slmkit.ml", "slmkit.data", "slmkit.teach", "slmkit.evidence", "slmkit.errors", REGISTRY), heavy_at_top=True),
    "slmkit.serve": Layer(("slmkit.serve", "slmkit.ml", "slmkit.errors", REGISTRY), heavy_at_top=True),
    "slmkit.demo": Layer(("slmkit.demo", "slmkit.errors"), ("slmkit.ml",), heavy_at_top=True),
    "slmkit.demo.project": Layer(("slmkit.demo", "slmkit.recipe", "slmkit.errors")),  # writes a recipe and its schema for `init`
    "slmkit.cli": Layer((*PLANS, "slmkit.cli", "slmkit.engine", "slmkit.events"),
                        ("slmkit.demo", "slmkit.data", "slmkit.serve", "slmkit.evidence", "slmkit.report", "slmkit.rebuild")),
    "slmkit.__main__": Layer(("slmkit.cli", "slmkit.errors")),
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(p): p for p in sorted((ROOT / "slmkit").rglob("*.py"))}


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix if prefix.endswith("_") else prefix + ".")


def layer_of(name: str) -> Layer:
    return LAYERS[max((p for p in LAYERS if within(name, p)), key=len)]


@dataclass(frozen=True)
class Import:
    module: str
    top: bool
    line: int


def imports_of(source: str, name: str, package: bool) -> list[Import]:
    """Every import of a module, absolute. Those under `if TYPE_CHECKING:` never happen and are left out."""
    found: list[Import] = []

    def names(node: ast.Import | ast.ImportFrom) -> list[str]:
        if isinstance(node, ast.Import):
            return [a.name for a in node.names]
        base = node.module or ""
        if node.level:
            start = name.split(".")[: len(name.split(".")) - node.level + package]
            base = ".".join([*start, *([base] if base else [])])
        members = [f"{base}.{a.name}" for a in node.names]
        return [m if m in FILES else base for m in members]

    def visit(node: ast.AST, top: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.extend(Import(n, top, node.lineno) for n in names(node))
        inner = top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(ast.parse(source), True)
    return found


def faults(source: str, name: str, package: bool = False) -> list[str]:
    """What a module imports that its layer may not, each as `line N: …`."""
    layer, wrong = layer_of(name), []
    for i in imports_of(source, name, package):
        first = i.module.split(".")[0]
        if i.module == "slmkit" or i.module == name:
            continue  # the version
        if first == "slmkit":
            allowed = layer.anywhere + (() if i.top else layer.inside)
            if not any(within(i.module, p) for p in allowed):
                where = "at the top" if any(within(i.module, p) for p in layer.inside) else "at all"
                wrong.append(f"line {i.line}: {name} may not import {i.module} {where}")
        elif first in HEAVY and not (layer.heavy_at_top if i.top else layer.heavy_inside):
            wrong.append(f"line {i.line}: {name} may not import {first} {'at the top' if i.top else 'at all'}")
    return wrong


@pytest.mark.parametrize("name", FILES)
def test_imports_only_what_its_layer_may(name):
    path = FILES[name]
    assert faults(path.read_text(), name, path.name == "__init__.py") == []


@pytest.mark.parametrize("name", FILES)
def test_opens_with_a_docstring(name):
    assert ast.get_docstring(ast.parse(FILES[name].read_text())), f"{FILES[name]} says nothing of its idea"


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("slmkit.artifact.store", "from slmkit.recipe import model", "may not import slmkit.recipe"),
        ("slmkit.artifact.store", "def f():\n    import torch", "may not import torch at all"),
        ("slmkit.plan", "import slmkit.engine", "may not import slmkit.engine at all"),
        ("slmkit.plan", "from slmkit import engine, ml", "may not import slmkit."),
        ("slmkit.engine", "def f():\n    from slmkit.cli import main", "may not import slmkit.cli"),
        ("slmkit.steps.train", "from slmkit.ml import lora", "may not import slmkit.ml"),
        ("slmkit.steps.train", "from . import merge", "may not import slmkit.steps"),
        ("slmkit.steps.train", "from slmkit.artifact.store import Store", "may not import slmkit.artifact"),
        ("slmkit.steps.train", "class Config:\n    import torch", "may not import torch at the top"),
        ("slmkit.errors", "from slmkit.events import Log", "may not import slmkit.events"),
        ("slmkit.sources", "import huggingface_hub.errors", "may not import huggingface_hub at the top"),
        ("slmkit.cli.main", "try:\n    import transformers\nexcept ImportError: pass", "may not import transformers at the top"),
        ("slmkit.cli.main", "def f():\n    import slmkit.ml.gptq", "may not import slmkit.ml"),
    ],
)
def test_a_breach_is_found(name, source, fault):
    assert any(fault in found for found in faults(source, name)), faults(source, name)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("slmkit.steps.train", "from slmkit.steps._step import Takes\ndef f():\n    import torch, slmkit.ml.lora"),
        ("slmkit.artifact.store", "from slmkit import __version__\nfrom slmkit.errors import StoreError"),
        ("slmkit.cli.main", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("slmkit.ml.gptq", "import torch\nfrom slmkit.ml import models"),
    ],
)
def test_what_is_allowed_is_not_called_a_breach(name, source):
    assert faults(source, name) == []
