"""Pareto smoothing of weights, and the mass expected beyond the heaviest of them.

Vehtari, Simpson, Gelman, Yao and Gabry, "Pareto smoothed importance sampling", JMLR 2024.  ArviZ
does the smoothing, in version 0.x or 1.x.
"""

import math
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from numpyro_onestep._util.compilation import begin

# Pareto k from which on a tail holds nearly all of the mass, whatever its scale.
_LARGEST_SHAPE = 5.0
# Number of weights that smoothing needs.  ArviZ takes at most the largest fifth for the tail, and
# needs five weights in it.
_FEWEST_SMOOTHED = 25
_FEWEST_IN_TAIL = 5


def without_nan(log_weights) -> Float[np.ndarray, " n"]:
    """Log weights in double precision; minus infinity in place of NaN and infinity."""
    values = np.asarray(log_weights, np.float64)
    return np.where(np.isnan(values) | (values == np.inf), -np.inf, values)


def pareto_smooth(
    log_weights: Float[np.ndarray, " n"], resolution: float = 0.0
) -> tuple[Float[np.ndarray, " n"], float]:
    """Pareto-smoothed log weights on their original scale, and the shape k of their tail.

    ArviZ does the smoothing (Vehtari et al., "Pareto smoothed importance sampling", JMLR 2024).
    Weights that are all equal have no tail: k is then 0.  Fewer than 25 weights are too few for a
    tail: they stay as they are, and k is infinite.

    Args:
        log_weights: finite log weights (nats).
        resolution: distance of the multiples to which the log weights are rounded (nats).  A tail
            of ties has no shape, so each log weight is put at random within its rounding.
            Default 0.
    """
    if np.ptp(log_weights) == 0:
        return log_weights, 0.0
    if len(log_weights) < _FEWEST_SMOOTHED:
        return log_weights, math.inf
    rng = np.random.default_rng(0)
    log_weights = log_weights + resolution * rng.uniform(-0.5, 0.5, len(log_weights))
    with np.errstate(over="ignore"):  # the ratio of two weights may exceed the largest float
        smoothed, k = _psislw(log_weights)
    smoothed = np.asarray(smoothed, np.float64)
    # Smoothing changes the largest weights only, so the smallest one shows by how much ArviZ has
    # normalised them all.
    smallest = np.argmin(log_weights)
    k = float(np.asarray(k).reshape(()))
    return smoothed + (log_weights[smallest] - smoothed[smallest]), math.inf if math.isnan(k) else k


class Tail(NamedTuple):
    """The generalised Pareto distribution that the largest of n weights follow above a cut.

    Cut and scale are in units of the log weights that it was found from, as weights.
    """

    num: int  # the number of weights that are smoothed
    cut: float
    scale: float
    shape: float


def tail_of(log_weights: Float[np.ndarray, " n"], k: float) -> Tail | None:
    """The tail of shape k, its scale found from the median excess over the cut.

    None where the weights are too few for a tail, or where it holds nearly all of the mass.

    Args:
        log_weights: log weights (nats).
        k: shape of their tail.
    """
    n = len(log_weights)
    num_tail = int(min(0.2 * n, 3 * math.sqrt(n)))
    if num_tail < _FEWEST_IN_TAIL or not k < _LARGEST_SHAPE:
        return None
    weights = np.exp(np.sort(log_weights)[-num_tail - 1 :])
    cut, excess = weights[0], float(np.median(weights[1:] - weights[0]))
    # The quantile function is cut + scale (s^-k - 1) / k, s the fraction of the tail beyond.
    shape = k if abs(k) > 1e-6 else 1e-6
    return Tail(num_tail, cut, excess * shape / math.expm1(shape * math.log(2)), shape)


def tail_mass(log_weights: Float[np.ndarray, " n"], k: float) -> float:
    """The mass expected beyond the heaviest weight, as a fraction of the whole.

    The weights above a cut follow a generalised Pareto distribution of shape k (`tail_of`).  From
    k = 1 on its mean beyond the heaviest weight is infinite, but no sample sees all of that.  So
    only the part is counted that lies between the rarity of the heaviest of n draws and that of the
    heaviest of 100 n draws.

    Args:
        log_weights: log weights (nats) of n draws, whose mean weight is one.
        k: shape of their tail.
    """
    tail = tail_of(log_weights, k)
    if tail is None:
        return math.inf
    num_tail, cut, scale, shape = tail
    high, low = 1 / num_tail, 0.01 / num_tail
    power = 1 - shape if abs(1 - shape) > 1e-6 else 1e-6
    beyond = (high**power - low**power) / power
    mass = (cut - scale / shape) * (high - low) + scale / shape * beyond
    return float(num_tail / len(log_weights) * mass)


def import_ahead() -> None:
    """Begin to import ArviZ, which takes about a second, in the thread that compiles ahead."""
    begin(_arviz)


def _arviz() -> Any:
    return import_module("arviz")


def _psislw(log_weights):
    arviz = _arviz()
    if hasattr(arviz, "psislw"):  # ArviZ 0.x
        return arviz.psislw(log_weights)
    # ArviZ 1.x takes log likelihoods of leave-one-out, which are minus the log weights.
    return import_module("arviz_stats.base").array_stats.psislw(-log_weights)
