"""The log evidence from both sides.

Under the flow's own draws the mean log weight is below log Z; under the posterior's it is above:
    E_q[log w] = log Z - KL(q, p) <= log Z <= log Z + KL(p, q) = E_p[log w].
The posterior's draws are the corrected ones, moved on by Markov chains that know nothing of the
weights, and their weights are found through the inverse of the map.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from scipy.spatial.distance import cdist

from numpyro_onestep._util.batching import map_in_batches
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep.flow import FlowMap
from numpyro_onestep.flow.gaussian import WhitenedPotential
from numpyro_onestep.flow.inverse import invert
from numpyro_onestep.importance.evidence import Evidence, Pool
from numpyro_onestep.mcmc.rejuvenation import move

_NUM_NEIGHBOURS = 4000


class EvidenceInterval(NamedTuple):
    """Bounds of the log evidence and their Monte Carlo standard errors (nats).

    The lower one needs only that the map is injective.  The upper one holds as far as the chains'
    ends are draws of the posterior.  It is infinite where the map's inverse does not find more than
    one in a thousand of them; up to so many are left out, and with them what they would add.
    """

    lower: float
    lower_std_error: float
    upper: float
    upper_std_error: float
    share_reached: float  # of the chains' ends that the map's inverse finds


def evidence_interval(
    evidence: Evidence,
    pool: Pool,
    flow: FlowMap,
    potential: WhitenedPotential,
    num_flow_steps: int,
    x: Float[Array, "n d"],
    rng_key: PRNGKeyArray,
    num_moves: int,
) -> EvidenceInterval:
    """From the evidence of a pool, and corrected draws to start chains from."""
    ends = move(potential, x, rng_key, num_moves) if num_moves else x
    near = _nearest_members(pool, potential, ends)
    log_weight, found = _log_weights(flow, potential, ends, near, num_flow_steps)
    found = np.asarray(found) & np.isfinite(np.asarray(log_weight))
    values = np.asarray(log_weight, np.float64)[found]
    reached = float(found.mean())
    # One in a thousand may be lost to rounding; more is mass that the map gives no density.
    upper = float(values.mean()) if reached >= 0.999 else float("inf")
    error = float(values.std() / np.sqrt(len(values))) if len(values) > 1 else float("inf")
    return EvidenceInterval(evidence.elbo, evidence.elbo_std_error, upper, error, reached)


def _nearest_members(pool: Pool, potential: WhitenedPotential, x) -> Float[np.ndarray, "n d"]:
    """The z of the nearest of some thousand draws, the pool's last ones, which are the widest."""
    last = slice(-min(_NUM_NEIGHBOURS, len(pool.x)), None)
    ends, members = (_whiten(potential, jnp.asarray(v)) for v in (x, pool.x[last]))
    parts = np.array_split(np.asarray(ends), -(-len(ends) // 1000))
    nearest = np.concatenate([cdist(part, members).argmin(1) for part in parts])
    return np.asarray(pool.z)[last][nearest]


@compiled
def _whiten(potential: WhitenedPotential, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    return jax.vmap(potential.base.whiten)(x)


@compiled
def _log_weights(
    flow: FlowMap, potential: WhitenedPotential, x: Float[Array, "n d"], near, num_steps
):
    """Log gamma - log q of given points, and where the inverse was found."""

    def one(at_and_near):
        at, near = at_and_near
        z, found = invert(flow, potential.base.whiten(at), near, num_steps)
        _, log_det, sign = flow.volume(z, num_steps)
        log_q = potential.noise.log_density(z) - log_det - potential.base.log_det
        return -potential.potential(at) - log_q, found & (sign > 0)

    return map_in_batches(one, (x, near), 1000)
