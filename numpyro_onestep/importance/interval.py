"""The log evidence from both sides.

Under the flow's own draws the mean log weight is below log Z; under the posterior's it is above:
    E_q[log w] = log Z - KL(q, p) <= log Z <= log Z + KL(p, q) = E_p[log w].
The posterior's draws are the corrected ones, moved on by Markov chains that know nothing of the
weights, and their weights are found through the inverse of the map.
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

# Members of the pool among whose images the nearest to each point is looked for.
_NUM_NEIGHBOURS = 4000
# One point in a thousand may be lost to rounding.  More is mass that the map gives no density.
_LEAST_REACHED = 0.999


class EvidenceInterval(NamedTuple):
    """Bounds of the log evidence and their Monte Carlo standard errors (nats).

    The lower one needs only that the map is injective.  The upper one holds as far as the chains'
    ends are draws of the posterior.  It is infinite where the map's inverse does not find more than
    one in a thousand of them; up to this many are left out, and with them what they would add.
    """

    lower: float
    lower_std_error: float
    upper: float
    upper_std_error: float
    reached_fraction: float  # of the chains' ends that the map's inverse finds


def evidence_interval(
    evidence: Evidence,
    pool: Pool,
    distribution: FlowDistribution,
    potential: Any,
    x: Float[Any, "n d"],
    rng_key: PRNGKeyArray,
    num_rejuvenation_steps: int,
) -> EvidenceInterval:
    """From the evidence of a pool, and corrected draws to start chains from."""
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
    """The z of the nearest of some thousand members, the pool's last ones, which are inflated."""
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
    """Log gamma - log q of given points, and where the inverse was found."""

    def one(x, near):
        z, found = distribution.transform.preimage(x, near)
        image = distribution.transform.image(z)
        log_q = distribution.log_prob_at(z, image)
        return -potential(x) - log_q, found & (image.sign > 0)

    return jax.vmap(one)(x, near)
