"""Whether given draws and the flow's weighted draws are those of the same distribution.

Three things are compared, none of which the weights alone can show:
- the mean log weight of held-out given draws, an upper estimate of the log evidence,
      E_p[log w] >= log Z,
  where the ELBO is a lower bound.  They meet where the flow has the density of the posterior;
- how many of the weighted draws lie where none of the given ones is, and the other way round;
- means, in standard deviations.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, PRNGKeyArray

from numpyro_onestep.checks.coverage import Cloud
from numpyro_onestep.flow import FlowDistribution
from numpyro_onestep.given_draws.fit import Given
from numpyro_onestep.importance.evidence import WeightedPool
from numpyro_onestep.importance.interval import evidence_interval

_MOST_INVERTED = 1000  # held-out draws, evenly chosen, whose origin is searched
_MOST_COMPARED = 2500  # draws of each kind between which distances are taken
_NUM_JUDGED = 500  # draws that show which distance is usual
_FEWEST = 50  # draws without which nothing is compared


class Agreement(NamedTuple):
    """What given draws and the sampler's own say about each other.

    Attributes:
        upper: mean log weight of given draws that nothing was fitted to (nats): an upper estimate
            of the log evidence, as far as they are draws of the posterior. Infinite where the map
            does not reach more than one in a thousand of them.
        upper_std_error: its Monte Carlo standard error, for independent draws (nats).
        reached_fraction: fraction of these draws that the map reaches.
        new_fraction: fraction of the sampler's draws that lie where no given draw is.
        lost_fraction: fraction of the given draws that lie where no draw of the sampler is.
        shift: largest difference of the means of a coordinate, in its standard deviations.
        shifted: number of that coordinate.
    """

    upper: float
    upper_std_error: float
    reached_fraction: float
    new_fraction: float
    lost_fraction: float
    shift: float
    shifted: int


def compared(
    given: Given | None,
    weighted: WeightedPool,
    distribution: FlowDistribution,
    potential: Any,
    x: Float[Any, "m d"],
    rng_key: PRNGKeyArray,
) -> Agreement | None:
    """Compare given draws with a run's weighed pool and corrected draws.

    Args:
        given: the given draws; None where there are none.
        weighted: the pool.
        distribution: of the flow.
        potential: U, in unconstrained coordinates.
        x: corrected draws.
        rng_key: a JAX random key.
    """
    if given is None:
        return None
    own = np.asarray(x)
    some = _evenly(given.held_out, _MOST_INVERTED).astype(own.dtype)
    interval = evidence_interval(
        weighted.evidence, weighted.pool, distribution, potential, some, rng_key, 0
    )
    own, held_out, rest = (
        v[np.isfinite(v).all(1)].astype(float) for v in (own, given.held_out, given.fitted)
    )
    new = lost = shift = 0.0
    shifted = 0
    if min(len(held_out), len(own)) >= _FEWEST:
        whole = np.concatenate([held_out, rest])
        sd = np.sqrt(0.5 * (whole.var(0) + own.var(0))) + 1e-30
        shifts = abs(whole.mean(0) - own.mean(0)) / sd
        shifted, shift = int(np.argmax(shifts)), float(shifts.max())
        fifth, most = len(own) // 5, _MOST_COMPARED
        new = _away(_evenly(own, most), held_out, rest)
        lost = _away(_evenly(whole, most), own[:fifth], own[fifth:])
    upper = interval.upper, interval.upper_std_error, interval.reached_fraction
    return Agreement(*upper, new, lost, shift, shifted)


def _evenly(x: np.ndarray, most: int) -> np.ndarray:
    return x[np.linspace(0, len(x) - 1, min(most, len(x))).astype(int)]


def _away(points: np.ndarray, judged: np.ndarray, rest: np.ndarray) -> float:
    """Fraction of points that lie further from draws than draws lie from each other.

    Args:
        points: the points.
        judged: some of the draws, whose distances to the rest show which distance is usual. They
            are blocks of chains, since neighbours in a chain are near each other.
        rest: the other draws.
    """
    judged = _evenly(judged, _NUM_JUDGED)
    cloud = Cloud(np.concatenate([judged, _evenly(rest, _MOST_COMPARED)]), len(judged))
    return float(cloud.away(points).mean())
