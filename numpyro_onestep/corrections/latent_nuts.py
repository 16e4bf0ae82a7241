"""NUTS in the space that the flow starts from (NeuTra: Hoffman et al., 2019).

The posterior pulled back through the map, gamma(T(z)) |det dT/dz|, is near the standard normal:
what is a neck in x is nearly round in z.  Chains start at resampled draws, so warm-up only tunes.

Where the map has not flattened a neck the leapfrog would still diverge; its force is bounded there
(as in the truncated Langevin algorithm of Roberts and Tweedie, 1996).  A step stays reversible and
keeps volumes under any force that depends on the position alone, and what is accepted depends on
the energy alone: the target is the same.  What would have diverged is rejected, so that divergences
say less than they do elsewhere; how mixed the chains are says R-hat, and at how many draws the
force was cut is said too.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray
from numpyro.infer import MCMC, NUTS

from numpyro_onestep.corrections.corrected import Corrected, mixing
from numpyro_onestep.settings import Settings

_NUM_CHAINS = 4
_NUM_WARMUP = 500
# Small steps are cheap where everything is nearly round; where some diverge, smaller ones.
_TARGET_ACCEPTANCE, _HIGH_TARGET_ACCEPTANCE = 0.9, 0.99
# Longest force, in lengths of a standard normal's typical one, and the share of posterior draws (as
# many as are judged) with a longer one above which it is left alone: a wall all around is no neck.
_LONGEST_FORCE = 4.0
_NUM_JUDGED, _RARELY_STEEP = 1000, 0.05
# Nats that keep chains from where the map has folded: one visit in e^50.
_WALL = 50.0


def latent_nuts(run: Any, settings: Settings, rng_key: PRNGKeyArray) -> Corrected:
    """Four chains of NUTS on z, mapped to x."""
    key_start, key_run = jr.split(rng_key)
    rng = np.random.default_rng(np.asarray(jr.key_data(key_start)))
    flow, potential, num_steps = run.training.flow, run.potential, run.num_flow_steps

    def latent_potential(z):
        y, log_det, sign = flow.volume(z, num_steps)
        energy = potential(y) - log_det
        # Beyond a fold a point would be counted twice.  A wall keeps the chains out; one of
        # infinite height would call a leapfrog step into it a divergence, which it is not.
        energy = jnp.where(sign > 0, energy, energy + _WALL)
        return jnp.where(jnp.isfinite(energy), energy, jnp.inf)

    weights = np.exp(run.smoothed) * (np.asarray(run.pool.sign) > 0)
    at = rng.choice(len(weights), size=_NUM_CHAINS + _NUM_JUDGED, p=weights / weights.sum())
    start = run.pool.z[at[:_NUM_CHAINS]]
    longest = _LONGEST_FORCE * start.shape[1] ** 0.5

    @jax.jit
    def is_steep(z):
        lengths = jax.lax.map(
            lambda at: jnp.linalg.norm(jax.grad(latent_potential)(at)), z, batch_size=500
        )
        return ~(lengths <= longest)

    target = latent_potential
    if jnp.mean(is_steep(run.pool.z[at[_NUM_CHAINS:]])) < _RARELY_STEEP:
        target = _with_bounded_force(latent_potential, longest)
    mcmc = _run(target, start, key_run, settings, _TARGET_ACCEPTANCE)
    if mcmc.get_extra_fields()["diverging"].any():
        mcmc = _run(target, start, key_run, settings, _HIGH_TARGET_ACCEPTANCE)
    z = mcmc.get_samples()
    cut = is_steep(z) & (target is not latent_potential)
    extra = {name: np.asarray(value) for name, value in mcmc.get_extra_fields().items()}

    def outcome(z):
        y, log_det, _ = flow.volume(z, num_steps)
        log_q = potential.noise.log_density(z) - log_det - potential.base.log_det
        x = potential.base.unwhiten(y)
        return x, -potential.potential(x), log_q

    x, log_density, log_q = jax.jit(lambda z: jax.lax.map(outcome, z, batch_size=500))(z)
    r_hat, min_ess = mixing(np.asarray(z).reshape(_NUM_CHAINS, -1, z.shape[1]))
    divergences = int(extra["diverging"].sum())
    return Corrected(
        x,
        f"by NUTS in the flow's space in {_NUM_CHAINS} chains",
        num_chains=_NUM_CHAINS,
        r_hat=r_hat,
        min_ess=min_ess,
        acceptance=float(extra["accept_prob"].mean()),
        divergences=divergences,
        cut_share=float(jnp.mean(cut)),
        stats={
            "lp": log_density,
            "log_q": log_q,
            "log_weight": log_density - log_q,
            "diverging": extra["diverging"],
            "n_steps": extra["num_steps"],
            "acceptance_rate": extra["accept_prob"],
            "force_cut": np.asarray(cut),
        },
    )


def _run(potential_fn, start, rng_key, settings: Settings, target: float) -> MCMC:
    mcmc = MCMC(
        NUTS(potential_fn=potential_fn, target_accept_prob=target),
        num_warmup=_NUM_WARMUP,
        num_samples=-(-settings.num_samples // _NUM_CHAINS),
        num_chains=_NUM_CHAINS,
        chain_method="vectorized",
        progress_bar=settings.progress_bar,
    )
    fields = ("diverging", "num_steps", "accept_prob")
    mcmc.run(rng_key, init_params=start, extra_fields=fields)
    return mcmc


def _with_bounded_force(potential_fn, longest: float):
    """The same energy, its gradient cut to a length."""

    @jax.custom_vjp
    def energy(z):
        return potential_fn(z)

    def backward(gradient, cotangent):
        length = jnp.linalg.norm(gradient)
        cut = gradient * (longest / jnp.maximum(length, longest))
        return (cotangent * jnp.where(jnp.isfinite(length), cut, 0.0),)

    energy.defvjp(jax.value_and_grad(potential_fn), backward)
    return energy
