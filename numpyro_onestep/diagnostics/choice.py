"""Which of several runs of one target is taken, and whether another one is made."""

from numpyro_onestep.diagnostics.doubts import folds
from numpyro_onestep.result import Weighted

# Another map is tried where the pool's ESS, as a fraction of its draws, is below the first number.
# For a dense map it is the second number while Pareto k may be above its limit.  After a structured
# map, with its many dimensions, another one takes long.
_ENOUGH_ESS, _ENOUGH_ESS_OF_BAD_WEIGHTS = 0.15, 0.6


def is_enough(weighted: Weighted) -> bool:
    """Whether the pool's ESS is large enough that no further map is tried."""
    evidence, is_dense = weighted.evidence, weighted.fit.structure is None
    enough = _ENOUGH_ESS_OF_BAD_WEIGHTS if evidence.doubtful and is_dense else _ENOUGH_ESS
    return evidence.ess >= enough * evidence.num_draws


def quality(run: Weighted) -> tuple[bool, float]:
    """A key to compare runs: first whether the map does not fold, then the ELBO.

    The ELBO of a map that folds is no bound, so such a run comes after all others.
    """
    return not folds(run.evidence), run.evidence.elbo
