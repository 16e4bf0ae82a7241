"""NUTS on z, the coordinates of the base distribution (NeuTra: Hoffman et al., 2019).

The posterior pulled back through the map, gamma(T(z)) |det dT/dz|, is near the standard normal: a
neck in x is nearly round in z.  Chains start at resampled draws, so warm-up only tunes.

Where the map has not flattened a neck, an adapted step diverges.  NUTS then runs once more, twice
at most, with short steps that are not adapted.  An adapted step would be wrong there: too short for
the rest if a chain warms up in the neck, too long for the neck if it does not.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.infer import MCMC, NUTS

from numpyro_onestep._util import progress
from numpyro_onestep._util.batching import map_in_batches, map_in_blocks
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep._util.random import numpy_generator, stream
from numpyro_onestep.corrections.base import (
    LARGEST_R_HAT,
    AbstractCorrection,
    Corrected,
    mixing,
    starts_of_chains,
)
from numpyro_onestep.flow import FlowDistribution
from numpyro_onestep.importance.evidence import WeightedPool
from numpyro_onestep.settings import DrawSettings
from numpyro_onestep.target import Potential

_NUM_WARMUP = 500
_TARGET_ACCEPTANCE = 0.9
# At most 127 leapfrog steps in a transition.
_MAX_TREE_DEPTH = 7
# Step sizes of the second and the third run, in units of d^(-1/4) (the scaling for a standard
# normal), and their tree depths.  The first step is stable where the density curves up to
# 1600 sqrt(d) times as much as that of a standard normal.
_SHORT_STEPS, _NUM_SHORT_WARMUP = ((0.05, 7), (0.025, 8)), 100
# Nats that are added to the potential where the map folds, which keeps chains out: one visit in
# e^50.
_WALL = 50.0


@final
@dataclass(frozen=True)
class LatentNUTS(AbstractCorrection):
    """Four chains of NUTS on z, mapped to x."""

    num_chains: ClassVar[int] = 4
    is_multimodal: ClassVar[bool] = False

    settings: DrawSettings

    @progress.stage("running NUTS in the flow's space")
    def __call__(
        self,
        weighted: WeightedPool,
        distribution: FlowDistribution,
        target: Potential,
        rng_key: PRNGKeyArray,
    ) -> Corrected:
        """Run the chains, with shorter steps where some diverge."""
        key_run, key_again = stream(rng_key, "chains"), stream(rng_key, "short steps")
        rng = numpy_generator(stream(rng_key, "starts"))
        at = starts_of_chains(weighted, self.num_chains, rng)
        start = jnp.asarray(weighted.pool.z[at])
        kernel = partial(NUTS, potential_fn=partial(latent_potential, distribution, target))
        adapted = kernel(target_accept_prob=_TARGET_ACCEPTANCE, max_tree_depth=_MAX_TREE_DEPTH)
        mcmc = self._chains(adapted, _NUM_WARMUP, start, key_run)
        for step, depth in _SHORT_STEPS:
            if not _trouble(mcmc)[1]:
                break
            short = kernel(
                step_size=step * start.shape[1] ** -0.25,
                adapt_step_size=False,
                adapt_mass_matrix=False,
                max_tree_depth=depth,
            )
            again = self._chains(short, _NUM_SHORT_WARMUP, start, key_again)
            mcmc = min(mcmc, again, key=_trouble)
        z = mcmc.get_samples()
        extra = {name: np.asarray(value) for name, value in mcmc.get_extra_fields().items()}
        x, log_density, log_q = map_in_blocks(lambda rows: _outcomes(distribution, target, rows), z)
        r_hat, min_ess = mixing(mcmc.get_samples(group_by_chain=True))
        return Corrected(
            x,
            f"by NUTS in the flow's space in {self.num_chains} chains",
            num_chains=self.num_chains,
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

    def _chains(self, kernel: NUTS, num_warmup: int, start: Any, rng_key: PRNGKeyArray) -> MCMC:
        mcmc = MCMC(
            kernel,
            num_warmup=num_warmup,
            num_samples=self.settings.num_samples // self.num_chains,
            num_chains=self.num_chains,
            chain_method="vectorized",
            progress_bar=False,  # there is one line for the whole run
        )
        fields = ("diverging", "num_steps", "accept_prob")
        mcmc.run(rng_key, init_params=start, extra_fields=fields)
        return mcmc


def latent_potential(
    distribution: FlowDistribution, target: Any, z: Float[Array, " d"]
) -> Float[Array, ""]:
    """Minus the log of gamma(T(z)) |det dT/dz| (nats)."""
    image = distribution.transform.image(z)
    energy: Array = target(image.x) - image.log_det
    # Beyond a fold a point would be counted twice.  A wall keeps the chains out.  With a wall of
    # infinite height NUTS would count a leapfrog step into it as a divergence, which it is not.
    energy = jnp.where(image.sign > 0, energy, energy + _WALL)
    return jnp.where(jnp.isfinite(energy), energy, jnp.inf)


@compiled
def _outcomes(distribution: FlowDistribution, target: Potential, z: Float[Array, "n d"]) -> Any:
    """Images of z, and the log densities of the target and of the flow there (nats)."""

    def one(z):
        image = distribution.transform.image(z)
        return image.x, -target(image.x), distribution.log_prob_at(z, image)

    return map_in_batches(one, z)


def _trouble(mcmc: MCMC) -> tuple[bool, int]:
    """Whether the chains have not mixed, and how many transitions diverged."""
    r_hat, _ = mixing(mcmc.get_samples(group_by_chain=True))
    return not r_hat < LARGEST_R_HAT, int(mcmc.get_extra_fields()["diverging"].sum())
