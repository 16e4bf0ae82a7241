"""The posterior density along single coordinates, compared with the draws.

If draws are those of the posterior, redrawing one coordinate from its conditional distribution
leaves them so (Gibbs sampling).  The density is evaluated along a line through each of some draws,
at points that are scattered over all of the coordinate's range.  Where the redrawn coordinate has
another mean or standard deviation than the draws, or another fraction of it lies in some interval,
the draws are wrong.  That needs no gradient and no basin, so it sees what neither weights nor
descents see: a narrow spike inside a wide slab, the far side of an edge, a step.

The points also show obstacles to training: an edge, where a point of high density is next to one of
density zero; a step, where the density changes by more than its slope accounts for.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, PRNGKeyArray
from scipy.special import logsumexp

from numpyro_onestep._util.numerics import clipped
from numpyro_onestep._util.random import numpy_generator
from numpyro_onestep.checks import effort
from numpyro_onestep.target.evaluation import energies_and_gradients

_FEWEST_LINES, _MOST_LINES = 32, 128  # for each coordinate; each line goes through another draw
_NUM_POINTS = 64  # on a line
_GROUP = 16  # lines that are evaluated in one call
# Largest number of coordinates.  They are scanned in random order, until it or the allowed effort
# is reached.
_MOST_COORDINATES = 64
_FEWEST_DRAWS = 500  # with fewer the comparison is too uncertain
# A line reaches beyond the draws on either side, by this fraction of their range.
_BEYOND = 0.25
_NUM_BINS = 20  # intervals that hold equally many draws
# Largest differences that do not matter: of means in standard deviations, of log standard
# deviations, and of the fractions of draws in an interval.
_LARGEST_SHIFT, _LARGEST_LOG_SCALE, _LARGEST_FRACTION = 0.2, 0.25, 0.06
# Standard errors that are subtracted from each difference.  A thousand differences are computed,
# and noise must exceed the limit in none.
_NUM_ERRORS = 6.0
# Nats below a line's highest density.  A point above the first level still matters; above the
# second its density is high.
_DEEP, _NEAR_TOP = 8.0, 3.0
# Nats.  A change of the log density that exceeds what its slope accounts for by more is a jump.
_JUMP = 0.3
# The fraction of the lines that must cross an edge or a step; fewer lines do not count.
_MANY_LINES = 0.1


class Scan(NamedTuple):
    """The results of the scan; coordinates are given by name."""

    off: float  # largest difference, in units of what may be neglected: above 1 draws are wrong
    where: str  # the coordinate of that difference
    edge: str | None  # a coordinate in which the density ends while it is high
    step: str | None  # a coordinate in which the density jumps


def scan_lines(
    potential: Any,
    x: Float[np.ndarray, "n d"],
    names: list[str],
    rng_key: PRNGKeyArray,
    allowed: float,
) -> Scan | None:
    """Scan single coordinates; None where there are too few draws to compare with.

    Args:
        potential: U, a function of a point.
        x: draws of the posterior.
        names: of the coordinates.
        rng_key: a JAX random key.
        allowed: the effort that it may take, in numbers (`checks/effort.py`). It takes that of one
            coordinate in any case.
    """
    x = np.asarray(x)[np.isfinite(x).all(1)]
    if len(x) < _FEWEST_DRAWS:
        return None
    rng, worst = numpy_generator(rng_key), Scan(0.0, "", None, None)
    num_lines, num_coordinates = _affordable(potential, x.shape[1], allowed)
    for j in rng.permutation(x.shape[1])[:num_coordinates]:
        if np.ptp(x[:, j]) == 0:
            continue
        found = _look_along(potential, x, int(j), num_lines, rng, names[j])
        if found.off > worst.off:
            worst = worst._replace(off=found.off, where=found.where)
        worst = worst._replace(edge=worst.edge or found.edge, step=worst.step or found.step)
    return worst


def _affordable(potential, d: int, allowed: float) -> tuple[int, int]:
    """The numbers of lines for each coordinate, and of coordinates, of the allowed effort."""
    of_group = effort.of_gradients(potential, _GROUP * (_NUM_POINTS + 1))
    coordinates = min(d, _MOST_COORDINATES)
    groups = math.floor(allowed / (coordinates * of_group))
    lines = int(np.clip(groups * _GROUP, _FEWEST_LINES, _MOST_LINES))
    most = math.ceil(allowed / (lines // _GROUP * of_group))
    return lines, int(np.clip(most, 1, coordinates))


def _look_along(potential, x, j: int, num: int, rng: np.random.Generator, name: str) -> Scan:
    column = x[:, j].astype(np.float64)
    low, high = column.min(), column.max()
    low, high = low - _BEYOND * (high - low), high + _BEYOND * (high - low)
    draws = x[rng.choice(len(x), num, replace=False)]
    # One point in each of equal intervals: points of a line are sorted, lines differ.
    ticks = (np.arange(_NUM_POINTS) + rng.uniform(size=(num, _NUM_POINTS))) / _NUM_POINTS
    points = np.concatenate([draws[:, j, None], low + (high - low) * ticks], axis=1)
    points = points.astype(x.dtype)  # the draw itself first
    energy, slope = _along(potential, draws, points, j)
    fine = np.isfinite(energy)
    log_density = np.where(fine, -energy, -np.inf)
    usable = fine[:, 1:].any(1)
    if not usable.any():
        return Scan(0.0, name, None, None)
    at = points[usable].astype(np.float64)
    off = _difference(column, at, _redrawn(log_density[usable]))
    energy, slope, log_density, at = (
        values[:, 1:] for values in (energy[usable], slope[usable], log_density[usable], at)
    )
    edge, suspect, interval = _obstacles(log_density, slope, at, energy == np.inf)
    step = suspect.mean() > _MANY_LINES and _is_step(potential, draws[usable], interval, j)
    return Scan(off, name, name if edge else None, name if step else None)


def _redrawn(log_density):
    """The weights of a line's points, the draw itself first, in its conditional distribution.

    Where the draw outweighs all scattered points together, the points are too far apart to see how
    wide the density is around the draw, as in a funnel's neck.  Then the draw stays where it is.
    """
    own, others = log_density[:, :1], log_density[:, 1:]
    total = logsumexp(others, axis=1, keepdims=True)
    stays = own > total
    with np.errstate(invalid="ignore"):
        weight = np.where(stays, 0.0, np.exp(others - total))
    return np.concatenate([stays, weight], axis=1)


def _difference(column, at, weight) -> float:
    """The largest difference of the redrawn coordinate from the draws, in units of its limit."""
    # The standard deviation of a heavy tail is that of a few draws, through which no line may go.
    near, at_near = (clipped(values, like=column) for values in (column, at))
    mean, scale = near.mean(), near.std() + 1e-30
    first = np.sum(weight * (at_near - mean), 1) / scale
    second = np.sum(weight * (at_near - mean) ** 2, 1) / scale**2
    new_scale = max(np.sqrt(max(second.mean() - first.mean() ** 2, 0.0)), 1e-12)
    root = len(first) ** 0.5
    found = [_counted(first.mean() / new_scale, first.std() / root / new_scale, _LARGEST_SHIFT)]
    change = np.log(new_scale)
    error = 0.5 * second.std() / root / new_scale**2
    found.append(_counted(change, error, _LARGEST_LOG_SCALE))
    # Fractions in intervals that hold equally many draws, and in what lies beyond these.
    edges = np.quantile(column, np.linspace(0, 1, _NUM_BINS + 1))
    inner = np.searchsorted(edges, at)  # 0 below the draws, _NUM_BINS + 1 above
    for index in range(_NUM_BINS + 2):
        fraction = np.sum(weight * (inner == index), 1)
        expected = 1 / _NUM_BINS if 0 < index <= _NUM_BINS else 0.0
        error = fraction.std() / root
        found.append(_counted(fraction.mean() - expected, error, _LARGEST_FRACTION))
    return float(max(found))


def _counted(difference: float, error: float, limit: float) -> float:
    """A difference less six standard errors, in units of its limit; zero within its noise."""
    return max(abs(difference) - _NUM_ERRORS * error, 0.0) / limit


def _obstacles(log_density, slope, at, nothing):
    """Whether many lines cross an edge; which lines may cross a step, and in which interval."""
    below = log_density - log_density.max(1, keepdims=True)
    high = below > -_NEAR_TOP
    left, right = slice(None, -1), slice(1, None)
    edges = (high[:, left] & nothing[:, right]) | (nothing[:, left] & high[:, right])
    both = (below[:, left] > -_DEEP) & (below[:, right] > -_DEEP)
    width = at[:, right] - at[:, left]
    with np.errstate(invalid="ignore"):
        rise = log_density[:, right] - log_density[:, left]
        # The trapezoid rule, whose error is below the change of slope times the width.
        expected = -0.5 * (slope[:, right] + slope[:, left]) * width
        slack = 0.5 * abs(slope[:, right] - slope[:, left]) * width
        jumps = np.where(both, abs(rise - expected) - _JUMP - slack, -np.inf)
    largest = np.argmax(jumps, axis=1)
    lines = np.arange(len(at))
    interval = np.stack([at[lines, largest], at[lines, largest + 1]], axis=1)
    return edges.any(1).mean() > _MANY_LINES, jumps[lines, largest] > 0, interval


def _is_step(potential, draws, interval, j: int) -> bool:
    """Whether jumps remain at a finer resolution, where a steep slope turns out to be smooth."""
    fractions = np.linspace(0, 1, _NUM_POINTS + 1)
    fine = (interval[:, :1] + (interval[:, 1:] - interval[:, :1]) * fractions).astype(draws.dtype)
    energy, _ = _along(potential, draws, fine, j)
    with np.errstate(invalid="ignore"):
        change = abs(np.diff(energy, axis=1))
        whole = abs(energy[:, -1] - energy[:, 0])
    steps = (change.max(1) > _JUMP) & (change.max(1) > 0.5 * whole)
    return bool(steps.mean() > _MANY_LINES)


def _along(potential, draws, points, j: int) -> tuple[np.ndarray, np.ndarray]:
    """U and its slope along coordinate j, at the points of each draw's line."""
    energy, slope = [], []
    for begin in range(0, len(draws), _GROUP):
        lines = slice(begin, begin + _GROUP)
        at = np.repeat(draws[lines], points.shape[1], axis=0)
        at[:, j] = points[lines].ravel()
        found = energies_and_gradients(potential, at, lambda gradients: np.asarray(gradients)[:, j])
        for values, part in zip((energy, slope), found, strict=True):
            values.append(part.astype(np.float64).reshape(-1, points.shape[1]))
    return np.concatenate(energy), np.concatenate(slope)
