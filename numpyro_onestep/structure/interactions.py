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

from numpyro_onestep._util.batching import map_in_blocks
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
    """For each coordinate the others that it interacts with; None where the graph is dense.

    Args:
        potential: U, a function of x in R^d.
        start: a point of finite density. The Hessian is looked at there and at points around it.
        rng_key: a JAX random key.
    """
    rng = numpy_generator(rng_key)
    d = start.size
    graph: list[set[int]] = [set() for _ in range(d)]
    seen = 0
    for index in range(_NUM_POINTS):
        point = start + (index > 0) * _DISTANCE * rng.standard_normal(d)
        products = partial(hessian_products, potential, point.astype(start.dtype))
        found = _by_columns(products, d) if d <= _ALL_COLUMNS else _by_sketch(products, d, rng)
        if found is None:
            continue  # this point says nothing
        seen += 1
        graph = [mine | more for mine, more in zip(graph, found, strict=True)]
    return graph if seen else None


def hessian_products(
    potential: Any, point: Float[Any, " d"], vectors: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, "m d"]:
    """Products of the Hessian at a point with the rows of a matrix."""
    return gradients_and_products(potential, np.broadcast_to(point, vectors.shape), vectors)[1]


def gradients_and_products(
    potential: Any, points: Float[np.ndarray, "m d"], vectors: Float[np.ndarray, "m d"]
) -> tuple[Float[np.ndarray, "m d"], Float[np.ndarray, "m d"]]:
    """Gradients at points and products of the Hessians there with vectors, by one program."""
    pairs = points, vectors.astype(points.dtype)
    return map_in_blocks(lambda pairs: _products(potential, *pairs), pairs, _SIDE_BY_SIDE)


@compiled
def _products(
    potential: Any, points: Float[Array, "m d"], vectors: Float[Array, "m d"]
) -> tuple[Float[Array, "m d"], Float[Array, "m d"]]:
    along = partial(jax.jvp, jax.grad(potential))
    return jax.vmap(lambda point, vector: along((point,), (vector,)))(points, vectors)


def _by_columns(products, d: int) -> list[set[int]] | None:
    hessian = products(np.eye(d))
    if not np.isfinite(hessian).all():
        return None
    scale = np.sqrt(np.abs(np.diagonal(hessian)))
    scale = np.where(scale > 0, scale, scale[scale > 0].min(initial=1.0))
    linked = np.abs(hessian) > _ROUNDING * np.outer(scale, scale)
    linked |= linked.T
    np.fill_diagonal(linked, False)
    return [set(np.flatnonzero(row).tolist()) for row in linked]


def _by_sketch(products, d: int, rng: np.random.Generator) -> list[set[int]] | None:
    columns = rng.choice(d, _COLUMNS, replace=False)
    seen = products(unit_vectors(columns, d))
    # The largest entries of rows, roughly, against which rounding errors are told.
    size = np.abs(products(_members(rng, d)[0])).max(0)
    if not (np.isfinite(seen).all() and np.isfinite(size).all()):
        return None
    hubs = np.flatnonzero(_counts(seen, columns, size).mean(0) > _HUB)
    if len(hubs) > _MOST_HUBS:
        return None
    graph: list[set[int]] = [set() for _ in range(d)]
    unit = unit_vectors(hubs, d)
    of_hubs = products(unit) if len(hubs) else unit
    for hub, row in zip(hubs.tolist(), _counts(of_hubs, hubs, size), strict=True):
        for j in np.flatnonzero(row).tolist():
            if j != hub:
                graph[hub].add(j)
                graph[j].add(hub)
    others = np.ones(d, bool)
    others[hubs] = False
    for _ in range(_REPEATS):
        before = _num_edges(graph)
        _decode(graph, products, others, size, rng)
        if _num_edges(graph) == before:
            break
    return graph


def unit_vectors(which, d: int) -> Float[np.ndarray, "m d"]:
    """Unit vectors."""
    unit = np.zeros((len(which), d))
    unit[np.arange(len(which)), which] = 1.0
    return unit


def _counts(columns, which, size):
    """Which entries of some of the Hessian's columns are more than rounding errors."""
    own = np.abs(columns[np.arange(len(which)), which]) if len(which) else np.zeros(0)
    own = np.maximum(own, np.abs(columns).max(1, initial=0.0))
    return np.abs(columns) > _ROUNDING * np.sqrt(own[:, None] * size)


def _members(rng: np.random.Generator, d: int):
    """Random subsets of the coordinates as vectors of random values, and each one's subset."""
    subset = rng.integers(_SUBSETS, size=d)
    value = rng.uniform(0.5, 1.5, d) * rng.choice([-1.0, 1.0], d)
    return (subset == np.arange(_SUBSETS)[:, None]) * value, subset


def _num_edges(graph: list[set[int]]) -> int:
    return sum(len(around) for around in graph)


def _decode(graph, products, others, size, rng) -> None:
    """Add the edges between coordinates outside of the hubs that one repetition shows."""
    d = len(others)
    member, subset = _members(rng, d)
    member = member * others
    label = rng.uniform(1.0, 2.0, d)
    by_label = np.argsort(label)
    sorted_labels = label[by_label]
    plain, labelled = products(member), products(member * label)
    check = rng.uniform(1.0, 2.0, d)
    checked = products(member * check)
    rows_of, js = np.nonzero((np.abs(plain) > _ROUNDING * size) & others)
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
