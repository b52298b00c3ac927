"""`init --ci github`: the workflow that runs a recipe on every pull request, gates it, and keeps what was judged."""

from __future__ import annotations

import re
from pathlib import Path

from slmkit import __version__
from slmkit.errors import UsageError

PLACE = ".github/workflows/slmkit.yml"
WORKFLOW = """\
# Runs the recipe, judges its evals, and shows the verdicts in the pull request. Written by `slmkit init --ci github`; yours to change.
name: slmkit
on:
  pull_request:
  workflow_dispatch:
permissions:
  contents: read
jobs:
  gate:
    runs-on: ubuntu-latest
    timeout-minutes: 120
    env:
      SLMKIT: slmkit=={version}            # what pip installs: a release, or git+https://…@TAG
      PIP_EXTRA_INDEX_URL: https://download.pytorch.org/whl/cpu{secrets}
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.11"
      - name: Install
        run: pip install "$SLMKIT"
      - uses: actions/cache@v4             # finished steps are not done again
        with:
          path: artifacts
          key: slmkit-${{{{ github.run_id }}}}
          restore-keys: slmkit-
      - name: Run
        run: slmkit run {recipe} --locked || test $? -eq 3   # 3: a bound does not hold; the gate says which
{gates}
      - uses: actions/upload-artifact@v4
        if: always()
        with:
          name: gate
          path: |
            gate-*.md
            gate-*.xml
"""
GATE = """\
      - name: Gate {step}
        if: success() || failure()
        run: slmkit gate {name}/{step} --github --summary gate-{step}.md --junit gate-{step}.xml"""


def write(folder: Path) -> Path:
    """Write the workflow for folder/recipe.yaml; returns its path. Raises UsageError when it is there, or nothing could be gated."""
    from slmkit.recipe.load import load

    place, recipe = folder / PLACE, load(folder / "recipe.yaml")
    if place.exists():
        raise UsageError("a workflow is there already, and is not overwritten", where=place, mend="move it away")
    evals = {name: step.config for name, step in recipe.steps.items() if step.kind.name == "eval"}
    gated = [name for name, config in evals.items() if config.expect]
    if not gated:
        lacks = "no eval of the recipe has an `expect`" if evals else "the recipe has no eval"
        raise UsageError(f"{lacks}, so there is nothing to gate", where=folder / "recipe.yaml", mend='`expect: {MODEL.TASK.METRIC: ">= 0.9"}`')
    keys = dict.fromkeys(re.findall(r"^[^#\n]*api_key_env:\s*[\"']?([A-Za-z_]\w*)", recipe.raw.decode(), re.MULTILINE))
    secrets = "".join(f"\n      {key}: ${{{{ secrets.{key} }}}}" for key in keys)
    gates = "\n".join(GATE.format(step=step, name=recipe.name) for step in gated)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(WORKFLOW.format(version=__version__, secrets=secrets, recipe="recipe.yaml", gates=gates), encoding="utf-8")
    return place
