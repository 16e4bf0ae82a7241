"""Whether the flow's draws reach every mode, checked at points that are found without the flow.

Weights cannot see what the flow never visits.  So the ends of descents from scattered starts are
compared with the draws.  Where an end lies further from its nearest draws than draws lie from each
other, Markov chains start there.  If they stay away from the draws too, the mass around them is
compared with the mass that the draws reach, by mean energies and standard deviations:
    log Z_A - log Z = -(E_A[U] - E_pool[U]) + (H_A - H_pool),
the entropies H by the standard deviations in coordinates where the pool's covariance is I.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from numpyro_onestep import limits
from numpyro_onestep._util.random import numpy_generator, stream
from numpyro_onestep.checks import effort
from numpyro_onestep.flow.preconditioned import PreconditionedPotential
from numpyro_onestep.mcmc.rejuvenation import move
from numpyro_onestep.multimodal.modes import unseen
from numpyro_onestep.optimise.lbfgs import descent
from numpyro_onestep.target.evaluation import energies

# Distances from the model's start, in the model's own units, at which descents begin.
_AROUND = (1.0, 3.0, 10.0, 30.0) * 2 + (100.0, 300.0)
# Other descents begin at the preconditioner's centre, with one coordinate moved to either side by
# these numbers of standard deviations.
_BESIDE = (8.0, 16.0) * 5
# Descents that are made in any case.  The others are made as long as all take less than the allowed
# effort.
_FEWEST_DESCENTS = 8
# A descent has reached a minimum where the slope is below this, in nats for each standard deviation
# of the preconditioner and of the draws.  In a neck, or a tail without an end, it stays steep.
_FLAT = 0.5
# Draws to which distances are measured; and other draws, at most a quarter of all, whose distances
# to the former show which distance is usual.
_NUM_REFERENCE, _NUM_JUDGED = 2000, 500
_FEWEST_DRAWS = 50  # with fewer the distances are too uncertain
# The distance of a point is that to its sixth nearest draw: so many are nearer.
_NEIGHBOUR = 5
# An end is away from the draws if its distance is above the first number times the usual distance.
# The usual distance is the one that the second number, a fraction, of the judged draws stay below.
# (Not all of them, since a few draws may have strayed into the mode that is missing.)
_AWAY = 1.2
_USUAL = 0.99
# Nats.  A minimum that is further above the draws' mean energy, with an allowance for the width of
# its basin, has no mass that matters.
_HOPELESS = 10.0
# Two ends are at one minimum if they are nearer than this, in standard deviations of the draws.
# Where a minimum is flat, descents end a little before it.
_SAME_MINIMUM = 1.5
_CHAINS_EACH = 64  # chains from each minimum
_STEPS = 25  # steps of HMC in a round
# Largest number of rounds, and nats: rounds end once the mean energy rises by less than the latter
# or by less than its noise.
_MOST_ROUNDS, _LEVEL = 12, 0.1
# Two groups of chains are in one mode if the distance of their means is below this, in standard
# deviations.
_SAME_MODE = 1.0


class Missed(NamedTuple):
    """Modes that the draws do not reach."""

    num_modes: int
    odds: float  # mass of these modes over the mass that the draws reach
    where: Float[Array, " d"]  # a point of the heaviest of these modes, unconstrained


def find_missed(
    potential: PreconditionedPotential,
    start: Float[Any, " d"],
    x: Float[np.ndarray, "n d"],
    mean_energy: float,
    rng_key: PRNGKeyArray,
    allowed: float,
) -> Missed | None:
    """Modes that descents find and equally weighted draws do not reach, or None.

    `mean_energy` is the mean energy of the posterior, by the weighted pool (nats).  `allowed` is
    the effort that the descents may take, in numbers (`checks/effort.py`).  Where no
    minimum is both away from the draws and near that energy, the check costs only the descents and
    some distances, and compiles nothing.  It is not made in more than 512 dimensions, where a
    descent takes long, nor with fewer than 50 draws.
    """
    gaussian = potential.preconditioner
    if start.size > limits.COVERAGE_CHECK or len(x) < _FEWEST_DRAWS:
        return None
    if not np.isfinite(mean_energy):
        return None
    draws = np.asarray(x, np.float64)
    draws = draws[np.isfinite(draws).all(1)][: _NUM_REFERENCE + _NUM_JUDGED]
    if len(draws) < _FEWEST_DRAWS:
        return None
    pool = Cloud(draws, min(_NUM_JUDGED, len(draws) // 4))
    factor = np.asarray(gaussian.matrix(), np.float64)
    scales = factor, pool.factor
    starts = _starts(start, gaussian.loc, factor, stream(rng_key, "starts"))
    ends, end_energies = _minima(potential, scales, starts, allowed)
    if len(ends) == 0:
        return None
    d = draws.shape[1]
    hopeful = end_energies - mean_energy + d / 2 < _HOPELESS + d
    suspects = ends[hopeful & pool.away(ends)]
    if len(suspects) == 0:
        return None
    suspects, num_ends = _distinct(suspects, pool.whiten(suspects))
    starts = np.repeat(suspects.astype(x.dtype), _CHAINS_EACH, 0)
    chains, energy = _settled(potential, starts, rng_key, len(suspects))
    stayed = pool.away(chains).reshape(len(suspects), _CHAINS_EACH)
    white = pool.whiten(chains).reshape(len(suspects), _CHAINS_EACH, -1)
    modes: list[tuple[np.ndarray, np.ndarray]] = []
    times_found: list[int] = []
    odds, heaviest, where = 0.0, -np.inf, suspects[0]
    for index in np.argsort(energy.mean(1)):
        if stayed[index].mean() < 0.5:
            continue  # most chains came back to the draws, so this is no mode of its own
        # Chains that came back are left out; with them the standard deviation would be that of both
        # places.
        stays = stayed[index]
        mean, scale = white[index, stays].mean(0), white[index, stays].std(0) + 1e-6
        same = [np.mean(((mean - m) / s) ** 2) < _SAME_MODE**2 for m, s in modes]
        if any(same):
            times_found[same.index(True)] += num_ends[index]
            continue
        modes.append((mean, scale))
        times_found.append(num_ends[index])
        log_odds = mean_energy - energy[index, stays].mean() + np.log(scale).sum()
        odds += float(np.exp(np.clip(log_odds, -700, 50)))
        if log_odds > heaviest:
            heaviest, where = log_odds, suspects[index]
    if not modes:
        return None
    return Missed(len(modes), odds * (1 + unseen(times_found) / len(modes)), jnp.asarray(where))


def _distinct(
    ends: Float[np.ndarray, "n d"], white: Float[np.ndarray, "n d"]
) -> tuple[Float[np.ndarray, "m d"], list[int]]:
    """The first of the ends at each minimum, and how many ended there.

    In a hierarchy all descents may end at one mode that lies away from the mass.  Chains from every
    one of them took most of the time of a run.
    """
    first: list[int] = []
    counts: list[int] = []
    for index, point in enumerate(white):
        near = np.linalg.norm(white[first] - point, axis=1) < _SAME_MINIMUM
        if near.any():
            counts[int(near.argmax())] += 1
        else:
            first.append(index)
            counts.append(1)
    return ends[first], counts


def _settled(potential: PreconditionedPotential, x, rng_key: PRNGKeyArray, num_groups: int):
    """The ends and energies of chains, once no group's mean energy rises any more.

    Chains start at minima.  While they climb to where the mass is, their energy is too low by up to
    half a nat for each dimension, and the log mass around them would seem too large by as much.
    """
    before = np.full(num_groups, -np.inf)
    energy = np.zeros((num_groups, _CHAINS_EACH))
    for index in range(_MOST_ROUNDS):
        x = move(potential, x, stream(rng_key, "chains", index), _STEPS, _CHAINS_EACH)
        energy = _energies(potential, x).reshape(num_groups, _CHAINS_EACH)
        error = energy.std(1) * (2 / _CHAINS_EACH) ** 0.5
        rising = energy.mean(1) - before > np.maximum(2 * error, _LEVEL)
        before = energy.mean(1)
        if not rising.any():
            break
    return x, energy


def _minima(potential: PreconditionedPotential, scales, starts, allowed: float):
    """Ends of the descents that reached a minimum, and the energies there.

    Descents are made one after the other, by the program that was compiled for the descent of the
    preconditioner's fit: most take milliseconds, while to compile another program takes a second.
    """
    taken, ends, energies = 0.0, [], []
    of_step = effort.of_gradients(potential.unconstrained, 1)
    for index, at in enumerate(starts):
        if taken > allowed and index >= _FEWEST_DESCENTS:
            break
        end = descent(potential.unconstrained, at)
        taken += int(end.num_steps) * of_step
        slope = np.asarray(end.gradient, np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # descents may end anywhere
            flat = all(np.linalg.norm(slope @ scale) < _FLAT for scale in scales)
        if flat:
            ends.append(np.asarray(end.path)[-1])
            energies.append(float(end.energy))
    return np.reshape(ends, (len(ends), starts.shape[1])), np.asarray(energies)


def _starts(
    start: Float[Any, " d"],
    centre: Float[Any, " d"],
    factor: Float[np.ndarray, "d d"],
    rng_key: PRNGKeyArray,
) -> Float[np.ndarray, "m d"]:
    """Points around the start, and points that differ from the Gaussian's centre in one coordinate.

    Where every coordinate has two wells, descents from far away lead to minima that differ from the
    draws in half of the wells, each with nearly no mass.  Minima of more mass differ in one well
    only.  The order is random, since time may not suffice for all.
    """
    rng = numpy_generator(rng_key)
    scales = np.asarray(_AROUND)[:, None]
    around = np.asarray(start) + scales * rng.standard_normal((len(scales), start.size))
    coordinates = np.resize(rng.permutation(start.size), len(_BESIDE))
    shifts = np.zeros((len(_BESIDE), start.size))
    sizes = np.asarray(_BESIDE) * np.sqrt((factor**2).sum(1))[coordinates]
    shifts[np.arange(len(_BESIDE)), coordinates] = sizes
    centre = np.asarray(centre)
    points = np.concatenate([around, centre + shifts, centre - shifts])
    return rng.permutation(points).astype(start.dtype)


def _energies(potential: PreconditionedPotential, x) -> Float[np.ndarray, " n"]:
    x = np.asarray(x, potential.preconditioner.loc.dtype)
    return energies(potential.unconstrained, x).astype(np.float64)


class Cloud:
    """Draws in coordinates in which their covariance is I, with their usual distance."""

    def __init__(self, draws: Float[np.ndarray, "n d"], num_judged: int):
        self.mean = draws.mean(0)
        covariance = np.atleast_2d(np.cov(draws.T))
        values, vectors = np.linalg.eigh(covariance)
        scale = np.sqrt(np.maximum(values, 1e-10 * values[-1]))
        self.root, self.factor = vectors / scale, vectors * scale
        self.reference = self.whiten(draws[num_judged:])
        judged = self._distances(self.whiten(draws[:num_judged]))
        self.usual = np.quantile(judged, _USUAL)

    def whiten(self, x) -> Float[np.ndarray, "n d"]:
        """Centred and decorrelated."""
        return (np.asarray(x, np.float64) - self.mean) @ self.root

    def away(self, x) -> Bool[np.ndarray, " n"]:
        """Which points lie further from the draws than draws lie from each other."""
        return self._distances(self.whiten(x)) > _AWAY * self.usual

    def _distances(self, white):
        from scipy.spatial.distance import cdist  # imported here, since it takes long

        return np.partition(cdist(white, self.reference), _NEIGHBOUR, axis=1)[:, _NEIGHBOUR]
