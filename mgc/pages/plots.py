"""The look that all plots share: colours, grid and frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRAINING, VALIDATION = "#4477AA", "#CC6677"
"""Colours of the two splits: P. Tol's colour-blind safe pair."""
GREY = "0.45"
"""Colour of reference lines and of what is not in focus."""


def plain(axes: Axes) -> None:
    """Give axes a faint grid behind the data, and a frame without its upper and right side."""
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
