"""ELBO, log evidence, Pareto k and effective sample size from the exact weights of draws.

The log weight of a draw is log w = log gamma(x) - log q(x), q the density that it was drawn with
(`importance.pool`).  E[log w] is the ELBO, a lower bound of log Z where the map is injective, and
E[w] = Z.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from numpyro_onestep.importance.pool import Pool
from numpyro_onestep.importance.psis import pareto_smooth, tail_mass, without_nan

# Nats between the log evidence and the ELBO.  Where the gap is below this, no tail can lack mass
# that matters.
NEGLIGIBLE_GAP = 0.01
_EVEN_ESS = 0.9  # share of the pool that even weights are worth


class Evidence(NamedTuple):
    """Log evidence and diagnostics from the weights of a pool of draws.

    Attributes:
        elbo: mean log weight of the flow's own draws (nats), a lower bound of the log evidence
            where the map is injective.
        elbo_std_error: Monte Carlo standard error of `elbo` (nats).
        log_evidence: log of the mean Pareto-smoothed weight (nats).
        log_evidence_std_error: Monte Carlo standard error of `log_evidence` (nats).
        pareto_k: shape of the tail of the weights.
        ess: effective sample size of the pool, (sum w)^2 / sum w^2 (draws).
        num_draws: draws in the pool.
        folded_fraction: fraction of the flow's own draws with a negative Jacobian determinant.
        folded_weight: fraction of all weight that lies on draws with such a determinant.
        num_non_finite: number of the flow's own draws whose log weight is not finite.
        resolution: distance of neighbouring floats of the size of the log density (nats).
        tail_mass: mass expected beyond the heaviest draw, as a fraction of the evidence.
            Default infinity.
        num_not_a_number: how many of the flow's own draws have NaN for density. Default 0.
    """

    elbo: float
    elbo_std_error: float
    log_evidence: float
    log_evidence_std_error: float
    pareto_k: float
    ess: float
    num_draws: int
    folded_fraction: float
    folded_weight: float
    num_non_finite: int
    resolution: float
    tail_mass: float = math.inf
    num_not_a_number: int = 0

    @property
    def pareto_k_limit(self) -> float:
        """min(1 - 1 / log10(S), 0.7): above it the weights of S draws cannot be relied on.

        Vehtari et al., "Pareto smoothed importance sampling", JMLR 2024, section 3.2.4.
        """
        return min(1 - 1 / math.log10(max(self.num_draws, 11)), 0.7)

    @property
    def ess_fraction(self) -> float:
        """The effective sample size as a fraction of the number of draws."""
        return self.ess / self.num_draws

    @property
    def is_even(self) -> bool:
        """Whether nearly all draws count alike."""
        return self.ess_fraction > _EVEN_ESS

    @property
    def pareto_k_std_error(self) -> float:
        """Standard error of k from the largest 3 sqrt(S) of S weights: (1 + k) / sqrt(3 sqrt(S)).

        This is the asymptotic error of the maximum likelihood estimate (Smith, "Maximum likelihood
        estimation in a class of nonregular cases", Biometrika 1985).
        """
        return (1 + self.pareto_k) / math.sqrt(3 * math.sqrt(self.num_draws))

    @property
    def doubtful(self) -> bool:
        """Whether Pareto k is above its limit, or below by less than its standard error."""
        return not self.pareto_k + self.pareto_k_std_error <= self.pareto_k_limit


class WeightedPool(NamedTuple):
    """A pool of draws, its evidence, and the smoothed weights to resample it by."""

    pool: Pool
    evidence: Evidence
    smoothed_log_weights: Float[np.ndarray, " n"]  # Pareto-smoothed; the weights sum to one


def weigh(pool: Pool) -> WeightedPool:
    """The evidence of a pool of draws, and its smoothed log weights.

    The log evidence is the logarithm of the mean Pareto-smoothed weight, and its standard error is
    by the delta method.  A draw of density zero, or whose weight is not a number, has weight zero.
    The ELBO is that of the flow with such draws rejected: with r the fraction of the other draws,
    the flow's density is then q / r, so the bound is their mean log weight plus log r.
    """
    raw = without_nan(pool.log_weight)
    finite = np.isfinite(raw)
    n = len(raw)
    sizes = abs(np.asarray(pool.log_density))
    resolution = float(np.spacing(np.max(sizes, initial=0, where=finite)))
    own, folded = np.asarray(pool.own), np.asarray(pool.sign) < 0
    log_ratio = np.asarray(pool.log_density - pool.log_q, np.float64)[own]
    accepted = log_ratio[np.isfinite(log_ratio)]
    num_non_finite = len(log_ratio) - len(accepted)
    num_not_a_number = int(np.sum(np.isnan(np.asarray(pool.log_density)[own])))
    smoothed, pareto_k = np.full(n, -np.inf), math.inf
    if min(finite.sum(), len(accepted)) < 2:
        nothing = -math.inf, math.inf, -math.inf, math.inf, math.inf, 0.0, n
        folded_fraction = float(folded[own].mean())
        evidence = Evidence(*nothing, folded_fraction, 0.0, num_non_finite, resolution)
        return WeightedPool(pool, evidence, smoothed)
    smoothed[finite], pareto_k = pareto_smooth(raw[finite], resolution)
    log_evidence = float(np.asarray(logsumexp(smoothed))) - math.log(n)
    relative = np.exp(smoothed - log_evidence)
    evidence = Evidence(
        elbo=float(accepted.mean() + math.log(len(accepted) / len(log_ratio))),
        elbo_std_error=float(accepted.std() / math.sqrt(len(accepted))),
        log_evidence=log_evidence,
        log_evidence_std_error=float(relative.std() / math.sqrt(n)),
        pareto_k=pareto_k,
        ess=float(relative.sum() ** 2 / (relative**2).sum()),
        num_draws=n,
        folded_fraction=float(folded[own].mean()),
        folded_weight=float(relative[folded].sum() / relative.sum()),
        num_non_finite=num_non_finite,
        resolution=resolution,
        tail_mass=tail_mass(raw - log_evidence, pareto_k),
        num_not_a_number=num_not_a_number,
    )
    return WeightedPool(pool, evidence, smoothed - logsumexp(smoothed))


def mean_energy(weighted: WeightedPool, num_draws: int) -> float:
    """Mean energy of the posterior (nats), from the pool.

    The weight of a draw is limited to that of one corrected draw, 1 / `num_draws`.
    """
    energy = -np.asarray(weighted.pool.log_density, np.float64)
    weight = np.minimum(np.exp(weighted.smoothed_log_weights), 1 / num_draws)
    weight = np.where(np.isfinite(energy), weight, 0.0)
    if weight.sum() == 0:
        return math.nan
    return float(np.average(np.where(weight > 0, energy, 0.0), weights=weight))
