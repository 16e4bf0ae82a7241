"""Exact weights of draws, and what they say: ELBO, log evidence, Pareto k, effective sample size.

The deterministic-flow weight of a draw x = T(z) is
    log w = log gamma(x) - log n(z) + log|det dT/dz|,   n the noise: N(0, I) or a mixture,
by the exact volume of the very map that made the draw.  E[log w] is the ELBO, a lower bound of
log Z where the map is injective, and E[w] = Z.

A share of the pool is drawn with z a little wider than the base, and every member is weighed
against the density of the mixture (a defensive mixture: Hesterberg, Technometrics 1995).  Where
the flow's tails are thinner than the posterior's, that keeps the weights from growing without
bound; the ELBO is the mean over the flow's own draws alone.
"""

import math
from importlib import import_module
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from scipy.special import logsumexp

from numpyro_onestep._util.batching import map_in_batches
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep.flow import FlowMap
from numpyro_onestep.flow.gaussian import WhitenedPotential, wide_scale

# Larger batches are no faster.
_LARGEST_BATCH = 1000
# Nats between the log evidence and the ELBO: where the gap is next to nothing, so is the mass that
# any tail can lack.
NEGLIGIBLE_GAP = 0.01
# A tail of such a shape holds next to all the mass, whatever its scale.
_HEAVIEST = 5.0
# ArviZ's tail is the largest fifth at most, and wants five of them.
_FEWEST_SMOOTHED = 25


class Pool(NamedTuple):
    """Draws of the flow on R^d and their exact densities (nats)."""

    x: Float[Array, "n d"]
    log_density: Float[Array, " n"]  # log gamma(x), not normalised
    log_q: Float[Array, " n"]  # the flow's
    log_mixture: Float[Array, " n"]  # the pool's: the flow's draws and the wider ones together
    sign: Float[Array, " n"]  # of the map's determinant: -1 proves a fold
    own: Bool[Array, " n"]  # the flow's own draws, which come first
    z: Float[Array, "n d"]  # where the map took them from

    @property
    def log_weight(self) -> Float[Array, " n"]:
        """Log gamma - log of the pool's density: what the draws are to be weighed by."""
        return self.log_density - self.log_mixture


class Evidence(NamedTuple):
    """What the weights of a pool say.  Logarithms in nats."""

    elbo: float
    elbo_std_error: float
    log_evidence: float
    log_evidence_std_error: float
    pareto_k: float
    ess: float
    num_draws: int
    folded_share: float
    folded_weight: float
    num_non_finite: int  # of the flow's own draws
    resolution: float  # between neighbouring floats of the size of the log density
    tail_mass: float = math.inf  # expected beyond the heaviest draw, a share of the evidence
    num_not_a_number: int = 0  # of those not finite; the others have density zero

    @property
    def pareto_k_limit(self) -> float:
        """min(1 - 1 / log10(S), 0.7): above it the weights of S draws cannot be relied on.

        Vehtari et al., "Pareto smoothed importance sampling", JMLR 2024, section 3.2.4.
        """
        return min(1 - 1 / math.log10(max(self.num_draws, 11)), 0.7)

    @property
    def ess_share(self) -> float:
        """What the pool's draws are worth, as a share of their number."""
        return self.ess / self.num_draws

    @property
    def pareto_k_std_error(self) -> float:
        """Standard error of k from the largest 3 sqrt(S) of S weights: (1 + k) / sqrt(that many).

        Asymptotic, for the maximum likelihood (Smith, "Maximum likelihood estimation in a class of
        nonregular cases", Biometrika 1985).
        """
        return (1 + self.pareto_k) / math.sqrt(3 * math.sqrt(self.num_draws))

    @property
    def doubtful(self) -> bool:
        """Whether Pareto k is above its limit, or below by less than its standard error."""
        return not self.pareto_k + self.pareto_k_std_error <= self.pareto_k_limit


@compiled
def draw(
    flow: FlowMap, potential: WhitenedPotential, rng_key: PRNGKeyArray, num: int, num_steps: int
) -> Float[Array, "n d"]:
    """Draws of the k-step map on R^d, without their densities: k network evaluations each."""
    z = potential.sample_noise(rng_key, num, dtype=flow.dtype)
    return map_in_batches(lambda at: potential.base.unwhiten(flow(at, num_steps)), z, 10_000)


@compiled
def draw_pool(
    flow: FlowMap,
    potential: WhitenedPotential,
    rng_key: PRNGKeyArray,
    num: int,
    num_steps: int,
    num_wide: int = 0,
    batch_bytes: int = 2**26,
) -> Pool:
    """Draws of the k-step map with their exact densities, the last `num_wide` from wider z.

    Jacobians are computed in batches that take at most about `batch_bytes` of memory.  The same
    key gives the same draws as `draw`, the wider ones apart.
    """
    own, share = jnp.arange(num) < num - num_wide, num_wide / num
    wide = wide_scale(potential.base.loc.size)
    z = potential.sample_noise(rng_key, num, jnp.where(own, 1.0, wide), flow.dtype)

    def one(at):
        y, log_det, sign = flow.volume(at, num_steps)
        x = potential.base.unwhiten(y)
        log_own = potential.noise.log_density(at)
        log_mixture = log_own
        if num_wide:
            log_wide = potential.noise.log_density(at, wide)
            log_mixture = jnp.logaddexp(
                math.log1p(-share) + log_own if share < 1 else -jnp.inf, math.log(share) + log_wide
            )
        volume = log_det + potential.base.log_det
        log_density = -potential.potential(x)
        return Pool(x, log_density, log_own - volume, log_mixture - volume, sign, sign, at)

    d = z.shape[1]
    bytes_each = z.dtype.itemsize * d * 4 * (flow.network.width + d)
    pool = map_in_batches(one, z, min(_LARGEST_BATCH, max(1, batch_bytes // bytes_each)))
    return pool._replace(own=own)


def summarise(pool: Pool) -> tuple[Evidence, Float[np.ndarray, " n"]]:
    """The evidence that a pool of draws holds, and its smoothed log weights (summing to one).

    The log evidence is the logarithm of the mean Pareto-smoothed weight, its standard error by
    the delta method.  A draw of density zero, or whose weight is not a number, has weight zero, and
    the ELBO is that of the flow with such draws rejected: its density is q divided by the share r
    of the others, so the bound is their mean log weight plus log r.
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
        folded_share = float(folded[own].mean())
        return Evidence(*nothing, folded_share, 0.0, num_non_finite, resolution), smoothed
    smoothed[finite], pareto_k = pareto_smooth(raw[finite], resolution)
    log_evidence = logsumexp(smoothed) - math.log(n)
    relative = np.exp(smoothed - log_evidence)
    evidence = Evidence(
        elbo=float(accepted.mean() + math.log(len(accepted) / len(log_ratio))),
        elbo_std_error=float(accepted.std() / math.sqrt(len(accepted))),
        log_evidence=float(log_evidence),
        log_evidence_std_error=float(relative.std() / math.sqrt(n)),
        pareto_k=pareto_k,
        ess=float(relative.sum() ** 2 / (relative**2).sum()),
        num_draws=n,
        folded_share=float(folded[own].mean()),
        folded_weight=float(relative[folded].sum() / relative.sum()),
        num_non_finite=num_non_finite,
        resolution=resolution,
        tail_mass=tail_mass(raw - log_evidence, pareto_k),
        num_not_a_number=num_not_a_number,
    )
    return evidence, smoothed - logsumexp(smoothed)


def without_nan(log_weights) -> Float[np.ndarray, " n"]:
    """In double precision, minus infinity where a weight is not a number or infinite."""
    values = np.asarray(log_weights, np.float64)
    return np.where(np.isnan(values) | (values == np.inf), -np.inf, values)


def pareto_smooth(
    log_weights: Float[np.ndarray, " n"], resolution: float = 0.0
) -> tuple[Float[np.ndarray, " n"], float]:
    """Pareto-smoothed log weights on their original scale, and the shape k of their tail.

    ArviZ does it, in either of its generations (Vehtari et al., "Pareto smoothed importance
    sampling", JMLR 2024).  Weights that are all equal have no tail: k is then 0.  Of fewer than 25
    weights there is no tail to speak of: they stay as they are, and k is infinite.

    Args:
        log_weights: finite.
        resolution: they are multiples of this, by rounding.  A tail of ties has no shape, so each
            is put somewhere within it.
    """
    if np.ptp(log_weights) == 0:
        return log_weights, 0.0
    if len(log_weights) < _FEWEST_SMOOTHED:
        return log_weights, math.inf
    rng = np.random.default_rng(0)
    log_weights = log_weights + resolution * rng.uniform(-0.5, 0.5, len(log_weights))
    with np.errstate(over="ignore"):  # weights further apart than floats reach
        smoothed, k = _psislw(log_weights)
    smoothed = np.asarray(smoothed, np.float64)
    # Smoothing leaves the body of the weights alone, so the smallest one gives back the scale
    # that normalisation took.
    smallest = np.argmin(log_weights)
    k = float(np.asarray(k).reshape(()))
    return smoothed + (log_weights[smallest] - smoothed[smallest]), math.inf if math.isnan(k) else k


def tail_mass(log_weights: Float[np.ndarray, " n"], k: float) -> float:
    """The mass expected beyond the heaviest weight, as a share of the whole.

    The weights above a cut follow a generalised Pareto distribution of shape k, whose scale is
    found from the median of what exceeds the cut.  Its mean beyond the heaviest weight is infinite
    from k = 1 on, but no sample sees all of it: what is counted lies between the rarity of the
    heaviest of these draws and that of the heaviest of a hundred times as many.

    Args:
        log_weights: of weights whose mean is one.
        k: shape of their tail.
    """
    n = len(log_weights)
    num_tail = int(min(0.2 * n, 3 * math.sqrt(n)))  # as many as are smoothed
    if num_tail < 5 or not k < _HEAVIEST:
        return math.inf
    weights = np.exp(np.sort(log_weights)[-num_tail - 1 :])
    cut, excess = weights[0], float(np.median(weights[1:] - weights[0]))
    # The quantile function is cut + scale (s^-k - 1) / k, s the share of the tail beyond.
    shape = k if abs(k) > 1e-6 else 1e-6
    scale = excess * shape / math.expm1(shape * math.log(2))
    high, low = 1 / num_tail, 0.01 / num_tail
    power = 1 - shape if abs(1 - shape) > 1e-6 else 1e-6
    beyond = (high**power - low**power) / power
    mass = (cut - scale / shape) * (high - low) + scale / shape * beyond
    return float(num_tail / n * mass)


def _psislw(log_weights):
    arviz: Any = import_module("arviz")
    if hasattr(arviz, "psislw"):  # ArviZ 0.x
        return arviz.psislw(log_weights)
    # ArviZ 1.x takes log likelihoods, whose negatives are the log weights of leaving one out.
    return import_module("arviz_stats.base").array_stats.psislw(-log_weights)
