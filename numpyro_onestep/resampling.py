"""Equally weighted draws from weighted ones, without replacement.

Systematic sampling with inclusion probabilities pi_i = n w_i keeps every expectation unbiased and
adds little noise of its own.  No draw can be included with more than certainty, so where a weight
exceeds 1 / n the rest of it is spread over the others: that share is the price of distinct draws,
and it is returned.
"""

import jax.random as jr
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray


def resample(
    rng_key: PRNGKeyArray, log_weights: Float[np.ndarray, " pool"], num: int
) -> tuple[Int[np.ndarray, " num"], float]:
    """Choose `num` different members of a pool, with probability proportional to weight.

    Args:
        rng_key: key of the choice and of the order.
        log_weights: log of weights that sum to one.
        num: how many to choose, at most the pool's size.

    Returns:
        Indices in random order, and the share of the weight that had to go to other draws.
    """
    weights = np.exp(log_weights) + 1e-290  # a draw of weight zero comes last, but may be needed
    inclusion = num * weights / weights.sum()
    excess = float(np.maximum(inclusion - 1, 0).sum() / num)
    certain = inclusion >= 1
    while np.any(inclusion[~certain] > 1) or inclusion[certain].sum() > certain.sum():
        inclusion[certain] = 1.0
        rest = ~certain
        inclusion[rest] *= (num - certain.sum()) / inclusion[rest].sum()
        certain |= inclusion >= 1

    # NumPy's generator, seeded by the key: permuting in JAX would compile for every size.
    rng = np.random.default_rng(np.asarray(jr.key_data(rng_key)))
    order = rng.permutation(len(weights))
    edges = np.cumsum(inclusion[order])
    edges *= num / edges[-1]
    ticks = rng.uniform() + np.arange(num)
    position = np.minimum(np.searchsorted(edges, ticks, side="right"), len(weights) - 1)
    chosen = _distinct(order[position], order)
    return rng.permutation(chosen), excess


def systematic(rng: np.random.Generator, weights: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """As many members as there are, with replacement: each its weight's share, rounded up or down.

    Args:
        rng: a NumPy generator.
        weights: which sum to one.
    """
    edges = np.cumsum(weights)
    ticks = (rng.uniform() + np.arange(len(weights))) / len(weights) * edges[-1]
    return np.minimum(np.searchsorted(edges, ticks, side="right"), len(weights) - 1)


def _distinct(chosen: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Replace a repeat, which rounding of a certain inclusion may cause, by an unused member."""
    unique = np.unique(chosen)
    missing = len(chosen) - len(unique)
    unused = np.setdiff1d(order, unique, assume_unique=True)[:missing]
    return np.concatenate([unique, unused])
