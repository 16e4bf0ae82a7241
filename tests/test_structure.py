"""Which coordinates interact, the order that makes use of it, and the Hessian's few entries."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_onestep.structure import interactions as finding
from numpyro_onestep.structure.curvature import colouring, curvature, probes
from numpyro_onestep.structure.interactions import interactions
from numpyro_onestep.structure.structure import Structure, structure_of
from numpyro_onestep.structure.verification import unexplained
from numpyro_onestep.target import Potential, function_target, model_target
from tests.graphs import (
    among,
    chain,
    crossed,
    graph,
    grid,
    hierarchy,
    potential_of,
    precision_of,
    series_in_groups,
    side_by_side,
    sparse,
    tree,
)

GRAPHS = {
    "hierarchy": hierarchy(20),
    "tree": tree(8, 2),
    "crossed": crossed(12, 40),
    "chain": chain(64),
    "grid": grid(9),
    "series in groups": series_in_groups([8] * 10),
    "two components": side_by_side(hierarchy(20), chain(30)),
    "independent": graph(12, []),
    "sparse": sparse(100, seed=0, hubs=2),
    "sparser": sparse(80, seed=1, mean_degree=1.5),
}


def found(neighbours, core=()) -> Structure:
    structure = structure_of(neighbours, core)
    assert structure is not None
    return structure


def core_of(structure: Structure) -> set[int]:
    return set(structure.order[: structure.num_core].tolist())


@pytest.mark.parametrize("name", GRAPHS)
def test_every_coordinate_is_made_once_and_after_its_parents(name):
    structure = found(GRAPHS[name])
    d, g = len(GRAPHS[name]), structure.num_core
    assert sorted(structure.order.tolist()) == list(range(d))
    np.testing.assert_array_equal(structure.order[structure.place], np.arange(d))
    assert g + structure.num_nodes == d
    assert structure.ends[-1] == structure.num_nodes
    assert structure.has_core.shape == (d - g, g)
    # Parents belong to earlier levels, so that those of one level can be made at once.
    for level in structure.levels:
        assert level.start < level.stop
        own, has = structure.parents[level], structure.has_parent[level]
        assert np.all(own[has] < level.start)
        assert all(len(set(row[h])) == h.sum() for row, h in zip(own, has, strict=True))


@pytest.mark.parametrize("name", GRAPHS)
def test_a_gaussian_of_the_graph_has_the_independence_that_the_order_claims(name):
    structure = found(GRAPHS[name])
    g, n = structure.num_core, structure.num_nodes
    ordered = precision_of(GRAPHS[name])[np.ix_(structure.order, structure.order)]
    # Of the last coordinate first: column j of the Cholesky factor of the precision has the
    # coefficients of the mean of one coordinate given all that are made before it.
    factor = np.linalg.cholesky(ordered[::-1, ::-1])[::-1, ::-1]
    depends = abs(factor) > 1e-12 * np.sqrt(np.diagonal(ordered))[:, None]
    claimed = np.zeros((n, g + n), bool)
    claimed[:, :g] = structure.has_core
    for i in range(n):
        claimed[i, g + structure.parents[i][structure.has_parent[i]]] = True
    above = np.triu(depends, 1)[:, g:].T  # of each node, on all coordinates made before it
    assert not np.any(above & ~claimed)
    # Nor does it claim dependence where there is none; no entry of the factor vanishes by chance.
    assert not np.any(claimed & ~above)


def test_a_hierarchy_has_its_globals_as_core_and_one_level():
    structure = found(hierarchy(20))
    assert core_of(structure) == {0, 1, 2}
    assert structure.ends == (20,)
    assert structure.has_core.all()
    assert not structure.has_parent.any()
    assert str(structure) == "3 globals, 20 blocks of 1"


def test_a_tree_has_a_level_for_each_of_its_own():
    structure = found(tree(8, 2))
    assert core_of(structure) == {0, 1, 2}
    assert structure.ends == (8, 24)
    first = structure.order[3:11].tolist()
    assert first == sorted(first) == list(range(3, 11))
    for node in range(8, 24):
        (parent,) = structure.parents[node][structure.has_parent[node]]
        school, district = structure.order[3 + node], structure.order[3 + parent]
        assert district == 3 + (school - 11) // 2
    assert str(structure) == "3 globals, 8 blocks of 3 in 2 levels"


@pytest.mark.parametrize(("rows", "columns"), [(12, 40), (40, 12)])
def test_of_crossed_effects_the_smaller_side_joins_the_core(rows, columns):
    structure = found(crossed(rows, columns))
    small = range(1, 1 + rows) if rows < columns else range(1 + rows, 1 + rows + columns)
    assert core_of(structure) == {0, *small}
    assert str(structure) == "13 globals, 40 blocks of 1"


def test_a_chain_is_halved_from_level_to_level():
    structure = found(chain(1000))
    assert structure.num_core <= 18  # the few that are left last
    # Of the coordinates that are left, at least a third and at most all but a third go in a round.
    assert 4 <= len(structure.ends) <= np.log(1000) / np.log(1.5)
    assert structure.parents.shape[1] <= 2
    assert np.all(structure.has_parent.sum(1) + structure.has_core.sum(1) <= 2)


def test_a_grid_needs_more_parents_and_a_core_of_the_size_of_its_sides():
    structure = found(grid(12))
    # No set smaller than a side separates a square, and one of a few sides is enough.
    assert 2 < structure.parents.shape[1] <= 8
    assert structure.num_core < 3 * 12


def test_components_are_independent_blocks_beside_the_core():
    both = side_by_side(hierarchy(20, 1), hierarchy(30, 2))
    structure = found(both)
    assert core_of(structure) == {0, 21, 22}
    mine = structure.order[3:] < 21
    np.testing.assert_array_equal(structure.has_core, np.stack([mine, ~mine, ~mine], axis=1))
    assert str(structure) == "3 globals, 50 blocks of 1"
    nothing = found(graph(12, []))  # the map needs a core
    assert (nothing.num_core, nothing.ends) == (1, (11,))
    assert str(nothing) == "1 global, 11 blocks of 1"


def test_series_within_groups_are_blocks_of_their_length():
    structure = found(series_in_groups([8] * 30))
    assert core_of(structure) == {0, 1}
    assert 2 <= len(structure.ends) <= 4
    assert str(structure) == f"2 globals, 30 blocks of 8 in {len(structure.ends)} levels"
    assert "2 globals, 60 blocks of 3 to 5 in" in str(found(series_in_groups([3, 4, 5] * 20)))


@pytest.mark.parametrize("d", [8, 20, 200])
def test_a_dense_target_has_no_structure(d):
    assert structure_of(graph(d, among(range(d)))) is None
    # Nor has one where most coordinates interact with most others.
    rng = np.random.default_rng(d)
    some = [pair for pair in among(range(d)) if rng.uniform() < 0.7]
    assert structure_of(graph(d, some)) is None


def test_coordinates_that_are_named_are_in_the_core():
    structure = found(chain(64), core=(5, 40))
    assert {5, 40} <= core_of(structure)
    for node in np.flatnonzero(np.isin(structure.order, [4, 6])) - structure.num_core:
        of_core = structure.order[: structure.num_core][structure.has_core[node]]
        assert 5 in of_core


# ----- The graph, from the target


def graph_of(potential, start, seed=0):
    return interactions(potential, np.asarray(start), jr.key(seed))


@pytest.fixture(params=["columns", "sketch"])
def way(request, monkeypatch):
    """How the graph is found: by all columns of the Hessian, or by products with random vectors."""
    if request.param == "sketch":
        monkeypatch.setattr(finding, "_ALL_COLUMNS", 0)
    return request.param


@pytest.mark.parametrize(("seed", "hubs"), [(0, 0), (1, 3)])
def test_the_graph_of_a_sparse_target_is_found(way, seed, hubs):
    neighbours = sparse(150, seed, hubs=hubs)
    potential = potential_of(neighbours, seed)
    assert graph_of(potential, jnp.zeros(150)) == neighbours


def test_the_graph_of_many_coordinates_takes_few_products(monkeypatch):
    number = []

    def counting(potential, point, vectors):
        number.append(len(vectors))
        return products(potential, point, vectors)

    products = finding.hessian_products
    monkeypatch.setattr(finding, "hessian_products", counting)
    neighbours = tree(120, 14, num_globals=2)
    assert len(neighbours) == 1802
    assert graph_of(potential_of(neighbours), jnp.zeros(1802)) == neighbours
    assert sum(number) < 1802


def trial(y, district):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(1))
    with numpyro.plate("district", 4):
        effect: Any = numpyro.sample("effect", dist.Normal(mu, tau))
    with numpyro.plate("school", len(district)):
        level = numpyro.sample("level", dist.Normal(effect[district], 0.5))
        numpyro.sample("y", dist.StudentT(4, level, 1), obs=y)


def test_the_graph_of_a_model_is_that_of_its_terms(way):
    district = np.arange(36) % 4
    args = np.linspace(-2, 2, 36, dtype=np.float32), district
    _, potential, start = model_target(jr.key(0), trial, args, {})
    # Sites are in the order of the alphabet: effect, level, mu, tau.  Levels meet the district's
    # effect and their own datum; effects meet mu and tau, and these two each other.
    edges = [(int(k), 4 + i) for i, k in enumerate(district)]
    edges += [(k, j) for k in range(4) for j in (40, 41)] + [(40, 41)]
    assert graph_of(potential, start) == graph(42, edges)


def test_the_graph_of_a_function_of_a_pytree_is_found(way):
    def energy(values):
        common, own = values["a"], values["b"]
        return jnp.sum((own - common["loc"]) ** 2 * jnp.exp(common["log"])) + jnp.sum(own**4)

    values = {"a": {"loc": jnp.ones(()), "log": jnp.zeros(())}, "b": jnp.full(38, 0.2)}
    _, potential, start = function_target(energy, values)
    assert graph_of(potential, start) == hierarchy(38, 2)


def test_terms_that_vanish_at_the_start_are_seen_at_another_point(way):
    potential = Potential.of(lambda x: jnp.sum(x**2) + (x[3] * x[7]) ** 2, None, jnp.zeros(40))
    assert graph_of(potential, jnp.zeros(40)) == graph(40, [(3, 7)])


def rounded(d):
    """A target whose neighbours meet in terms that cancel, but for rounding, beside a real edge.

    With weights like 0.1 and 0.7, sums of products in another order differ in their last digit.
    """
    weights = np.random.default_rng(0).uniform(0.3, 1.7, (9, d)).astype(np.float32)
    left, right = weights, np.roll(weights, -1, axis=1)
    total = (left.astype(float) * right).sum(0).astype(np.float32)

    def energy(x):
        after = jnp.roll(x, -1)
        cancelling = jnp.sum(left * x * right * after) - jnp.sum(total * x * after)
        return 2 * jnp.sum(x**2) + cancelling + jnp.sum(x[0] * x[10])

    return Potential.of(energy, None, jnp.zeros(d))


def test_rounding_errors_are_no_interactions(way):
    potential, x = rounded(40), jnp.ones(40)
    off = np.asarray(jax.hessian(potential)(x)) - 4 * np.eye(40)
    off[0, 10] = off[10, 0] = 0
    assert 0 < np.count_nonzero(off) < 80  # some of the neighbours' terms leave a rounding error
    assert abs(off).max() < 2e-6
    assert graph_of(potential, x) == graph(40, [(0, 10)])


def test_a_point_without_a_finite_hessian_says_nothing(way):
    def energy(x):
        # The root has no derivative below zero, where the second point lies in some coordinate.
        return jnp.sum(x**2) + x[0] * x[1] + jnp.sum(jnp.sqrt(x + 1e-3))

    potential = Potential.of(energy, None, jnp.zeros(40))
    assert graph_of(potential, jnp.zeros(40)) == graph(40, [(0, 1)])


ORTHOGONAL = np.linalg.qr(np.random.default_rng(0).standard_normal((160, 160)))[0]


def test_the_coefficients_of_an_orthogonal_basis_do_not_interact(way):
    basis = jnp.asarray(ORTHOGONAL, jnp.float32)
    potential = Potential.of(lambda x: jnp.sum((basis @ x) ** 2), None, jnp.zeros(160))
    assert graph_of(potential, jnp.zeros(160)) == graph(160, [])


def test_a_dense_target_in_many_dimensions_has_no_structure(monkeypatch):
    monkeypatch.setattr(finding, "_ALL_COLUMNS", 0)
    direction = jnp.asarray(np.random.default_rng(0).standard_normal((3, 400)), jnp.float32)
    potential = Potential.of(
        lambda x: jnp.sum(x**2) + jnp.sum(jnp.logaddexp(direction @ x, 0.0)), None, jnp.zeros(400)
    )
    neighbours = graph_of(potential, jnp.zeros(400))
    assert neighbours is None or structure_of(neighbours) is None


# ----- The Hessian, from few products


@pytest.mark.parametrize("name", ["tree", "crossed", "grid", "two components", "sparse"])
def test_the_entries_are_those_of_the_dense_hessian(x64, name):
    neighbours, structure = GRAPHS[name], found(GRAPHS[name])
    potential, by = potential_of(neighbours), colouring(structure)
    g, n = structure.num_core, structure.num_nodes
    points = np.random.default_rng(0).standard_normal((2, g + n))
    hessian = jnp.mean(jax.jit(jax.vmap(jax.hessian(potential)))(points), axis=0)
    hessian = np.asarray(hessian)[np.ix_(structure.order, structure.order)]
    rest = hessian.copy()  # what no entry has shown yet
    index, has = np.arange(g, g + n), structure.has_parent
    at = np.nonzero(has)[0] + g, g + structure.parents[has]
    for of_core in (True, False):
        entries = curvature(potential, points, by, of_core)
        np.testing.assert_allclose(entries.diagonal, hessian[index, index], rtol=1e-12)
        np.testing.assert_allclose(entries.to_parents[has], hessian[at], atol=1e-12)
        if of_core:
            np.testing.assert_allclose(entries.core, hessian[:g, :g], atol=1e-12)
            np.testing.assert_allclose(entries.to_core, hessian[g:, :g], atol=1e-12)
    rest[:g], rest[:, :g], rest[index, index], rest[at], rest[at[::-1]] = 0, 0, 0, 0, 0
    assert not rest.any()


@pytest.mark.parametrize(
    "of_size", [hierarchy, chain, lambda n: tree(n, 3), lambda n: series_in_groups([6] * n)]
)
def test_the_number_of_products_does_not_grow_with_the_number_of_coordinates(of_size):
    few, many = (probes(colouring(found(of_size(n))), np.float32) for n in (60, 480))
    assert len(many) <= len(few) + 4
    assert len(many) < 30


# ----- Whether a structure holds


@pytest.mark.parametrize("name", ["hierarchy", "tree", "chain", "grid"])
def test_a_structure_explains_its_own_target_and_not_one_with_an_edge_more(name):
    neighbours, structure = GRAPHS[name], found(GRAPHS[name])
    d, rng = len(neighbours), np.random.default_rng(1)
    draws, scale = (0.3 * rng.standard_normal((4, d))).astype(np.float32), np.full(d, 0.5)
    nodes = structure.order[structure.num_core :].tolist()
    pair = next((i, j) for i, j in among(nodes) if not is_explained(structure, i, j))

    def number(strength):
        potential = potential_of(neighbours, more=pair, by=strength)
        return unexplained(potential, structure, draws, scale, np.random.default_rng(2))

    assert number(0.0) == 0
    assert number(0.8) >= 2  # either of the two; others may share a product with them
    # One standard deviation of either changes the log density by 0.25 times this.
    assert number(0.004) == 0


def is_explained(structure: Structure, i: int, j: int) -> bool:
    """Whether one of two nodes is a parent of the other."""
    a, b = (int(structure.place[k]) - structure.num_core for k in (i, j))
    own = [structure.parents[k][structure.has_parent[k]] for k in (a, b)]
    return b in own[0] or a in own[1]


def test_an_edge_that_is_seen_only_far_from_the_start_is_missed_and_then_noticed():
    # Near the start the two do not meet: a term of theirs begins where both are above three.
    def energy(x):
        return jnp.sum(x**2) + 2 * jnp.maximum(x[4] - 3, 0.0) ** 2 * jnp.maximum(x[9] - 3, 0.0) ** 2

    potential = Potential.of(energy, None, jnp.zeros(12))
    neighbours = graph_of(potential, jnp.zeros(12))
    assert neighbours == graph(12, [])
    draws, scale = np.zeros((3, 12), np.float32), np.ones(12)
    rng = np.random.default_rng(0)
    assert unexplained(potential, found(neighbours), draws, scale, rng) == 0
    draws[1] += 4
    assert unexplained(potential, found(neighbours), draws, scale, rng) == 2
    draws[1] = np.nan  # a point without a finite Hessian says nothing
    assert unexplained(potential, found(neighbours), draws, scale, rng) == 0
