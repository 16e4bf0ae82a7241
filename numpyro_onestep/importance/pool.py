"""A pool of draws with their exact densities, from which evidence and corrections are computed.

The density of a draw x, the image of z, is
    log q(x) = log n(z) - log|det dx/dz|,   n the base distribution,
by the exact volume of the very map that made the draw.  Its deterministic-flow weight is
log gamma(x) - log q(x), and the ELBO is the mean of that.

A fraction a of the pool are inflated draws: their z comes from the inflated base distribution n_s.
Every member is weighed against the density of the mixture of both,
    log w = log gamma(x) - log((1 - a) n(z) + a n_s(z)) + log|det dx/dz|
(a defensive mixture: Hesterberg, "Weighted average importance sampling and defensive mixture
distributions", Technometrics 1995).  Where the flow's tails are thinner than the posterior's, that
keeps the weights bounded.  The ELBO is the mean over the flow's own draws alone.

The number of base draws is rounded up, and they are weighed in blocks of one size, so that another
number of draws compiles nothing.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from numpyro_onestep._util import progress
from numpyro_onestep._util.batching import BATCH, map_in_batches, map_in_blocks, side_by_side
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep.flow import FlowDistribution, FlowMap
from numpyro_onestep.flow.base_distribution import inflated_scale
from numpyro_onestep.flow.parareal import one_step_defect, parareal

# The number of base draws is rounded up to a power of two.  It is at least the first number where
# that takes no more numbers than the second (16 MiB in single precision), so that few programs
# are compiled.  In JAX the first random numbers do not depend on how many follow.
_FEWEST_BASE_DRAWS, _MOST_NUMBERS = 2**16, 2**22
# Batches that one call of the compiled program weighs, one after the other.
_BATCHES = 2


class Pool(NamedTuple):
    """Draws of the flow on R^d and their exact densities (nats)."""

    x: Float[Any, "n d"]
    log_density: Float[Any, " n"]  # log gamma(x), not normalised
    log_q: Float[Any, " n"]  # log density of the flow
    log_mixture: Float[Any, " n"]  # log density of the mixture of own and inflated draws
    sign: Float[Any, " n"]  # of the map's determinant: -1 proves a fold
    own: Bool[Any, " n"]  # whether it is one of the flow's own draws, which come first
    z: Float[Any, "n d"]  # the base draws of which x are the images

    @property
    def log_weight(self) -> Float[Any, " n"]:
        """Log weights: log gamma less the log density of the defensive mixture."""
        return self.log_density - self.log_mixture


@progress.stage("weighing")
def draw_pool(
    distribution: FlowDistribution,
    potential: Any,
    rng_key: PRNGKeyArray,
    num: int,
    num_inflated: int = 0,
    batch_bytes: int = 2**26,
) -> Pool:
    """Draws with their exact densities, the last `num_inflated` from the inflated base.

    Args:
        distribution: the distribution of the flow.
        potential: U, in unconstrained coordinates.
        rng_key: a JAX random key; the own draws are those of `draw` with the same key.
        num: number of all draws.
        num_inflated: number of inflated draws among them. Default 0.
        batch_bytes: memory that a batch of Jacobians may take, roughly, in bytes. Default 64 MiB.
    """
    own = np.arange(num) < num - num_inflated
    scale = np.where(own, 1.0, inflated_scale(distribution.dim)).astype(distribution.flow.dtype)
    z = _base_draws(distribution, rng_key, num, scale)
    inflated = num_inflated / num
    size = _batch_size(distribution, batch_bytes)
    x, log_density, log_q, log_mixture, sign = map_in_blocks(
        lambda rows: _weigh(distribution, potential, rows, inflated, size),
        z,
        _BATCHES * size,
        told=lambda done: progress.detail(f"{done:,} of {num:,} draws"),
    )
    return Pool(x, log_density, log_q, log_mixture, sign, own, z)


def draw(
    distribution: FlowDistribution, rng_key: PRNGKeyArray, num: int, parallel: bool = False
) -> Float[np.ndarray, "n d"]:
    """Draws without their densities: k network evaluations each.

    With `parallel` the flow is a dense map, and these are parareal iterations (`flow.parareal`).
    """
    z = _base_draws(distribution, rng_key, num, np.ones(num, distribution.flow.dtype))
    return map_in_blocks(lambda rows: _images(distribution, rows, parallel), z)


def one_step_defects(
    distribution: FlowDistribution, z: Float[np.ndarray, "n d"], num_steps: int
) -> Float[np.ndarray, " n"]:
    """For base draws the distance between the ends of one step and of k, in whitened units."""
    return map_in_blocks(lambda rows: _defects(distribution, rows, num_steps), z)


def compile_ahead(
    distribution: FlowDistribution,
    potential: Any,
    rng_key: PRNGKeyArray,
    num: int,
    num_inflated: int,
    batch_bytes: int,
) -> None:
    """Begin to compile what `draw_pool` will need for these arguments, or others of such shapes."""
    d, dtype = distribution.dim, distribution.flow.dtype
    _sample_base.ahead(distribution, rng_key, np.ones(_rounded_up(num, d), dtype))
    size = _batch_size(distribution, batch_bytes)
    rows = np.zeros((_BATCHES * size, d), dtype)
    _weigh.ahead(distribution, potential, rows, num_inflated / num, size)


def _batch_size(distribution: FlowDistribution, batch_bytes: int) -> int:
    """Draws whose Jacobians are computed at a time."""
    bytes_each = distribution.flow.dtype.itemsize * distribution.flow.numbers_per_draw
    return min(BATCH, max(1, batch_bytes // bytes_each))


def _base_draws(distribution, rng_key, num: int, scale) -> Float[np.ndarray, "n d"]:
    padded = np.ones(_rounded_up(num, distribution.dim), scale.dtype)
    padded[:num] = scale
    return np.asarray(_sample_base(distribution, rng_key, padded))[:num]


def _rounded_up(num: int, d: int) -> int:
    fewest = _FEWEST_BASE_DRAWS if _FEWEST_BASE_DRAWS * d <= _MOST_NUMBERS else 1
    return max(fewest, 1 << (num - 1).bit_length())


@compiled
def _sample_base(
    distribution: FlowDistribution, rng_key: PRNGKeyArray, scale: Float[Array, " n"]
) -> Float[Array, "n d"]:
    return distribution.sample_base(rng_key, len(scale), scale)


@compiled
def _images(
    distribution: FlowDistribution, z: Float[Array, "n d"], parallel: bool
) -> Float[Array, "n d"]:
    flow, num_steps = distribution.flow, distribution.num_steps
    if not parallel:
        return map_in_batches(distribution.transform.move, z)
    assert isinstance(flow, FlowMap)
    unwhiten = distribution.preconditioner.unwhiten
    return map_in_batches(lambda z: unwhiten(parareal(flow, z, num_steps).y), z)


@compiled
def _defects(
    distribution: FlowDistribution, z: Float[Array, "n d"], num_steps: int
) -> Float[Array, " n"]:
    return map_in_batches(lambda z: one_step_defect(distribution.flow, z, num_steps), z)


@compiled
def _weigh(
    distribution: FlowDistribution,
    potential: Any,
    z: Float[Array, "n d"],
    inflated: float,
    batch_size: int,
) -> tuple[Array, ...]:
    """Images of base draws with their densities: the target's, the flow's and the pool's.

    The fraction of inflated draws is static: it is the same for pools of nearly any size.
    """
    base, scale = distribution.base, inflated_scale(z.shape[1])

    def densities(z):
        image = distribution.transform.image(z)
        log_base = base.log_density(z)
        if inflated:
            log_own = (math.log1p(-inflated) if inflated < 1 else -math.inf) + log_base
            log_base = jnp.logaddexp(log_own, math.log(inflated) + base.log_density(z, scale))
        log_q = distribution.log_prob_at(z, image)
        return image.x, log_q, log_base - image.log_det, image.sign

    x, log_q, log_mixture, sign = map_in_batches(densities, z, batch_size)
    energy = map_in_batches(potential, x, side_by_side(potential))
    return x, -energy, log_q, log_mixture, sign
