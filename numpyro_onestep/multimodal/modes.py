"""Modes of a target, found by descents from many starts, with Laplace's approximation at each."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from numpyro_onestep._util.compilation import compiled
from numpyro_onestep.initialise.laplace import hessian
from numpyro_onestep.optimise.lbfgs import descend
from numpyro_onestep.target import Potential

# Distances in every coordinate, in the target's own units, at which the first round's descents
# start from where the model starts.
_START_SCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)
# Distance, in the target's own units, from which a descent may stop anywhere on its way.  Of such
# descents, and of all later rounds, only the ends that are minima are kept in `Modes.ends`.
_FAR = 1000.0
# Later rounds start around the middle of the modes that are known, at these multiples of their
# distances from each other: between them and beyond them.  In every other round the distance is as
# large in each coordinate as in the one in which modes lie furthest apart, since a few modes may
# agree in a coordinate in which others do not.
_MULTIPLES = (0.3, 0.5, 0.5, 1.0, 2.0)
_STARTS_PER_SCALE = 80  # descents from each distance
_DESCENT_STEPS = 100
# Rounds end after the first number of quiet rounds in a row, which have found no new mode.  In few
# dimensions random starts can still hit the basin of a narrow mode, so more quiet rounds are made
# there: the second number divided by d, but no more than the third.
_QUIET_ROUNDS, _QUIET_ROUNDS_1D, _MOST_QUIET_ROUNDS = 3, 300, 30
# The largest number of rounds in all, in units of the number of quiet rounds.
_MOST_ROUNDS_FACTOR = 4
# Steps of the longest descents of all batches together.  Beyond this descents take long, and the
# smallest number of quiet rounds is enough.
_CHEAP_STEPS = 2500
# Rounds also go on while Chao's estimate of the number of modes not yet found is above this.
_LEFT_TO_FIND = 0.5
_ENOUGH_MODES = 256  # the search ends when more modes than these are known
# Two ends are the same mode if their distance is below this, in standard deviations of the Gaussian
# at the lower end.
_SAME = 2.0
# A descent has reached a minimum if a Newton step would move it by less than this, in standard
# deviations of the Gaussian at its end.
_ARRIVED = 0.5


class Modes(NamedTuple):
    """Distinct modes, the heaviest first, with Laplace's approximation at each."""

    loc: Float[np.ndarray, "m d"]
    scale_tril: Float[np.ndarray, "m d d"]
    log_mass: Float[np.ndarray, " m"]  # nats
    ends: Float[np.ndarray, "n d"]  # the start and ends of descents; from afar only minima


def find_modes(potential: Potential, start: Float[Any, " d"], rng_key: PRNGKeyArray) -> Modes:
    """Descend from around `start` at several distances, and keep what is a minimum."""
    d = start.size
    minima, ends = _Minima.none(d), [np.asarray(start, np.float64)[None]]
    middle, distance, scales = np.asarray(start), np.ones_like(start), _START_SCALES
    patience = int(np.clip(_QUIET_ROUNDS_1D // d, _QUIET_ROUNDS, _MOST_QUIET_ROUNDS))
    quiet = num_rounds = num_steps = 0
    while True:
        known = len(minima.energy)
        for scale in scales:
            index = np.asarray(len(ends) - 1)
            batch, longest = _descents(potential, middle, scale * distance, rng_key, index)
            found, telling = _arrived(*(np.asarray(part, np.float64) for part in batch))
            minima = minima.merged(found)
            near = num_rounds == 0 and scale < _FAR
            ends.append(telling if near else found.loc)
            num_steps += int(longest)
        num_rounds += 1
        quiet = quiet + 1 if len(minima.energy) == known else 0
        if num_steps > _CHEAP_STEPS:
            patience = _QUIET_ROUNDS
        enough = quiet >= patience and unseen(list(minima.times_found)) < _LEFT_TO_FIND
        if (
            enough
            or len(minima.energy) > _ENOUGH_MODES
            or num_rounds >= _MOST_ROUNDS_FACTOR * patience
        ):
            break
        if len(minima.energy) > 0:
            own = np.sqrt(np.diagonal(np.linalg.inv(minima.curvature), axis1=1, axis2=2)).max(0)
            middle = (0.5 * (minima.loc.min(0) + minima.loc.max(0))).astype(start.dtype)
            apart = 0.5 * np.ptp(minima.loc, axis=0) / own
            if num_rounds % 2 == 0:
                apart = apart.max()
            distance = ((1 + apart) * own).astype(start.dtype)
            scales = _MULTIPLES
    return minima.modes(np.concatenate(ends))


def compile_ahead(potential: Potential, start: Float[Any, " d"], rng_key: PRNGKeyArray) -> None:
    """Begin to compile what `find_modes` will need from a start of such a shape."""
    _descents.ahead(potential, np.asarray(start), np.ones_like(start), rng_key, np.asarray(0))


def unseen(times_found: list[Any]) -> float:
    """Estimated number of modes not found, from the numbers of modes found once and twice.

    Chao, "Nonparametric estimation of the number of classes in a population", Scand. J. Statist.
    1984, in its bias-corrected form.
    """
    once, twice = times_found.count(1), times_found.count(2)
    return once * (once - 1) / (2 * (twice + 1))


class _Minima(NamedTuple):
    """Distinct minima, the lowest first."""

    loc: Float[np.ndarray, "m d"]
    energy: Float[np.ndarray, " m"]
    curvature: Float[np.ndarray, "m d d"]
    times_found: Int[np.ndarray, " m"]

    @classmethod
    def none(cls, d: int) -> "_Minima":
        return cls(np.zeros((0, d)), np.zeros(0), np.zeros((0, d, d)), np.zeros(0, int))

    def merged(self, other: "_Minima") -> "_Minima":
        """The distinct minima of both, each with the number of times it was found in all."""
        loc, energy, curvature, times = (
            np.concatenate(parts) for parts in zip(self, other, strict=True)
        )
        kept: dict[int, int] = {}
        for index in np.argsort(energy, kind="stable"):
            if kept:
                better = list(kept)
                apart = _distances(loc[better] - loc[index], curvature[better])
                if apart.min() <= _SAME:
                    kept[better[int(apart.argmin())]] += int(times[index])
                    continue
            kept[int(index)] = int(times[index])
        order = list(kept)
        return _Minima(
            loc[order], energy[order], curvature[order], np.array(list(kept.values()), int)
        )

    def modes(self, ends: Float[np.ndarray, "n d"]) -> Modes:
        """Laplace's approximation at each, the heaviest first."""
        d = self.loc.shape[1]
        log_mass = -self.energy + 0.5 * d * np.log(2 * np.pi)
        log_mass -= 0.5 * np.linalg.slogdet(self.curvature)[1]
        order = np.argsort(-log_mass, kind="stable")
        covariance = np.linalg.inv(self.curvature[order])
        scale_tril = np.linalg.cholesky(0.5 * (covariance + covariance.transpose(0, 2, 1)))
        return Modes(self.loc[order], scale_tril, log_mass[order], ends)


def _arrived(loc, energy, gradient, curvature) -> tuple[_Minima, Float[np.ndarray, "n d"]]:
    """The ends that are minima, and all ends that are finite.

    An end is no mode where the curvature is not positive, or where a Newton step would be long.  A
    density that rises without bound into a neck has such ends.
    """
    fine = np.isfinite(energy) & np.isfinite(curvature).all((1, 2)) & np.isfinite(gradient).all(1)
    ends, energy, gradient, curvature = (v[fine] for v in (loc, energy, gradient, curvature))
    eigenvalues, vectors = np.linalg.eigh(curvature)
    newton = np.einsum("nij,ni->nj", vectors, gradient) / np.sqrt(np.maximum(eigenvalues, 1e-30))
    good = (eigenvalues[:, 0] > 1e-8 * eigenvalues[:, -1]) & ((newton**2).sum(1) < _ARRIVED**2)
    return _Minima(ends[good], energy[good], curvature[good], np.ones(good.sum(), int)), ends


def _distances(apart, curvature):
    return np.sqrt(np.einsum("ni,nij,nj->n", apart, curvature, apart))


@compiled
def _descents(
    potential: Potential,
    middle: Float[Array, " d"],
    distance: Float[Array, " d"],
    rng_key: PRNGKeyArray,
    index: Int[Array, ""],
):
    """Ends of the descents with value, gradient and Hessian there, and the steps of the longest."""
    shape = _STARTS_PER_SCALE, middle.size
    noise = jr.normal(jr.fold_in(rng_key, index), shape, middle.dtype)

    def one(at):
        descent = descend(potential, at, _DESCENT_STEPS)
        end = descent.path[-1]
        energy, gradient = jax.value_and_grad(potential)(end)
        return (end, energy, gradient, hessian(potential, end)), descent.num_steps

    found, num_steps = jax.vmap(one)(middle + distance * noise)
    return found, jnp.max(num_steps)
