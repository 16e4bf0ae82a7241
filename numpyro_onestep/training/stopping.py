"""When training has converged or gone astray: pure functions of its losses."""

import math

import numpy as np

# Convergence is not judged before so many: the bound is there long before the tails are right.
FEWEST_STEPS = 1000
# Iterations have lost what was there if their ELBO is so many nats and standard errors too low.
_BELOW, _BELOW_ERRORS = 0.05, 4.0


def is_below(floor: float, losses: np.ndarray) -> bool:
    """Whether the bound of these iterations has fallen below a floor (nats), beyond its noise."""
    losses = losses[np.isfinite(losses)]
    if not math.isfinite(floor):
        return False
    if len(losses) < 2:
        return True
    error = losses.std() / len(losses) ** 0.5
    return floor + losses.mean() > _BELOW + _BELOW_ERRORS * error


def recent_rise(losses: np.ndarray) -> tuple[float, float, float]:
    """Rise of the bound from the third quarter of the iterations to the last, and its noise.

    Medians, since a single draw far out can make an iteration's estimate meaningless.  A window
    that grows with the run sees slow progress which one of fixed length would take for noise.

    Returns:
        The rise, its standard error, and the standard deviation of the last quarter (nats); the
        rise is infinite where there are too few iterations.
    """
    n = len(losses)
    if n < FEWEST_STEPS // 2:
        return math.inf, 0.0, 0.0
    older, newer = losses[n // 2 : 3 * n // 4], losses[3 * n // 4 :]
    older, newer = older[np.isfinite(older)], newer[np.isfinite(newer)]
    if min(len(older), len(newer)) < 2:
        return math.inf, 0.0, 0.0
    spread = [np.subtract(*np.percentile(part, [75, 25])) / 1.349 for part in (older, newer)]
    # 1.25 / sqrt(n): standard error of a median of n normal draws.
    noise = 1.25 * math.hypot(spread[0] / len(older) ** 0.5, spread[1] / len(newer) ** 0.5)
    return float(np.median(older) - np.median(newer)), noise, float(spread[1])
