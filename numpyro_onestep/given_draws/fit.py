"""What training starts from where draws of the posterior are given.

- Two Gaussians, that of the draws and that which `run` fits to the density; the one of higher ELBO
  is the preconditioner.  From draws every mean and scale is right on average, but in a neck the
  draws' own Gaussian is far too wide, and in many dimensions a covariance from few draws is rough.
- Where the draws fall into pieces that are apart, a mixture fitted to them, as base distribution.
- Else a map trained on the noised draws, if its ELBO is above that of the Gaussian.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray, PyTree

from numpyro_onestep import limits
from numpyro_onestep._util.batching import map_in_batches, map_in_blocks, side_by_side
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep._util.random import stream
from numpyro_onestep.flow import FlowDistribution, FlowMap, PreconditionedPotential
from numpyro_onestep.flow.base_distribution import STANDARD_NORMAL, NormalMixture
from numpyro_onestep.flow.gaussian import GaussianPreconditioner
from numpyro_onestep.importance.evidence import Evidence, weigh
from numpyro_onestep.importance.pool import draw_pool
from numpyro_onestep.initialise.best_fit import Fit, base_elbo, best_fit
from numpyro_onestep.multimodal.mixture_fit import mean_elbo, normal_mixture_of
from numpyro_onestep.problem import Problem
from numpyro_onestep.settings import Settings, require_count
from numpyro_onestep.starts import dense_map
from numpyro_onestep.target.evaluation import energies
from numpyro_onestep.training.from_draws import train_on_draws

# One block in five of the draws is held out, for the upper estimate of the log evidence.
# Neighbours in a chain are alike, so blocks of neighbours are held out.  There are so many of them
# that each chain is in both parts.
_HELD_OUT, _NUM_BLOCKS = 5, 60
# Given draws from whose neighbourhood the descents of the density's own fit start.
_NUM_STARTS = 3
_NUM_WEIGHED = 1000  # draws from which the ELBO of a map is estimated
# A Gaussian is a poor start where its own draws are worth less than this fraction of their number.
# Elsewhere the evidence stage ends at the same evidence without denoising, and in less time.
_POOR_ESS = 0.15
_NUM_DENOISING_STEPS = 400
# Two components of a mixture are apart where on the line between their centres the density falls
# below that of the lower centre by this (nats); and a piece counts from this weight on.
_VALLEY, _FEWEST_SHARE = 2.5, 0.005
_ON_LINE = 21  # points of such a line


class Given(NamedTuple):
    """Draws of the posterior on R^d, in the order of their chains, and one near their middle."""

    x: Float[np.ndarray, "n d"]
    start: PyTree  # that draw, as unconstrained values
    num_denoising_steps: int | None  # None: some hundred, where a Gaussian alone is a poor start

    @classmethod
    def of(cls, values: PyTree, num_denoising_steps: int | None) -> "Given":
        """From unconstrained values, each leaf `(n, *shape)`.

        Raises:
            ValueError: `num_denoising_steps` is no None, zero or positive integer.
        """
        if num_denoising_steps:
            require_count("num_denoising_steps", num_denoising_steps)
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(values)]
        x = np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)
        row = middle(x)
        return cls(x, jax.tree.map(lambda leaf: leaf[row], values), num_denoising_steps)

    @property
    def held_out(self) -> Float[np.ndarray, "m d"]:
        """Draws that nothing is fitted to."""
        return self.x[_is_held_out(len(self.x))]

    @property
    def fitted(self) -> Float[np.ndarray, "m d"]:
        """The other draws."""
        return self.x[~_is_held_out(len(self.x))]


def middle(x: Float[np.ndarray, "n d"]) -> int:
    """The index of the draw nearest to the medians, in units of the interquartile ranges."""
    low, median, high = np.quantile(x.astype(float), [0.25, 0.5, 0.75], axis=0)
    return int(np.argmin((((x - median) / (high - low + 1e-30)) ** 2).sum(1)))


def _is_held_out(num: int) -> np.ndarray:
    return (np.arange(num) * _NUM_BLOCKS // num) % _HELD_OUT == _HELD_OUT - 1


def fit_of_draws(
    given: Given, problem: Problem, settings: Settings, dtype: Any, rng_key: PRNGKeyArray
) -> Fit:
    """The best start of a dense map.

    Args:
        given: the draws.
        problem: the target.
        settings: all settings of the sampler.
        dtype: type of the map's numbers.
        rng_key: a JAX random key.

    Raises:
        ValueError: the density is zero or not a number at most of the draws.
    """
    potential, start = problem.potential, problem.start
    x = given.fitted.astype(start.dtype)
    fine = np.isfinite(energies(potential, x))
    if fine.mean() < 0.5:
        raise ValueError(
            f"The model's log density is not finite at {(~fine).sum()} of {len(x)} given draws. "
            "Check that they are draws of this model with these arguments."
        )
    x = x[fine]
    if potential.completion is not None:
        # The draws have no scale where the model has none, or are spread over all periods.
        return best_fit(potential, [start], stream(rng_key, "own fit"))
    fits = [_own_fit(problem, x, rng_key)]
    if start.size <= limits.DENSE_MATRIX:
        fits.append(_fit_of(potential, gaussian_of(x), stream(rng_key, "gaussian")))
    best = max(fits, key=lambda fit: _or_lowest(fit.elbo))
    if settings.draws.multimodal:
        return best  # a mixture is fitted later, to the particles of tempered SMC
    mixture = _mixture(problem, x, rng_key)
    if mixture is not None:
        return mixture
    return _denoised(best, given, problem, x, settings, dtype, rng_key)


def gaussian_of(x: Float[np.ndarray, "n d"]) -> GaussianPreconditioner:
    """Mean and covariance of draws, their correlations shrunk towards none where draws are few."""
    # Imported here, since its import takes half as long as that of JAX.
    from sklearn.covariance import oas

    loc, sd = x.astype(float).mean(0), x.astype(float).std(0)
    correlation, _ = oas((x - loc) / sd, assume_centered=True)
    factor = sd[:, None] * np.linalg.cholesky(correlation)
    return GaussianPreconditioner(*(jnp.asarray(v, x.dtype) for v in (loc, factor)))


def _or_lowest(elbo: Any) -> float:
    return float(elbo) if np.isfinite(float(elbo)) else -np.inf


def _own_fit(problem: Problem, x, rng_key) -> Fit:
    """The Gaussian that `run` would fit to the density, from descents that start at draws."""
    rows = np.linspace(0, len(x) - 1, _NUM_STARTS).astype(int)
    return best_fit(problem.potential, [problem.start, *x[rows]], stream(rng_key, "own fit"))


@compiled
def _fit_of(potential, preconditioner, rng_key) -> Fit:
    preconditioned = PreconditionedPotential(potential, preconditioner)
    return Fit(preconditioner, base_elbo(preconditioned, STANDARD_NORMAL, rng_key))


def _mixture(problem: Problem, x, rng_key: PRNGKeyArray) -> Fit | None:
    """A mixture of Gaussians as base distribution; None where the draws are in one piece."""
    if problem.start.size > limits.MULTIMODAL:
        return None
    loc, scale = x.mean(0), x.std(0)
    y = np.asarray((x - loc) / scale, np.float64)
    judged = _is_held_out(2 * len(y))[: len(y)]
    mixture = normal_mixture_of(y[~judged], y[judged], x.dtype)
    preconditioner = GaussianPreconditioner(jnp.asarray(loc), jnp.diag(jnp.asarray(scale)))
    preconditioned = PreconditionedPotential(problem.potential, preconditioner)
    if not in_pieces(mixture, preconditioned):
        return None
    elbo = mean_elbo(preconditioned, mixture, stream(rng_key, "mixture"))
    return Fit(preconditioner, elbo, mixture) if np.isfinite(float(elbo)) else None


def in_pieces(mixture: NormalMixture, potential: PreconditionedPotential) -> bool:
    """Whether there are valleys between components of a mixture, so that they do not hang together.

    Two components hang together where the density along the line between their centres stays above
    a fraction of that at the lower centre, or where both do so with others in between.  A valley
    counts if both densities have it: that of the mixture, which has gaps where a neck or an arm is
    covered by few components, and that of the target, which is low where an arm is bent.

    Args:
        mixture: of draws, in whitened coordinates.
        potential: the target.
    """
    loc, weights = np.asarray(mixture.loc), np.exp(np.asarray(mixture.log_weights))
    num = len(loc)
    if num == 1:
        return False
    first, second = np.triu_indices(num, 1)
    along = np.linspace(0, 1, _ON_LINE)[:, None]
    lines = loc[first][:, None] * (1 - along) + loc[second][:, None] * along
    flat = lines.reshape(-1, loc.shape[1]).astype(loc.dtype)
    joined = np.zeros(len(first), bool)
    for heights in map_in_blocks(lambda rows: _log_densities(mixture, potential, rows), flat):
        at = np.where(np.isfinite(heights), heights, -np.inf).reshape(len(first), _ON_LINE)
        joined |= at.min(1) > np.minimum(at[:, 0], at[:, -1]) - _VALLEY
    piece = np.arange(num)
    for a, b in zip(first[joined], second[joined], strict=True):
        piece[piece == piece[b]] = piece[a]
    shares = [weights[piece == one].sum() for one in np.unique(piece)]
    return sum(bool(share >= _FEWEST_SHARE) for share in shares) > 1


@compiled
def _log_densities(mixture: NormalMixture, potential: PreconditionedPotential, y):
    of_target = map_in_batches(potential.whitened, y, side_by_side(potential))
    return jax.vmap(mixture.log_density)(y), -of_target


def _denoised(best: Fit, given: Given, problem: Problem, x, settings, dtype, rng_key) -> Fit:
    """The same fit with a map trained on noised draws, if that map is nearer to the target."""
    steps = given.num_denoising_steps
    if steps == 0 or not isinstance(best.preconditioner, GaussianPreconditioner):
        return best
    untrained = dense_map(settings.flow, x.shape[1], dtype, rng_key)
    if steps is None:
        evidence = _evidence(untrained, best, problem, settings, stream(rng_key, "own pool"))
        if evidence.ess_fraction > _POOR_ESS:
            return best
        steps = _NUM_DENOISING_STEPS
    y = map_in_blocks(lambda rows: _whitened(best.preconditioner, rows), x)
    flow = train_on_draws(untrained, y, stream(rng_key, "denoising"), settings, steps)
    evidence = _evidence(flow, best, problem, settings, stream(rng_key, "denoised pool"))
    is_better = evidence.elbo > _or_lowest(best.elbo) and evidence.folded_fraction == 0
    return best._replace(flow=flow) if is_better else best


def _evidence(flow: FlowMap, fit: Fit, problem: Problem, settings: Settings, rng_key) -> Evidence:
    """What a map is worth from a fit's preconditioner, by few draws."""
    num_steps = settings.draws.num_flow_steps or 1
    distribution = FlowDistribution(flow, fit.preconditioner, num_steps=num_steps)
    limit = settings.draws.batch_bytes
    return weigh(
        draw_pool(distribution, problem.potential, rng_key, _NUM_WEIGHED, 0, limit)
    ).evidence


@compiled
def _whitened(preconditioner, x):
    return jax.vmap(preconditioner.whiten)(x)
