"""Modes of a target, found without the flow: descents from many starts, Laplace at each end."""

from typing import NamedTuple

import jax
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from numpyro_onestep.base import descend
from numpyro_onestep.compilation import compiled
from numpyro_onestep.laplace import hessian
from numpyro_onestep.potential import AbstractPotential

# Descents start this far from where the model starts, in every coordinate; those of later batches
# so many times the modes' own spread from their middle, to look between them and beyond them.
_START_SCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)
# From so far a descent may stop anywhere: only those that arrive say something.
_FAR = 1000.0
_SPREADS = (0.5, 1.0, 1.0, 2.0, 5.0)
_STARTS_PER_SCALE = 80
_DESCENT_STEPS = 100
# Batches follow one another until three in a row find nothing new and, by Chao's estimate, fewer
# than half a mode is left to find.
_MOST_BATCHES = 12
_QUIET_BATCHES = 3
_ENOUGH_MODES = 256  # beyond which more would not be listed
# Two ends are one mode within so many standard deviations of the Gaussian at the better one.
_SAME = 2.0
# A descent has arrived when a Newton step would move it by less than this, in those units.
_ARRIVED = 0.5


class Modes(NamedTuple):
    """Distinct modes, the heaviest first, with Laplace's approximation at each."""

    loc: Float[np.ndarray, "m d"]
    scale_tril: Float[np.ndarray, "m d d"]
    log_mass: Float[np.ndarray, " m"]  # nats
    ends: Float[np.ndarray, "n d"]  # of the descents, arrived or not; of the farthest, arrived


def find_modes(
    potential: AbstractPotential, start: Float[Array, " d"], rng_key: PRNGKeyArray
) -> Modes:
    """Descend from around `start` at several distances, and keep what is a minimum."""
    found: list[tuple[np.ndarray, ...]] = []
    middle, spread = np.asarray(start), np.ones_like(start)
    scales, known, quiet, num_batches = _START_SCALES, 0, 0, 0
    while True:
        for scale in scales:
            index = np.asarray(len(found))
            batch = _descents(potential, middle, scale * spread, rng_key, index)
            parts = tuple(np.asarray(part, np.float64) for part in batch)
            found.append((*parts, np.full(len(parts[0]), scale >= _FAR)))
        num_batches += 1
        parts = (np.concatenate(parts) for parts in zip(*found, strict=True))
        modes, times_found = _distinct(*parts)
        num = len(modes.loc)
        quiet = quiet + 1 if num == known else 0
        known = num
        enough = quiet >= _QUIET_BATCHES and unseen(times_found) < 0.5
        if enough or num > _ENOUGH_MODES or num_batches == _MOST_BATCHES:
            return modes
        if num > 0:
            own = np.sqrt((modes.scale_tril**2).sum(2)).max(0)
            middle = (0.5 * (modes.loc.min(0) + modes.loc.max(0))).astype(start.dtype)
            spread = (0.5 * np.ptp(modes.loc, axis=0) + own).astype(start.dtype)
            scales = _SPREADS


def compile_ahead(
    potential: AbstractPotential, start: Float[Array, " d"], rng_key: PRNGKeyArray
) -> None:
    """Begin to compile what `find_modes` will need from a start of such a shape."""
    _descents.ahead(potential, np.asarray(start), np.ones_like(start), rng_key, np.asarray(0))


def unseen(times_found: list[int]) -> float:
    """How many kinds were not found, from how many were found once and twice.

    Chao, "Nonparametric estimation of the number of classes in a population", Scand. J. Statist.
    1984, in its bias-corrected form.
    """
    once, twice = times_found.count(1), times_found.count(2)
    return once * (once - 1) / (2 * (twice + 1))


def _distinct(ends, energy, gradient, curvature, far) -> tuple[Modes, list[int]]:
    """The distinct minima, and how often each was found.

    An end where the curvature is not positive, or from where Newton's step would lead away, is no
    mode: a density that rises without bound into a neck has such ends.
    """
    fine = np.isfinite(energy) & np.isfinite(curvature).all((1, 2)) & np.isfinite(gradient).all(1)
    loc, energy, gradient, curvature = (v[fine] for v in (ends, energy, gradient, curvature))
    eigenvalues, vectors = np.linalg.eigh(curvature)
    newton = np.einsum("nij,ni->nj", vectors, gradient) / np.sqrt(np.maximum(eigenvalues, 1e-30))
    good = (eigenvalues[:, 0] > 1e-8 * eigenvalues[:, -1]) & ((newton**2).sum(1) < _ARRIVED**2)
    telling = ~far
    telling[fine] |= good
    loc, energy, curvature, eigenvalues = (v[good] for v in (loc, energy, curvature, eigenvalues))
    d = loc.shape[1]
    log_mass = -energy + 0.5 * d * np.log(2 * np.pi) - 0.5 * np.log(eigenvalues).sum(1)
    times_found: dict[int, int] = {}
    for index in np.argsort(energy, kind="stable"):
        kept = list(times_found)
        if kept:
            apart = _distances(loc[kept] - loc[index], curvature[kept])
            if apart.min() <= _SAME:
                times_found[kept[int(apart.argmin())]] += 1
                continue
        times_found[int(index)] = 1
    kept = sorted(times_found, key=lambda index: -log_mass[index])
    covariance = np.linalg.inv(curvature[kept])
    scale_tril = np.linalg.cholesky(0.5 * (covariance + covariance.transpose(0, 2, 1)))
    modes = Modes(loc[kept], scale_tril, log_mass[kept], ends[telling])
    return modes, [times_found[index] for index in kept]


def _distances(apart, curvature):
    return np.sqrt(np.einsum("ni,nij,nj->n", apart, curvature, apart))


@compiled
def _descents(
    potential: AbstractPotential,
    middle: Float[Array, " d"],
    spread: Float[Array, " d"],
    rng_key: PRNGKeyArray,
    index: Int[Array, ""],
):
    """Ends of the descents, and value, gradient and Hessian there."""
    shape = _STARTS_PER_SCALE, middle.size
    noise = jr.normal(jr.fold_in(rng_key, index), shape, middle.dtype)

    def one(at):
        end = descend(potential, at, _DESCENT_STEPS).path[-1]
        energy, gradient = jax.value_and_grad(potential)(end)
        return end, energy, gradient, hessian(potential, end)

    return jax.vmap(one)(middle + spread * noise)
