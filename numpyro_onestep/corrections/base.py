"""The base class of all corrections, and their result."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

from numpyro_onestep.flow import FlowDistribution
from numpyro_onestep.importance.evidence import WeightedPool
from numpyro_onestep.settings import DrawSettings, require
from numpyro_onestep.target import Potential

# R-hat above which chains have not mixed (Vehtari et al., "Rank-normalization, folding, and
# localization: an improved R-hat", Bayesian Analysis 2021).
LARGEST_R_HAT = 1.01
# Draws of a chain that split R-hat needs: two in each half.
_FEWEST_OF_A_CHAIN = 4


@dataclass(frozen=True)
class Corrected:
    """Draws in unconstrained coordinates, chain after chain, with their diagnostics.

    Every correction gives `x` and `line`; the other attributes keep their defaults where they do
    not apply.
    """

    x: Float[np.ndarray, "n d"]
    line: str  # how the draws came about; the summary prints it after their number
    num_chains: int = 1
    chosen: Int[np.ndarray, " n"] | None = None  # which members of the pool the draws are
    capped_fraction: float = 0.0  # of the weight; lost on draws that can be chosen only once
    num_rejuvenation_steps: int = 0  # steps of HMC that every draw took
    change: float = 0.0  # largest proven change of a log standard deviation by rejuvenation
    r_hat: float | None = None  # the largest of all coordinates, for chains
    min_ess: float | None = None  # the smallest of all coordinates, for chains
    acceptance: float | None = None  # mean acceptance probability, for chains
    divergences: int | None = None  # transitions that diverged, for chains of NUTS
    stats: dict[str, Any] = field(default_factory=dict)  # of each draw, by ArviZ's names


class AbstractCorrection(ABC):
    """From a weighted pool of the flow's draws to draws of the posterior.

    A new correction takes one new file and one line.  In a file of this folder, with the imports
    that `corrections/none.py` has and `numpy_generator` from `_util/random.py`::

        @final
        @dataclass(frozen=True)
        class Multinomial(AbstractCorrection):
            \"\"\"Members of the pool by their smoothed weights, with replacement.\"\"\"

            settings: DrawSettings  # to be repeated: it makes the dataclass take them

            def __call__(self, weighted, distribution, target, rng_key):
                rng, num = numpy_generator(rng_key), self.settings.num_samples
                weights = np.exp(weighted.smoothed_log_weights)
                chosen = rng.choice(len(weights), num, p=weights / weights.sum())
                return Corrected(weighted.pool.x[chosen], "drawn with replacement", chosen=chosen)

    and in `corrections/__init__.py` one entry of `CORRECTIONS` with the name that users give as
    `correction=`.  `tests/test_corrections.py` then runs its protocol test over it.  Where the
    defaults of the class variables below do not fit, the class sets its own.  A correction that
    runs chains sets `num_chains` here and in what it returns, with `r_hat` and `min_ess`; `stats`,
    where it gives any, replaces all of ArviZ's `sample_stats`, so `lp` belongs in it.
    """

    # Number of chains that the draws consist of; `num_samples` must be a multiple of it.
    num_chains: ClassVar[int] = 1
    # Fraction of the pool that are inflated draws, which keep the weights bounded.
    inflated_fraction: ClassVar[float] = 0.1
    # Whether the correction is right where the flow starts from a mixture of modes far apart.
    is_multimodal: ClassVar[bool] = True

    settings: DrawSettings

    @abstractmethod
    def __init__(self, settings: DrawSettings):
        """Take the settings that the correction needs."""

    @abstractmethod
    def __call__(
        self,
        weighted: WeightedPool,
        distribution: FlowDistribution,
        target: Potential,
        rng_key: PRNGKeyArray,
    ) -> Corrected:
        """Exactly `settings.num_samples` draws, chain after chain.

        Args:
            weighted: the pool, its evidence and its smoothed log weights; the log evidence is
                finite.
            distribution: the distribution of the flow, which made the pool.
            target: U, in unconstrained coordinates.
            rng_key: a JAX random key.
        """

    @final
    def require_possible(self, name: str | None) -> None:
        """Raise a ValueError where the settings ask for what this correction cannot do.

        Args:
            name: the name that users give as `correction=`.
        """
        num = self.num_chains
        if num > 1:
            require(
                "num_samples",
                self.settings.num_samples,
                f"a multiple of {num}, from {num * _FEWEST_OF_A_CHAIN} on, for the {num} chains of "
                f"correction={name!r}",
                lambda v: v % num == 0 and v >= num * _FEWEST_OF_A_CHAIN,
            )
        require(
            "multimodal",
            self.settings.multimodal,
            f"False with correction={name!r}, whose chains stay in the modes they start in",
            lambda v: self.is_multimodal or not v,
        )


def starts_of_chains(
    weighted: WeightedPool, num_chains: int, rng: np.random.Generator
) -> Int[np.ndarray, " chain"]:
    """Members of the pool to start chains of z from: resampled, where the map does not fold."""
    weights = np.exp(weighted.smoothed_log_weights) * (weighted.pool.sign > 0)
    return rng.choice(len(weights), size=num_chains, p=weights / weights.sum())


def mixing(grouped: Float[Any, "chain n d"]) -> tuple[float, float]:
    """Largest split R-hat and smallest effective sample size over coordinates."""
    grouped = np.asarray(grouped, np.float64)
    if np.any(grouped.std((0, 1)) == 0):
        return np.inf, 1.0  # a chain that never moved
    return float(np.max(split_gelman_rubin(grouped))), float(np.min(effective_sample_size(grouped)))
