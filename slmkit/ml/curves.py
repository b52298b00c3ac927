"""loss.png: the course of a training as a picture. The same numbers give the same bytes."""

from __future__ import annotations

from pathlib import Path


def draw(history: list[dict], path: Path) -> None:
    """Training loss by step (and its running mean), validation loss, and the reward where there is one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [(h["step"], h["loss"]) for h in history if "loss" in h]
    held_out = [(h["step"], h["validation_loss"]) for h in history if "validation_loss" in h]
    rewards = [(h["step"], h["reward"]) for h in history if "reward" in h]
    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(*zip(*steps, strict=True), color="#9db8d9", linewidth=1, label="loss per step")
    axes.plot([s for s, _ in steps], _smooth([v for _, v in steps]), color="#1f5a9e", linewidth=2, label="running mean")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), color="#c2571a", marker="o", linewidth=1.5, label="validation loss")
    if rewards:
        right = axes.twinx()
        right.plot(*zip(*rewards, strict=True), color="#3a8a4d", linewidth=1.2, label="reward")
        right.set_ylabel("reward")
        right.legend(loc="lower right", frameon=False)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.25)
    axes.legend(loc="upper right", frameon=False)
    figure.savefig(path, metadata={"Software": None})


def _smooth(values: list[float], weight: float = 0.9) -> list[float]:
    """Exponential mean, corrected at the start."""
    out, mean, scale = [], 0.0, 0.0
    for value in values:
        mean, scale = weight * mean + (1 - weight) * value, weight * scale + (1 - weight)
        out.append(mean / scale)
    return out
