"""HMC rejuvenation: short Markov chains that start at the corrected draws and move them.

Weights correct only what the flow visits.  Where they are heavy-tailed, some neck or tail of the
posterior holds more mass than the flow gives it, and the heaviest draws stand at its entrance.  A
few steps of Hamiltonian Monte Carlo from every corrected draw, without the flow, carry draws into
it; draws that were exact stay exact.  (Resample-move: Gilks and Berzuini, "Following a moving
target", JRSS B 2001.)
"""

from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, PRNGKeyArray

from numpyro_onestep._util import progress
from numpyro_onestep._util.batching import BLOCK
from numpyro_onestep._util.numerics import clipped
from numpyro_onestep._util.random import stream
from numpyro_onestep.flow.preconditioned import PreconditionedPotential
from numpyro_onestep.mcmc.hmc import hmc

# The smallest and the largest leapfrog step, in whitened units.  They vary, since a neck needs
# small ones.
_STEP_SIZES = (0.08, 0.45)
# In more dimensions than this the steps shrink as d^(-1/4), which keeps the acceptance rate.
_STEP_SIZE_DIM = 50
# Change of a log standard deviation.  A smaller one does not matter.
_SMALLEST_CHANGE = 0.04
# Standard errors of a change.  From the first number on another round is worth its time; from the
# second on the change proves that the draws were wrong.
_SUSPECTED, _PROVEN = 2.5, 4.0
# Fraction of runs in which noise alone may cause another round.  In many coordinates noise exceeds
# 2.5 standard errors somewhere, so there the limit is higher.
_FALSE_ALARMS = 0.1


class Rejuvenated(NamedTuple):
    """The ends of the chains, and how much the draws have changed."""

    x: Float[np.ndarray, "n d"]
    num_steps: int  # of HMC, taken by every draw
    change: float  # largest change of a log standard deviation that noise does not explain, or 0


@progress.stage("moving the draws by HMC")
def rejuvenate(
    potential: PreconditionedPotential,
    x: Float[Any, "n d"],
    rng_key: PRNGKeyArray,
    num_steps: int,
    most_rounds: int,
    doubtful: bool,
) -> Rejuvenated:
    """Rounds of `num_steps` steps, until the draws' standard deviations have stopped changing.

    The change of a single round may be too small to prove, so draws are compared with those before
    the first round.  Where the weights are `doubtful`, all rounds are made in any case.
    """
    at, taken = np.asarray(x), 0
    suspected = max(_SUSPECTED, NormalDist().inv_cdf(1 - _FALSE_ALARMS / 2 / x.shape[1]))
    for index in range(most_rounds):
        at = move(potential, at, stream(rng_key, "round", index), num_steps)
        taken += num_steps
        if not doubtful and not change_of_scale(x, at, suspected):
            break
    return Rejuvenated(at, taken, change_of_scale(x, at, _PROVEN))


def change_of_scale(
    before: Float[Any, "n d"], after: Float[Any, "n d"], num_errors: float
) -> float:
    """Largest change of a log standard deviation of at least this many standard errors, else zero.

    The standard error is that of the difference of two means over the same chains: a draw
    contributes half its squared deviation, in units of the variance.  Values are clipped at six
    interquartile ranges from the median of the first draws, since the standard deviation of draws
    of a Cauchy distribution is noise.
    """
    old, new = np.asarray(before, np.float64), np.asarray(after, np.float64)
    old, new = clipped(old, like=old), clipped(new, like=old)
    scale_old, scale_new = old.std(0), new.std(0)
    with np.errstate(divide="ignore", invalid="ignore"):  # draws may be all alike
        change = np.log(scale_new / scale_old)
        squares = [((v - v.mean(0)) / s) ** 2 for v, s in ((old, scale_old), (new, scale_new))]
    error = 0.5 * (squares[1] - squares[0]).std(0) / len(old) ** 0.5
    real = (abs(change) > _SMALLEST_CHANGE) & (abs(change) > num_errors * error)
    return float(np.max(abs(change), initial=0.0, where=real))


def move(
    potential: PreconditionedPotential,
    x: Float[Any, "n d"],
    rng_key: PRNGKeyArray,
    num_steps: int,
    block: int = BLOCK,
) -> Float[np.ndarray, "n d"]:
    """The ends of chains of `num_steps` HMC steps from each draw, eight leapfrog steps each."""
    factor = min(1.0, (_STEP_SIZE_DIM / x.shape[1]) ** 0.25)
    smallest, largest = (factor * size for size in _STEP_SIZES)
    return hmc(potential, x, rng_key, num_steps, (smallest, largest), block)[0]
