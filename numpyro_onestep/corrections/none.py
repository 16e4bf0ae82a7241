"""No correction: the flow's own draws."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from jaxtyping import PRNGKeyArray

from numpyro_onestep.corrections.base import AbstractCorrection, Corrected
from numpyro_onestep.flow import FlowDistribution
from numpyro_onestep.importance.evidence import WeightedPool
from numpyro_onestep.settings import DrawSettings
from numpyro_onestep.target import Potential


@final
@dataclass(frozen=True)
class NoCorrection(AbstractCorrection):
    """The first members of the pool, which are the flow's own draws; none is inflated."""

    inflated_fraction: ClassVar[float] = 0.0

    settings: DrawSettings

    def __call__(
        self,
        weighted: WeightedPool,
        distribution: FlowDistribution,
        target: Potential,
        rng_key: PRNGKeyArray,
    ) -> Corrected:
        """The draws as they are."""
        chosen = np.arange(self.settings.num_samples)
        return Corrected(weighted.pool.x[chosen], "of the flow's own", chosen=chosen)
