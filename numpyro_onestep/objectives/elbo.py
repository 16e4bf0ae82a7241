"""The exact-volume ELBO of the k-step map T, and its path gradient.

    ELBO = E_z[ log gamma(T(z)) - log N(z; 0, I) + log|det dT/dz| ]
With q the density of T(z), its gradient is (Roeder et al., "Sticking the landing", 2017)
    dELBO/dtheta = -E_z[ (dT/dtheta)^T ( grad_x log q(x) - grad_x log gamma(x) ) ],  x = T(z),
    grad_x log q(T(z)) = J^-T ( -z - grad_z log|det J(z)| ),
whose variance vanishes as q approaches the target, draw by draw.  grad_z log|det J| is the
vector-Jacobian product of z -> J(z) at J^-T, so nothing is differentiated with respect to theta
but T itself.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import lu_factor, lu_solve
from jaxtyping import Array, Float

from numpyro_onestep.base import standard_normal_log_density
from numpyro_onestep.flow import FlowMap


class PathGradient(NamedTuple):
    """The force on one draw, its log weight (nats), and the sign of the map's determinant there."""

    force: Float[Array, " d"]
    log_weight: Float[Array, ""]
    sign: Float[Array, ""]
    jacobian: Float[Array, "d d"]


class DrawWeights(NamedTuple):
    """What a batch says beside its gradient."""

    log_weight: Float[Array, " n"]
    sign: Float[Array, " n"]
    latent_force: Float[Array, "n d"]  # J^T force, minus the gradient of the log weight in z


def log_weight(
    flow: FlowMap, potential: Callable, z: Float[Array, " d"], num_steps: int
) -> Float[Array, ""]:
    """Log gamma(x) - log q(x) at x = T(z), by the exact volume (nats)."""
    x, log_det, _ = flow.volume(z, num_steps)
    return -potential(x) - standard_normal_log_density(z) + log_det


def path_gradient(
    flow: FlowMap, potential: Callable, z: Float[Array, " d"], num_steps: int
) -> PathGradient:
    """grad_x log q(x) - grad_x log gamma(x) at x = T(z)."""
    jacobian, pull_back = jax.vjp(lambda at: flow.jacobian(at, num_steps), z)
    factors = lu_factor(jacobian)
    inverse = lu_solve(factors, jnp.eye(z.size, dtype=z.dtype))
    diagonal, pivots = jnp.diagonal(factors[0]), factors[1]
    log_det = jnp.sum(jnp.log(jnp.abs(diagonal)))
    swaps = jnp.sum(pivots != jnp.arange(z.size))
    sign = jnp.prod(jnp.sign(diagonal)) * (1 - 2 * (swaps % 2))
    (log_det_gradient,) = pull_back(inverse.T)
    x = flow(z, num_steps)
    energy, energy_gradient = jax.value_and_grad(potential)(x)
    force = inverse.T @ (-z - log_det_gradient) + energy_gradient
    return PathGradient(force, -energy - standard_normal_log_density(z) + log_det, sign, jacobian)


def elbo_loss(
    flow: FlowMap,
    potential: Callable,
    z: Float[Array, "n d"],
    num_steps: int,
    force_clip: float = jnp.inf,
) -> tuple[Float[Array, ""], DrawWeights]:
    """A surrogate whose gradient is the path gradient of -ELBO, and the draws' weights.

    The surrogate's own value means nothing.  A force of norm above `force_clip` is scaled down to
    it: far out, where a potential is steep, a few draws would otherwise rule the batch.  A draw
    whose force is not finite feels none; its log weight shows it.
    """

    def frozen(at):
        force, weight, sign, jacobian = path_gradient(flow, potential, at, num_steps)
        force, latent = _limit(force, force_clip), _limit(jacobian.T @ force, force_clip)
        return force, DrawWeights(weight, sign, latent)

    forces, weights = jax.lax.stop_gradient(jax.vmap(frozen)(z))
    x = jax.vmap(lambda at: flow(at, num_steps))(z)
    return jnp.mean(jnp.sum(forces * x, axis=-1)), weights


def _limit(force: Float[Array, " d"], largest: float) -> Float[Array, " d"]:
    norm = jnp.linalg.norm(force)
    limited = force * jnp.minimum(1.0, largest / jnp.maximum(norm, 1e-30))
    return jnp.where(jnp.isfinite(norm), limited, 0.0)
