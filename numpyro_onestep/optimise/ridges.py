"""A way along a ridge at whose foot a descent stands still.

Where a scale is a thousand times the width of the ridge that leads to the mass, L-BFGS finds the
bottom of the ridge across and then stops: along it the slope is small, and single precision hides
what a short step gains.  A Gaussian fitted there knows both scales, so that steps along its natural
gradient, each twice as long as the one before, lead on.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from numpyro_onestep.optimise.lbfgs import descent
from numpyro_onestep.target import Potential

# The slope at the end of a descent, in units of the Gaussian's scales, above which it has stopped
# on its way.
_STEEP = 0.5
_MOST_ROUNDS, _MOST_DOUBLINGS = 20, 40
# Nats that a round has to gain, and nats in all, for each dimension and beside.  A mode at infinity
# is a little lower than the mass, and is not what is looked for.
_WORTH_A_ROUND = 1.0
_FAR, _FAR_PER_DIM = 20.0, 10.0


def along_ridge(
    potential: Potential,
    loc: Float[Any, " d"],
    factor: Float[np.ndarray, "d d"],
    mean_energy: float,
) -> Float[np.ndarray, " d"] | None:
    """A point of far lower energy than around a fitted Gaussian, or None where there is none.

    All descents run by the one program that was compiled for the descent from the model's start.

    Args:
        potential: the energy (nats).
        loc: the Gaussian's mean.
        factor: L, where L L^T is its covariance.
        mean_energy: of the Gaussian's draws (nats).
    """
    here = descent(potential, loc)
    energy = float(here.energy)
    for _ in range(_MOST_ROUNDS):
        with np.errstate(over="ignore", invalid="ignore"):
            slope = np.asarray(here.gradient, np.float64) @ factor
        if not (np.isfinite(slope).all() and np.linalg.norm(slope) > _STEEP):
            break
        at, step = np.asarray(here.path)[-1], factor @ slope
        before = energy
        for doubling in range(_MOST_DOUBLINGS):
            end = descent(potential, (at - 2.0**doubling * step).astype(at.dtype))
            if not float(end.energy) < energy:
                break
            here, energy = end, float(end.energy)
        if not energy < before - _WORTH_A_ROUND:
            break
    far = _FAR + _FAR_PER_DIM * len(factor)
    return np.asarray(here.path)[-1] if energy < mean_energy - far else None
