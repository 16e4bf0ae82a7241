"""A Gaussian with the structure of the target, its fit, and the untrained map with its law."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from numpyro_onestep import FlowDistribution
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep.initialise.conditionals import conditionals
from numpyro_onestep.initialise.structured_fit import StructuredFit, fit_structured
from numpyro_onestep.initialise.structured_gaussian import (
    StructuredGaussian,
    independent,
    of_precision,
)
from numpyro_onestep.initialise.structured_start import map_of, placeholder, preconditioner_of
from numpyro_onestep.settings import Settings
from numpyro_onestep.starts import dense_map
from numpyro_onestep.structure.curvature import Curvature, colouring
from numpyro_onestep.structure.structure import Structure, structure_of
from numpyro_onestep.target import Potential
from tests.graphs import (
    chain,
    crossed,
    graph,
    grid,
    hierarchy,
    precision_of,
    series_in_groups,
    side_by_side,
    tree,
)

GRAPHS = {
    "hierarchy": hierarchy(20),
    "tree": tree(8, 2),
    "crossed": crossed(6, 20),
    "chain": chain(40),
    "grid": grid(8),
    "series in groups": series_in_groups([4] * 12),
    "two components": side_by_side(tree(8, 2), chain(20)),
    "independent": graph(10, []),
}
LOG_Z = 3.0


def found(neighbours) -> Structure:
    structure = structure_of(neighbours)
    assert structure is not None
    return structure


def entries_of(matrix, structure: Structure) -> Curvature:
    """The entries of a matrix in the order of x at which a structured one may differ from zero."""
    g = structure.num_core
    ordered = matrix[np.ix_(structure.order, structure.order)]
    rows = np.arange(structure.num_nodes)[:, None]
    return Curvature(
        ordered[:g, :g],
        ordered[g:, :g],
        ordered[g:, g:][rows, structure.parents],
        np.diagonal(ordered)[g:],
    )


def moments(gaussian: StructuredGaussian):
    """Mean and covariance in the order of x: a draw is an affine function of its base draw."""
    d = len(gaussian.loc)
    mean = gaussian.draw(np.zeros((1, d)))[0]
    root = gaussian.draw(np.eye(d)) - mean
    return mean, root.T @ root


@pytest.mark.parametrize("name", GRAPHS)
def test_the_gaussian_of_a_precision_is_the_dense_one(name):
    structure, precision = found(GRAPHS[name]), precision_of(GRAPHS[name])
    d, order = len(precision), structure.order
    rng = np.random.default_rng(1)
    loc, v = rng.standard_normal((2, d))
    gaussian = of_precision(structure, loc[order], entries_of(precision, structure))
    dense = np.linalg.inv(precision)
    size = np.sqrt(np.outer(np.diagonal(dense), np.diagonal(dense)))
    mean, covariance = moments(gaussian)
    np.testing.assert_allclose(mean, loc, rtol=1e-12)
    np.testing.assert_allclose(covariance / size, dense / size, atol=1e-12)
    by_product = np.stack([gaussian.times_covariance(e) for e in np.eye(d)])
    ordered = np.ix_(order, order)
    np.testing.assert_allclose(by_product / size[ordered], (dense / size)[ordered], atol=1e-12)
    entropy = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * dense)[1]
    assert gaussian.entropy == pytest.approx(entropy, abs=1e-9)
    moved, _ = moments(gaussian.moved(v))
    np.testing.assert_allclose(moved[order], loc[order] + v, rtol=1e-12)


def test_independent_coordinates_have_no_correlation():
    structure = found(GRAPHS["tree"])
    d, rng = len(structure.order), np.random.default_rng(0)
    loc, scale = rng.standard_normal(d), np.exp(rng.standard_normal(d))
    gaussian, precision = independent(structure, loc, scale)
    mean, covariance = moments(gaussian)
    np.testing.assert_allclose(mean, loc, rtol=1e-12)
    np.testing.assert_allclose(covariance, np.diag(scale**2), rtol=1e-9, atol=1e-12)
    again, _ = moments(of_precision(structure, gaussian.loc, precision))
    np.testing.assert_allclose(again, loc, rtol=1e-12)


def test_a_matrix_that_is_not_positive_definite_gives_a_gaussian_all_the_same():
    structure, precision = found(GRAPHS["tree"]), precision_of(GRAPHS["tree"])
    precision[5, 5], precision[20, 20], precision[0, 0] = -1.0, 0.0, -3.0
    gaussian = of_precision(structure, np.zeros(27), entries_of(precision, structure))
    _, covariance = moments(gaussian)
    assert np.isfinite(gaussian.entropy)
    scale = np.sqrt(np.diagonal(covariance))
    assert np.all(np.linalg.eigvalsh(covariance / np.outer(scale, scale)) > 0)


def test_a_matrix_that_is_not_a_number_gives_no_error():
    structure, precision = found(GRAPHS["crossed"]), precision_of(GRAPHS["crossed"])
    node = structure.order[-1]
    precision[node, node] = np.nan
    gaussian = of_precision(structure, np.zeros(len(precision)), entries_of(precision, structure))
    assert np.isnan(gaussian.entropy)


def gaussian_target(neighbours, dtype=float):
    """Mean, precision and potential of a Gaussian with a graph and a known evidence."""
    precision = precision_of(neighbours, seed=3)
    d = len(precision)
    loc = 3 * np.random.default_rng(2).standard_normal(d)
    constant = 0.5 * d * np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(precision)[1] - LOG_Z
    at, matrix = jnp.asarray(loc, dtype), jnp.asarray(precision, dtype)

    def energy(x):
        return 0.5 * (x - at) @ (matrix @ (x - at)) + constant

    return loc, precision, Potential.of(energy, None, jnp.zeros(d, dtype))


def exact_elbo(gaussian: StructuredGaussian, loc, precision) -> float:
    """log Z less the divergence of two Gaussians."""
    mean, covariance = moments(gaussian)
    off = mean - loc
    divergence = np.trace(precision @ covariance) - len(loc) + off @ precision @ off
    divergence -= np.linalg.slogdet(precision @ covariance)[1]
    return LOG_Z - 0.5 * divergence


@pytest.mark.parametrize("name", ["tree", "chain"])
def test_a_gaussian_target_is_found(name):
    structure = found(GRAPHS[name])
    loc, precision, potential = gaussian_target(GRAPHS[name])
    d = len(loc)
    fit = fit_structured(potential, structure, np.zeros(d, np.float32), jr.key(0))
    assert fit is not None
    assert LOG_Z - 1e-3 < exact_elbo(fit.gaussian, loc, precision) < LOG_Z + 1e-9
    # The energy of 128 pairs of draws, half of a chi-square of d degrees each.
    assert abs(fit.elbo - LOG_Z) < 4 * np.sqrt(d / 2 / 128)
    # Given the core, neither scales nor slopes change with it.
    known = fit.conditionals
    assert known is not None
    for values in (known.log_precision, known.to_parents):
        np.testing.assert_allclose(values - values.mean(0), 0, atol=2e-3)


SD_OF_LOG = 0.3


def neck(x):
    """log tau, mu, and twenty normals about mu of standard deviation tau; log Z is zero."""
    log_tau, mu, own = x[0], x[1], x[2:]
    z = (own - mu) * jnp.exp(-log_tau)
    unit = jnp.concatenate([(log_tau / SD_OF_LOG)[None], mu[None], z])
    log_scale = jnp.log(SD_OF_LOG) + len(own) * log_tau
    return 0.5 * jnp.sum(unit**2 + jnp.log(2 * jnp.pi)) + log_scale


@pytest.fixture(scope="module", params=[False, True], ids=["any", "normal"])
def of_neck(request) -> StructuredFit:
    structure, start = found(hierarchy(20, 2)), np.zeros(22, np.float32)
    structure = replace(structure, is_normal=request.param)
    fit = fit_structured(Potential.of(neck, None, jnp.zeros(22)), structure, start, jr.key(0))
    assert fit is not None
    return fit


def test_the_nodes_are_known_at_many_values_of_the_core(of_neck):
    # Given the core, a node has the precision exp(-2 log tau) and the mean mu.
    gaussian, known = of_neck.gaussian, of_neck.conditionals
    core = gaussian.loc[:2] + known.core @ gaussian.core_tril.T
    log_tau, mu = core[:, gaussian.structure.order[:2].argsort()].T
    assert np.ptp(log_tau) > 0.5
    assert len(core) == 32
    np.testing.assert_allclose(known.log_precision, np.tile(-2 * log_tau, (20, 1)).T, atol=1e-3)
    np.testing.assert_allclose(known.mean, np.tile(mu, (20, 1)).T, atol=2e-3)


def test_values_of_the_core_without_a_curvature_are_left_out(of_neck):
    def with_cliff(x):  # beyond it U has a value, but no derivative
        return neck(x) + 1e-6 * jnp.sum(jnp.sqrt(jnp.maximum(0.3 - x[0] + 1e-3 * x[2:], 0.0)))

    potential, gaussian = Potential.of(with_cliff, None, jnp.zeros(22)), of_neck.gaussian
    by, rng = colouring(gaussian.structure), np.random.default_rng(0)
    known = conditionals(potential, gaussian, by, rng, np.float32)
    assert known is not None
    core = gaussian.loc[:2] + known.core @ gaussian.core_tril.T
    log_tau = core[:, gaussian.structure.order[:2].argsort()][:, 0]
    assert 8 <= len(core) < 32
    assert log_tau.max() < 0.31
    assert np.isfinite(known.mean).all()
    assert np.isfinite(known.log_precision).all()


def untrained(fit: StructuredFit, width: int = 8, dtype=None) -> FlowDistribution:
    """The untrained map of a fit with its preconditioner, as a run starts from it."""
    key, dtype = jr.key(0), jnp.result_type(float) if dtype is None else dtype
    preconditioner = preconditioner_of(fit, dtype, key)
    core = dense_map(Settings().flow, fit.gaussian.structure.num_core, dtype, key)
    return FlowDistribution(map_of(fit, preconditioner, core, width, key), preconditioner)


def of_target(name: str) -> StructuredFit:
    """The exact Gaussian of a random precision, whose scales do not change with the core."""
    structure = found(GRAPHS[name])
    loc, precision = np.arange(len(structure.order)) / 10, precision_of(GRAPHS[name])
    gaussian = of_precision(structure, loc[structure.order], entries_of(precision, structure))
    return StructuredFit(gaussian, 0.0)


@compiled
def images(q, z):
    return q.transform(z)


@compiled
def log_probs(q, x):
    return q.log_prob(x)


@compiled
def drawn(q, rng_key):
    return q.sample_and_log_prob(rng_key, (2000,))


@pytest.mark.parametrize("name", ["tree", "crossed", "chain"])
def test_the_untrained_map_has_the_law_of_the_gaussian(x64, name):
    fit = of_target(name)
    q, gaussian, structure = untrained(fit), fit.gaussian, fit.gaussian.structure
    mean, covariance = moments(gaussian)
    g, n = structure.num_core, structure.num_nodes
    z = np.random.default_rng(0).standard_normal((50, g + n))
    # Where the core is at its mean, every node is the Gaussian's own; and wherever it is, the
    # nodes' means are.
    at_mean, of_means = z.copy(), z.copy()
    at_mean[:, :g], of_means[:, g:] = 0, 0
    some = np.concatenate([at_mean, of_means])
    x = np.asarray(images(q, jnp.asarray(some)))
    np.testing.assert_allclose(x, gaussian.draw(some), rtol=1e-9, atol=1e-9)
    normal = multivariate_normal(mean, covariance)
    log_q = log_probs(q, jnp.asarray(x[:50]))
    np.testing.assert_allclose(log_q, normal.logpdf(x[:50]), rtol=1e-9)
    # Elsewhere the slopes of the two terms of a node differ by a tilt t.z, t normal of a tenth: a
    # log precision is off by half of its square, and the divergence by its fourth power over 16.
    x, log_q = (np.asarray(v) for v in drawn(q, jr.key(1)))
    ratio = log_q - normal.logpdf(x)
    fourth = 3 * 0.1**4 * g * (g + 2)
    assert abs(ratio.mean()) < 2 * n * fourth / 16 + 4 * ratio.std() / 2000**0.5


def test_the_nodes_of_the_untrained_map_widen_with_the_core(x64, of_neck):
    q, structure = untrained(of_neck), of_neck.gaussian.structure
    g = structure.num_core
    for j in range(g):
        core = jnp.zeros((2, g)).at[:, j].set(jnp.array([-1.0, 1.0]))
        z = jnp.stack([jnp.concatenate([core, jnp.full((2, 20), t)], axis=1) for t in (0.0, 1.0)])
        x = np.asarray(images(q, z))[..., structure.order[g:]]
        narrow, wide = x[1] - x[0]  # the scale of each node on either side
        row = of_neck.gaussian.structure.order[:2].tolist().index(0)
        expected = 2 * of_neck.gaussian.core_tril[row, j]
        np.testing.assert_allclose(np.log(wide / narrow), expected, atol=0.02)
    # So the map is nearer to the target, whose log Z is zero, than the Gaussian.
    x, log_q = drawn(q, jr.key(0))
    gap = np.asarray(log_q + jax.vmap(neck)(x))
    z = np.random.default_rng(0).standard_normal((2000, 22))
    lost = float(jax.vmap(neck)(of_neck.gaussian.draw(z)).mean()) - of_neck.gaussian.entropy
    assert lost > 0.5
    assert gap.mean() < 0.7 * lost


def test_the_preconditioner_has_the_core_and_the_scales_of_the_gaussian(x64):
    fit = of_target("tree")
    structure = fit.gaussian.structure
    g, preconditioner = structure.num_core, preconditioner_of(fit, jnp.float64, jr.key(0))
    _, covariance = moments(fit.gaussian)
    sd = np.sqrt(np.diagonal(covariance))[structure.order]
    # Standard deviations from 128 draws; the largest of 24 normal deviates is below 4.
    assert np.all(abs(np.log(np.asarray(preconditioner.scale) / sd[g:])) < 4 / (2 * 128) ** 0.5)
    matrix = np.asarray(preconditioner.matrix())[structure.order]
    core = covariance[np.ix_(structure.order[:g], structure.order[:g])]
    np.testing.assert_allclose(matrix[:g, :g] @ matrix[:g, :g].T, core, rtol=1e-9)
    np.testing.assert_allclose(matrix[g:, g:], np.diag(preconditioner.scale), rtol=1e-9)
    np.testing.assert_allclose(preconditioner.loc, np.arange(27) / 10, atol=1e-12)


def test_programs_that_are_compiled_ahead_are_those_of_the_fit(of_neck):
    ahead, later = (
        untrained(fit, dtype=jnp.float32)
        for fit in (placeholder(of_neck.gaussian.structure), of_neck)
    )
    assert jax.tree.structure(ahead) == jax.tree.structure(later)
    shapes = [jax.tree.map(lambda v: (v.shape, v.dtype), q) for q in (ahead, later)]
    assert jax.tree.leaves(shapes[0]) == jax.tree.leaves(shapes[1])
