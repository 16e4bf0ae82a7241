"""What the pictures of several suites share. Only a report imports this: it needs Matplotlib."""

import math
from collections.abc import Iterable
from itertools import cycle
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# As many as are easily told apart. Their number, 13, has no divisor in common with the ten colours
# of Matplotlib's cycle, so that colour and marker together distinguish 130 names.
MARKERS = "o^sDvPX*<>phd"


def styles(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """A colour and a marker for each name, as keyword arguments of `scatter`."""
    colours = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    together = zip(names, cycle(colours), cycle(MARKERS), strict=False)
    return {name: {"color": colour, "marker": marker} for name, colour, marker in together}


def panel_grid(
    num_panels: int, most_columns: int, width: float, height: float, **settings: Any
) -> tuple[Any, Any]:
    """A figure with at least so many panels, in as many rows as they need.

    Args:
        num_panels: how many are wanted. The last row may have a few more.
        most_columns: how many panels stand side by side at most.
        width: of a panel, in inches.
        height: of a panel, in inches.
        **settings: passed on to `matplotlib.pyplot.subplots`.

    Returns:
        The figure, and its panels (rows, columns).
    """
    columns = max(1, min(num_panels, most_columns))
    rows = max(1, math.ceil(num_panels / columns))
    size = (width * columns, height * rows)
    return plt.subplots(rows, columns, figsize=size, squeeze=False, **settings)


def hide_rest(axes: Any, num_panels: int) -> None:
    """Hide all panels but so many, and give those with nothing below them labels on their axis."""
    for axis in axes.flat[num_panels:]:
        axis.axis("off")
    for axis in axes.flat[max(0, num_panels - axes.shape[1]) : num_panels]:
        axis.tick_params(labelbottom=True)
