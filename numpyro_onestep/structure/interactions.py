"""Which coordinates of a target interact: the non-zero entries of its Hessian.

Automatic differentiation gives an exact zero where two coordinates do not meet in any term of the
log density, so the entries at a few points show the graph.  Two terms may cancel to a rounding
error, which counts as zero.

In few dimensions every column of the Hessian is computed.  In many that would take a number of
products that grows with d.  There the graph is found by a sketch of a fixed number of products:
random columns show the coordinates that interact with very many others; among the rest, products
with random vectors on random subsets show, where a subset holds a single neighbour, which one it
is.  (It is a group test; sparse recovery by hashing and by ratios is known from the sparse Fourier
transform.)
"""

from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_onestep._util.compilation import compiled
from numpyro_onestep._util.random import numpy_generator

# Up to here all columns of the Hessian are computed.
_ALL_COLUMNS = 1500
# Products that are computed side by side.
_SIDE_BY_SIDE = 8
# An entry that is smaller than this, relative to the diagonal entries of its row and column, is a
# rounding error.
_ROUNDING = 3e-6
# Points at which the Hessian is looked at, and their distance from the start in each coordinate.
_NUM_POINTS, _DISTANCE = 2, 0.5
# The sketch: random columns; the fraction of them that a hub meets; subsets; repetitions.
_COLUMNS, _HUB, _SUBSETS, _REPEATS = 32, 0.15, 16, 8
# Most hubs.  With more the graph is taken to be dense.
_MOST_HUBS = 150


def interactions(
    potential: Any, start: Float[Any, " d"], rng_key: PRNGKeyArray
) -> list[set[int]] | None:
    """For each coordinate the others that it interacts with; None where nearly all do.

    Args:
        potential: U, a function of x in R^d.
        start: a point of finite density. The Hessian is looked at there and at points around it.
        rng_key: a JAX random key.
    """
    rng = numpy_generator(rng_key)
    d = start.size
    graph: list[set[int]] | None = [set() for _ in range(d)]
    for index in range(_NUM_POINTS):
        point = start + (index > 0) * _DISTANCE * rng.standard_normal(d)
        products = partial(hessian_products, potential, point.astype(start.dtype))
        found = _by_columns(products, d) if d <= _ALL_COLUMNS else _by_sketch(products, d, rng)
        if found is None:
            return None
        graph = [mine | more for mine, more in zip(graph, found, strict=True)]
    return graph


def hessian_products(
    potential: Any, point: Float[Any, " d"], vectors: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, "m d"]:
    """Products of the Hessian at a point with the rows of a matrix, by one program for any m."""
    m = len(vectors)
    padded = np.zeros((-(-m // _SIDE_BY_SIDE) * _SIDE_BY_SIDE, vectors.shape[1]), point.dtype)
    padded[:m] = vectors
    # All batches are started before the result of the first is waited for.
    batches = [
        _products(potential, point, padded[begin : begin + _SIDE_BY_SIDE])
        for begin in range(0, len(padded), _SIDE_BY_SIDE)
    ]
    return np.concatenate([np.asarray(batch) for batch in batches])[:m]


@compiled
def _products(
    potential: Any, point: Float[Array, " d"], vectors: Float[Array, "m d"]
) -> Float[Array, "m d"]:
    _, along = jax.linearize(jax.grad(potential), point)
    return jax.vmap(along)(vectors)


def _by_columns(products, d: int) -> list[set[int]] | None:
    hessian = products(np.eye(d))
    if not np.isfinite(hessian).all():
        return [set() for _ in range(d)]  # this point says nothing
    scale = np.sqrt(np.abs(np.diagonal(hessian)))
    scale = np.where(scale > 0, scale, scale[scale > 0].min(initial=1.0))
    linked = np.abs(hessian) > _ROUNDING * np.outer(scale, scale)
    linked |= linked.T
    np.fill_diagonal(linked, False)
    return [set(np.flatnonzero(row).tolist()) for row in linked]


def _by_sketch(products, d: int, rng: np.random.Generator) -> list[set[int]] | None:
    columns = rng.choice(d, _COLUMNS, replace=False)
    unit = np.zeros((_COLUMNS, d))
    unit[np.arange(_COLUMNS), columns] = 1.0
    seen = products(unit)
    if not np.isfinite(seen).all():
        return [set() for _ in range(d)]
    hubs = np.flatnonzero((seen != 0).mean(0) > _HUB)
    if len(hubs) > _MOST_HUBS:
        return None
    graph: list[set[int]] = [set() for _ in range(d)]
    unit = np.zeros((len(hubs), d))
    unit[np.arange(len(hubs)), hubs] = 1.0
    of_hubs = products(unit) if len(hubs) else unit
    for hub, row in zip(hubs.tolist(), of_hubs, strict=True):
        for j in np.flatnonzero(row).tolist():
            if j != hub:
                graph[hub].add(j)
                graph[j].add(hub)
    others = np.ones(d, bool)
    others[hubs] = False
    for _ in range(_REPEATS):
        before = _num_edges(graph)
        _decode(graph, products, others, rng)
        if _num_edges(graph) == before:
            break
    return graph


def _num_edges(graph: list[set[int]]) -> int:
    return sum(len(around) for around in graph)


def _decode(graph, products, others, rng) -> None:
    """Add the edges between coordinates outside of the hubs that one repetition shows."""
    d = len(others)
    subset = rng.integers(_SUBSETS, size=d)
    value = rng.uniform(0.5, 1.5, d) * rng.choice([-1.0, 1.0], d) * others
    label = rng.uniform(1.0, 2.0, d)
    by_label = np.argsort(label)
    sorted_labels = label[by_label]
    member = (subset == np.arange(_SUBSETS)[:, None]) * value
    plain, labelled = products(member), products(member * label)
    check = rng.uniform(1.0, 2.0, d)
    checked = products(member * check)
    rows_of, js = np.nonzero((plain != 0) & others)
    ratio = labelled[rows_of, js].astype(np.float64) / plain[rows_of, js]
    second = checked[rows_of, js].astype(np.float64) / plain[rows_of, js]
    # Of the members of the subset the one with this label is the neighbour, if there is only one.
    at = np.clip(np.searchsorted(sorted_labels, ratio), 1, d - 1)
    window = np.arange(-_WINDOW, _WINDOW)
    candidates = by_label[np.clip(at[:, None] + window, 0, d - 1)]
    off = np.abs(label[candidates] - ratio[:, None]) + np.abs(check[candidates] - second[:, None])
    off = np.where(subset[candidates] == rows_of[:, None], off, np.inf)
    best = np.argmin(off, axis=1)
    found = candidates[np.arange(len(js)), best]
    sure = off[np.arange(len(js)), best] < _SAME_LABEL
    for j, i in zip(js[sure].tolist(), found[sure].tolist(), strict=True):
        if i != j:
            graph[j].add(i)
            graph[i].add(j)


# Labels next to the ratio that are looked at, and the largest error of a label.
_WINDOW, _SAME_LABEL = 40, 3e-5
