"""The fit of the Gaussian base to the target.

The fit is batch and match (Cai et al., "Batch and match: black-box variational inference with a
score-based divergence", ICML 2024): each iteration draws a batch from the current Gaussian and
moves to the Gaussian whose score matches the target's on that batch, in closed form.  It needs
some hundred batches where a gradient method needs thousands, but can stall far from the mass, and
the mode of a hierarchical model may lie at infinity.  So it starts at several points of one L-BFGS
descent, as Pathfinder does (Zhang et al., JMLR 2022), and the best ELBO wins.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from numpyro_onestep._util.compilation import compiled
from numpyro_onestep._util.random import stream
from numpyro_onestep.flow.gaussian import AbstractBase, GaussianBase, WhitenedPotential
from numpyro_onestep.initialise.expected_curvature import (
    LARGEST_FULL,
    diagonal_match,
    towards_expected_curvature,
)
from numpyro_onestep.initialise.laplace import laplace, low_rank_laplace
from numpyro_onestep.target import Potential

_DESCENT_STEPS = 100
_LONG_DESCENT_STEPS = 500
# Above so many dimensions batch and match, cubic in d at every iteration, takes too long.
LARGEST_MATCHED = 512
_START_STEPS = (0, 10, 25, 99)  # of the descent: a mode at infinity is far beyond the first ones
_NUM_ITERATIONS = 300
_ADAPTING = 150  # of these before the rate of change falls faster
_LARGEST_RATE = 32  # in more dimensions: the rate that the paper would take at so many
# A fit that no other agrees with goes on for as many more rounds, past the first, wildest batches.
_MOST_ROUNDS = 8
_PAST = 50
# Rounds of expected curvature at most; where they go far they gain least in the last ones.
_MOST_CURVED = 20
# A round that gains less (nats) is one too long, or lost in the noise of its draws: both ask for a
# smaller share of the way.  Below the smallest the fit is there.
_WORTH_A_ROUND = 0.5
_SMALLEST_SHARE = 0.2
_BATCH_SIZE = 32
_ELBO_DRAWS = 512
# Two fits whose ELBOs differ by less than this (nats) have found the same place.
_SAME_ELBO = 1.0
# Another descent's end is worth a fit if its energy is lower by more (nats).
_LOWER = 1.0
# The score may differ from the current Gaussian's by so many standard deviations of its norm.
_SCORE_CLIP = 10.0


class BaseFit(NamedTuple):
    """The fitted base and its ELBO (nats; -inf where no start gave a finite one)."""

    base: AbstractBase
    elbo: Float[Array, ""]


def fit_base(potential: Potential, start: Float[Array, " d"], rng_key: PRNGKeyArray) -> BaseFit:
    """Fit the Gaussian base to a target, from one point of finite density.

    Batch and match from several points of a descent, and on from the best while that gains.  In
    more than 512 dimensions of independent coordinates, and on by the target's expected curvature.
    Where no fit is finite, Laplace's approximation at a descent's end.
    """
    # NumPy's operations: each of JAX's would be a program to compile.
    points = np.asarray(descent(potential, start).path)[list(_START_STEPS)]
    if start.size > LARGEST_MATCHED:
        best = _curved(potential, _independent(potential, points, rng_key), rng_key)
        return best if np.isfinite(float(best.elbo)) else _laplace_base(potential, start, rng_key)
    best, second = _matched(potential, _narrow(points), np.asarray(0), rng_key)
    settled = float(second) > float(best.elbo) - _SAME_ELBO
    for index in range(_MOST_ROUNDS):
        if settled or not np.isfinite(float(best.elbo)):
            break
        again = jax.tree.map(lambda leaf: np.stack([leaf] * len(points)), best.base)
        fit, _ = _matched(potential, again, np.asarray(_PAST), stream(rng_key, "round", index))
        # That these four agree would prove little: they go on from the same one.
        gain = float(fit.elbo) - float(best.elbo)
        settled = not gain > _SAME_ELBO
        best = fit if gain > 0 else best
    if not np.isfinite(float(best.elbo)):
        return _laplace_base(potential, start, rng_key)
    return best


def compile_ahead(potential: Potential, start: Float[Array, " d"], rng_key: PRNGKeyArray) -> None:
    """Begin to compile what `fit_base` will need from a start of such a shape."""
    points = np.stack([np.asarray(start)] * len(_START_STEPS))
    _matched.ahead(potential, _narrow(points), np.asarray(0), rng_key)


def _narrow(points: Any) -> GaussianBase:
    """A small Gaussian about each point."""
    scales: Any = np.stack([np.eye(points.shape[1], dtype=points.dtype) / 10] * len(points))
    return GaussianBase(points, scales)


def best_base(
    potential: Potential, starts: Iterable[Float[Array, " d"]], rng_key: PRNGKeyArray
) -> BaseFit:
    """The best fit, from the first start and from each that descends to a lower energy.

    A descent can end in a mode of no mass, and nothing in that fit alone says so; other descents
    cost milliseconds.
    """
    best, lowest = None, math.inf
    for index, start in enumerate(starts):
        energy = float(descent(potential, start).energy)
        if best is not None and not energy < lowest - _LOWER:
            continue
        key = stream(rng_key, "start", index)
        fit = jax.block_until_ready(fit_base(potential, start, key))
        lowest = min(lowest, energy) if math.isfinite(energy) else lowest
        if best is None or not float(best.elbo) >= float(fit.elbo):
            best = fit
    if best is None:
        raise ValueError("best_base needs a point to start from, but starts is empty.")
    return best


def _curved(potential: Potential, best: BaseFit, rng_key: PRNGKeyArray) -> BaseFit:
    """On from a fit by the target's expected curvature, while that gains."""
    share = 1.0
    for index in range(_MOST_CURVED):
        if share < _SMALLEST_SHARE or not np.isfinite(float(best.elbo)):
            break
        key = stream(rng_key, "curvature", index)
        fit = _curvature_round(potential, best.base, np.asarray(share, best.elbo.dtype), key)
        gain = float(fit.elbo) - float(best.elbo)
        best = fit if gain > 0 else best
        share = share if gain > _WORTH_A_ROUND else share / 2
    return best


@compiled
def _curvature_round(potential, base, share, rng_key) -> BaseFit:
    key_fit, key_elbo = jr.split(rng_key)
    base = towards_expected_curvature(potential, base, share, key_fit)
    return BaseFit(base, noise_elbo(WhitenedPotential(potential, base), key_elbo))


@compiled
def _independent(potential, points, rng_key) -> BaseFit:
    """Of the fits of independent coordinates from several points the one of highest ELBO."""

    def fit_one(point, key):
        key_fit, key_elbo = jr.split(key)
        base = diagonal_match(potential, point, key_fit)
        return BaseFit(base, noise_elbo(WhitenedPotential(potential, base), key_elbo))

    fits = jax.vmap(fit_one)(points, jr.split(rng_key, len(points)))
    best = jnp.argmax(fits.elbo)
    return jax.tree.map(lambda leaf: leaf[best], fits)


@compiled
def _laplace_base(potential, start, rng_key) -> BaseFit:
    key_fit, key_elbo = jr.split(rng_key)
    mode = descend(potential, start, _LONG_DESCENT_STEPS).path[-1]
    if start.size > LARGEST_FULL:
        base = low_rank_laplace(potential, mode, key_fit)
    else:
        base = laplace(potential, mode)
    elbo = noise_elbo(WhitenedPotential(potential, base), key_elbo)
    return BaseFit(base, elbo)


@compiled
def _matched(
    potential: Potential, initial: GaussianBase, first: Any, rng_key: PRNGKeyArray
) -> tuple[BaseFit, Float[Array, ""]]:
    """Of the fits from several Gaussians the one of highest ELBO, and the second best ELBO."""

    def fit_one(base, key):
        key_fit, key_elbo = jr.split(key)
        base = _batch_and_match(potential, base, first, key_fit)
        return BaseFit(base, noise_elbo(WhitenedPotential(potential, base), key_elbo))

    fits = jax.vmap(fit_one)(initial, jr.split(rng_key, len(initial.loc)))
    best, second = jnp.argsort(-fits.elbo)[:2]
    return jax.tree.map(lambda leaf: leaf[best], fits), fits.elbo[second]


class Descent(NamedTuple):
    """The points that L-BFGS visits on its way down; energy and gradient where it last looked."""

    path: Float[Array, "steps d"]
    energy: Float[Array, ""]
    gradient: Float[Array, " d"]
    num_steps: Int[Array, ""]  # after which it stood still


@compiled
def descent(potential: Potential, start: Float[Array, " d"]) -> Descent:
    """As many steps as the base is fitted from."""
    return descend(potential, start, _DESCENT_STEPS)


def noise_elbo(whitened: WhitenedPotential, rng_key: PRNGKeyArray) -> Float[Array, ""]:
    """The ELBO of the noise itself, without a flow, draws without a finite density rejected (nats).

    Minus infinity where that leaves none.
    """
    z = whitened.sample_noise(rng_key, _ELBO_DRAWS)
    log_weights = -jax.vmap(whitened)(z) - jax.vmap(whitened.noise.log_density)(z)
    finite = jnp.isfinite(log_weights)
    mean = jnp.sum(jnp.where(finite, log_weights, 0.0)) / jnp.maximum(finite.sum(), 1)
    return mean + jnp.log(jnp.mean(finite))


def descend(potential: Potential, start: Float[Array, " d"], num_steps: int) -> Descent:
    """Go down by L-BFGS, until a step fails twice."""
    line_search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=20, store_grad=True)
    optimiser = optax.lbfgs(linesearch=line_search)
    value_and_grad = optax.value_and_grad_from_state(potential)

    def step(carry):
        index, x, _, _, state, failures, path = carry
        value, grad = value_and_grad(x, state=state)
        updates, new_state = optimiser.update(
            grad, state, x, value=value, grad=grad, value_fn=potential
        )
        moved = jnp.asarray(optax.apply_updates(x, updates))
        better = optax.tree_utils.tree_get(new_state, "value") < value
        better &= jnp.all(jnp.isfinite(moved))
        # Where the curvature was the wrong way round the memory can point uphill for ever: forget.
        state = _choose(better, new_state, fresh)
        failures = jnp.where(better, 0, failures + 1)
        path = path.at[index].set(x)
        return index + 1, _choose(better, moved, x), value, grad, state, failures, path

    def go_on(carry):
        index, _, _, _, _, failures, _ = carry
        return (index < num_steps) & (failures < 2)

    fresh = optimiser.init(start)
    nowhere = jnp.zeros((num_steps, start.size), start.dtype)
    begin = 0, start, jnp.full((), jnp.inf, start.dtype), jnp.zeros_like(start), fresh, 0, nowhere
    index, x, value, grad, _, _, path = jax.lax.while_loop(go_on, step, begin)
    path = jnp.where((jnp.arange(num_steps) < index)[:, None], path, x).at[-1].set(x)
    return Descent(path, jnp.asarray(value), jnp.asarray(grad), jnp.asarray(index))


def _batch_and_match(
    potential: Potential, initial: GaussianBase, first: Any, rng_key: PRNGKeyArray
) -> GaussianBase:
    """Batch and match from a Gaussian, the iterations counted from `first`.

    Each update is computed in the coordinates that whiten the current Gaussian, and the factor is
    carried rather than the covariance: in single precision that bears the square of the condition
    number that the covariance's own recursion would.  Fewer draws than dimensions
    change a subspace only, so that no d x d matrix is diagonalised.
    """
    loc = initial.loc
    d = loc.size
    score = jax.vmap(lambda x: -jax.grad(potential)(x))
    identity = jnp.eye(d, dtype=loc.dtype)

    def step(carry, inputs):
        loc, factor = carry
        index, key = inputs
        z = jr.normal(key, (_BATCH_SIZE, d), loc.dtype)
        whitened_score = score(loc + z @ factor.T) @ factor
        # Steps of bounded length: what exceeds the Gaussian's own score -z is clipped.
        excess = whitened_score + z
        norm = jnp.linalg.norm(excess, axis=1, keepdims=True)
        limited = excess * jnp.minimum(1, _SCORE_CLIP * jnp.sqrt(d) / norm)
        limited = jnp.asarray(jnp.where(jnp.isfinite(norm) & (norm > 0), limited, 0.0))
        g = limited - z

        # Cai et al., algorithm 1, with current mean 0 and covariance I; there lambda = B d / t.
        # The new covariance solves S U S + S = V, U = u^T u and V = I + v^T v.
        # Theirs is enough to get there; averaging over the later batches takes a faster decay.
        time = index + 1.0
        rate = _BATCH_SIZE * min(d, _LARGEST_RATE) / time * jnp.minimum(1, _ADAPTING / time) ** 3
        shrunk = rate / (1 + rate)
        z_mean, g_mean = z.mean(0), g.mean(0)
        u = _rows_of_moments(g, g_mean, rate, shrunk)
        v = _rows_of_moments(z, z_mean, rate, shrunk)
        # With V = C C^T and W = C^T U C it is S = A A^T, A = C (2 / (1 + (1 + 4 W)^(1/2)))^(1/2).
        c = jnp.linalg.cholesky(identity + v.T @ v)
        vectors, change = _shrinkage(u @ c)
        pulled = _times(_times(g_mean[None] @ c, vectors, change), vectors, change)
        shift = shrunk * (c @ pulled[0] + z_mean)
        moved = loc + factor @ shift, _times(factor @ c, vectors, change)
        fine = jnp.all(jnp.isfinite(moved[0])) & jnp.all(jnp.isfinite(moved[1]))
        return _choose(fine, moved, carry), None

    keys = jr.split(rng_key, _NUM_ITERATIONS)
    carry = loc, initial.scale_tril
    (loc, factor), _ = jax.lax.scan(step, carry, (first + jnp.arange(_NUM_ITERATIONS), keys))
    triangle = jnp.linalg.qr(factor.T, mode="r").T
    return GaussianBase(loc, triangle * jnp.sign(jnp.diagonal(triangle)))


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


def _choose(condition: Bool[Array, ""], new, old):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
