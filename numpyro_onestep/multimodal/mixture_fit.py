"""From particles and modes to a mixture that the flow can start from.

Three are fitted, and the one of highest ELBO is taken:
- Gaussians in all d dimensions, which follow correlations within and between some dozens of modes;
- a product of one-dimensional mixtures, which has room for c^d modes;
- Laplace's approximations at the modes, their weights from the particles, for more dimensions than
  the particles can fill.
The first two are fitted by expectation maximisation to one half of the particles, with ever more
components as long as the log density of the other half rises.
"""

import warnings

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from numpyro_onestep._util.batching import map_in_batches
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep.flow.base_distribution import (
    AbstractNoise,
    NormalMixture,
    ProductMixture,
    normal_mixture,
)
from numpyro_onestep.flow.gaussian import GaussianBase, WhitenedPotential
from numpyro_onestep.initialise.best_fit import BaseFit, noise_elbo
from numpyro_onestep.multimodal.tempered_smc import Population
from numpyro_onestep.target import Potential

_MOST_COMPONENTS = 256
_MOST_COMPONENTS_EACH = 8  # of a coordinate
# Components are doubled until the other half's mean log density gains less than this (nats).
_SMALLEST_GAIN = 0.005
# Particles that a component needs, in units of its number of parameters.
_PARTICLES_PER_PARAMETER = 2
# A product can have a thousandth of its draws where the target has none: enough for some of them.
_ELBO_BATCHES = 16


def fit_mixture(
    potential: Potential,
    population: Population,
    rng_key: PRNGKeyArray,
) -> tuple[WhitenedPotential, BaseFit]:
    """The whitened target with a mixture for its noise, and the ELBO of that.

    Coordinates are scaled one by one and not rotated, so that a product stays one.
    """
    x, modes = population.x, population.modes
    loc, scale = x.mean(0), x.std(0)
    base = GaussianBase(jnp.asarray(loc), jnp.diag(jnp.asarray(scale)))
    y = np.asarray((x - loc) / scale, np.float64)
    mixtures: list[AbstractNoise] = [
        _normal_mixture(y[::2], y[1::2], x.dtype),
        _product_mixture(y[::2], y[1::2], x.dtype),
    ]
    if 1 < len(modes.loc) <= _MOST_COMPONENTS:
        at_modes = (modes.loc - loc) / scale, modes.scale_tril / scale[:, None]
        mixtures.append(_mixture_of_modes(*at_modes, y, x.dtype))
    fits = []
    for noise in mixtures:
        whitened = WhitenedPotential(potential, base, noise)
        fits.append((whitened, BaseFit(base, _elbo(whitened, rng_key))))
    return max(fits, key=lambda fit: float(fit[1].elbo))


@compiled
def _elbo(whitened: WhitenedPotential, rng_key: PRNGKeyArray) -> Float[Array, ""]:
    keys = jr.split(rng_key, _ELBO_BATCHES)
    return jnp.mean(jax.lax.map(lambda key: noise_elbo(whitened, key), keys))


def _normal_mixture(fitted, judged, dtype) -> NormalMixture:
    n, d = fitted.shape
    parameters = d * (d + 3) / 2
    most = int(np.clip(n / (_PARTICLES_PER_PARAMETER * parameters), 1, _MOST_COMPONENTS))
    _, model = _best(fitted, judged, most)
    scale_tril = np.linalg.cholesky(np.asarray(model.covariances_))
    return normal_mixture(np.log(np.asarray(model.weights_)), model.means_, scale_tril, dtype)


def _product_mixture(fitted, judged, dtype) -> ProductMixture:
    d = fitted.shape[1]
    models = [_best(fitted[:, [j]], judged[:, [j]], _MOST_COMPONENTS_EACH)[1] for j in range(d)]
    widest = max(model.n_components for model in models)
    weights, loc, scale = np.zeros((d, widest)), np.zeros((d, widest)), np.ones((d, widest))
    for j, model in enumerate(models):
        c = model.n_components
        weights[j, :c], loc[j, :c] = np.asarray(model.weights_), np.asarray(model.means_)[:, 0]
        scale[j, :c] = np.sqrt(np.asarray(model.covariances_)[:, 0, 0])
    parts = np.log(np.maximum(weights, 1e-30)), loc, scale
    return ProductMixture(*(jnp.asarray(part, dtype) for part in parts))


def _mixture_of_modes(loc, scale_tril, y, dtype) -> NormalMixture:
    """Each particle counts for the mode under whose Gaussian it is densest."""
    equal = normal_mixture(np.zeros(len(loc)), loc, scale_tril, dtype)
    nearest = np.asarray(_nearest(equal, y.astype(dtype)))
    counts = np.bincount(nearest, minlength=len(loc)) + 0.5  # no mode is given up
    return normal_mixture(np.log(counts / counts.sum()), loc, scale_tril, dtype)


@compiled
def _nearest(mixture: NormalMixture, y: Float[Array, "n d"]) -> Int[Array, " n"]:
    """The component of highest density, its weight left out; each draw takes c d numbers."""
    return map_in_batches(lambda at: jnp.argmax(mixture.log_components(at[None])[0]), y, 500)


def _best(fitted, judged, most: int) -> tuple[float, GaussianMixture]:
    """The mixture after which more components gain nothing."""
    best = -np.inf, GaussianMixture()
    num = 1
    while num <= most:
        model = GaussianMixture(num, random_state=0, reg_covar=1e-8, max_iter=50)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # judged by its score instead
            model.fit(fitted)
        score = float(model.score(judged))
        if score < best[0] + _SMALLEST_GAIN and num > 2:
            return best if best[0] > score else (score, model)
        if score > best[0]:
            best = score, model
        num *= 2
    return best
