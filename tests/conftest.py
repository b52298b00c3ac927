"""Fixtures that all tests share: the real command line in an empty folder, with and without the kinds of tests/support/cli.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cli import GAUGE, ODD, PEEK, TOY, Cli


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """The command line in an empty folder."""
    return Cli(tmp_path)


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to put on the import path: an installed distribution whose entry point adds the kind `toy`."""
    folder = tmp_path_factory.mktemp("toys")
    (folder / "slmkit_toy.py").write_text(TOY)
    (folder / "slmkit_peek.py").write_text(PEEK)
    (folder / "slmkit_odd.py").write_text(ODD)
    (folder / "slmkit_gauge.py").write_text(GAUGE)
    info = folder / "slmkit_toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slmkit-toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[slmkit.steps]\ntoy = slmkit_toy\npeek = slmkit_peek\nodd = slmkit_odd\ngauge = slmkit_gauge\n")
    return folder


@pytest.fixture
def toy(tmp_path: Path, toys: Path) -> Cli:
    """The command line with the kind `toy`, which needs no torch."""
    return Cli(tmp_path, (toys,))
