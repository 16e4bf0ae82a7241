"""What every correction returns."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

# Above it chains have not mixed (Vehtari et al., 2021).
LARGEST_R_HAT = 1.01


@dataclass
class Corrected:
    """Draws in unconstrained coordinates, chain after chain, and what is to be said of them."""

    x: Any
    line: str  # how the draws came about
    num_chains: int = 1
    chosen: Int[np.ndarray, " n"] | None = None  # which members of the pool the draws are
    capped_share: float = 0.0
    num_moves: int = 0  # taken by every draw
    shift: float = 0.0  # largest real change of a log standard deviation by the moves
    r_hat: float | None = None  # the largest of all coordinates, for chains
    min_ess: float | None = None
    acceptance: float | None = None
    divergences: int | None = None
    stats: dict[str, Any] = field(default_factory=dict)  # of each draw


def mixing(grouped: Float[np.ndarray, "chain n d"]) -> tuple[float, float]:
    """Largest split R-hat and smallest effective sample size over coordinates."""
    grouped = np.asarray(grouped, np.float64)
    if np.any(grouped.std((0, 1)) == 0):
        return np.inf, 1.0  # a chain that never moved
    return float(np.max(split_gelman_rubin(grouped))), float(np.min(effective_sample_size(grouped)))
