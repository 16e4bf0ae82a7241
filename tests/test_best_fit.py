import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest

from numpyro_onestep.flow import PreconditionedPotential
from numpyro_onestep.flow.base_distribution import standard_normal_log_density
from numpyro_onestep.flow.gaussian import GaussianPreconditioner, LowRankPreconditioner
from numpyro_onestep.initialise.best_fit import best_fit, fit_preconditioner
from numpyro_onestep.initialise.laplace import low_rank_laplace
from numpyro_onestep.target import Potential
from tests.conftest import correlated_gaussian


def fit(function, start, seed=0):
    start = jnp.asarray(start, float)
    return fit_preconditioner(Potential.of(function, None, start), start, jr.key(seed))


@pytest.mark.parametrize("dim", [1, 4])
def test_whitening_is_undone_by_unwhitening_and_its_volume_is_exact(x64, dim):
    target = correlated_gaussian(dim)
    base = GaussianPreconditioner(target.loc, target.scale_tril)
    x = jr.normal(jr.key(0), (dim,))
    np.testing.assert_allclose(base.unwhiten(base.whiten(x)), x, rtol=1e-10)
    expected = jnp.linalg.slogdet(jax.jacfwd(base.unwhiten)(x))[1]
    np.testing.assert_allclose(base.log_det, expected, atol=1e-12)
    both = PreconditionedPotential(Potential.of(target, None, x), base)
    np.testing.assert_allclose(both.whitened(x), -standard_normal_log_density(x) - 3.0, rtol=1e-9)


def test_a_base_of_low_rank_is_undone_and_its_volume_is_exact(x64):
    directions = jnp.linalg.qr(jr.normal(jr.key(1), (6, 2)))[0]
    scale = jnp.logspace(-1, 1, 6)
    base = LowRankPreconditioner(jnp.arange(6.0), scale, directions, jnp.array([-0.9, 8.0]))
    x = jr.normal(jr.key(0), (6,))
    np.testing.assert_allclose(base.unwhiten(base.whiten(x)), x, rtol=1e-10)
    expected = jnp.linalg.slogdet(jax.jacfwd(base.unwhiten)(x))[1]
    np.testing.assert_allclose(base.log_det, expected, atol=1e-12)


@pytest.mark.parametrize("dim", [40, 500])
def test_curvature_of_low_rank_beside_a_diagonal_is_found_without_its_matrix(dim):
    # Three directions stretched by ten, three shrunk by as much, and a scale to each coordinate.
    directions = jnp.linalg.qr(jr.normal(jr.key(dim), (dim, 6)))[0]
    scale = jnp.exp(jr.normal(jr.key(1), (dim,)))
    stretch = jnp.array([9.0, 9.0, 9.0, -0.9, -0.9, -0.9])
    target = LowRankPreconditioner(jnp.ones(dim), scale, directions, stretch)

    def potential(x):
        return 0.5 * jnp.sum(target.whiten(x) ** 2)

    base = low_rank_laplace(Potential.of(potential, None, target.loc), target.loc, jr.key(2))
    # In the base's coordinates the target's own standard deviations run from 0.1 to 10, and the
    # curvature's diagonal alone would leave most of that; with its directions they are near one.
    unwhitened = jax.vmap(lambda e: target.unwhiten(e) - target.loc)(jnp.eye(dim))
    factor = jax.vmap(lambda v: base.whiten(base.loc + v))(unwhitened)
    np.testing.assert_allclose(jnp.linalg.svd(factor, compute_uv=False), 1, atol=0.2)


@pytest.mark.parametrize("seed", range(3))
def test_a_gaussian_target_is_fitted_exactly(seed):
    target = correlated_gaussian(10, seed)
    fitted = fit(target, jnp.zeros(10), seed)
    np.testing.assert_allclose(fitted.elbo, target.log_z, atol=0.01)
    np.testing.assert_allclose(
        fitted.preconditioner.scale_tril,
        target.scale_tril * jnp.sign(jnp.diag(target.scale_tril)),
        atol=0.05,
    )


def test_a_gaussian_target_in_high_dimension_is_fitted_by_its_curvature():
    target = correlated_gaussian(150)
    target = eqx.tree_at(lambda t: t.scale_tril, target, jnp.diag(jnp.logspace(-1, 1, 150)))
    fitted = fit(target, jnp.zeros(150))
    np.testing.assert_allclose(fitted.elbo, target.log_z, atol=0.05)


def test_a_far_and_badly_scaled_start_is_no_obstacle():
    target = correlated_gaussian(5, 1)
    target = eqx.tree_at(lambda t: t.scale_tril, target, jnp.diag(jnp.logspace(-3, 2, 5)))
    fitted = fit(target, 100 * jnp.ones(5))
    np.testing.assert_allclose(fitted.elbo, target.log_z, atol=0.05)


def test_a_mode_at_infinity_does_not_take_the_base_along():
    # Centred hierarchy: the density is unbounded as log tau -> -inf with x = 0.
    def potential(p):
        log_tau, x = p[0], p[1:]
        prior = 0.5 * (log_tau / 1.5) ** 2
        return prior + x.size * log_tau + 0.5 * jnp.sum((x / jnp.exp(log_tau)) ** 2)

    fitted = fit(potential, jnp.ones(6))
    log_z = 0.5 * jnp.log(2 * jnp.pi) + jnp.log(1.5) + 2.5 * jnp.log(2 * jnp.pi)
    assert log_z - 4 < fitted.elbo < log_z + 0.2
    assert jnp.all(jnp.isfinite(fitted.preconditioner.scale_tril))


@pytest.mark.parametrize("centres", [(0.1, 30.1, 29.9), (30.1, 0.1), (29.9, 30.1, 0.0)])
def test_a_start_that_leads_to_a_mode_of_no_mass_is_left_for_a_better_one(centres):
    # A bump of mass e^-8 at zero, and all the rest around thirty.
    def potential(x):
        small = dist.Normal(0, 1).log_prob(x).sum() - 8
        return -jnp.logaddexp(small, dist.Normal(30, 1).log_prob(x).sum())

    starts = [jnp.full(2, centre) for centre in centres]
    fitted = best_fit(Potential.of(potential, None, jnp.zeros(2)), iter(starts), jr.key(0))
    assert abs(fitted.elbo) < 0.01
    np.testing.assert_allclose(fitted.preconditioner.loc, 30, atol=0.1)
    lost = best_fit(Potential.of(potential, None, jnp.zeros(2)), iter([jnp.zeros(2)]), jr.key(0))
    assert lost.elbo < -7


@pytest.mark.slow
def test_a_fit_goes_on_where_no_other_agrees():
    # Two centred effects in each of 120 groups: the first fits end hundreds of nats apart.
    num = 120
    y = 1 + 0.3 * jr.normal(jr.key(1), (2, num))

    def potential(p):
        log_scale, mean, effects = p[:2], p[2:4], p[4:].reshape(2, num)
        prior = 0.5 * jnp.sum(log_scale**2) + jnp.sum(mean**2) / 200
        spread = 0.5 * jnp.sum((effects - mean[:, None]) ** 2 / jnp.exp(2 * log_scale)[:, None])
        seen = jnp.stack([effects[0], effects.sum(0)])
        misfit = 0.5 * jnp.sum((seen - y) ** 2) / 0.3**2 + 2 * num * jnp.log(0.3)
        return prior + spread + num * jnp.sum(log_scale) + misfit

    # 364 can be had.  The first round ends below 305, the next agrees with itself at 61 or 362.
    assert fit(potential, 0.5 * jnp.ones(2 * num + 4)).elbo > 310


def random_intercepts(num_groups: int, seed: int = 0):
    """U of a non-centred hierarchy of normal groups, and its log evidence by quadrature."""
    rng = np.random.default_rng(seed)
    means = 1 + 0.7 * rng.standard_normal(num_groups) + 0.5 * rng.standard_normal(num_groups)
    y = jnp.asarray(means, jnp.float32)  # each group's mean is known to 0.5

    def potential(x):
        mu, log_tau, z = x[0], x[1], x[2:]
        tau = jnp.exp(log_tau)
        prior = dist.Normal(0, 5).log_prob(mu) + dist.HalfNormal(2).log_prob(tau) + log_tau
        effects = dist.Normal(0, 1).log_prob(z).sum()
        return -(prior + effects + dist.Normal(mu + tau * z, 0.5).log_prob(y).sum())

    # Given tau the groups' means are independent normals about mu, which can be integrated out.
    log_tau = np.linspace(np.log(0.3), np.log(1.4), 400)
    tau = np.exp(log_tau)[:, None]
    variance = tau[:, 0] ** 2 + 0.25
    precision = num_groups / variance + 1 / 25
    centre = means.sum() / variance / precision
    logs = -0.5 * num_groups * np.log(2 * np.pi * variance) - 0.5 * (means**2).sum() / variance
    logs += 0.5 * centre**2 * precision - 0.5 * np.log(25 * precision)
    logs += np.log(1 / np.sqrt(2 * np.pi)) - tau[:, 0] ** 2 / 8 + log_tau
    step = log_tau[1] - log_tau[0]
    return potential, float(np.log(np.exp(logs - logs.max()).sum() * step) + logs.max())


@pytest.mark.slow
@pytest.mark.parametrize("num_groups", [200, 600, 2500])
def test_a_hierarchy_of_many_groups_is_fitted_as_one_of_few(num_groups):
    # Laplace's approximation alone is hundreds of nats below.
    potential, log_z = random_intercepts(num_groups)
    start = jnp.zeros(num_groups + 2)
    fit = fit_preconditioner(Potential.of(potential, None, start), start, jr.key(0))
    assert log_z - 2.0 < float(fit.elbo) < log_z + 0.5


@pytest.mark.parametrize("distance", [1e4, 1e5])
def test_a_ridge_is_followed_to_the_mass(distance):
    # Fifty data far from the start: across the ridge, in log sigma, the curvature is large, and
    # along it, in mu, a descent from the start stands still long before the data.
    y = distance + jnp.linspace(-1.7, 1.7, 50)

    def potential(x):
        mu, log_sigma = x
        likelihood = 0.5 * jnp.sum(((y - mu) / jnp.exp(log_sigma)) ** 2) + 50 * log_sigma
        prior = 0.5 * (mu / (10 * distance)) ** 2 + 0.5 * (jnp.exp(log_sigma) / 10) ** 2
        return likelihood + prior

    start = jnp.zeros(2)
    for seed in range(3):
        found = best_fit(Potential.of(potential, None, start), [start], jr.key(seed))
        # The spread of the data is about one.
        np.testing.assert_allclose(found.preconditioner.loc, [distance, 0.0], atol=0.2)
        sd = np.sqrt(np.diag(found.preconditioner.scale_tril @ found.preconditioner.scale_tril.T))
        np.testing.assert_allclose(sd, [1 / 50**0.5, 1 / 100**0.5], rtol=0.1)
