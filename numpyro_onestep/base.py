"""The Gaussian base: N(loc, L L^T) fitted to the target, and the whitening it defines.

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

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from numpyro_onestep.compilation import compiled
from numpyro_onestep.noise import STANDARD_NORMAL, AbstractNoise
from numpyro_onestep.potential import AbstractPotential

_DESCENT_STEPS = 100
_LONG_DESCENT_STEPS = 500
# Above so many dimensions batch and match, cubic in d at every iteration, takes too long.
LARGEST_MATCHED = 128
# Curvature below which a direction counts as flat: a standard deviation of 100.
_FLATTEST = 1e-4
_START_STEPS = (0, 10, 25, 99)  # of the descent: a mode at infinity is far beyond the first ones
_NUM_ITERATIONS = 300
_BATCH_SIZE = 32
_ELBO_DRAWS = 512
# Two fits whose ELBOs differ by less than this (nats) have found the same place.
_SAME_ELBO = 1.0
# The score may differ from the current Gaussian's by so many standard deviations of its norm.
_SCORE_CLIP = 10.0


class GaussianBase(eqx.Module):
    """N(loc, scale_tril scale_tril^T) and the affine map from whitened to target coordinates."""

    loc: Float[Array, " d"]
    scale_tril: Float[Array, "d d"]

    def unwhiten(self, y: Float[Array, " d"]) -> Float[Array, " d"]:
        """X = loc + L y."""
        return self.loc + self.scale_tril @ y

    def whiten(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """Y = L^-1 (x - loc)."""
        return solve_triangular(self.scale_tril, x - self.loc, lower=True)

    @property
    def log_det(self) -> Float[Array, ""]:
        """log|det L|, the log-volume change of `unwhiten`."""
        return jnp.log(jnp.abs(jnp.diagonal(self.scale_tril))).sum()


class WhitenedPotential(eqx.Module):
    """The target's potential in whitened coordinates: -log gamma(y), y = L^-1 (x - loc).

    `noise` is what y is drawn from before the flow: N(0, I) makes x a draw of the base.
    """

    potential: Any  # an AbstractPotential, or for exploration any function of x
    base: GaussianBase
    noise: AbstractNoise = STANDARD_NORMAL

    def sample_noise(
        self, rng_key: PRNGKeyArray, num: int, scale: Any = 1.0
    ) -> Float[Array, "n d"]:
        """Draws to send through the flow."""
        return self.noise.sample(rng_key, num, self.base.loc, scale)

    def __call__(self, y: Float[Array, " d"]) -> Float[Array, ""]:
        """-log gamma(y) = U(loc + L y) - log|det L| (nats)."""
        return self.potential(self.base.unwhiten(y)) - self.base.log_det


def wide_scale(d: int) -> float:
    """Standard deviation of draws somewhat wider than the base: a unit of radius more, at any d."""
    return 1 + 1 / math.sqrt(d)


class BaseFit(NamedTuple):
    """The fitted base and its ELBO (nats; -inf where no start gave a finite one)."""

    base: GaussianBase
    elbo: Float[Array, ""]


def fit_base(
    potential: AbstractPotential, start: Float[Array, " d"], rng_key: PRNGKeyArray
) -> BaseFit:
    """Fit the Gaussian base to a target, from one point of finite density.

    Batch and match from several points of a descent, or in high dimension, where each of its
    iterations decomposes a d x d matrix, Laplace's approximation at the descent's end.
    """
    if start.size > LARGEST_MATCHED:
        return _laplace_base(potential, start, rng_key)
    path, _ = descent(potential, start)
    return _matched(potential, path, rng_key)


def best_base(
    potential: AbstractPotential, starts: Iterable[Float[Array, " d"]], rng_key: PRNGKeyArray
) -> BaseFit:
    """Fit from one start after another until two agree on the best ELBO so far.

    A descent can end in a mode of no mass, and nothing in that fit alone says so.  Of fits that
    agree the earliest is kept.
    """
    best = None
    for index, start in enumerate(starts):
        key = jr.fold_in(rng_key, index) if index else rng_key
        fit = jax.block_until_ready(fit_base(potential, start, key))
        if best is None or not float(best.elbo) >= float(fit.elbo) - _SAME_ELBO:
            best = fit
        elif float(fit.elbo) > float(best.elbo) - _SAME_ELBO:
            break
    if best is None:
        raise ValueError("best_base needs a point to start from, but starts is empty.")
    return best


@compiled
def _laplace_base(potential, start, rng_key) -> BaseFit:
    path, _ = descend(potential, start, _LONG_DESCENT_STEPS)
    base = _laplace(potential, path[-1])
    elbo = noise_elbo(WhitenedPotential(potential, base), rng_key)
    return BaseFit(base, elbo)


@compiled
def _matched(
    potential: AbstractPotential, path: Float[Array, "steps d"], rng_key: PRNGKeyArray
) -> BaseFit:
    """Of the fits from several points of a descent the one of highest ELBO."""
    points = path[np.array(_START_STEPS)]

    def fit_one(point, key):
        key_fit, key_elbo = jr.split(key)
        base = _batch_and_match(potential, point, key_fit)
        return BaseFit(base, noise_elbo(WhitenedPotential(potential, base), key_elbo))

    fits = jax.vmap(fit_one)(points, jr.split(rng_key, len(points)))
    best = jnp.argmax(fits.elbo)
    return jax.tree.map(lambda leaf: leaf[best], fits)


@compiled
def descent(
    potential: AbstractPotential, start: Float[Array, " d"]
) -> tuple[Float[Array, "steps d"], Float[Array, " d"]]:
    """The path of a descent, and the potential's gradient at its end."""
    return descend(potential, start, _DESCENT_STEPS)


def noise_elbo(whitened: WhitenedPotential, rng_key: PRNGKeyArray) -> Float[Array, ""]:
    """The ELBO of the noise itself, without a flow (nats; -inf where it is not finite)."""
    z = whitened.sample_noise(rng_key, _ELBO_DRAWS)
    elbo = jnp.mean(-jax.vmap(whitened)(z) - jax.vmap(whitened.noise.log_density)(z))
    return jnp.where(jnp.isfinite(elbo), elbo, -jnp.inf)


def _laplace(potential: AbstractPotential, mode: Float[Array, " d"]) -> GaussianBase:
    """The Gaussian of the potential's own curvature at a point.

    Directions without curvature, or with the wrong one, are taken to be as flat as the flattest
    that bends the right way.
    """
    eigenvalues, vectors = jnp.linalg.eigh(hessian(potential, mode))
    smallest = jnp.min(jnp.where(eigenvalues > _FLATTEST, eigenvalues, jnp.inf))
    floor = jnp.where(jnp.isfinite(smallest), smallest, 1.0)
    root = vectors / jnp.sqrt(jnp.maximum(eigenvalues, floor))
    triangle = jnp.linalg.qr(root.T, mode="r").T
    return GaussianBase(mode, triangle * jnp.sign(jnp.diagonal(triangle)))


def hessian(potential: AbstractPotential, x: Float[Array, " d"]) -> Float[Array, "d d"]:
    """The potential's second derivatives, a hundred columns at a time: d could take much memory."""
    gradient = jax.grad(potential)
    identity = jnp.eye(x.size, dtype=x.dtype)
    columns = jax.lax.map(
        lambda column: jax.jvp(gradient, (x,), (column,))[1],
        identity,
        batch_size=min(100, x.size),
    )
    return 0.5 * (columns + columns.T)


def descend(
    potential: AbstractPotential, start: Float[Array, " d"], num_steps: int
) -> tuple[Float[Array, "steps d"], Float[Array, " d"]]:
    """The points that L-BFGS visits on its way down, and the gradient where it last looked."""
    line_search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=20, store_grad=True)
    optimiser = optax.lbfgs(linesearch=line_search)
    value_and_grad = optax.value_and_grad_from_state(potential)

    def step(carry):
        index, x, _, state, failures, path = carry
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
        return index + 1, _choose(better, moved, x), grad, state, failures, path

    def go_on(carry):
        index, _, _, _, failures, _ = carry
        return (index < num_steps) & (failures < 2)

    fresh = optimiser.init(start)
    nowhere = jnp.zeros((num_steps, start.size), start.dtype)
    begin = 0, start, jnp.zeros_like(start), fresh, 0, nowhere
    index, x, grad, _, _, path = jax.lax.while_loop(go_on, step, begin)
    path = jnp.where((jnp.arange(num_steps) < index)[:, None], path, x).at[-1].set(x)
    return path, jnp.asarray(grad)


def _batch_and_match(
    potential: AbstractPotential, start: Float[Array, " d"], rng_key: PRNGKeyArray
) -> GaussianBase:
    """Batch and match from a narrow Gaussian at `start`.

    Each update is computed in the coordinates that whiten the current Gaussian, and the factor is
    carried rather than the covariance: in single precision that bears the square of the condition
    number that the covariance's own recursion would.
    """
    d = start.size
    score = jax.vmap(lambda x: -jax.grad(potential)(x))
    identity = jnp.eye(d, dtype=start.dtype)

    def step(base, inputs):
        index, key = inputs
        z = jr.normal(key, (_BATCH_SIZE, d), start.dtype)
        whitened_score = score(jax.vmap(base.unwhiten)(z)) @ base.scale_tril
        # Steps of bounded length: what exceeds the Gaussian's own score -z is clipped.
        excess = whitened_score + z
        norm = jnp.linalg.norm(excess, axis=1, keepdims=True)
        limited = excess * jnp.minimum(1, _SCORE_CLIP * jnp.sqrt(d) / norm)
        g = -z + jnp.where(jnp.isfinite(norm) & (norm > 0), limited, 0.0)

        # Cai et al., algorithm 1, with current mean 0 and covariance I; rate lambda = B d / t.
        rate = _BATCH_SIZE * d / (index + 1.0)
        z_mean, g_mean = z.mean(0), g.mean(0)
        shrunk = rate / (1 + rate)
        u = rate * _covariance(g, g_mean) + shrunk * jnp.outer(g_mean, g_mean)
        v = identity + rate * _covariance(z, z_mean) + shrunk * jnp.outer(z_mean, z_mean)
        # S u S + S = v has the solution S = A A^T, A = chol(v) Q sqrt(2 / (1 + sqrt(1 + 4 w))),
        # where chol(v)^T u chol(v) = Q w Q^T.
        factor = jnp.linalg.cholesky(v)
        eigenvalues, vectors = jnp.linalg.eigh(factor.T @ u @ factor)
        roots = 2 / (1 + jnp.sqrt(1 + 4 * jnp.maximum(eigenvalues, 0.0)))
        a = factor @ (vectors * jnp.sqrt(roots))
        shift = shrunk * (a @ (a.T @ g_mean) + z_mean)
        triangle = jnp.linalg.qr(a.T, mode="r").T
        triangle = triangle * jnp.sign(jnp.diagonal(triangle))
        moved = GaussianBase(base.unwhiten(shift), base.scale_tril @ triangle)
        fine = jnp.all(jnp.isfinite(moved.loc)) & jnp.all(jnp.isfinite(moved.scale_tril))
        return _choose(fine, moved, base), None

    keys = jr.split(rng_key, _NUM_ITERATIONS)
    initial = GaussianBase(start, 0.1 * identity)
    base, _ = jax.lax.scan(step, initial, (jnp.arange(_NUM_ITERATIONS), keys))
    return base


def _covariance(values: Float[Array, "n d"], mean: Float[Array, " d"]) -> Float[Array, "d d"]:
    centred = values - mean
    return centred.T @ centred / values.shape[0]


def _choose(condition: Bool[Array, ""], new, old):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
