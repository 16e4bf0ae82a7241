"""The structured map: its volume, score and inverse are exact."""

from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.stats import norm

from numpyro_onestep import FlowDistribution
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep.flow import AbstractFlowMap, Score, StructuredMap, Volume
from numpyro_onestep.flow.conditional import bend
from numpyro_onestep.flow.gaussian import StructuredPreconditioner
from numpyro_onestep.flow.inverse import invert
from numpyro_onestep.initialise.structured_start import map_of, placeholder, preconditioner_of
from numpyro_onestep.structure.structure import Structure, structure_of
from tests.conftest import random_flow
from tests.graphs import hierarchy

NUM_DRAWS = 40
NUM_CORE, LEVELS, MOST_PARENTS = 3, (4, 6, 5), 3


def any_structure() -> Structure:
    """Three levels; each node has some of the nodes before it, and of the core, as parents."""
    rng, n = np.random.default_rng(0), sum(LEVELS)
    ends = np.cumsum(LEVELS)
    begins = np.repeat(ends - LEVELS, LEVELS)  # of each node's level
    parents = np.zeros((n, MOST_PARENTS), np.int32)
    has_parent = np.zeros((n, MOST_PARENTS), bool)
    for i in range(LEVELS[0], n):
        num = rng.integers(1, MOST_PARENTS + 1)
        parents[i, :num] = rng.choice(begins[i], num, replace=False)
        has_parent[i, :num] = True
    has_core = rng.uniform(size=(n, NUM_CORE)) < 0.6
    has_core[0] = False
    order = rng.permutation(NUM_CORE + n)
    return Structure(order, NUM_CORE, tuple(ends.tolist()), parents, has_parent, has_core)


def of_graph(neighbours) -> Structure:
    structure = structure_of(neighbours)
    assert structure is not None
    assert structure.num_core == 3
    return structure


STRUCTURES = {"any": any_structure(), "hierarchy": structure_of(hierarchy(9))}


def random_map(name: str, *, width: int = 8, seed: int = 0, bent: float = 0.3) -> StructuredMap:
    """A structured map all of whose parameters are random."""
    structure, key = STRUCTURES[name], jr.key(seed)
    assert structure is not None
    fit, dtype = placeholder(structure), jnp.result_type(float)
    core = random_flow(NUM_CORE, key, num_grid_steps=4, scale=0.1)
    flow = map_of(fit, preconditioner_of(fit, dtype, key), core, width, key)
    rng = np.random.default_rng(seed)

    def moved(leaf, size):
        return leaf + jnp.asarray(size * rng.standard_normal(leaf.shape), leaf.dtype)

    numbers, rest = eqx.partition(flow.nodes, eqx.is_inexact_array)
    nodes = eqx.combine(jax.tree.map(lambda leaf: moved(leaf, 0.06), numbers), rest)
    if width:
        nodes = eqx.tree_at(
            lambda own: own.network.last, nodes, replace_fn=lambda v: moved(v, bent)
        )
    return replace(flow, nodes=nodes)


def random_preconditioner(name: str) -> StructuredPreconditioner:
    structure, rng = STRUCTURES[name], np.random.default_rng(0)
    assert structure is not None
    d, g = len(structure.order), structure.num_core
    tril = np.tril(rng.standard_normal((g, g)), -1) + np.diag([0.2, 1.0, 4.0])
    loc, scale = 3 * rng.standard_normal(d), np.exp(rng.uniform(-2, 2, d - g))
    indices = structure.order.astype(np.int32), structure.place.astype(np.int32)
    return StructuredPreconditioner(*(jnp.asarray(v) for v in (loc, tril, scale, *indices)))


def in_order(d: int) -> StructuredPreconditioner:
    """The preconditioner that does nothing: whitened coordinates, in the structure's order."""
    index = jnp.arange(d, dtype=jnp.int32)
    return StructuredPreconditioner(
        jnp.zeros(d), jnp.eye(NUM_CORE), jnp.ones(d - NUM_CORE), index, index
    )


def random_distribution(name: str, num_steps: int = 1, **kwargs) -> FlowDistribution:
    return FlowDistribution(
        random_map(name, **kwargs), random_preconditioner(name), num_steps=num_steps
    )


def base_draws(name: str, seed: int = 1):
    structure = STRUCTURES[name]
    assert structure is not None
    return jr.normal(jr.key(seed), (NUM_DRAWS, len(structure.order)))


# Programs that several tests share: they take longer to compile than to run.


@compiled
def volumes(flow, z):
    return jax.vmap(flow.volume)(z)


class Findings(NamedTuple):
    """What the map says of the images of some draws, and what automatic differentiation says."""

    y: Any
    full: Any  # the Jacobian
    volume: Volume
    log_det_gradient: Any
    score: Score
    score_of_image: Score  # the same where the image is known


@compiled
def findings(flow, z, num_steps):
    def one(z):
        y, full = flow(z, num_steps), jax.jacfwd(lambda z: flow(z, num_steps))(z)
        volume = flow.volume(z, num_steps)
        gradient = jax.grad(lambda z: flow.volume(z, num_steps).log_det)(z)
        score = flow.score(z, -z, num_steps), flow.score(z, -z, num_steps, y)
        return Findings(y, full, volume, gradient, *score)

    return jax.vmap(one)(z)


@compiled
def drawn(q, rng_key):
    """Draws and their densities, and the base draws that they come from."""
    x, log_q = q.sample_and_log_prob(rng_key, (NUM_DRAWS,))
    return x, log_q, q.sample_base(rng_key, NUM_DRAWS)


@compiled
def inverted(q, x):
    return q.transform.invert(x)


@compiled
def log_probs(q, x):
    return q.log_prob(x)


@pytest.mark.parametrize(("name", "num_steps"), [("any", 1), ("hierarchy", 2)])
def test_volume_and_score_are_those_of_the_full_jacobian(x64, name, num_steps):
    flow, z = random_map(name), base_draws(name)
    assert isinstance(flow, AbstractFlowMap)
    found = findings(flow, z, num_steps)
    sign, log_det = np.linalg.slogdet(found.full)
    assert (sign > 0).all()
    assert abs(log_det).max() > 0.5
    # log q(T(z)) = log n(z) - log|det J(z)|, whose gradient in z is J^T times that in T(z).
    gradient = -z - found.log_det_gradient
    score = np.linalg.solve(np.swapaxes(found.full, 1, 2), gradient[..., None])[..., 0]
    for ours in (found.volume, found.score, found.score_of_image):
        np.testing.assert_allclose(ours.y, found.y, rtol=1e-11)
        np.testing.assert_allclose(ours.log_det, log_det, rtol=1e-9, atol=1e-9)
        np.testing.assert_array_equal(ours.sign, 1)
        if ours is not found.volume:
            np.testing.assert_allclose(ours.score, score, rtol=1e-8, atol=1e-9)
    core = jax.vmap(lambda z: flow.core(z, num_steps))(z[:, :NUM_CORE])
    np.testing.assert_allclose(found.y[:, :NUM_CORE], core, rtol=1e-11)


def test_the_sign_is_that_of_the_core_since_nodes_never_turn_back(x64):
    # A core that folds: along a line it turns back.
    core = random_flow(NUM_CORE, jr.key(1), num_grid_steps=4, scale=6.0)
    flow, z = replace(random_map("any"), core=core), base_draws("any")
    found = findings(flow, z, 1)
    sign = np.linalg.slogdet(found.full)[0]
    assert 0.05 < np.mean(sign < 0) < 0.95
    np.testing.assert_array_equal(found.volume.sign, sign)
    np.testing.assert_array_equal(found.score.sign, sign)


@pytest.mark.parametrize(("name", "num_steps"), [("any", 1), ("hierarchy", 2)])
def test_each_coordinate_is_made_from_its_own_draw_and_from_those_before(x64, name, num_steps):
    structure = STRUCTURES[name]
    assert structure is not None
    g, d = structure.num_core, len(structure.order)
    full = np.asarray(findings(random_map(name), base_draws(name), num_steps).full)
    # No draw reaches what is made before it, nor another node of its own level.
    level = np.repeat(np.arange(1 + len(structure.ends)), [g, *np.diff([0, *structure.ends])])
    not_before = (level[None, :] >= level[:, None]) & ~np.eye(d, dtype=bool)
    not_before[:g, :g] = False
    np.testing.assert_array_equal(full[:, not_before], 0)
    # A node's draw reaches the nodes that it is a parent of, and the core's all nodes.
    has = structure.has_parent
    children, own = np.nonzero(has)[0], structure.parents[has]
    assert np.all(full[:, g + children, g + own] != 0)
    assert np.all(full[:, g:, :g] != 0)


def test_without_a_network_a_node_depends_on_its_own_parents_alone(x64):
    structure, flow = STRUCTURES["any"], random_map("any", width=0)
    assert structure is not None
    z, y = base_draws("any")[:2]

    def both(core, nodes):
        moved = flow.moved(z[NUM_CORE:], core, nodes)
        return moved.y, moved.log_slope

    for jacobian in jax.jit(jax.jacfwd(both, (0, 1)))(y[:NUM_CORE], y[NUM_CORE:]):
        of_core, of_nodes = (np.asarray(v) for v in jacobian)
        np.testing.assert_array_equal(of_core != 0, structure.sees_core)
        expected = np.zeros_like(of_nodes, dtype=bool)
        has = structure.has_parent
        expected[np.nonzero(has)[0], structure.parents[has]] = True
        np.testing.assert_array_equal(of_nodes != 0, expected)


@pytest.mark.parametrize("bent", [0.3, 3.0])
def test_nodes_increase_with_their_own_draw(x64, bent):
    flow, z = random_map("hierarchy", bent=bent), base_draws("hierarchy")[0]
    core, num = z[:NUM_CORE], len(z) - NUM_CORE
    lines = jnp.linspace(-6, 6, 401)
    none = jnp.zeros((0, num))  # a map without parents: each node on a line, the core as it is
    every = jax.vmap(lambda t: flow.nodes(jnp.full(num, t), core, none, slice(None)))
    moved = every(lines)
    steps = np.diff(moved.y, axis=0) / np.diff(lines)[:, None]
    assert np.all(steps > 0)
    assert np.all(np.isfinite(moved.log_slope))
    # The mean slope between two points is about that of the middle: of smooth functions, whose
    # slope passes from bin to bin over 0.4, it differs by some (0.03 / 0.4)^2.
    slope = np.exp(np.asarray(moved.log_slope))
    np.testing.assert_allclose(steps, np.sqrt(slope[1:] * slope[:-1]), rtol=0.01)
    # There is something to see: slopes differ along a line.
    assert np.all(slope.max(0) > 1.1 * slope.min(0))


def test_the_bent_line_has_the_slope_that_it_says(x64):
    rng = np.random.default_rng(0)
    z, log_slopes = jnp.asarray(5 * rng.standard_normal(300)), 2 * rng.standard_normal((8, 300))
    _, slope = bend(z, jnp.asarray(log_slopes))
    expected = jax.vmap(jax.grad(lambda z, at: bend(z[None], at[:, None])[0][0]))(z, log_slopes.T)
    np.testing.assert_allclose(slope, expected, rtol=1e-9)
    # A weighted mean of the slopes of its bins.
    assert np.all(slope > np.exp(log_slopes.min(0)) * (1 - 1e-12))
    assert np.all(slope < np.exp(log_slopes.max(0)) * (1 + 1e-12))
    # With slopes of one it is the identity, and far out the slopes are those of the outer bins.
    flat, one = bend(z, jnp.zeros((8, 300)))
    np.testing.assert_allclose(flat, z, rtol=1e-12)
    np.testing.assert_array_equal(one, 1)
    for side, of_bin in ((1e6, -1), (-1e6, 0)):
        _, far = bend(jnp.full(300, side), jnp.asarray(log_slopes))
        np.testing.assert_allclose(far, np.exp(log_slopes[of_bin]), rtol=1e-6)


def test_there_and_back(x64):
    q, z = random_distribution("hierarchy"), base_draws("hierarchy")
    y = volumes(q.flow, z).y
    x = jax.vmap(q.preconditioner.unwhiten)(y)
    back, found = inverted(q, x)
    assert found.all()
    np.testing.assert_allclose(back, z, atol=1e-9)


def test_there_and_back_from_a_point_nearby(x64):
    flow, z = random_map("any"), base_draws("any")
    back = compiled(lambda flow, y, near: jax.vmap(lambda *at: invert(flow, *at))(y, near))
    z_back, found = back(flow, volumes(flow, z).y, z + 0.1)
    assert found.all()
    np.testing.assert_allclose(z_back, z, atol=1e-9)


def test_an_increasing_map_is_undone_wherever_it_has_been(x64):
    q, z = random_distribution("hierarchy", bent=3.0), base_draws("hierarchy")
    y = volumes(q.flow, z).y
    assert abs(y).max() < 200
    back, found = inverted(q, jax.vmap(q.preconditioner.unwhiten)(y))
    assert found.all()
    np.testing.assert_allclose(back, z, atol=1e-6)


def test_a_node_that_is_said_to_be_found_is_found_beside_one_far_out(x64):
    flow, z = random_map("hierarchy", bent=3.0), base_draws("hierarchy")
    q = FlowDistribution(flow, in_order(z.shape[1]))
    far = volumes(flow, z).y.at[:, NUM_CORE].set(1e14)
    back, found = inverted(q, far)
    error = abs(np.asarray(back - z))
    error[:, NUM_CORE] = 0
    assert np.any(found)
    assert np.all(error[np.asarray(found)] < 1e-6)


@pytest.mark.parametrize(("name", "num_steps"), [("any", 1), ("hierarchy", 2)])
def test_the_density_of_a_point_is_that_of_the_draw(x64, name, num_steps):
    q = random_distribution(name, num_steps)
    x, log_q, z = drawn(q, jr.key(0))
    np.testing.assert_allclose(log_probs(q, x), log_q, atol=1e-8)
    # The same by the full Jacobian of the map and the matrix of the preconditioner.
    full = q.preconditioner.matrix() @ np.asarray(findings(q.flow, z, num_steps).full)
    expected = norm.logpdf(z).sum(1) - np.linalg.slogdet(full)[1]
    np.testing.assert_allclose(log_q, expected, rtol=1e-9)


@pytest.mark.slow
def test_derivatives_of_the_density_are_finite_differences(x64):
    flow, z = random_map("any"), base_draws("any")
    # In whitened coordinates all are of one size, and so are the steps.
    d, step = z.shape[1], 1e-3
    q, x = FlowDistribution(flow, in_order(d)), volumes(flow, z).y[0]

    @compiled
    def derivatives(q, x):
        def twice(x):
            gradient = jax.grad(q.log_prob)(x)
            return gradient, gradient

        return jax.jacfwd(twice, has_aux=True)(x)

    hessian, gradient = derivatives(q, x)
    aside = step * np.stack([np.eye(d), -np.eye(d)])  # (side, coordinate, d)
    pairs = aside[:, None, :, None] + aside[None, :, None]
    values = log_probs(q, x + jnp.asarray(pairs.reshape(-1, d))).reshape(2, 2, d, d)
    bends = (values[0, 0] - values[0, 1] - values[1, 0] + values[1, 1]) / (4 * step**2)
    # The diagonal of `values` has steps of twice the size along one coordinate.
    slopes = np.diagonal(values[0, 0] - values[1, 1]) / (4 * step)
    # Differences are wrong by the square of the step times higher derivatives.
    size = float(abs(hessian).max())
    np.testing.assert_allclose(gradient, slopes, rtol=1e-4, atol=1e-5 * size)
    np.testing.assert_allclose(hessian, bends, rtol=1e-4, atol=1e-5 * size)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-9 * size)
    # The score of the map is this gradient.
    np.testing.assert_allclose(findings(flow, z, 1).score.score[0], gradient, rtol=1e-8, atol=1e-9)


@pytest.mark.slow
def test_the_density_can_be_differentiated_in_the_parameters(x64):
    q = random_distribution("any")
    x, step = drawn(q, jr.key(1))[0][0], 1e-5
    numbers, rest = eqx.partition(q.flow, eqx.is_inexact_array)
    leaves, tree = jax.tree.flatten(numbers)
    rng = np.random.default_rng(0)
    directions = [jnp.asarray(rng.standard_normal(leaf.shape)) for leaf in leaves]

    def shifted(by):
        moved = [leaf + t * v for leaf, v, t in zip(leaves, directions, by, strict=True)]
        return q.with_flow(eqx.combine(jax.tree.unflatten(tree, moved), rest)).log_prob(x)

    moves = jnp.concatenate([jnp.zeros((1, len(leaves))), step * jnp.eye(len(leaves))])
    both = compiled(lambda by: jax.lax.map(jax.value_and_grad(shifted), by))
    after, gradients = both(moves)
    slopes = (after - both(-moves)[0])[1:] / (2 * step)
    np.testing.assert_allclose(gradients[0], slopes, rtol=1e-4, atol=1e-6 * abs(slopes).max())
    assert np.mean(abs(slopes) > 1e-3) > 0.9  # nearly all parameters matter


def test_it_goes_through_jax_as_a_pytree(x64):
    q, other = (random_distribution("any", seed=seed) for seed in (0, 1))
    x = drawn(q, jr.key(1))[0]
    expected = log_probs(q, x), log_probs(other, x)
    leaves, tree = jax.tree.flatten(q)
    again = jax.tree.unflatten(tree, leaves)
    np.testing.assert_array_equal(log_probs(again, x), expected[0])
    both = jax.tree.map(lambda *v: jnp.stack(v), q, other)
    each = compiled(lambda both, x: jax.vmap(lambda q: q.log_prob(x))(both))(both, x)
    np.testing.assert_allclose(each, jnp.stack(expected), rtol=1e-8)


def test_a_network_that_is_added_changes_nothing_before_training(x64):
    flow, z = random_map("hierarchy", width=0), base_draws("hierarchy")
    wider = flow.with_network(8, jr.key(5))
    before, after = volumes(flow, z), volumes(wider, z)
    np.testing.assert_allclose(after.y, before.y, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(after.log_det, before.log_det, rtol=1e-12, atol=1e-12)
    assert wider.numbers_per_draw > flow.numbers_per_draw
    assert wider.dtype == flow.dtype == jnp.float64


def test_a_number_of_steps_that_does_not_divide_the_grid_of_the_core_is_refused():
    q = random_distribution("hierarchy")
    assert q.with_steps(2).num_steps == 2
    for refused in (q.flow.schedule, q.with_steps):
        with pytest.raises(ValueError, match="must divide the grid's 4 steps"):
            refused(3)
