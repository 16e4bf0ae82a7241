"""Walks that are written by their steps: found, and made as series of running sums."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_onestep import OneStep
from numpyro_onestep.flow.gaussian import StructuredPreconditioner, SummedPreconditioner
from numpyro_onestep.structure.running_sums import Axis, axes_of, running_sums, summable

SHAPES = {"a": (2,), "b": (3, 10), "c": (12,)}
AXES = [Axis("b", 2, (3, 10), 1), Axis("c", 32, (12,), 0, order=2)]
D = 44


def test_sums_and_steps_undo_each_other_and_keep_volumes(x64):
    sums = running_sums(D, AXES)
    steps = np.random.default_rng(0).standard_normal((2, D))
    expected = steps.copy()
    expected[:, 2:32] = np.cumsum(steps[:, 2:32].reshape(2, 3, 10), axis=2).reshape(2, 30)
    expected[:, 32:] = np.cumsum(np.cumsum(steps[:, 32:], axis=1), axis=1)
    np.testing.assert_allclose(sums.sums_of_many(steps), expected, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(sums.sums)(jnp.asarray(steps)), expected, rtol=1e-12)
    np.testing.assert_allclose(sums.steps_of_many(expected), steps, atol=1e-12)
    np.testing.assert_allclose(jax.vmap(sums.steps)(jnp.asarray(expected)), steps, atol=1e-12)
    sign, log_det = jnp.linalg.slogdet(jax.jacfwd(sums.steps)(jnp.asarray(steps[0])))
    np.testing.assert_allclose((sign, log_det), (1, 0), atol=1e-12)


def test_a_gaussian_of_sums_is_undone_and_its_products_are_those_of_matrices(x64):
    rng = np.random.default_rng(3)
    order, scale = rng.permutation(D).astype(np.int32), rng.uniform(0.5, 2, D - 4)
    tril = np.tril(rng.standard_normal((4, 4)), -1) + np.diag(rng.uniform(0.5, 2, 4))
    arrays = rng.standard_normal(D), tril, scale, order, np.argsort(order).astype(np.int32)
    of_sums = StructuredPreconditioner(*(jnp.asarray(v) for v in arrays))
    gaussian = SummedPreconditioner(of_sums, running_sums(D, AXES))
    y, v = (jnp.asarray(rng.standard_normal(D)) for _ in range(2))
    full = jax.jacfwd(gaussian.unwhiten)(y)
    np.testing.assert_allclose(gaussian.whiten(gaussian.unwhiten(y)), y, atol=1e-9)
    np.testing.assert_allclose(gaussian.log_det, jnp.linalg.slogdet(full)[1], rtol=1e-10)
    np.testing.assert_allclose(gaussian.matrix(), full, atol=1e-12)
    np.testing.assert_allclose(gaussian.unwhiten(y), gaussian.loc + full @ y, atol=1e-10)
    np.testing.assert_allclose(gaussian.times_covariance(v), full @ (full.T @ v), atol=1e-9)
    precision = jnp.linalg.inv(full @ full.T)
    np.testing.assert_allclose(gaussian.times_precision(v), precision @ v, rtol=1e-6)
    np.testing.assert_allclose(gaussian.moved(v).unwhiten(y), gaussian.unwhiten(y) + v, atol=1e-9)


def test_sums_along_the_first_of_two_axes():
    axis = next(a for a in axes_of({"a": (3,), "b": (9, 2)}) if (a.name, a.axis) == ("b", 0))
    steps = np.arange(21.0)
    found = running_sums(21, [axis]).sums_of_many(steps)
    np.testing.assert_array_equal(found[:3], steps[:3])
    np.testing.assert_array_equal(found[3:], np.cumsum(steps[3:].reshape(9, 2), axis=0).ravel())


def walks(x):
    """Three walks with a scale, and a level with a slope of random steps."""
    scale, steps, of_slope = jnp.exp(x[0]), x[2:32].reshape(3, 10), x[32:]
    level = x[1] + scale * jnp.cumsum(steps, axis=1)
    trend = jnp.cumsum(jnp.cumsum(of_slope))
    return jnp.sum(x**2) / 2 + jnp.sum(jnp.cosh(level - 1)) + jnp.sum(jnp.cosh(trend))


@pytest.mark.parametrize(
    ("potential", "expected"),
    [
        (walks, {"b": (1, 1), "c": (0, 2)}),
        # Groups are independent as they are, and a regression is dense in sums too.
        (lambda x: jnp.sum(jnp.cosh(jnp.exp(x[0]) * x[1:])), {}),
        (lambda x: jnp.sum(jnp.cosh(jr.normal(jr.key(0), (60, D)) @ x)), {}),
        (lambda x: jnp.sum(x**2) + jnp.where(x[0] > 5, jnp.nan, jnp.nan), {}),
    ],
    ids=["walks", "groups", "regression", "nowhere finite"],
)
def test_steps_of_walks_are_told_from_other_sites(potential, expected):
    start = 0.3 * np.random.default_rng(1).standard_normal(D).astype(np.float32)
    found = summable(potential, start, axes_of(SHAPES), np.random.default_rng(2))
    assert {axis.name: (axis.axis, axis.order) for axis in found} == expected


TIMES = 60
LEVEL = 1 + np.cumsum(0.4 * np.random.default_rng(5).standard_normal(TIMES))
OBSERVED = (LEVEL + 0.5 * np.random.default_rng(6).standard_normal(TIMES)).astype(np.float32)


def level_by_steps(y):
    first = numpyro.sample("first", dist.Normal(0, 2))
    step = numpyro.sample("step", dist.LogNormal(-1, 0.5))
    noise = numpyro.sample("noise", dist.LogNormal(-1, 0.5))
    z = numpyro.sample("z", dist.Normal(0, 1).expand([len(y)]).to_event(1))
    level = numpyro.deterministic("level", first + step * jnp.cumsum(z))
    numpyro.sample("y", dist.Normal(level, noise), obs=y)


def log_evidence_of_level() -> float:
    """By a grid over the two scales; given these the data are normal."""
    grid = np.linspace(-4, 4, 61)
    both = np.minimum.outer(np.arange(1.0, TIMES + 1), np.arange(1.0, TIMES + 1))
    logs = []
    for a in grid:
        step = np.exp(-1 + 0.5 * a)
        for b in grid:
            noise = np.exp(-1 + 0.5 * b)
            covariance = 4 + step**2 * both + noise**2 * np.eye(TIMES)
            factor = np.linalg.cholesky(covariance)
            white = np.linalg.solve(factor, OBSERVED)
            normal = -0.5 * white @ white - np.log(np.diag(factor)).sum()
            normal -= 0.5 * TIMES * np.log(2 * np.pi)
            logs.append(normal - (a**2 + b**2) / 2 - np.log(2 * np.pi))
    largest = max(logs)
    total = np.exp(np.array(logs) - largest).sum() * (grid[1] - grid[0]) ** 2
    return float(largest + np.log(total))


@pytest.fixture(scope="module")
def by_steps() -> OneStep:
    sampler = OneStep(level_by_steps, num_samples=2000, progress_bar=False)
    sampler.run(jr.key(0), OBSERVED)
    return sampler


@pytest.mark.slow
def test_a_walk_by_its_steps_has_the_structure_of_a_series_and_the_exact_evidence(by_steps):
    assert by_steps.structure is not None
    assert str(by_steps.structure) == "3 globals, 1 block of 60 in 6 levels, in running sums of z"
    truth = log_evidence_of_level()
    assert by_steps.elbo <= truth + 0.01
    assert truth - by_steps.elbo < 0.05
    assert abs(by_steps.log_evidence - truth) < 0.02
    # The draws are the model's own sites.
    draws = by_steps.get_samples()
    level = draws["first"][:, None] + draws["step"][:, None] * jnp.cumsum(draws["z"], axis=1)
    np.testing.assert_allclose(draws["level"], level, atol=1e-4)


@pytest.mark.slow
def test_the_density_of_a_draw_is_that_of_the_map_that_made_it(by_steps):
    posterior = by_steps.result.distribution
    z = jr.normal(jr.key(1), (3, posterior.event_shape[0]))
    for one in z:
        image = posterior.transform.image(one)
        full = jax.jacfwd(posterior.transform)(one)
        _, log_det = jnp.linalg.slogdet(full)
        np.testing.assert_allclose(image.log_det, log_det, atol=2e-3)
        np.testing.assert_allclose(posterior.transform.inv(image.x), one, atol=2e-3)


@pytest.mark.slow
def test_a_run_in_running_sums_is_kept(by_steps, tmp_path):
    by_steps.save(tmp_path / "run.onestep")
    again = OneStep.load(tmp_path / "run.onestep", level_by_steps, OBSERVED)
    assert str(again.structure) == str(by_steps.structure)
    for name, draws in by_steps.sample(jr.key(3), 5).items():
        np.testing.assert_array_equal(draws, again.sample(jr.key(3), 5)[name])
