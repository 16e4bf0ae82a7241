"""Distillation of draws that are there already into a sampler with an evidence."""

import math
import pickle

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

from numpyro_onestep import OneStep, OneStepWarning, Settings
from numpyro_onestep.flow import PreconditionedPotential
from numpyro_onestep.flow.base_distribution import NormalMixture, normal_mixture
from numpyro_onestep.given_draws.fit import gaussian_of, in_pieces
from numpyro_onestep.given_draws.unconstrained import given_values
from numpyro_onestep.target import model_target
from numpyro_onestep.training.from_draws import train_on_draws
from tests.conftest import random_flow, unit_gaussian

SD_PRIOR, SD = 3.0, 0.5
Y = np.array([-0.4, 0.9, 1.6, 0.2])


def groups(y):
    """A mean, and a value for each group: all of it is normal."""
    mu = numpyro.sample("mu", dist.Normal(0, SD_PRIOR))
    with numpyro.plate("group", len(y)):
        value = numpyro.sample("value", dist.Normal(mu, 1))
        numpyro.deterministic("twice", 2 * value)
        numpyro.sample("y", dist.Normal(value, SD), obs=y)


def log_evidence() -> float:
    covariance = SD_PRIOR**2 * np.ones((len(Y), len(Y))) + (1 + SD**2) * np.eye(len(Y))
    log_det = np.linalg.slogdet(2 * math.pi * covariance)[1]
    return -0.5 * (Y @ np.linalg.solve(covariance, Y) + log_det)


def posterior() -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of (mu, value) given the data."""
    joint = np.eye(len(Y) + 1) / SD**2
    joint[0, 0] = 1 / SD_PRIOR**2 + len(Y)
    joint[1:, 1:] += np.eye(len(Y))
    joint[0, 1:] = joint[1:, 0] = -1
    covariance = np.linalg.inv(joint)
    return covariance[:, 1:] @ Y / SD**2, covariance


def draws_of_groups(num: int) -> dict[str, np.ndarray]:
    """Draws of a chain: each is correlated by 0.7 with the one before."""
    mean, covariance = posterior()
    rng = np.random.default_rng(0)
    z = rng.standard_normal((num, len(mean)))
    for index in range(1, num):
        z[index] = 0.7 * z[index - 1] + math.sqrt(1 - 0.7**2) * z[index]
    x = mean + z @ np.linalg.cholesky(covariance).T
    return {"mu": x[:, 0], "value": x[:, 1:], "twice": 2 * x[:, 1:]}


@pytest.fixture(scope="module")
def distilled() -> OneStep:
    sampler = OneStep(groups, num_samples=1000, progress_bar=False)
    sampler.distil(jr.key(0), draws_of_groups(2000), Y)
    return sampler


def test_the_evidence_is_bounded_and_exact(distilled):
    # 10,000 nearly even weights know it to a few 1e-4 nats.
    assert abs(distilled.log_evidence - log_evidence()) < 0.01
    assert distilled.elbo < log_evidence() + 4 * distilled.elbo_std_error + 1e-3
    assert distilled.messages == []


def test_given_draws_and_the_samplers_own_agree(distilled):
    found = distilled.result.agreement
    # The gap of the flow is a few 1e-3 nats, and so is the distance of the upper estimate.
    assert abs(found.upper - log_evidence()) < 0.02 + 4 * found.upper_std_error
    assert found.reached_fraction == 1
    assert max(found.new_fraction, found.lost_fraction) < 0.05
    # Of 2000 draws at an autocorrelation of 0.7 some 350 count.
    assert found.shift < 4 / math.sqrt(350)


def test_draws_are_those_of_the_posterior(distilled):
    mean, covariance = posterior()
    mu = np.asarray(distilled.get_samples()["mu"])
    assert abs(mu.mean() - mean[0]) < 5 * math.sqrt(covariance[0, 0] / 1000)
    assert distilled.get_samples()["twice"].shape == (1000, 4)


def test_all_that_works_after_run_works(distilled, tmp_path, capsys):
    distilled.print_summary()
    assert "by given draws" in capsys.readouterr().out
    path = tmp_path / "run.nos"
    distilled.save(path)
    again = OneStep.load(path, groups, Y)
    copy = pickle.loads(pickle.dumps(distilled))
    for other in (again, copy):
        assert other.result.agreement == distilled.result.agreement
        assert other.log_evidence == distilled.log_evidence
    assert distilled.to_inference_data()["posterior"]["value"].shape == (4, 250, 4)
    x, log_q = distilled.get_posterior().sample_and_log_prob(jr.key(1), (4,))
    np.testing.assert_allclose(distilled.get_posterior().log_prob(x), log_q, atol=1e-3)
    assert distilled.sample(jr.key(2), 3)["mu"].shape == (3,)


def _changed(name, index, value):
    def change(draws):
        draws[name] = draws[name].copy()
        draws[name][index] = value

    return change


def _cut(num):
    def change(draws):
        for name in draws:
            draws[name] = draws[name][:num]

    return change


ERRORS = {
    "missing": (lambda draws: draws.pop("value"), "no values of the latent site 'value'"),
    "grouped": (
        lambda draws: draws.update(mu=draws["mu"].reshape(4, -1)),
        r"shape \(4, 50\).*|group_by_chain",
    ),
    "shape": (lambda draws: draws.update(value=draws["value"][:, :3]), "the site's shape"),
    "number": (lambda draws: draws.update(mu=draws["mu"][:100]), "as many draws of every site"),
    "nan": (_changed("value", (3, 1), np.nan), "infinite in 1 of 200 draws, first in draw 3"),
    "outside": (_changed("scale", 7, -1.0), "outside of the site's support in 1 of 200 draws"),
    "few": (_cut(20), "There are 20 draws of 6 unconstrained coordinates"),
    "still": (_changed("mu", slice(None), 1.0), "mu has the same value in all 200 draws"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_draws_that_cannot_be_used_raise_before_training(name):
    def with_scale(y):
        numpyro.sample("scale", dist.HalfNormal(1))
        groups(y)

    draws = draws_of_groups(200) | {"scale": np.random.default_rng(1).uniform(0.1, 1, 200)}
    change, message = ERRORS[name]
    change(draws)
    with pytest.raises(ValueError, match=message):
        OneStep(with_scale, progress_bar=False).distil(jr.key(0), draws, Y)


def test_draws_of_a_potential_are_checked_too():
    sampler = OneStep(potential_fn=lambda x: jnp.sum(x["a"] ** 2), progress_bar=False)
    with pytest.raises(ValueError, match="There are 10 draws"):
        sampler.distil(jr.key(0), {"a": np.random.default_rng(0).standard_normal((10, 2))})


def test_supports_may_depend_on_other_sites():
    def model():
        width = numpyro.sample("width", dist.LogNormal(0, 1))
        numpyro.sample("inside", dist.Uniform(-width, width))
        numpyro.sample("shares", dist.Dirichlet(jnp.ones(3)))
        numpyro.sample("any", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))

    rng = np.random.default_rng(0)
    width = rng.lognormal(size=100)
    draws = {
        "width": width,
        "inside": width * rng.uniform(-1, 1, 100),
        "shares": rng.dirichlet(np.ones(3), 100),
        "any": np.sort(rng.standard_normal((100, 2)), axis=1),
    }
    strategy = numpyro.infer.init_to_uniform
    values = given_values(jr.key(0), model, (), {}, draws, strategy)
    start = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), values)
    _, potential, _ = model_target(jr.key(0), model, (), {}, start, strategy)
    x = np.concatenate([values[name].reshape(100, -1) for name in sorted(values)], axis=1)
    back = jax.vmap(potential.constrain)(jnp.asarray(x))
    for name, value in draws.items():
        np.testing.assert_allclose(back[name], value, rtol=2e-3, atol=2e-3)


CENTRES = np.array([[0.0, 0.0], [8.0, 8.0]])
SHARES = np.array([0.7, 0.3])


def two_modes(x):
    log_normal = -0.5 * jnp.sum((x - CENTRES) ** 2, axis=1) - math.log(2 * math.pi)
    return -jax.nn.logsumexp(jnp.log(SHARES) + log_normal)


def draws_of_modes(shares) -> np.ndarray:
    """Two chains of four in each mode: their shares are not those of the posterior."""
    rng = np.random.default_rng(0)
    which = np.repeat(np.arange(2), (1000 * np.asarray(shares)).astype(int))
    return CENTRES[which] + rng.standard_normal((len(which), 2))


def test_modes_that_the_draws_have_get_their_own_weights():
    sampler = OneStep(potential_fn=two_modes, num_samples=1000, progress_bar=False)
    sampler.distil(jr.key(0), draws_of_modes([0.5, 0.5]))
    assert isinstance(sampler.get_posterior().base, NormalMixture)
    # The draws are half and half, so the weights are 1.4 and 0.6 times the mean: 10,000 of them
    # know the log evidence to 0.004 nats.
    assert abs(sampler.log_evidence) < 0.02
    share = np.mean(np.asarray(sampler.get_samples())[:, 0] > 4)
    assert abs(share - SHARES[1]) < 0.04


def test_draws_that_miss_a_mode_are_warned_of():
    sampler = OneStep(potential_fn=two_modes, num_samples=1000, progress_bar=False)
    with pytest.warns(OneStepWarning, match="a mode that the draws do not reach"):
        sampler.distil(jr.key(0), draws_of_modes([1.0, 0.0]))
    # 10,000 nearly even weights.
    assert abs(sampler.log_evidence - math.log(SHARES[0])) < 0.02


def test_components_that_hang_together_are_one_piece():
    centres = np.array([[-6.0, 0], [-3, 0], [0, 0], [3, 0], [6, 0]])

    def mixture(rows):
        num = len(rows)
        factors = np.repeat(1.3 * np.eye(2)[None], num, 0)
        return normal_mixture(np.full(num, -math.log(num)), centres[rows], factors, np.float32)

    def parted(rows, width):
        # One Gaussian, or two modes at both ends.
        def energy(x):
            near = jnp.abs(jnp.abs(x[0]) - 6.0) if width is None else jnp.abs(x[0]) / width
            return 0.5 * (near**2 + x[1] ** 2)

        return in_pieces(mixture(rows), PreconditionedPotential(energy, unit_gaussian(2)))

    assert not parted([0, 1, 2, 3, 4], None)  # others in between
    assert not parted([0, 4], 6.0)  # a gap of the mixture, which the target does not have
    assert parted([0, 4], None)
    assert not parted([2], None)


def test_a_covariance_from_few_draws_has_an_inverse():
    x = np.random.default_rng(0).standard_normal((60, 40)).astype(np.float32)
    factor = np.asarray(gaussian_of(x).scale_tril, float)
    # The sample covariance has eigenvalues down to (1 - sqrt(40 / 60))^2 = 0.03.
    assert np.linalg.eigvalsh(factor @ factor.T)[0] > 0.2


def test_a_map_trained_on_draws_alone_has_their_distribution():
    rng = np.random.default_rng(0)
    y = (1.5 + 0.5 * rng.standard_normal((2000, 1))).astype(np.float32)
    flow = random_flow(1, jr.key(0), width=64, scale=0.0)
    flow = train_on_draws(flow, y, jr.key(1), Settings(), 600)
    images = np.asarray(jax.vmap(flow)(jnp.asarray(rng.standard_normal((2000, 1)), jnp.float32)))
    # Sixteen steps of Euler's along the exact residual velocity end at a mean of 1.36 and a
    # standard deviation of 0.60.  One step, which began at 0 and 1, is on its way there.
    assert 0.9 < images.mean() < 1.6
    assert 0.35 < images.std() < 0.8
