"""Laplace's approximation: the Gaussian at a mode whose precision is the Hessian there.

In several thousand dimensions no d x d matrix is formed.  The precision is then its diagonal and,
of the rest, the eigenvectors at both ends of the spectrum.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_onestep.flow.gaussian import GaussianPreconditioner, LowRankPreconditioner
from numpyro_onestep.target import Potential

# Curvature below which a direction counts as flat: a standard deviation of 100, in the model's
# own units.
_FLATTEST = 1e-4
# Steps of the Lanczos iteration, products with the Hessian.
_LANCZOS_STEPS = 300
# A Ritz value is taken for an eigenvalue if it is known to this fraction of itself.
_KNOWN = 0.02
# Columns of the Hessian that are computed at a time, to bound the memory.
_COLUMNS = 100


def laplace(potential: Potential, mode: Float[Array, " d"]) -> GaussianPreconditioner:
    """The Gaussian of the potential's own curvature at a point."""
    return gaussian_of_precision(lambda v: times_hessian(potential, mode, v), mode)


def low_rank_laplace(
    potential: Potential, mode: Float[Array, " d"], rng_key: PRNGKeyArray
) -> LowRankPreconditioner:
    """Laplace's approximation without a d x d matrix."""
    return low_rank_of_precision(lambda v: times_hessian(potential, mode, v), mode, rng_key)


def times_hessian(
    potential: Potential, x: Float[Array, " d"], v: Float[Array, " d"]
) -> Float[Array, " d"]:
    """The product of the potential's Hessian at x with a vector."""
    return jax.jvp(jax.grad(potential), (x,), (v,))[1]


def hessian(potential: Potential, x: Float[Array, " d"]) -> Float[Array, "d d"]:
    """The potential's second derivatives."""
    return _symmetric_matrix(lambda v: times_hessian(potential, x, v), x)


def _symmetric_matrix(times: Callable, like: Float[Array, " d"]) -> Float[Array, "d d"]:
    """The matrix of such products, a hundred columns at a time, to bound the memory."""
    identity = jnp.eye(like.size, dtype=like.dtype)
    columns = jax.lax.map(times, identity, batch_size=min(_COLUMNS, like.size))
    return 0.5 * (columns + columns.T)


def gaussian_of_precision(times: Callable, loc: Float[Array, " d"]) -> GaussianPreconditioner:
    """The Gaussian about a point whose precision has the products `times(v)`.

    Where that precision is not positive definite, each eigenvalue below the smallest positive one
    that counts is raised to it.
    """
    precision = _symmetric_matrix(times, loc)
    # Flipped, so that the inverse of a lower triangle is the covariance's own lower triangle.
    triangle = jnp.flip(jnp.linalg.cholesky(jnp.flip(precision)))
    positive = jnp.all(jnp.isfinite(triangle))
    scale_tril = jax.lax.cond(positive, _inverse_transposed, _bent_root, triangle, precision)
    return GaussianPreconditioner(loc, scale_tril)


def _inverse_transposed(triangle: Float[Array, "d d"], _) -> Float[Array, "d d"]:
    """L of L L^T = P^-1, where the triangle T has T T^T = P."""
    identity = jnp.eye(len(triangle), dtype=triangle.dtype)
    return solve_triangular(triangle, identity, lower=False, trans="T")


def _bent_root(_, precision: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """L of L L^T = P^-1 where P is not positive definite, after its eigenvalues are raised."""
    eigenvalues, vectors = jnp.linalg.eigh(precision)
    root = vectors / jnp.sqrt(_bent(eigenvalues))
    triangle = jnp.linalg.qr(root.T, mode="r").T
    return triangle * jnp.sign(jnp.diagonal(triangle))


def _bent(curvatures: Float[Array, " d"]) -> Float[Array, " d"]:
    """Curvatures, raised to the smallest one above the limit; to 1 if none is above it."""
    smallest = jnp.min(curvatures, initial=jnp.inf, where=curvatures > _FLATTEST)
    return jnp.maximum(curvatures, jnp.where(jnp.isfinite(smallest), smallest, 1.0))


def low_rank_of_precision(
    times: Callable, loc: Float[Array, " d"], rng_key: PRNGKeyArray
) -> LowRankPreconditioner:
    """The Gaussian of a precision without a d x d matrix: a diagonal, and some directions.

    With P the precision and D the inverse root of its diagonal, D P D has ones on its diagonal
    (less where that was raised, being flat or of the wrong sign).  Its eigenvectors at both ends of
    the spectrum are what a Lanczos iteration finds first; along each the Gaussian's scale is its
    eigenvalue^(-1/2), and along all others that of their mean.
    """
    d, dtype = loc.size, loc.dtype

    def entry(index):
        return times(jnp.zeros(d, dtype).at[index].set(1.0))[index]

    diagonal = jax.lax.map(entry, jnp.arange(d), batch_size=min(_COLUMNS, d))
    scale = 1 / jnp.sqrt(_bent(diagonal))
    values, directions, errors = lanczos(
        lambda v: scale * times(scale * v), jr.normal(rng_key, (d,), dtype)
    )
    known = (errors < _KNOWN * values) & (values > _FLATTEST)
    # What the known eigenvalues leave of the trace d, shared by all other directions.
    trace = jnp.sum(diagonal * scale**2)
    left = (trace - jnp.sum(values, where=known)) / jnp.maximum(d - jnp.sum(known), 1)
    others: Any = jnp.where(left > _FLATTEST, left, 1.0)
    safe: Any = jnp.where(known, values, others)
    stretch = jnp.sqrt(others / safe) - 1
    return LowRankPreconditioner(loc, scale / jnp.sqrt(others), directions, stretch)


def no_directions(d: int, dtype) -> tuple[Float[Array, "d r"], Float[Array, " r"]]:
    """Directions and stretch of a diagonal Gaussian, as many as `lanczos` looks for."""
    num = min(_LANCZOS_STEPS, d)
    return jnp.zeros((d, num), dtype), jnp.zeros(num, dtype)


def lanczos(times, start: Float[Array, " d"]):
    """Ritz values and vectors of a symmetric matrix, and how far each is from an eigenpair.

    Every vector is made orthogonal to all before it, twice: in single precision they would not
    stay so by themselves.
    """
    d = start.size
    num = min(_LANCZOS_STEPS, d)

    def step(index, carry):
        vectors, products = carry
        product = times(vectors[index])
        left = product
        for _ in range(2):
            left = left - (vectors @ left) @ vectors
        norm = jnp.linalg.norm(left)
        # Where nothing is left the vectors span the whole space, and those that follow are zero.
        small = norm <= 10 * jnp.finfo(left.dtype).eps * jnp.linalg.norm(product)
        vectors = vectors.at[index + 1].set(jnp.where(small, 0.0, left / norm), mode="drop")
        return vectors, products.at[index].set(product)

    vectors = jnp.zeros((num, d), start.dtype).at[0].set(start / jnp.linalg.norm(start))
    vectors, products = jax.lax.fori_loop(0, num, step, (vectors, jnp.zeros_like(vectors)))
    small = vectors @ products.T
    values, rotation = jnp.linalg.eigh(0.5 * (small + small.T))
    ritz = rotation.T @ vectors
    errors = jnp.linalg.norm(rotation.T @ products - values[:, None] * ritz, axis=1)
    # Ritz vectors of length zero are no directions, so their error is infinite.
    errors = jnp.where(jnp.linalg.norm(ritz, axis=1) > 0.5, errors, jnp.inf)
    return values, ritz.T, errors
