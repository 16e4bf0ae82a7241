"""The preconditioner in many dimensions: scales first, then the target's expected curvature.

The Gaussian of highest ELBO has the precision E[H], the target's Hessian averaged over that
Gaussian itself, where E[grad U] = 0 (Opper & Archambeau, "The variational Gaussian approximation
revisited", Neural Computation 2009).  Each round sets the precision to E[H] and takes a Newton
step; this is their fixed-point iteration and the variational online Newton method (Khan et al.,
ICML 2018).  Laplace's approximation is the same at one point, the mode; in a hierarchical model the
scale at the mode differs from that of all of the mass.  The iteration must start from a Gaussian
that is near the mass: one of independent coordinates, by batch and match in each of them (Cai et
al., ICML 2024).
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_onestep import limits
from numpyro_onestep.flow.gaussian import (
    AbstractPreconditioner,
    GaussianPreconditioner,
    LowRankPreconditioner,
)
from numpyro_onestep.initialise.laplace import (
    gaussian_of_precision,
    low_rank_of_precision,
    no_directions,
    times_hessian,
)
from numpyro_onestep.target import Potential

# Iterations.  As in batch and match the learning rate falls as 1 / t in the first half of them, and
# then as 1 / t^4.
_NUM_ITERATIONS = 300
_RATE = 32  # learning rate of the first iteration, as that of batch and match in 32 dimensions
_BATCH_SIZE = 32  # draws in each iteration
# Largest difference of the target's score and the Gaussian's in a coordinate, in standard
# deviations of the Gaussian's score.  Otherwise single draws far out would ruin the fit.
_SCORE_CLIP = 10.0
_FIRST_SCALE = 0.1  # standard deviation to start with, in every coordinate
# Draws over which the Hessian is averaged: with its matrix, and without.  Without the matrix the
# diagonal alone takes d products for each draw, and four draws were as good as sixteen.
_HESSIANS, _FEW_HESSIANS = 16, 4
# Draws over which the gradient is averaged.  They cost little beside d products with the Hessian.
_GRADIENTS = 256


def diagonal_match(
    potential: Potential, start: Float[Array, " d"], rng_key: PRNGKeyArray
) -> AbstractPreconditioner:
    """Batch and match of independent coordinates, as a preconditioner."""
    d, dtype = start.size, start.dtype
    loc, scale = independent_match(potential, start, rng_key)
    if d > limits.DENSE_MATRIX:
        return LowRankPreconditioner(loc, scale, *no_directions(d, dtype))
    return GaussianPreconditioner(loc, jnp.diag(scale))


def independent_match(
    potential: Any,
    start: Float[Array, " d"],
    rng_key: PRNGKeyArray,
    batch_size: int = _BATCH_SIZE,
    num_iterations: int = _NUM_ITERATIONS,
) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """Mean and scales by batch and match of each coordinate, from a small Gaussian about a point.

    Each coordinate sees a whole batch at every iteration, where batch and match of a full
    covariance learns of no more directions than there are draws in a batch.
    """
    d, dtype = start.size, start.dtype
    score = jax.vmap(lambda x: -jax.grad(potential)(x))

    def step(carry, inputs):
        loc, scale = carry
        index, key = inputs
        z = _pairs(key, batch_size, d, dtype)
        # The excess is clipped, so that steps are bounded; values that are not finite are left out.
        excess: Any = score(loc + scale * z) * scale + z
        excess = jnp.where(jnp.isfinite(excess), excess, 0.0)
        g = jnp.clip(excess, -_SCORE_CLIP, _SCORE_CLIP) - z
        # Cai et al., algorithm 1, in one dimension with current mean 0 and variance 1.
        time = index + 1.0
        rate = batch_size * _RATE / time * jnp.minimum(1, 0.5 * num_iterations / time) ** 3
        shrunk = rate / (1 + rate)
        u = rate * g.var(0) + shrunk * g.mean(0) ** 2
        v = 1 + rate * z.var(0)  # the mean of z and -z is zero
        variance = 2 * v / (1 + jnp.sqrt(1 + 4 * u * v))
        return (loc + scale * shrunk * variance * g.mean(0), scale * jnp.sqrt(variance)), None

    keys = jr.split(rng_key, num_iterations)
    carry = start, jnp.full(d, _FIRST_SCALE, dtype)
    (loc, scale), _ = jax.lax.scan(step, carry, (jnp.arange(num_iterations), keys))
    return loc, scale


def towards_expected_curvature(
    potential: Potential,
    preconditioner: AbstractPreconditioner,
    fraction: Any,
    rng_key: PRNGKeyArray,
) -> AbstractPreconditioner:
    """Move the precision a fraction of the way to E[H], the mean that fraction of a Newton step."""
    key_hessian, key_gradient, key_directions = jr.split(rng_key, 3)
    d, dtype = preconditioner.loc.size, preconditioner.loc.dtype
    full = isinstance(preconditioner, GaussianPreconditioner)

    def draws(key, num):
        return jax.vmap(preconditioner.unwhiten)(_pairs(key, num, d, dtype))

    products = jax.vmap(times_hessian, (None, 0, None))
    points = draws(key_hessian, _HESSIANS if full else _FEW_HESSIANS)

    def times(v):
        curvature = products(potential, points, v).mean(0)
        return (1 - fraction) * preconditioner.times_precision(v) + fraction * curvature

    if full:
        new = gaussian_of_precision(times, preconditioner.loc)
    else:
        new = low_rank_of_precision(times, preconditioner.loc, key_directions)
    gradient = jax.vmap(jax.grad(potential))(draws(key_gradient, _GRADIENTS)).mean(0)
    return new.moved(-fraction * new.times_covariance(gradient))


def _pairs(rng_key: PRNGKeyArray, num: int, d: int, dtype) -> Float[Array, "n d"]:
    """Normal draws z and -z: of a quadratic potential they average the gradient exactly."""
    half = jr.normal(rng_key, (num // 2, d), dtype)
    return jnp.concatenate([half, -half])
