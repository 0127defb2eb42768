"""How a training run went, as one picture: loss, held-out figure and learning rate by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_SMOOTH = 20  # the loss is shown as it is and as a mean over a 20th of the steps


@dataclass(frozen=True)
class Curves:
    """What is drawn."""

    loss: tuple[float, ...]  # of each step
    learning_rate: tuple[float, ...]  # of each step
    looks: tuple[Mapping[str, float], ...]  # step and `validation.Scores` of each look
    kept_step: int | None  # after which step the kept weights stood


def draw_curves(path: Path, curves: Curves, title: str) -> None:
    """Write a PNG; needs no display and leaves matplotlib's own settings alone."""
    from matplotlib.figure import Figure  # slow to import, and few who train need it twice

    figure = Figure(figsize=(7, 8), layout="constrained")
    loss, told_apart, rate = figure.subplots(3, sharex=True, height_ratios=(3, 3, 1))
    loss.set_title(title)
    _draw_loss(loss, curves)
    _draw_looks(told_apart, curves)
    rate.plot(_steps(curves.learning_rate), curves.learning_rate, color="tab:green")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("step")
    figure.savefig(path, dpi=100)


def _draw_loss(axes: Any, curves: Curves) -> None:
    width = max(1, len(curves.loss) // _SMOOTH)
    smooth = np.convolve(curves.loss, np.full(width, 1 / width), "valid")
    axes.plot(_steps(curves.loss), curves.loss, color="tab:blue", alpha=0.3, label="one step")
    axes.plot(np.arange(width, len(curves.loss) + 1), smooth, color="tab:blue", label="mean")
    steps = [look["step"] for look in curves.looks]
    losses = [look["loss"] for look in curves.looks]
    axes.plot(steps, losses, "o-", color="tab:orange", label="validation users, contrastive")
    axes.set_yscale("log")  # the first steps would hide the others
    axes.set_ylabel("loss")
    axes.legend()


def _draw_looks(axes: Any, curves: Curves) -> None:
    steps = [look["step"] for look in curves.looks]
    axes.plot(steps, [look["matched"] for look in curves.looks], "o-", color="tab:orange")
    axes.axhline(0.5, color="grey", linestyle=":", label="chance")
    if curves.kept_step is not None:
        axes.axvline(curves.kept_step, color="grey", linestyle="--", label="weights kept")
    axes.set_ylabel("validation users told apart")
    axes.legend()


def _steps(values: tuple[float, ...]) -> Any:
    return np.arange(1, len(values) + 1)
