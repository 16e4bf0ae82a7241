"""The exact-volume ELBO of the k-step map T, and its path gradient.

    ELBO = E_z[ log gamma(T(z)) - log n(z) + log|det dT/dz| ],   n the base distribution
With q the density of T(z), its gradient is (Roeder et al., "Sticking the landing", 2017)
    dELBO/dtheta = -E_z[ (dT/dtheta)^T ( grad_x log q(x) - grad_x log gamma(x) ) ],  x = T(z),
    grad_x log q(T(z)) = J^-T ( grad_z log n(z) - grad_z log|det J(z)| ),
whose variance vanishes as q approaches the target, draw by draw.  grad_z log|det J| is a
vector-Jacobian product of z -> J(z), so only T is differentiated with respect to theta.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from numpyro_onestep._util.batching import map_in_batches, side_by_side
from numpyro_onestep.flow import FlowDistribution, PreconditionedPotential


class PathGradient(NamedTuple):
    """For each draw its force, its log weight (nats), and the sign of the map's determinant."""

    force: Float[Array, "n d"]
    log_weight: Float[Array, " n"]
    sign: Float[Array, " n"]


class DrawWeights(NamedTuple):
    """Log weights, signs and forces of a batch, beside its gradient."""

    log_weight: Float[Array, " n"]
    sign: Float[Array, " n"]
    latent_force: Float[Array, "n d"]  # J^T force, minus the gradient of the log weight in z


def log_weight(
    distribution: FlowDistribution, potential: PreconditionedPotential, z: Float[Array, " d"]
) -> Float[Array, ""]:
    """The log weight log gamma(x) - log q(x), x the image of z, by the exact volume (nats)."""
    image = distribution.transform.image(z)
    return -potential.unconstrained(image.x) - distribution.log_prob_at(z, image)


def path_gradient(
    distribution: FlowDistribution,
    potential: PreconditionedPotential,
    z: Float[Array, "n d"],
    images: Float[Array, "n d"] | None = None,
) -> PathGradient:
    """grad_y log q(y) - grad_y log gamma(y) at y = T(z), in whitened coordinates, for a batch.

    `images` are y where they are known already.
    """

    def of_flow(z, image):
        log_base, score = jax.value_and_grad(distribution.base.log_density)(z)
        y, score, log_det, sign = distribution.flow.score(z, score, distribution.num_steps, image)
        return y, score, log_det - log_base, sign

    y, score, minus_log_q, sign = jax.vmap(of_flow)(z, images)
    of_target = jax.value_and_grad(potential.whitened)
    energy, energy_gradient = map_in_batches(of_target, y, side_by_side(potential, gradients=True))
    return PathGradient(score + energy_gradient, minus_log_q - energy, sign)


def elbo_loss(
    distribution: FlowDistribution,
    potential: PreconditionedPotential,
    z: Float[Array, "n d"],
    force_clip: float = jnp.inf,
) -> tuple[Float[Array, ""], DrawWeights]:
    """A surrogate whose gradient is the path gradient of -ELBO, and the draws' weights.

    The surrogate's own value has no meaning.  A force of norm above `force_clip` is scaled down to
    that norm: far out, where a potential is steep, a few draws would otherwise rule the batch.  A
    draw whose force is not finite is pulled towards the origin by a force of norm `force_clip` (1
    where `force_clip` is infinite); otherwise mass would drift to where the target cannot be
    evaluated.  At a draw at which the map folds the force is set to zero: log|det J| has its pole
    where the fold begins and would drive the map further in, while the draws around pull it
    straight.
    """
    num_steps = distribution.num_steps
    parameters, static = eqx.partition(distribution.flow, eqx.is_inexact_array)
    # The surrogate alone is differentiated, so JAX need not trace the derivatives of all the rest.
    fixed = jax.lax.stop_gradient(parameters)
    distribution = distribution.with_flow(eqx.combine(fixed, static))

    def images(parameters, z):
        return jax.vmap(lambda at: eqx.combine(parameters, static)(at, num_steps))(z)

    # One pass back gives the gradient in the parameters and J^T force, so that the map stands in
    # the compiled program once less.
    found: Any = jax.vjp(images, fixed, z)
    y, pull_back = found
    force, weight, sign = path_gradient(distribution, potential, z, y)
    finite = jnp.all(jnp.isfinite(force), axis=1) & jnp.isfinite(weight)
    inwards = y / jnp.maximum(jnp.linalg.norm(y, axis=1, keepdims=True), 1e-30)
    inwards *= force_clip if math.isfinite(force_clip) else 1.0
    limit: Any = jax.vmap(partial(_limit, largest=force_clip))
    pushed: Any = jnp.where(finite[:, None], limit(force), inwards)
    pushed = jnp.where(sign[:, None] < 0, 0.0, pushed)
    gradient, latent = jax.lax.stop_gradient(pull_back(pushed.astype(y.dtype)))
    products = jax.tree.map(lambda g, p: jnp.sum(g * p), gradient, parameters)
    surrogate = jax.tree.reduce(jnp.add, products) / len(z)
    return surrogate, DrawWeights(*jax.lax.stop_gradient((weight, sign, limit(latent))))


def _limit(force: Float[Array, " d"], largest: float) -> Float[Array, " d"]:
    norm = jnp.linalg.norm(force)
    limited = force * jnp.minimum(1.0, largest / jnp.maximum(norm, 1e-30))
    return jnp.where(jnp.isfinite(norm), limited, 0.0)
