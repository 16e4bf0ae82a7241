import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_onestep import OneStep
from numpyro_onestep.corrections.psis import PSIS
from numpyro_onestep.flow import PreconditionedPotential
from numpyro_onestep.flow.gaussian import GaussianPreconditioner
from numpyro_onestep.mcmc.rejuvenation import change_of_scale, move
from numpyro_onestep.target import Potential
from tests.conftest import QUICK, correlated_gaussian


def preconditioned(function, loc, scale_tril):
    gaussian = GaussianPreconditioner(loc, scale_tril)
    return PreconditionedPotential(Potential.of(function, None, loc), gaussian)


@pytest.mark.slow
def test_exact_draws_stay_exact():
    # Chains that start in the target stay in it at any number of steps: here with a base that is
    # the target's own, so that an error of the acceptance would show in every coordinate.
    target, num = correlated_gaussian(4), 2000
    z = jr.normal(jr.key(0), (num, 4))
    x = target.loc + z @ target.scale_tril.T
    potential = preconditioned(target, target.loc, target.scale_tril)
    moved = move(potential, x, jr.key(1), 20)
    y = np.linalg.solve(np.asarray(target.scale_tril), np.asarray(moved - target.loc).T).T
    assert np.all(np.abs(y.mean(0)) < 4.5 / num**0.5)
    assert np.all(np.abs(np.log(y.std(0))) < 4.5 / (2 * num) ** 0.5)
    # They did move: after 20 steps of about a tenth of the target's length in time 2 or so.
    assert np.all(np.abs(np.corrcoef(y[:, 0], z[:, 0])[0, 1]) < 0.5)


def test_draws_that_lack_a_tail_walk_into_it():
    x = jnp.clip(jr.normal(jr.key(0), (2000, 1)), -1.0)
    potential = preconditioned(lambda x: 0.5 * jnp.sum(x**2), jnp.zeros(1), jnp.eye(1))
    moved = np.asarray(move(potential, x, jr.key(1), 50))
    # A share of 0.159 of the normal lies below -1; the standard error is 0.008.
    assert abs(np.mean(moved < -1) - 0.159) < 0.035


def test_no_draw_leaves_the_finite_density():
    def half_line(x):
        return jnp.where(x[0] > 0, jnp.sum(x), -jnp.inf)

    x = jr.exponential(jr.key(0), (500, 1))
    moved = move(preconditioned(half_line, jnp.zeros(1), jnp.eye(1)), x, jr.key(1), 20)
    assert jnp.all(moved > 0)
    assert jnp.all(jnp.isfinite(moved))


def test_only_a_change_beyond_noise_counts():
    before = jr.normal(jr.key(0), (4000, 3))
    after = jr.normal(jr.key(1), (4000, 3))
    # A change of 0.05 is 3 standard errors of two independent sets of 4000: noise is below it.
    assert change_of_scale(before, after, 4.0) == 0
    wider = change_of_scale(before, after * jnp.array([1.0, 1.2, 1.0]), 4.0)
    np.testing.assert_allclose(wider, np.log(1.2), atol=4 * (1 / 4000) ** 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_rows", "dim", "is_moved"), [(10, 2, True), (60_000, 2, False), (10, 160, False)]
)
def test_draws_move_only_where_that_is_cheap_or_needed(num_rows, dim, is_moved):
    # A gap of 0.03 nats is much for two dimensions, and little for 160.
    rows = jnp.linspace(-1.0, 1.0, num_rows)

    def potential(x):
        return 0.5 * jnp.sum(x**2) + jnp.mean(jnp.cos(rows * x[0]))

    sampler = OneStep(potential_fn=potential, **QUICK | {"num_samples": 1000, "pool_size": 2000})
    sampler.run(jr.key(0), init_params=jnp.zeros(dim))
    result, draws = sampler.result, sampler.settings.draws
    # As if the weights had a tail that is not doubted.
    elbo = result.evidence.log_evidence - 0.03
    evidence = result.evidence._replace(pareto_k=0.4 + 1e-3, num_draws=40_000)
    weighted = result.weighted._replace(evidence=evidence._replace(elbo=elbo))
    corrected = PSIS(draws)(weighted, result.distribution, result.problem.potential, jr.key(1))
    assert bool(corrected.num_rejuvenation_steps) == is_moved
