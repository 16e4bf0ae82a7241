"""NUTS in the space that the flow starts from (NeuTra: Hoffman et al., 2019).

The posterior pulled back through the map, gamma(T(z)) |det dT/dz|, is near the standard normal:
what is a neck in x is nearly round in z.  Chains start at resampled draws, so warm-up only tunes.

Where the map has not flattened a neck, an adapted step diverges.  NUTS then runs once more, twice
at most, with steps that are short and not adapted: a chain that warms up in a neck would shrink its
own for ever, one that does not would keep steps that are too long for it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpyro.infer import MCMC, NUTS

from numpyro_onestep._util.random import numpy_generator, stream
from numpyro_onestep.corrections.base import LARGEST_R_HAT, Corrected, mixing
from numpyro_onestep.settings import Settings

_NUM_CHAINS = 4
_NUM_WARMUP = 500
_TARGET_ACCEPTANCE = 0.9
# At most 127 leapfrog steps a transition.
_MAX_TREE_DEPTH = 7
# The steps of a second and a third run, in units of d^(-1/4) (how they scale for a standard
# normal), and their depths.  The former is stable where the density curves up to 1600 sqrt(d) times
# as much as that one's.
_SHORT_STEPS, _NUM_SHORT_WARMUP = ((0.05, 7), (0.025, 8)), 100
# Nats that keep chains from where the map has folded: one visit in e^50.
_WALL = 50.0


def latent_nuts(run: Any, settings: Settings, rng_key: PRNGKeyArray) -> Corrected:
    """Four chains of NUTS on z, mapped to x."""
    key_run, key_again = stream(rng_key, "chains"), stream(rng_key, "short steps")
    rng = numpy_generator(stream(rng_key, "starts"))
    flow, potential, num_steps = run.training.flow, run.potential, run.num_flow_steps

    def latent_potential(z):
        y, log_det, sign = flow.volume(z, num_steps)
        energy = potential(y) - log_det
        # Beyond a fold a point would be counted twice.  A wall keeps the chains out; one of
        # infinite height would call a leapfrog step into it a divergence, which it is not.
        energy = jnp.where(sign > 0, energy, energy + _WALL)
        return jnp.where(jnp.isfinite(energy), energy, jnp.inf)

    weights = np.exp(run.smoothed) * (np.asarray(run.pool.sign) > 0)
    at = rng.choice(len(weights), size=_NUM_CHAINS, p=weights / weights.sum())
    start = run.pool.z[at]
    adapted = NUTS(
        potential_fn=latent_potential,
        target_accept_prob=_TARGET_ACCEPTANCE,
        max_tree_depth=_MAX_TREE_DEPTH,
    )
    mcmc = _run(adapted, _NUM_WARMUP, start, key_run, settings)
    for step, depth in _SHORT_STEPS:
        if not _trouble(mcmc)[1]:
            break
        short = NUTS(
            potential_fn=latent_potential,
            step_size=step * start.shape[1] ** -0.25,
            adapt_step_size=False,
            adapt_mass_matrix=False,
            max_tree_depth=depth,
        )
        again = _run(short, _NUM_SHORT_WARMUP, start, key_again, settings)
        mcmc = min(mcmc, again, key=_trouble)
    z = mcmc.get_samples()
    extra = {name: np.asarray(value) for name, value in mcmc.get_extra_fields().items()}

    def outcome(z):
        y, log_det, _ = flow.volume(z, num_steps)
        log_q = potential.noise.log_density(z) - log_det - potential.base.log_det
        x = potential.base.unwhiten(y)
        return x, -potential.potential(x), log_q

    x, log_density, log_q = jax.jit(lambda z: jax.lax.map(outcome, z, batch_size=500))(z)
    r_hat, min_ess = mixing(mcmc.get_samples(group_by_chain=True))
    return Corrected(
        x,
        f"by NUTS in the flow's space in {_NUM_CHAINS} chains",
        num_chains=_NUM_CHAINS,
        r_hat=r_hat,
        min_ess=min_ess,
        acceptance=float(extra["accept_prob"].mean()),
        divergences=int(extra["diverging"].sum()),
        stats={
            "lp": log_density,
            "log_q": log_q,
            "log_weight": log_density - log_q,
            "diverging": extra["diverging"],
            "n_steps": extra["num_steps"],
            "acceptance_rate": extra["accept_prob"],
        },
    )


def _run(kernel: NUTS, num_warmup: int, start, rng_key, settings: Settings) -> MCMC:
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=-(-settings.num_samples // _NUM_CHAINS),
        num_chains=_NUM_CHAINS,
        chain_method="vectorized",
        progress_bar=settings.progress_bar,
    )
    fields = ("diverging", "num_steps", "accept_prob")
    mcmc.run(rng_key, init_params=start, extra_fields=fields)
    return mcmc


def _trouble(mcmc: MCMC) -> tuple[bool, int]:
    """Whether the chains have not mixed, and how many transitions diverged."""
    r_hat, _ = mixing(mcmc.get_samples(group_by_chain=True))
    return not r_hat < LARGEST_R_HAT, int(mcmc.get_extra_fields()["diverging"].sum())
