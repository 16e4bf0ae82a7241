"""Targets of which everything is known exactly: mixtures, wells, and whatever else has a log Z.

A target is a potential on R^d or a NumPyro model. Synthetic ones carry exact draws and their log Z.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy.integrate import quad

from benchmarks.problems.posterior import Posterior


@dataclass(frozen=True)
class Target:
    """A target, and what is known of it.

    Attributes:
        name: of the target, in rows and pages.
        dim: number of its dimensions.
        log_z: its log normalising constant (nats), or None where that is not known.
        potential: its negative log density on R^d, for one that is not a model.
        model: the NumPyro model, for one that is.
        args: the model's positional arguments.
        sample: (NumPy generator, number) -> exact draws, where they can be had.
        means: of a mixture's components.
        weights: of a mixture's components.
        widths: of a mixture's components. Where all are equal, their size is of no matter.
        wells: how many of the leading coordinates have two wells.
        posterior: a stored reference to compare with, where there is one.
        multimodal: whether the target has several modes, and is run with `multimodal=True`.
    """

    name: str
    dim: int
    log_z: float | None
    potential: Callable | None = None
    model: Callable | None = None
    args: tuple = ()
    sample: Callable | None = None
    means: np.ndarray | None = None
    weights: np.ndarray | None = None
    widths: np.ndarray | float = 1.0
    wells: int = 0
    posterior: Posterior | None = None
    multimodal: bool = False


def mixture(name: str, means, scale, weights, df: float | None = None) -> Target:
    """A mixture of isotropic components.

    Args:
        name: of the target.
        means: of the components (component, coordinate).
        scale: of all components, or one for each.
        weights: of the components; they need not sum to one.
        df: None for Gaussians. Otherwise each coordinate follows a Student t distribution with so
            many degrees of freedom.
    """
    (num, d), weights = means.shape, np.asarray(weights) / np.sum(weights)
    widths = np.broadcast_to(scale, num)
    loc, log_weights = jnp.asarray(means, jnp.float32), jnp.log(jnp.asarray(weights, jnp.float32))
    scales = jnp.asarray(widths, jnp.float32)
    kernel = dist.Normal() if df is None else dist.StudentT(df)

    def potential(x):
        log_densities = kernel.log_prob((x - loc) / scales[:, None]).sum(-1) - d * jnp.log(scales)
        return -jax.nn.logsumexp(log_weights + log_densities)

    def sample(rng, n):
        size = n, d
        noise = rng.standard_normal(size) if df is None else rng.standard_t(df, size)
        which = rng.choice(num, n, p=weights)
        return means[which] + widths[which, None] * noise

    known = {"means": means, "weights": weights, "widths": widths}
    return Target(name, d, 0.0, potential, sample=sample, multimodal=True, **known)


def nearest_component(target: Target, points: np.ndarray) -> np.ndarray:
    """Which component of a mixture has the highest density at each point, weights left aside."""
    assert target.means is not None
    nearest = np.full(len(points), 0)
    least = np.full(len(points), np.inf)
    widths = np.broadcast_to(target.widths, len(target.means))
    # One component at a time: all distances at once would take much memory.
    for index, (mean, width) in enumerate(zip(target.means, widths, strict=True)):
        apart = ((points - mean) ** 2).sum(-1) / width**2 + 2 * target.dim * np.log(width)
        nearest = np.where(apart < least, index, nearest)
        least = np.minimum(apart, least)
    return nearest


def _well(t):
    return np.exp(-(t**4) + 6 * t**2 + 0.5 * t)


def many_well(name: str, dim: int, wells: int) -> Target:
    """Double wells in the leading coordinates, standard normals in the others.

    Its log Z is a sum of one-dimensional integrals, its exact draws come from the inverse of each
    coordinate's distribution function on a fine grid.
    """

    def potential(x):
        first, rest = x[:wells], x[wells:]
        return jnp.sum(first**4 - 6 * first**2 - 0.5 * first) + 0.5 * jnp.sum(rest**2)

    grid = np.linspace(-4, 4, 200_001)
    cumulative = np.cumsum(_well(grid))

    def sample(rng, n):
        first = np.interp(rng.uniform(size=(n, wells)), cumulative / cumulative[-1], grid)
        return np.concatenate([first, rng.standard_normal((n, dim - wells))], axis=1)

    log_z = wells * np.log(quad(_well, -5, 5)[0]) + 0.5 * (dim - wells) * np.log(2 * np.pi)
    return Target(name, dim, float(log_z), potential, sample=sample, wells=wells, multimodal=True)


def right_share() -> float:
    """The probability of a well's right-hand side, the larger of the two."""
    return quad(_well, 0, 5)[0] / quad(_well, -5, 5)[0]
