"""Graphs of known shape, and targets whose coordinates interact as a graph says."""

import itertools

import jax.numpy as jnp
import numpy as np

from numpyro_onestep.target import Potential


def graph(d: int, edges) -> list[set[int]]:
    """For each of d coordinates the others that it shares an edge with."""
    neighbours: list[set[int]] = [set() for _ in range(d)]
    for i, j in edges:
        neighbours[i].add(j)
        neighbours[j].add(i)
    return neighbours


def edges_of(neighbours: list[set[int]]) -> list[tuple[int, int]]:
    return [(i, j) for i, around in enumerate(neighbours) for j in sorted(around) if i < j]


def among(members) -> list[tuple[int, int]]:
    return list(itertools.combinations(members, 2))


def hierarchy(groups: int, num_globals: int = 3) -> list[set[int]]:
    """Globals come first; each group interacts with all of them and with no other group."""
    first = range(num_globals)
    each = range(num_globals, num_globals + groups)
    return graph(num_globals + groups, [*among(first), *itertools.product(first, each)])


def tree(districts: int, schools: int, num_globals: int = 3) -> list[set[int]]:
    """Globals, districts, then the schools of each district in turn."""
    first = range(num_globals)
    d = num_globals + districts * (1 + schools)
    edges = [*among(first), *itertools.product(first, range(num_globals, d))]
    begin = num_globals + districts
    edges += [(num_globals + k // schools, begin + k) for k in range(districts * schools)]
    return graph(d, edges)


def crossed(rows: int, columns: int) -> list[set[int]]:
    """A mean, effects of rows, effects of columns: every row is observed in every column."""
    a, b = range(1, 1 + rows), range(1 + rows, 1 + rows + columns)
    edges = [*itertools.product([0], [*a, *b]), *itertools.product(a, b)]
    return graph(1 + rows + columns, edges)


def chain(length: int) -> list[set[int]]:
    return graph(length, itertools.pairwise(range(length)))


def grid(side: int) -> list[set[int]]:
    number = np.arange(side**2).reshape(side, side)
    across = zip(number[:, :-1].flat, number[:, 1:].flat, strict=True)
    down = zip(number[:-1].flat, number[1:].flat, strict=True)
    return graph(side**2, [(int(i), int(j)) for i, j in itertools.chain(across, down)])


def series_in_groups(lengths, num_globals: int = 2) -> list[set[int]]:
    """Globals, then one series after the other, of these lengths."""
    first, d = range(num_globals), num_globals + sum(lengths)
    edges = [*among(first), *itertools.product(first, range(num_globals, d))]
    begin = num_globals
    for length in lengths:
        edges += itertools.pairwise(range(begin, begin + length))
        begin += length
    return graph(d, edges)


def side_by_side(*parts: list[set[int]]) -> list[set[int]]:
    """Several graphs as one, without an edge between them."""
    joint, begin = [], 0
    for part in parts:
        joint += [{begin + j for j in around} for around in part]
        begin += len(part)
    return joint


def sparse(d: int, seed: int, mean_degree: float = 3.0, hubs: int = 0) -> list[set[int]]:
    """A random graph whose first coordinates, the hubs, interact with all others."""
    rng = np.random.default_rng(seed)
    pairs = rng.integers(hubs, d, (round(mean_degree * d / 2), 2)).tolist()
    edges = [(i, j) for i, j in pairs if i != j]
    return graph(d, [*edges, *((i, j) for i in range(hubs) for j in range(d) if i != j)])


def precision_of(neighbours: list[set[int]], seed: int = 0) -> np.ndarray:
    """A random positive definite matrix with an entry for each edge, none of them small."""
    d, rng = len(neighbours), np.random.default_rng(seed)
    matrix = np.zeros((d, d))
    for i, j in edges_of(neighbours):
        matrix[i, j] = matrix[j, i] = rng.uniform(0.5, 1.5) * rng.choice([-1.0, 1.0])
    scale = np.exp(rng.uniform(-1, 1, d))
    # Rows are dominated by their diagonal entries, so that the matrix is positive definite.
    np.fill_diagonal(matrix, abs(matrix).sum(1) * rng.uniform(1.1, 2.0, d) + 0.5)
    return matrix * np.outer(scale, scale)


def potential_of(
    neighbours: list[set[int]],
    seed: int = 0,
    dtype=float,
    more: tuple[int, int] = (0, 0),
    by: float = 0.0,
) -> Potential:
    """A target with this graph whose Hessian changes from point to point.

    With `by` not zero, the two coordinates `more` interact as well.
    """
    d, rng = len(neighbours), np.random.default_rng(seed)
    edges = np.array(edges_of(neighbours), int).reshape(-1, 2)
    strength = rng.uniform(0.3, 0.6, len(edges)) * rng.choice([-1.0, 1.0], len(edges))
    shift = rng.uniform(-0.5, 0.5, len(edges))
    one, other, by_ = jnp.asarray(more[0]), jnp.asarray(more[1]), jnp.asarray(by, dtype)

    def energy(x):
        a, b = x[edges[:, 0]], x[edges[:, 1]]
        terms = strength * jnp.logaddexp(a + 1.5 * b + shift, -0.5 * a - 0.5 * b)
        return jnp.sum(terms) + 2 * jnp.sum(jnp.cosh(x)) + by_ * x[one] * x[other]

    return Potential.of(energy, None, jnp.zeros(d, dtype))
