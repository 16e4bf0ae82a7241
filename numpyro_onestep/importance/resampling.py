"""Equally weighted draws from weighted ones, without replacement.

Systematic sampling with inclusion probabilities pi_i = n w_i keeps every expectation unbiased and
adds little noise of its own.  An inclusion probability cannot exceed 1.  So where a weight exceeds
1 / n the rest of it is spread over the other draws; the fraction of the weight that is moved in
this way is returned.

The choice may be balanced as well (Deville and Tille, "Efficient balanced sampling: the cube
method", Biometrika 2004).  Given features of the draws, the chosen draws then have nearly the
weighted means of the whole pool, whose error depends on the size of the pool and not on n.  The
choice is made in rounds, each of half of the draws that are still to be chosen, in O(pool x
features).  Before each round the inclusion probabilities of the rest are tilted, linearly in the
features, so that the draws still expected make good what the rounds before have missed.  The tilts
are zero in expectation up to O(features / n): a draw far out that was not taken is a little
likelier in a later round.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray
from scipy.linalg import cho_factor, cho_solve

from numpyro_onestep._util.random import numpy_generator

# Draws for each feature in a round.  A smaller round could not make good what the rounds before
# have missed, so the last round chooses all draws that are left.
_LAST_ROUND_DRAWS = 2
# Largest number of features for each draw to be chosen.
MOST_FEATURES = 1 / 16
# A tilt changes a probability pi by no more than this fraction of pi, or of 1 - pi.
_LARGEST_TILT = 0.75


def resample(
    rng_key: PRNGKeyArray,
    log_weights: Float[np.ndarray, " pool"],
    num: int,
    features: Sequence[Float[np.ndarray, "pool _"]] = (),
) -> tuple[Int[np.ndarray, " num"], float]:
    """Choose `num` different members of a pool, with probability proportional to weight.

    Args:
        rng_key: key of the choice and of the order.
        log_weights: log of weights that sum to one.
        num: how many to choose, at most the pool's size.
        features: groups of features to balance, the most important first. A group with which there
            are too many features for `num` is left out, with all groups after it.

    Returns:
        Indices in random order, and the fraction of the weight that was moved to other draws.
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
    rng = numpy_generator(rng_key)
    sizes = np.cumsum([group.shape[1] for group in features])
    used = features[: int(np.searchsorted(sizes, num * MOST_FEATURES, side="right"))]
    chosen = (
        _balanced(rng, inclusion, num, used) if used else _distinct_members(rng, inclusion, num)
    )
    return rng.permutation(chosen), excess


def _distinct_members(rng: np.random.Generator, inclusion, num: int) -> np.ndarray:
    """`num` members with these probabilities, which sum to `num`, in random order."""
    order = rng.permutation(len(inclusion))
    return _distinct(order[systematic(rng, inclusion[order], num)], inclusion)


def _balanced(rng: np.random.Generator, inclusion, num: int, features) -> np.ndarray:
    """`num` members chosen in rounds, so that sums of features over them are as expected."""
    columns = np.column_stack(features).astype(np.float64)
    loc = inclusion @ columns / num
    columns -= loc
    columns /= np.sqrt(inclusion @ columns**2 / num) + 1e-30
    columns = np.column_stack([np.ones(len(columns)), columns])
    slack = inclusion * (1 - inclusion)
    gram = (columns * slack[:, None]).T @ columns / (slack.sum() + 1e-30)
    factor = cho_factor(gram + 1e-6 * np.eye(len(gram)))
    last = _LAST_ROUND_DRAWS * len(gram)

    missing = inclusion @ columns
    left, inclusion = np.arange(len(inclusion)), inclusion.copy()
    chosen: list[np.ndarray] = []
    while num:
        slack = inclusion * (1 - inclusion)
        tilt = columns @ cho_solve(factor, missing - inclusion @ columns) / (slack.sum() + 1e-30)
        inclusion += np.clip(
            slack * tilt, -_LARGEST_TILT * inclusion, _LARGEST_TILT * (1 - inclusion)
        )
        # After clipping the probabilities do not quite sum to `num`: those below 1 are rescaled.
        free = inclusion < 1
        inclusion[free] *= (num - np.sum(~free)) / (inclusion[free].sum() + 1e-30)
        inclusion = np.minimum(inclusion, 1.0)
        now = num // 2 if num // 2 >= last else num
        fraction = now / inclusion.sum()
        taken = _distinct_members(rng, inclusion, now)
        chosen.append(left[taken])
        missing -= columns[taken].sum(0)
        num -= now
        # What was not taken keeps its probability over both rounds.
        inclusion *= (1 - fraction) / (1 - fraction * inclusion + 1e-30)
        left, inclusion, columns = (np.delete(v, taken, 0) for v in (left, inclusion, columns))
    return np.concatenate(chosen)


def systematic(
    rng: np.random.Generator, weights: Float[np.ndarray, " n"], num: int
) -> Int[np.ndarray, " num"]:
    """`num` members, with replacement: each as often as its weight says, rounded up or down.

    Args:
        rng: a NumPy generator.
        weights: positive.
        num: how many.
    """
    edges = np.cumsum(weights)
    ticks = (rng.uniform() + np.arange(num)) / num * edges[-1]
    return np.minimum(np.searchsorted(edges, ticks, side="right"), len(weights) - 1)


def _distinct(chosen: np.ndarray, inclusion: np.ndarray) -> np.ndarray:
    """Replace repeats, which rounding of probabilities of 1 may cause, by the likeliest unused."""
    unique = np.unique(chosen)
    missing = len(chosen) - len(unique)
    if missing == 0:
        return unique
    unused = np.setdiff1d(np.arange(len(inclusion)), unique, assume_unique=True)
    return np.concatenate([unique, unused[np.argsort(-inclusion[unused])[:missing]]])
