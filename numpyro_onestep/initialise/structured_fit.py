"""The fit of a Gaussian with the structure of the target, in linear cost.

First each coordinate's own mean and scale, by batch and match; then rounds of the target's expected
curvature, as in `expected_curvature`.  Only those entries of the Hessian are computed that the
structure has.  At last the Gaussians of the nodes are found at a number of values of the core.
That shows how they change with it, as those of a hierarchy do with the groups' standard deviation.
"""

from typing import Any, NamedTuple

import jax
import jax.random as jr
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from numpyro_onestep._util.compilation import compiled
from numpyro_onestep._util.random import numpy_generator, stream
from numpyro_onestep.initialise.best_fit import start_points
from numpyro_onestep.initialise.conditionals import Conditionals, conditionals
from numpyro_onestep.initialise.expected_curvature import independent_match
from numpyro_onestep.initialise.structured_gaussian import (
    StructuredGaussian,
    independent,
    of_precision,
)
from numpyro_onestep.structure.curvature import Colouring, Curvature, colouring, curvature
from numpyro_onestep.structure.structure import Structure
from numpyro_onestep.target.evaluation import energies_and_gradients

# Draws over which energy and gradient are averaged: as many as there may be numbers in all, but no
# more and no fewer than the last two say.
_NUMBERS, _MOST_DRAWS, _FEWEST_DRAWS = 2**20, 256, 16
_HESSIANS = 8  # draws over which the Hessian is averaged
# The same for the draws of an iteration of batch and match, and the number of its iterations: after
# three times as many the rounds that follow ended within two nats of the same ELBO.
_BATCH_NUMBERS, _LARGEST_BATCH, _SMALLEST_BATCH = 2**16, 32, 4
_ITERATIONS = 100
_MOST_ROUNDS = 30
# Nats, and a fraction of the way to the expected curvature.  After a round that gains less than the
# first number the next goes half as far; rounds end when the fraction falls below the second.
_WORTH_A_ROUND, _SMALLEST_FRACTION = 0.05, 0.1


class StructuredFit(NamedTuple):
    """The Gaussian, its ELBO (nats), and those of the nodes given the core, if they were found."""

    gaussian: StructuredGaussian
    elbo: float
    conditionals: Conditionals | None = None


def fit_structured(
    potential: Any, structure: Structure, start: Float[Any, " d"], rng_key: PRNGKeyArray
) -> StructuredFit | None:
    """The Gaussian of the structure that is nearest to the target; None where none was found.

    Args:
        potential: U, a function of x in R^d.
        structure: which coordinates interact.
        start: a point of finite density.
        rng_key: a JAX random key.
    """
    d, dtype = start.size, start.dtype
    rng = numpy_generator(stream(rng_key, "draws"))
    num = int(np.clip(_NUMBERS // d, _FEWEST_DRAWS, _MOST_DRAWS)) // 2 * 2
    z = _pairs(rng, num, d)
    batch = int(np.clip(_BATCH_NUMBERS // d, _SMALLEST_BATCH, _LARGEST_BATCH)) // 2 * 2
    # The descent is in x: running sums depend on each other far more than their steps do.
    points = structure.coordinates(start_points(potential, start))
    potential = structure.potential(potential)
    key = stream(rng_key, "independent")
    best = None
    locs, scales = (np.asarray(v) for v in _independent(potential, points, key, batch))
    for loc, scale in zip(locs, scales, strict=True):
        if np.isfinite(loc).all() and np.isfinite(scale).all():
            gaussian, precision = independent(structure, loc, scale)
            elbo, gradient = _elbo(potential, gaussian, z, dtype)
            if np.isfinite(elbo) and (best is None or elbo > best[1]):
                best = gaussian, elbo, gradient, precision
    if best is None:
        return None
    by = colouring(structure)
    gaussian, elbo = _curved(potential, by, *best, z, rng, dtype)
    return StructuredFit(gaussian, elbo, conditionals(potential, gaussian, by, rng, dtype))


def _curved(potential, by: Colouring, gaussian, elbo, gradient, precision, z, rng, dtype):
    """The Gaussian after rounds of expected curvature, as long as they gain, and its ELBO."""
    structure, fraction = gaussian.structure, 1.0
    for _ in range(_MOST_ROUNDS):
        if fraction < _SMALLEST_FRACTION:
            break
        points = gaussian.draw(_pairs(rng, _HESSIANS, z.shape[1])).astype(dtype)
        there = curvature(potential, points, by)
        mixed = Curvature(
            *((1 - fraction) * a + fraction * b for a, b in zip(precision, there, strict=True))
        )
        new, found, its_gradient = None, -np.inf, gradient
        if all(np.isfinite(part).all() for part in mixed):
            new = of_precision(structure, gaussian.loc, mixed)
            new = new.moved(-fraction * new.times_covariance(gradient[structure.order]))
            found, its_gradient = _elbo(potential, new, z, dtype)
        gain = found - elbo
        if new is not None and gain > 0:
            gaussian, elbo, gradient, precision = new, found, its_gradient, mixed
        if not gain > _WORTH_A_ROUND:
            fraction /= 2
    return gaussian, elbo


def _pairs(rng: np.random.Generator, num: int, d: int) -> Float[np.ndarray, "n d"]:
    """Normal draws z and -z: of a quadratic potential they average the gradient exactly."""
    half = rng.standard_normal((num // 2, d))
    return np.concatenate([half, -half])


def _elbo(potential, gaussian: StructuredGaussian, z, dtype) -> tuple[float, np.ndarray]:
    """The Gaussian's ELBO, minus infinity where a draw has no finite density; and E[grad U]."""
    x = gaussian.draw(z).astype(dtype)
    energy, gradient = energies_and_gradients(potential, x)
    energy, gradient = energy.astype(float), gradient.astype(float)
    fine = np.all(np.isfinite(gradient), axis=1)
    mean = np.where(fine[:, None], gradient, 0.0).sum(0) / max(1, fine.sum())
    elbo = gaussian.entropy - energy.mean() if np.isfinite(energy).all() else -np.inf
    return float(elbo), mean


@compiled
def _independent(potential, points, rng_key, batch: int):
    keys = jr.split(rng_key, len(points))
    return jax.vmap(lambda at, key: independent_match(potential, at, key, batch, _ITERATIONS))(
        points, keys
    )
