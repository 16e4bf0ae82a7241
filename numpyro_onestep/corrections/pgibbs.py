"""Particle Gibbs over the diffusion's path (arXiv 2507.08390, for the sampler's SDE).

A state y_0 is the end of a path y_T, ..., y_0.  Going up, the forward kernels F noise it to
N(0, I); going down, the backward kernels B of the same covariance make a path from N(0, I)
(`training.objectives.path`).  One sweep turns a draw of the posterior into another one:

1. The path above the present state is drawn anew from F.
2. Conditional sequential Monte Carlo (Andrieu, Doucet and Holenstein, JRSS B 2010): this path and
   N - 1 others go down together.  Others are resampled at every time, by the weights
       g_j(y_j) F(y_{j+1} | y_j) / (g_{j+1}(y_{j+1}) B(y_j | y_{j+1})),
       g_j = N(0, I)^(1 - b_j) gamma^(b_j),   b_j falling from 1 at time 0,
   (gamma / N bounded from below at j > 0),
   whose product is the path weight.  g_j only says which paths are worth going on with.
3. The new state is the end of one of the paths, chosen by their last weights; another one than the
   present is preferred, with the correction of Metropolised Gibbs sampling (Liu, 1996).

The posterior is left as it is by any network, number of times and number of particles; these decide
only how fast the chains mix.  Memory holds one state of every particle, not the paths.

There are two spaces for the path.

- The base distribution's z, with the posterior pulled back through the map for gamma and r = 0 in
  B.  It needs nothing but a map that is good at its own step budget, the volume at every state
  included.
- Whitened coordinates, with the drift that the distillation stage has learnt, which costs a
  quarter of that.  It is taken where the mean log path weight, a bound of log Z, is near log Z.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from numpyro_onestep._util import progress
from numpyro_onestep._util.batching import map_in_batches, map_in_blocks
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep._util.random import numpy_generator, stream
from numpyro_onestep.corrections.base import (
    AbstractCorrection,
    Corrected,
    mixing,
    starts_of_chains,
)
from numpyro_onestep.corrections.latent_nuts import latent_potential
from numpyro_onestep.flow import FlowDistribution, FlowMap, PreconditionedPotential
from numpyro_onestep.flow.base_distribution import inflated_scale, standard_normal_log_density
from numpyro_onestep.importance.evidence import WeightedPool
from numpyro_onestep.settings import DrawSettings
from numpyro_onestep.target import Potential
from numpyro_onestep.training.objectives.path import simulate

# Paths in a sweep.  With 16 the present path was too often the only good one; with 128 a sweep took
# longer by more than the chains gained (docs/measured.md).
_NUM_PARTICLES = 32
# Times of a path in z, from 0 to the horizon, and the power by which they crowd at 0, where steps
# must be as short as what the map has left narrow.  16 times are no better than 8 and take twice as
# long.
_NUM_TIMES, _HORIZON, _CROWDING = 8, 3.0, 1.25
# b_j = e^(-rate tau_j), in z and with a learnt drift.
_RATE, _LEARNT_RATE = 1.4, 1.0
# Nats below log Z at which log(gamma / N) is cut in g_j, j > 0, since a
# path may pass where gamma is zero.
_DEEPEST = 10.0
# Nats of log Z that the mean log path weight may miss for the learnt drift to be taken: with 0.5
# chains mix well, with 1.2 they do not.
_LARGEST_PATH_GAP = 0.5
_NUM_WARMUP = 100  # sweeps; chains start at resampled draws
_CHUNK = 100  # sweeps of one call of the compiled program
_NUM_PATHS = 1000  # that the bound of the learnt drift is estimated from


class Space(eqx.Module):
    """Coordinates of the path, the target in them, and the drift."""

    distribution: FlowDistribution
    target: Any  # a Potential, or any function of x
    is_learnt: bool = eqx.field(static=True)
    log_evidence: Any = 0.0  # an estimate

    @property
    def times(self) -> np.ndarray:
        """From 0 to the horizon."""
        if self.is_learnt:
            return np.asarray(self._flow.times)
        return _HORIZON * (np.arange(_NUM_TIMES + 1) / _NUM_TIMES) ** _CROWDING

    @property
    def exponents(self) -> np.ndarray:
        """b_j, the share of the target in g_j."""
        return np.exp(-(_LEARNT_RATE if self.is_learnt else _RATE) * self.times)

    @property
    def _flow(self) -> Any:
        return self.distribution.flow

    @property
    def scale(self) -> float:
        """The unit of z: a base wider than N(0, I) reaches tails that the map has left too thin."""
        return 1.0 if self.is_learnt else inflated_scale(self.distribution.dim)

    def unconstrained(self, y: Float[Array, " d"]) -> Float[Array, " d"]:
        """The x that a state stands for."""
        if self.is_learnt:
            return self.distribution.preconditioner.unwhiten(y)
        return self.distribution.transform.move(self.scale * y)

    def log_ratio(self, y: Float[Array, " d"]) -> Float[Array, ""]:
        """log gamma(y) - log N(y; 0, I), up to a constant (nats)."""
        if self.is_learnt:
            energy = self.target(self.distribution.preconditioner.unwhiten(y))
        else:
            energy = latent_potential(self.distribution, self.target, self.scale * y)
        return _or_never(-energy - standard_normal_log_density(y))

    def on_the_way(self, log_ratio: Float[Array, " n"]) -> Float[Array, " n"]:
        """log gamma / N as g_j has it above time 0: bounded, so that g_j is nowhere zero."""
        return jnp.maximum(log_ratio, self.log_evidence - _DEEPEST)

    def drift(self, y: Float[Array, " d"], tau, size) -> Float[Array, " d"]:
        """2 (1 - e^-h) r(y, tau, h)."""
        if not self.is_learnt:
            return jnp.zeros_like(y)
        return 2 * -jnp.expm1(-size) * self._flow.network(y, tau, size)


@final
@dataclass(frozen=True)
class ParticleGibbs(AbstractCorrection):
    """Four chains of particle Gibbs."""

    num_chains: ClassVar[int] = 4
    is_multimodal: ClassVar[bool] = False

    settings: DrawSettings

    @progress.stage("running particle Gibbs")
    def __call__(
        self,
        weighted: WeightedPool,
        distribution: FlowDistribution,
        target: Potential,
        rng_key: PRNGKeyArray,
    ) -> Corrected:
        """Run the chains."""
        rng, pool = numpy_generator(stream(rng_key, "starts")), weighted.pool
        at = starts_of_chains(weighted, self.num_chains, rng)
        bound = _learnt_bound(distribution, target, stream(rng_key, "bound"))
        is_learnt = weighted.evidence.log_evidence - bound < _LARGEST_PATH_GAP
        log_evidence = jnp.asarray(weighted.evidence.log_evidence, distribution.flow.dtype)
        space = Space(distribution, target, is_learnt, log_evidence)
        if is_learnt:
            start = jax.vmap(distribution.preconditioner.whiten)(jnp.asarray(pool.x[at]))
        else:
            start = jnp.asarray(pool.z[at]) / space.scale
        per_chain = self.settings.num_samples // self.num_chains
        states, moved, key = [], [], stream(rng_key, "chains")
        now = start.astype(distribution.flow.dtype)
        for chunk in range(-(-(_NUM_WARMUP + per_chain) // _CHUNK)):
            some, has_moved = _sweeps(space, now, stream(key, "chunk", chunk))
            now = some[-1]
            states.append(np.asarray(some))
            moved.append(np.asarray(has_moved))
        chosen = slice(_NUM_WARMUP, _NUM_WARMUP + per_chain)
        grouped = np.concatenate(states)[chosen].swapaxes(0, 1)
        y = grouped.reshape(-1, distribution.dim)
        r_hat, min_ess = mixing(grouped)
        path = "with the learnt drift" if is_learnt else "in the flow's space"
        return Corrected(
            map_in_blocks(lambda rows: _images(space, rows), y),
            f"by particle Gibbs {path} in {self.num_chains} chains",
            num_chains=self.num_chains,
            r_hat=r_hat,
            min_ess=min_ess,
            acceptance=float(np.concatenate(moved)[chosen].mean()),
        )


def _learnt_bound(distribution: FlowDistribution, target: Potential, rng_key) -> float:
    """The mean log path weight (nats); minus infinity where there is no such path."""
    if not isinstance(distribution.flow, FlowMap):
        return -np.inf
    bound = float(_path_bound(distribution, target, rng_key))
    return bound if np.isfinite(bound) else -np.inf


@compiled
def _path_bound(
    distribution: FlowDistribution, target: Potential, rng_key: PRNGKeyArray
) -> Float[Array, ""]:
    flow: Any = distribution.flow
    potential = PreconditionedPotential(target, distribution.preconditioner)
    key_base, key_path = jr.split(rng_key)
    z = distribution.sample_base(key_base, _NUM_PATHS)
    keys = jr.split(key_path, _NUM_PATHS)
    paths = map_in_batches(lambda at: simulate(flow, potential, *at).log_weight, (z, keys))
    return jnp.mean(paths)


@compiled
def _images(space: Space, y: Float[Array, "n d"]) -> Float[Array, "n d"]:
    return map_in_batches(space.unconstrained, y)


@compiled
def _sweeps(
    space: Space, y: Float[Array, "chain d"], rng_key: PRNGKeyArray
) -> tuple[Float[Array, "n chain d"], Bool[Array, "n chain"]]:
    """A chunk of sweeps: the states after each of them, and whether they are new."""

    def advance(y, key):
        y, moved = jax.vmap(lambda y, key: sweep(space, y, key))(y, jr.split(key, len(y)))
        return y, (y, moved)

    return jax.lax.scan(advance, y, jr.split(rng_key, _CHUNK))[1]


def sweep(
    space: Space, y: Float[Array, " d"], rng_key: PRNGKeyArray
) -> tuple[Float[Array, " d"], Bool[Array, ""]]:
    """One sweep from one state: the new state, and whether it is another one."""
    key_up, key_base, key_down, key_choice, key_accept = jr.split(rng_key, 5)
    num, d = _NUM_PARTICLES, y.size
    taus = jnp.asarray(space.times, y.dtype)
    sizes, exponents = jnp.diff(taus), jnp.asarray(space.exponents, y.dtype)
    decays, variances = jnp.exp(-sizes), -jnp.expm1(-2 * sizes)

    def up(y, at):
        decay, variance, noise = at
        new = decay * y + jnp.sqrt(variance) * noise
        return new, new

    noise = jr.normal(key_up, (len(sizes), d), y.dtype)
    _, above = jax.lax.scan(up, y, (decays, variances, noise))
    below = jnp.concatenate([y[None], above[:-1]])  # the present path, without its upper end

    # The present path is particle 0 at all times.
    particles = jr.normal(key_base, (num, d), y.dtype).at[0].set(above[-1])
    ratios = jax.vmap(space.log_ratio)(particles)

    def down(carry, at):
        particles, ratios, log_weights = carry
        tau, size, decay, variance, upper, lower, present, key = at
        key_parent, key_noise = jr.split(key)
        parents = jr.categorical(key_parent, log_weights, shape=(num,)).at[0].set(0)
        old, old_ratios = particles[parents], ratios[parents]
        mean = decay * old + jax.vmap(lambda y: space.drift(y, tau, size))(old)
        noise = jr.normal(key_noise, (num, d), y.dtype)
        new = (mean + jnp.sqrt(variance) * noise).at[0].set(present)
        new_ratios = jax.vmap(space.log_ratio)(new)
        # log N(new) F(old | new) / N(old) B(new | old); their constants cancel.
        exact = jnp.sum(old**2 - new**2, 1) - jnp.sum((old - decay * new) ** 2, 1) / variance
        balance = 0.5 * (exact + jnp.sum((new - mean) ** 2, 1) / variance)
        kept = jnp.where(lower < 1, space.on_the_way(new_ratios), new_ratios)
        log_weights = lower * kept - upper * space.on_the_way(old_ratios) + balance
        return (new, new_ratios, _or_never(log_weights)), None

    downwards = taus[1:], sizes, decays, variances, exponents[1:], exponents[:-1], below
    downwards = tuple(values[::-1] for values in downwards)
    keys = jr.split(key_down, len(sizes))
    carry = particles, ratios, _or_never(exponents[-1] * space.on_the_way(ratios))
    (ends, _, log_weights), _ = jax.lax.scan(down, carry, (*downwards, keys))
    weights = jax.nn.softmax(log_weights)
    others = log_weights.at[0].set(-jnp.inf)
    chosen = jr.categorical(key_choice, others)
    odds = jnp.sum(weights[1:]) / (1 - weights[chosen])
    moved = (jr.uniform(key_accept) < odds) & jnp.any(jnp.isfinite(others))
    return jnp.where(moved, ends[chosen], y), moved


def _or_never(log_weights: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The logs of weights, which are zero where they were not a number."""
    return jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)
