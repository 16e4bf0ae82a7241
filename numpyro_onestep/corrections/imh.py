"""Independence Metropolis-Hastings: the pool's draws are the proposals.

A proposal of weight w' replaces one of weight w with probability min(1, w' / w) (Tierney, "Markov
chains for exploring posterior distributions", Annals of Statistics 1994).  The density of the
model was computed when the pool was weighed, so a chain costs nothing more.  Where the weights are
heavy-tailed a chain sticks at a heavy draw, and R-hat shows it.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from jaxtyping import PRNGKeyArray

from numpyro_onestep._util.random import numpy_generator
from numpyro_onestep.corrections.base import AbstractCorrection, Corrected, mixing
from numpyro_onestep.flow import FlowDistribution
from numpyro_onestep.importance.evidence import WeightedPool
from numpyro_onestep.importance.psis import without_nan
from numpyro_onestep.settings import DrawSettings
from numpyro_onestep.target import Potential


@final
@dataclass(frozen=True)
class IndependenceMetropolis(AbstractCorrection):
    """Four chains, each through a quarter of the pool, thinned to the number of samples."""

    num_chains: ClassVar[int] = 4

    settings: DrawSettings

    def __call__(
        self,
        weighted: WeightedPool,
        distribution: FlowDistribution,
        target: Potential,
        rng_key: PRNGKeyArray,
    ) -> Corrected:
        """Walk through the pool."""
        rng, num_chains = numpy_generator(rng_key), self.num_chains
        log_weight = without_nan(weighted.pool.log_weight)
        per_chain = self.settings.num_samples // num_chains
        # Each chain starts at a resampled member and then walks through its part of the others.
        weights = np.exp(weighted.smoothed_log_weights)
        at = rng.choice(len(weights), size=num_chains, p=weights / weights.sum())
        proposals = rng.permutation(len(log_weight))
        proposals = proposals[: len(proposals) // num_chains * num_chains].reshape(num_chains, -1)
        thin = max(proposals.shape[1] // per_chain, 1)
        kept, accepted = [], 0
        for step in range(per_chain * thin):
            proposed = proposals[:, step % proposals.shape[1]]
            log_ratio = log_weight[proposed] - log_weight[at]
            accept = np.log(rng.uniform(size=num_chains)) < log_ratio
            at = np.where(accept, proposed, at)
            accepted += accept.sum()
            if step % thin == thin - 1:
                kept.append(at)
        chosen = np.stack(kept, axis=1)
        r_hat, min_ess = mixing(weighted.pool.x[chosen])
        return Corrected(
            weighted.pool.x[chosen.reshape(-1)],
            f"by independence Metropolis-Hastings in {num_chains} chains",
            num_chains=num_chains,
            chosen=chosen.reshape(-1),
            r_hat=r_hat,
            min_ess=min_ess,
            acceptance=float(accepted / (num_chains * per_chain * thin)),
        )
