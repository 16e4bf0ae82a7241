"""From particles and modes to a mixture that the flow can start from.

Three mixtures are fitted, and the one of highest ELBO is taken:
- Gaussians in all d dimensions, which follow correlations within and between some dozens of modes;
- a product of one-dimensional mixtures, which has room for c^d modes;
- Laplace's approximations at the modes, their weights from the particles, for more dimensions than
  the particles can fill.
The first two are fitted by expectation maximisation to one half of the particles, with ever more
components as long as the log density of the other half rises.
"""

import warnings
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from numpyro_onestep._util import progress
from numpyro_onestep._util.batching import map_in_batches
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep.flow.base_distribution import (
    AbstractBaseDistribution,
    NormalMixture,
    ProductMixture,
    normal_mixture,
)
from numpyro_onestep.flow.gaussian import GaussianPreconditioner
from numpyro_onestep.flow.preconditioned import PreconditionedPotential
from numpyro_onestep.initialise.best_fit import Fit, base_elbo
from numpyro_onestep.multimodal.tempered_smc import Population
from numpyro_onestep.target import Potential

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

_MOST_COMPONENTS = 256  # of a mixture in all dimensions
_MOST_COMPONENTS_1D = 8  # for a single coordinate of a product mixture
# Nats.  The number of components is doubled until the mean log density of the other half of the
# particles gains less than this.
_SMALLEST_GAIN = 0.005
# Particles that a component needs for each of its parameters.
_PARTICLES_PER_PARAMETER = 2
# Batches of draws from which the ELBO is estimated.  A product mixture can have one in a thousand
# of its draws where the target has no mass, and the estimate must contain some of these.
_ELBO_BATCHES = 16


@progress.stage("fitting a mixture")
def fit_mixture(potential: Potential, population: Population, rng_key: PRNGKeyArray) -> Fit:
    """A mixture for the base distribution, with its ELBO.

    The preconditioner scales coordinates one by one and does not rotate, so that a product mixture
    remains a product.
    """
    x, modes = population.x, population.modes
    loc, scale = x.mean(0), x.std(0)
    preconditioner = GaussianPreconditioner(jnp.asarray(loc), jnp.diag(jnp.asarray(scale)))
    y = np.asarray((x - loc) / scale, np.float64)
    mixtures: list[AbstractBaseDistribution] = [
        normal_mixture_of(y[::2], y[1::2], x.dtype),
        _product_mixture(y[::2], y[1::2], x.dtype),
    ]
    if 1 < len(modes.loc) <= _MOST_COMPONENTS:
        at_modes = (modes.loc - loc) / scale, modes.scale_tril / scale[:, None]
        mixtures.append(_mixture_of_modes(*at_modes, y, x.dtype))
    preconditioned = PreconditionedPotential(potential, preconditioner)
    fits = [
        Fit(preconditioner, mean_elbo(preconditioned, mixture, rng_key), mixture)
        for mixture in mixtures
    ]
    return max(fits, key=lambda fit: float(fit.elbo))


@compiled
def mean_elbo(
    potential: PreconditionedPotential, base: AbstractBaseDistribution, rng_key: PRNGKeyArray
) -> Float[Array, ""]:
    """The ELBO of a base distribution without a flow, from many batches of draws (nats)."""
    keys = jr.split(rng_key, _ELBO_BATCHES)
    return jnp.mean(jax.lax.map(lambda key: base_elbo(potential, base, key), keys))


def normal_mixture_of(
    fitted: Float[np.ndarray, "n d"], judged: Float[np.ndarray, "m d"], dtype: Any
) -> NormalMixture:
    """A mixture of Gaussians fitted to draws.

    There are as many components as raise the log density of other draws, but no more than the
    draws suffice for.

    Args:
        fitted: the draws that it is fitted to, in double precision.
        judged: the draws by which the number of components is chosen.
        dtype: type of the mixture's numbers.
    """
    n, d = fitted.shape
    parameters = d * (d + 3) / 2
    most = int(np.clip(n / (_PARTICLES_PER_PARAMETER * parameters), 1, _MOST_COMPONENTS))
    _, model = _best(fitted, judged, most)
    scale_tril = np.linalg.cholesky(np.asarray(model.covariances_))
    return normal_mixture(np.log(np.asarray(model.weights_)), model.means_, scale_tril, dtype)


def _product_mixture(fitted, judged, dtype) -> ProductMixture:
    d = fitted.shape[1]
    models = [_best(fitted[:, [j]], judged[:, [j]], _MOST_COMPONENTS_1D)[1] for j in range(d)]
    widest = max(model.n_components for model in models)
    weights, loc, scale = np.zeros((d, widest)), np.zeros((d, widest)), np.ones((d, widest))
    for j, model in enumerate(models):
        c = model.n_components
        weights[j, :c], loc[j, :c] = np.asarray(model.weights_), np.asarray(model.means_)[:, 0]
        scale[j, :c] = np.sqrt(np.asarray(model.covariances_)[:, 0, 0])
    parts = np.log(np.maximum(weights, 1e-30)), loc, scale
    return ProductMixture(*(jnp.asarray(part, dtype) for part in parts))


def _mixture_of_modes(loc, scale_tril, y, dtype) -> NormalMixture:
    """Gaussians at the modes; a particle counts for the mode whose Gaussian is densest there."""
    equal = normal_mixture(np.zeros(len(loc)), loc, scale_tril, dtype)
    nearest = np.asarray(_nearest(equal, y.astype(dtype)))
    counts = np.bincount(nearest, minlength=len(loc)) + 0.5  # no mode gets the weight zero
    return normal_mixture(np.log(counts / counts.sum()), loc, scale_tril, dtype)


@compiled
def _nearest(mixture: NormalMixture, y: Float[Array, "n d"]) -> Int[Array, " n"]:
    """The component of highest density, its weight left out; each draw takes c d numbers."""
    return map_in_batches(lambda at: jnp.argmax(mixture.log_components(at[None])[0]), y, 500)


def _best(fitted, judged, most: int) -> "tuple[float, GaussianMixture]":
    """The score and the mixture from which on more components gain too little."""
    # Imported here, since few runs need it, and its import takes half as long as that of JAX.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

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
