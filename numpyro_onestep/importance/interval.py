"""Lower and upper bound of the log evidence: ELBO and EUBO.

The mean log weight of the flow's own draws is below log Z, that of posterior draws is above log Z:
    E_q[log w] = log Z - KL(q, p) <= log Z <= log Z + KL(p, q) = E_p[log w].
The posterior draws are the corrected draws, moved on by Markov chains that do not use the weights.
Their log weights are computed by the inverse of the map.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from numpyro_onestep._util.batching import map_in_blocks
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep.flow import FlowDistribution, PreconditionedPotential
from numpyro_onestep.importance.evidence import Evidence
from numpyro_onestep.importance.pool import Pool
from numpyro_onestep.mcmc.rejuvenation import move

# Members of the pool among which the nearest to each point is searched; its z starts the inverse.
_NUM_NEIGHBOURS = 4000
# Fraction of the points whose inverse must be found.  One point in a thousand may be lost to
# rounding; more lost points are mass to which the map gives no density.
_LEAST_REACHED = 0.999


class EvidenceInterval(NamedTuple):
    """Bounds of the log evidence and their Monte Carlo standard errors (nats).

    The bounds are E_q[log w] <= log Z <= E_p[log w], with the flow's density q and the posterior p.

    Attributes:
        lower: the ELBO, a lower bound where the map is injective.
        lower_std_error: Monte Carlo standard error of `lower`.
        upper: the EUBO, an upper bound as far as the ends of the chains are posterior draws. It is
            infinite where the map's inverse fails at more than one in a thousand of the ends.
            Where it fails at fewer, these ends are left out of the mean.
        upper_std_error: Monte Carlo standard error of `upper`.
        reached_fraction: fraction of the ends of the chains at which the inverse is found.
    """

    lower: float
    lower_std_error: float
    upper: float
    upper_std_error: float
    reached_fraction: float


def evidence_interval(
    evidence: Evidence,
    pool: Pool,
    distribution: FlowDistribution,
    potential: Any,
    x: Float[Any, "n d"],
    rng_key: PRNGKeyArray,
    num_rejuvenation_steps: int,
) -> EvidenceInterval:
    """Both bounds, from the evidence of a pool and chains that start at corrected draws `x`."""
    preconditioned = PreconditionedPotential(potential, distribution.preconditioner)
    steps = num_rejuvenation_steps
    ends = move(preconditioned, x, rng_key, steps) if steps else np.asarray(x)
    near = _nearest_members(pool, distribution, ends)
    log_weight, found = map_in_blocks(
        lambda rows: _log_weights(distribution, potential, *rows), (ends, near)
    )
    found = found & np.isfinite(log_weight)
    values = log_weight.astype(np.float64)[found]
    reached = float(found.mean())
    upper = float(values.mean()) if reached >= _LEAST_REACHED else float("inf")
    error = float(values.std() / np.sqrt(len(values))) if len(values) > 1 else float("inf")
    return EvidenceInterval(evidence.elbo, evidence.elbo_std_error, upper, error, reached)


def _nearest_members(
    pool: Pool, distribution: FlowDistribution, x: Float[Any, "n d"]
) -> Float[np.ndarray, "n d"]:
    """For each point the z of the nearest of the pool's last 4000 members, the inflated draws."""
    from scipy.spatial.distance import cdist  # imported here, since it takes long

    last = slice(-min(_NUM_NEIGHBOURS, len(pool.x)), None)
    ends, members = (
        map_in_blocks(lambda rows: _whiten(distribution, rows), points)
        for points in (x, pool.x[last])
    )
    parts = np.array_split(ends, -(-len(ends) // 1000))
    nearest = np.concatenate([cdist(part, members).argmin(1) for part in parts])
    return np.asarray(pool.z)[last][nearest]


@compiled
def _whiten(distribution: FlowDistribution, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    return jax.vmap(distribution.preconditioner.whiten)(x)


@compiled
def _log_weights(
    distribution: FlowDistribution,
    potential: Any,
    x: Float[Array, "n d"],
    near: Float[Array, "n d"],
) -> tuple[Float[Array, " n"], Bool[Array, " n"]]:
    """The log weights log gamma - log q of given points, and where the inverse was found."""

    def one(x, near):
        z, found = distribution.transform.preimage(x, near)
        image = distribution.transform.image(z)
        log_q = distribution.log_prob_at(z, image)
        return -potential(x) - log_q, found & (image.sign > 0)

    return jax.vmap(one)(x, near)
