"""The loss of one training step, in each of the two stages.

The distillation stage minimises, on one batch of paths,
    path_weight * path + state_weight * state + volume_weight * volume,
the evidence stage maximises the exact-volume ELBO of the k-step map.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_onestep.flow import AbstractFlowMap, FlowDistribution, PreconditionedPotential
from numpyro_onestep.flow.base_distribution import StandardNormal, inflated_scale
from numpyro_onestep.settings import LossSettings
from numpyro_onestep.training.objectives import (
    DrawWeights,
    elbo_loss,
    path_loss,
    state_consistency_loss,
    volume_consistency_loss,
)

Stage = Literal["distillation", "evidence"]

# Time of one step of a Langevin chain, in units of the time in which a chain forgets its place.
_LANGEVIN_STEP = 0.2


class Records(NamedTuple):
    """Records of one iteration or, stacked, of several.

    `loss` is an upper bound of -log Z in nats: -E[log w_path] in the distillation stage, -ELBO in
    the evidence stage.
    """

    loss: Any
    state: Any
    volume: Any
    non_finite: Any  # the flow's own draws in the batch, or the update, that had to be skipped
    folded: Any  # fraction of the batch at which the map's determinant is negative


def is_from_gaussian(distribution: FlowDistribution) -> bool:
    """Whether the flow starts from a single Gaussian, not from a mixture."""
    return isinstance(distribution.base, StandardNormal)


def losses(
    stage: Stage,
    distribution: FlowDistribution,
    teacher: AbstractFlowMap,
    chains: Float[Array, "m d"],
    potential: PreconditionedPotential,
    rng_key: PRNGKeyArray,
    settings: LossSettings,
) -> tuple[Float[Array, ""], tuple[Records, Float[Array, "m d"]]]:
    """The stage's loss on one batch, its records, and the Langevin chains after the step."""
    if stage == "distillation":
        total, records = _distillation(distribution, teacher, potential, rng_key, settings)
        return total, (records, chains)
    return _evidence(distribution, chains, potential, rng_key, settings)


def _distillation(distribution, teacher, potential, rng_key, settings: LossSettings):
    """The three losses of the distillation stage, weighed, on one batch of paths."""
    flow = distribution.flow
    key_base, key_path, key_volume = jr.split(rng_key, 3)
    z = distribution.sample_base(key_base, settings.distillation_batch_size)
    path, states = path_loss(flow, potential, z, key_path)
    zero = jnp.zeros_like(path)
    consistency = volume = zero
    if settings.state_weight and flow.num_grid_steps > 1:
        consistency = state_consistency_loss(flow, teacher, states)
    if settings.volume_weight and flow.num_grid_steps > 1:
        volume = volume_consistency_loss(
            flow, teacher, states, key_volume, settings.volume_batch_size
        )
    total = (
        settings.path_weight * path
        + settings.state_weight * consistency
        + settings.volume_weight * volume
    )
    return total, Records(path, consistency, volume, zero, zero)


def _evidence(distribution, chains, potential, rng_key, settings: LossSettings):
    """The exact-volume ELBO of the k-step map, on the flow's own draws and the chains.

    Where q = p the force is zero at every draw, wherever it is, so a batch need not come from the
    base distribution alone.  A part of it follows Langevin chains whose target is the posterior
    pulled back to z.  The chains drift to where the flow has too little mass, and train it there.
    Their gradient is J^T force, which the loss computes anyway.
    """
    key_base, key_chains = jr.split(rng_key)
    num_chains = len(chains)
    own = distribution.sample_base(key_base, settings.num_own)
    z = jnp.concatenate([chains, own])
    surrogate, draws = elbo_loss(distribution, potential, z, settings.force_clip)
    if is_from_gaussian(distribution):
        chains = _langevin(key_chains, chains, jax.tree.map(lambda v: v[:num_chains], draws))
    else:  # no step size of a chain suits all components, so inflated draws take its place
        chains = distribution.sample_base(key_chains, num_chains, inflated_scale(z.shape[1]))
    weights = draws.log_weight[num_chains:]
    finite = jnp.isfinite(weights)
    bound = jnp.sum(jnp.where(finite, weights, 0.0)) / finite.sum()  # not a number without any
    zero = jnp.zeros_like(bound)
    non_finite = jnp.sum(~finite).astype(bound.dtype)
    folded = jnp.mean(draws.sign < 0).astype(bound.dtype)
    records = Records(-bound, zero, zero, non_finite, folded)
    return settings.elbo_weight * surrogate, (records, jax.lax.stop_gradient(chains))


def _langevin(
    rng_key: PRNGKeyArray, z: Float[Array, "m d"], draws: DrawWeights
) -> Float[Array, "m d"]:
    """One step of dz = -(z + J^T force) dt + sqrt(2) s dW, its linear part exact.

    At q = p a chain is stationary at N(0, s^2 I), s the scale of the inflated draws.  A chain that
    reaches a fold, or a point where the log weight is not finite, begins again from N(0, I).
    """
    noise = jr.normal(rng_key, (2, *z.shape), z.dtype)
    keep = math.exp(-_LANGEVIN_STEP)
    scale = inflated_scale(z.shape[1]) * math.sqrt(1 - keep**2)
    moved = keep * z - (1 - keep) * draws.latent_force + scale * noise[0]
    fine = (draws.sign > 0) & jnp.isfinite(draws.log_weight)
    return jnp.where(fine[:, None], moved, noise[1])
