"""Batch and match: a Gaussian fitted to a target by matching scores.

Each iteration draws a batch from the current Gaussian and moves to the Gaussian whose score (the
gradient of its log density) matches the target's on that batch, in closed form (Cai et al., "Batch
and match: black-box variational inference with a score-based divergence", ICML 2024, algorithm 1).
It needs some hundred batches where a gradient method needs thousands.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from numpyro_onestep._util.batching import map_in_batches, side_by_side
from numpyro_onestep.flow.gaussian import GaussianPreconditioner
from numpyro_onestep.optimise.lbfgs import choose
from numpyro_onestep.target import Potential

NUM_ITERATIONS = 300
# Iterations.  Up to here the learning rate falls as 1 / t, as in the paper by Cai et al., and then
# as 1 / t^4, which averages over the later batches.
_NUM_ADAPTING = 150
# The learning rate of Cai et al. is proportional to d.  Here d counts as 32 at most: in more
# dimensions a larger rate would follow the noise of a batch of 32.
_LARGEST_RATE_DIM = 32
BATCH_SIZE = 32  # draws in each iteration
# Nats.  A Gaussian matches where half the mean squared difference of the two scores, in whitened
# units, is below the first number in two batches that follow each other.  Where the target is as
# concave as the Gaussian, that bounds the Kullback-Leibler divergence (the logarithmic Sobolev
# inequality).  Posteriors of many observations come there after a few batches.
_MATCHED, _MATCHED_BATCHES = 0.01, 2
# Once one of the Gaussians matches, the others take at most so many iterations in all, or so many
# times those that it took: one that starts far away may never match.
_FEWEST_ITERATIONS, _PATIENCE = 12, 3
# Largest norm of the difference of the target's score and the Gaussian's, in units of sqrt(d), the
# typical norm of the Gaussian's score.  Otherwise single draws far out would ruin the fit.
_SCORE_CLIP = 10.0


def batch_and_match(
    potential: Potential,
    initial: GaussianPreconditioner,
    first: Any,
    rng_keys: Any,
) -> GaussianPreconditioner:
    """Batch and match from several Gaussians, with the learning rates of iteration `first` on.

    Each update is computed in the coordinates that whiten the current Gaussian.  The factor of the
    covariance is carried from update to update, not the covariance itself: in single precision it
    can have the square of the condition number that a recursion of the covariance could have.
    Where a batch has fewer draws than there are dimensions, an update changes a subspace only, and
    no d x d matrix is diagonalised.

    Args:
        potential: the target.
        initial: the Gaussians to begin with, stacked.
        first: number of the first iteration, from 0; a larger number begins with smaller steps.
        rng_keys: a JAX random key for each of them.
    """

    def score(x):
        return map_in_batches(
            lambda at: -jax.grad(potential)(at), x, side_by_side(potential, gradients=True)
        )

    update = jax.vmap(partial(_updated, score), (0, 0, 0, None))
    keys = jax.vmap(lambda key: jr.split(key, NUM_ITERATIONS))(rng_keys)

    def step(carry):
        done, until, streak, loc, factor = carry
        loc, factor, mismatch = update(loc, factor, keys[:, done], first + done)
        streak: Any = jnp.where(mismatch < _MATCHED, streak + 1, 0)
        done = done + 1
        any_matched = jnp.any(streak >= _MATCHED_BATCHES)
        soon = jnp.maximum(_FEWEST_ITERATIONS, _PATIENCE * done)
        return done, jnp.where(any_matched, jnp.minimum(until, soon), until), streak, loc, factor

    def go_on(carry):
        done, until, streak, _, _ = carry
        return (done < until) & ~jnp.all(streak >= _MATCHED_BATCHES)

    zero, streak = jnp.zeros((), int), jnp.zeros(len(initial.loc), int)
    carry = zero, zero + NUM_ITERATIONS, streak, initial.loc, initial.scale_tril
    *_, loc, factor = jax.lax.while_loop(go_on, step, carry)
    return jax.vmap(_lower_triangular)(loc, factor)


def _lower_triangular(loc: Float[Array, " d"], factor: Float[Array, "d d"]):
    triangle = jnp.linalg.qr(factor.T, mode="r").T
    return GaussianPreconditioner(loc, triangle * jnp.sign(jnp.diagonal(triangle)))


def _updated(score: Any, loc: Float[Array, " d"], factor: Float[Array, "d d"], key, index):
    """Mean and factor after a batch, and by how much the scores differed before (nats)."""
    d = loc.size
    z = jr.normal(key, (BATCH_SIZE, d), loc.dtype)
    whitened_score = score(loc + z @ factor.T) @ factor
    # The excess over the Gaussian's own score -z is clipped, so that steps are bounded.
    excess = whitened_score + z
    norm = jnp.linalg.norm(excess, axis=1, keepdims=True)
    limited = excess * jnp.minimum(1, _SCORE_CLIP * jnp.sqrt(d) / norm)
    limited = jnp.asarray(jnp.where(jnp.isfinite(norm) & (norm > 0), limited, 0.0))
    g = limited - z

    # Cai et al., algorithm 1, with current mean 0 and covariance I; there lambda = B d / t.
    # The new covariance S solves S U S + S = V, U = u^T u and V = I + v^T v.
    time = index + 1.0
    falling = jnp.minimum(1, _NUM_ADAPTING / time) ** 3
    rate = BATCH_SIZE * min(d, _LARGEST_RATE_DIM) / time * falling
    shrunk = rate / (1 + rate)
    z_mean, g_mean = z.mean(0), g.mean(0)
    u = _rows_of_moments(g, g_mean, rate, shrunk)
    v = _rows_of_moments(z, z_mean, rate, shrunk)
    # With V = C C^T and W = C^T U C it is S = A A^T, A = C (2 / (1 + (1 + 4 W)^(1/2)))^(1/2).
    c = jnp.linalg.cholesky(jnp.eye(d, dtype=loc.dtype) + v.T @ v)
    vectors, change = _shrinkage(u @ c)
    pulled = _times(_times(g_mean[None] @ c, vectors, change), vectors, change)
    shift = shrunk * (c @ pulled[0] + z_mean)
    moved = loc + factor @ shift, _times(factor @ c, vectors, change)
    fine = jnp.all(jnp.isfinite(moved[0])) & jnp.all(jnp.isfinite(moved[1]))
    return *choose(fine, moved, (loc, factor)), 0.5 * jnp.mean(norm**2)


def _rows_of_moments(values: Float[Array, "n d"], mean: Float[Array, " d"], rate, shrunk):
    """Rows r with r^T r = rate times the covariance, plus shrunk times the mean's outer product."""
    centred = (values - mean) * jnp.sqrt(rate / len(values))
    return jnp.concatenate([centred, jnp.sqrt(shrunk) * mean[None]])


def _shrinkage(rows: Float[Array, "n d"]) -> tuple[Float[Array, "d k"], Float[Array, " k"]]:
    """For _times: (2 / (1 + (1 + 4 W)^(1/2)))^(1/2), W = r^T r, is I + q diag(s) q^T.

    By the eigenvectors of whichever is smaller, r r^T or r^T r.
    """
    n, d = rows.shape
    values, vectors = jnp.linalg.eigh(rows @ rows.T if n < d else rows.T @ rows)
    values = jnp.maximum(values, 0.0)
    half = 0.5 + 0.5 * jnp.sqrt(1 + 4 * values)
    slope = -1 / (half**2 * (1 + jnp.sqrt(1 / half)))  # (half^(-1/2) - 1) / w, by no difference
    return (rows.T @ vectors, slope) if n < d else (vectors, values * slope)


def _times(matrix: Float[Array, "m d"], vectors: Float[Array, "d k"], change: Float[Array, " k"]):
    """Matrix times (I + vectors diag(change) vectors^T)."""
    return matrix + ((matrix @ vectors) * change) @ vectors.T
