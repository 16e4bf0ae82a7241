"""The exact-volume ELBO of the k-step map T, and its path gradient.

    ELBO = E_z[ log gamma(T(z)) - log n(z) + log|det dT/dz| ],  n the noise, N(0, I) or a mixture
With q the density of T(z), its gradient is (Roeder et al., "Sticking the landing", 2017)
    dELBO/dtheta = -E_z[ (dT/dtheta)^T ( grad_x log q(x) - grad_x log gamma(x) ) ],  x = T(z),
    grad_x log q(T(z)) = J^-T ( grad_z log n(z) - grad_z log|det J(z)| ),
whose variance vanishes as q approaches the target, draw by draw.  grad_z log|det J| is a
vector-Jacobian product of z -> J(z), so nothing is differentiated with respect to theta but T.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from numpyro_onestep.flow import FlowMap
from numpyro_onestep.flow.base_distribution import STANDARD_NORMAL, AbstractNoise


class PathGradient(NamedTuple):
    """The force on one draw, its log weight (nats), and the sign of the map's determinant there."""

    force: Float[Array, " d"]
    log_weight: Float[Array, ""]
    sign: Float[Array, ""]


class DrawWeights(NamedTuple):
    """What a batch says beside its gradient."""

    log_weight: Float[Array, " n"]
    sign: Float[Array, " n"]
    latent_force: Float[Array, "n d"]  # J^T force, minus the gradient of the log weight in z


def log_weight(
    flow: FlowMap,
    potential: Callable,
    z: Float[Array, " d"],
    num_steps: int,
    noise: AbstractNoise = STANDARD_NORMAL,
) -> Float[Array, ""]:
    """Log gamma(x) - log q(x) at x = T(z), by the exact volume (nats)."""
    x, log_det, _ = flow.volume(z, num_steps)
    return -potential(x) - noise.log_density(z) + log_det


def path_gradient(
    flow: FlowMap,
    potential: Callable,
    z: Float[Array, " d"],
    num_steps: int,
    noise: AbstractNoise = STANDARD_NORMAL,
) -> PathGradient:
    """grad_x log q(x) - grad_x log gamma(x) at x = T(z).

    The score of q is carried along, step by step: J^-T (score - grad log|det J|) after each.
    """

    def advance(carry, at):
        y, score, log_det, sign = carry

        def parts(y):
            jacobian = flow.network.step_jacobian(y, *at)
            return (jacobian.diagonal, jacobian.rows), jacobian

        _, pull_back, jacobian = jax.vjp(parts, y, has_aux=True)
        known = jacobian.factorise()
        (gradient,) = pull_back(jacobian.log_det_gradient(known))
        score = jacobian.solve_transposed(known, score - gradient)
        return (flow.step(y, *at), score, log_det + known.log_det, sign * known.sign), None

    taus, sizes = flow.schedule(num_steps)
    one = jnp.ones((), z.dtype)
    log_noise, score = jax.value_and_grad(noise.log_density)(z)
    carry = z, score, 0 * one, one
    if num_steps == 1:
        (x, score, log_det, sign), _ = advance(carry, (taus[0], sizes[0]))
    else:
        (x, score, log_det, sign), _ = jax.lax.scan(advance, carry, (taus, sizes))
    energy, energy_gradient = jax.value_and_grad(potential)(x)
    weight = -energy - log_noise + log_det
    return PathGradient(score + energy_gradient, weight, sign)


def elbo_loss(
    flow: FlowMap,
    potential: Callable,
    z: Float[Array, "n d"],
    num_steps: int,
    force_clip: float = jnp.inf,
    noise: AbstractNoise = STANDARD_NORMAL,
) -> tuple[Float[Array, ""], DrawWeights]:
    """A surrogate whose gradient is the path gradient of -ELBO, and the draws' weights.

    The surrogate's own value means nothing.  A force of norm above `force_clip` is scaled down to
    it: far out, where a potential is steep, a few draws would otherwise rule the batch.  A draw
    whose force is not finite is pulled towards the middle of the base by a force of that norm (1
    where it is infinite), or mass would drift to where the target cannot be evaluated.  A draw at
    which the map folds feels none: log|det J| has its pole at the fold and would drive the map
    further in, whereas the draws around pull it straight.
    """

    def frozen(at):
        force, weight, sign = path_gradient(flow, potential, at, num_steps, noise)
        x, pull_back = jax.vjp(lambda at: flow(at, num_steps), at)
        finite = jnp.all(jnp.isfinite(force)) & jnp.isfinite(weight)
        inwards = x / jnp.maximum(jnp.linalg.norm(x), 1e-30)
        inwards *= force_clip if math.isfinite(force_clip) else 1.0
        force = jnp.where(finite, _limit(force, force_clip), inwards)
        force = jnp.where(sign < 0, 0.0, force)
        (latent,) = pull_back(force)
        return force, DrawWeights(weight, sign, _limit(latent, force_clip))

    forces, weights = jax.lax.stop_gradient(jax.vmap(frozen)(z))
    x = jax.vmap(lambda at: flow(at, num_steps))(z)
    return jnp.mean(jnp.sum(forces * x, axis=-1)), weights


def _limit(force: Float[Array, " d"], largest: float) -> Float[Array, " d"]:
    norm = jnp.linalg.norm(force)
    limited = force * jnp.minimum(1.0, largest / jnp.maximum(norm, 1e-30))
    return jnp.where(jnp.isfinite(norm), limited, 0.0)
