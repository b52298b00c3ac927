"""What the trackers of `execution.trackers` are told: which run this is, and where files go that must outlive the work folder.

transformers would write TensorBoard's files below the checkpoints, which are gone once the artifact is published, and call every run
`huggingface` in trackio. They are no part of the artifact: they hold times and host names.
"""

from __future__ import annotations

import os
from pathlib import Path

from slmkit.steps._step import Context

FOLDER = "TENSORBOARD_LOGGING_DIR"
GIVEN = os.environ.get(FOLDER)


def told(ctx: Context) -> dict[str, str]:
    """Arguments for the trainer: `run_name` (as the work folder, `train-79ba67d04f54`) and `project` (the step). {} without trackers.

    TensorBoard writes to $TENSORBOARD_LOGGING_DIR, else to runs/NAME in the folder the command was started in; it is said where.
    """
    names = list(ctx.execution.trackers)
    if not names:
        return {}
    name = ctx.state.parent.name
    if "tensorboard" in names:
        os.environ[FOLDER] = GIVEN or str(Path("runs") / name)  # another run of this process has another folder
        ctx.log("tracker", name="tensorboard", folder=os.environ[FOLDER])
    return {"run_name": name, "project": f"slmkit-{ctx.step}"}
