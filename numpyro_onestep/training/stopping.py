"""Rules for when training has converged, and when a step went too far: functions of the losses.

Three rules undo steps that went too far.  Where the map folds at too many draws of a batch, that
one step is undone (`after_folds`).  Where that does not help, since the map still folds at most
iterations of a chunk, the chunk is undone (`is_folded`).  So is the chunk of a flow that starts
from a mixture where its ELBO is below that of the mixture itself (`is_below`).  All of them lower
the learning-rate scale, so that the following steps are smaller.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

# Iterations before convergence is judged: the ELBO stops rising long before the tails are right.
FEWEST_STEPS = 1000
# Nats.  Where the gap is below this the last iterations decide, since a flow so near the target has
# no tails that matter.
SMALL_GAP = 0.002
# The last half of so many iterations decide then, once there are so many.
_RECENT, _FEWEST_RECENT = 400, 200
# The tolerance as a fraction of the remaining gap.  With a slower rise than this, twice the time
# would not gain half of the gap.
_RELATIVE_TOLERANCE = 0.2
_LARGEST_TOLERANCE = 4  # in units of the setting `tolerance`
# Nats.  The learning rate falls to zero in half as many steps as came before, and in as many where
# the gap is larger than this.  There the noise of the steps is most of the gap, and cooling halves
# it, which more steps at a constant rate would not do.
_LARGE_GAP = 0.25
# The fraction of all allowed steps that is kept for cooling.
_COOLING_FRACTION = 1 / 3
# Nats and standard errors by which the ELBO must be too low, both together, to prove that mass was
# lost.
_BELOW, _BELOW_ERRORS = 0.05, 4.0
# Fraction of the batch at which the map folds, above which a step is undone, and the factor on the
# learning-rate scale after it.
_MOST_FOLDED, _SCALE_AFTER_FOLDS = 0.25, 0.7
# Factor on the learning-rate scale after a chunk that was undone.
SCALE_BELOW = 0.3


class Judgement(NamedTuple):
    """Whether training may end."""

    rise: float  # of the ELBO, from the third quarter of the iterations to the last (nats)
    gap: float  # between ELBO and log evidence, roughly (nats)
    converged: bool
    still_rising: bool
    is_judged: bool  # false where there are too few iterations to judge

    @property
    def cooling_fraction(self) -> float:
        """How long the learning rate falls, as a fraction of the iterations so far."""
        return 1.0 if self.gap > _LARGE_GAP else 0.5


def judge(
    losses: Float[np.ndarray, " n"],
    batch_size: int,
    tolerance: float,
    near: float = SMALL_GAP,
) -> Judgement:
    """Whether training may end after these losses, each the mean over a batch of own draws.

    Args:
        losses: minus the ELBO at every iteration so far (nats).
        batch_size: number of draws in each mean.
        tolerance: the rise below which training has converged (nats).
        near: a gap (nats) below which the last few hundred iterations decide; above it half of
            all iterations do. Default 0.002.
    """
    # The gap is about half the variance of the log weights.
    rise, noise, deviation = recent_rise(losses[-_RECENT:], _FEWEST_RECENT)
    gap = 0.5 * batch_size * deviation**2
    if gap < near and rise + noise < max(tolerance, _RELATIVE_TOLERANCE * near):
        return Judgement(rise, gap, converged=True, still_rising=False, is_judged=True)
    rise, noise, deviation = recent_rise(losses)
    gap = 0.5 * batch_size * deviation**2
    tolerance = max(tolerance, min(_RELATIVE_TOLERANCE * gap, _LARGEST_TOLERANCE * tolerance))
    return Judgement(
        rise=rise,
        gap=gap,
        converged=len(losses) >= FEWEST_STEPS and rise + noise < tolerance,
        still_rising=rise - noise > tolerance,
        is_judged=math.isfinite(rise),
    )


def num_at_constant_rate(total: int) -> int:
    """The number of iterations before the learning rate has to fall, of all that are allowed."""
    return total - int(total * _COOLING_FRACTION)


def after_folds(
    folded: Float[Array, ""], scale: Float[Array, ""], from_gaussian: bool
) -> tuple[Bool[Array, ""], Float[Array, ""]]:
    """Whether a step is to be undone, and the learning-rate scale after it.

    The draws around a fold straighten the map again, so a step with a few folded draws is kept.
    After a step too far there are too few such draws, so it is undone.  A flow that starts from a
    mixture has little to bend, and folds in the heavy tails of the mixture would stay: there a step
    is undone for any fold.

    Args:
        folded: fraction of the batch at which the map's determinant is negative.
        scale: the learning-rate scale so far.
        from_gaussian: the flow starts from one Gaussian, not from a mixture.
    """
    too_far = folded > _MOST_FOLDED
    undone = too_far if from_gaussian else folded > 0.0
    return undone, jnp.where(too_far, _SCALE_AFTER_FOLDS * scale, scale)


def is_folded(folded: Float[np.ndarray, " n"]) -> bool:
    """Whether the map folded at too many draws in most of these iterations.

    Undoing single steps is then of no use: the average of earlier flows, to which it goes back, is
    itself folded.
    """
    return bool(np.mean(folded > _MOST_FOLDED) > 0.5)


def is_below(floor: float, losses: Float[np.ndarray, " n"]) -> bool:
    """Whether the bound of these iterations has fallen below a floor (nats), beyond its noise."""
    losses = losses[np.isfinite(losses)]
    if not math.isfinite(floor):
        return False
    if len(losses) < 2:
        return True
    error = losses.std() / len(losses) ** 0.5
    return bool(floor + losses.mean() > _BELOW + _BELOW_ERRORS * error)


def recent_rise(
    losses: Float[np.ndarray, " n"], fewest: int = FEWEST_STEPS // 2
) -> tuple[float, float, float]:
    """Rise of the bound from the third quarter of the iterations to the last, and its noise.

    Medians are compared, since a single draw far out can make an iteration's estimate meaningless.
    The quarters grow with the run, so that they show slow progress, which would be lost in the
    noise of windows of fixed length.

    Returns:
        The rise, its standard error, and the standard deviation of the last quarter (nats); the
        rise is infinite where there are too few iterations.
    """
    n = len(losses)
    if n < fewest:
        return math.inf, 0.0, 0.0
    older, newer = losses[n // 2 : 3 * n // 4], losses[3 * n // 4 :]
    older, newer = older[np.isfinite(older)], newer[np.isfinite(newer)]
    if min(len(older), len(newer)) < 2:
        return math.inf, 0.0, 0.0
    deviation = [np.subtract(*np.percentile(part, [75, 25])) / 1.349 for part in (older, newer)]
    # 1.25 / sqrt(n): standard error of a median of n normal draws.
    noise = 1.25 * math.hypot(deviation[0] / len(older) ** 0.5, deviation[1] / len(newer) ** 0.5)
    return float(np.median(older) - np.median(newer)), noise, float(deviation[1])
